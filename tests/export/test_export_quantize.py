"""int8: what stays in float32 and why, what the rounding is, and that the file is the network it should be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Any, ClassVar

import pytest
import torch
from export_samples import SIZE, alphas_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pam_export import concatenations, executorch, quantize
from pam_export.artifact import FORWARD, Part
from pam_export.parity import Gate as ParityGate
from pam_export.parity import cases, compare, reference
from pam_export.quiet import quiet
from pam_export.rewrite import for_xnnpack
from pam_export.wrapper import network_of, wrap
from pam_mobile.errors import UsageError
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

PATH = Path.parse("011")
LAST, SPOILT = "network.net.decoder.head", "network.net.decoder.units8.0.1.0.depthwise"
JOIN, CROWD = "concatenation before network.net.decoder.squeeze8.0", 50


def prepared(supernet: Supernet) -> nn.Module:
    return for_xnnpack(wrap(network_of(supernet, PATH)))


def pairs(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [case.inputs() for case in cases(SIZE)[:count]]


@torch.no_grad()
def spoil(module: nn.Module) -> nn.Module:
    """Make half of the channels that enter one depthwise convolution a thousand times smaller, and its weights larger by that.

    Folding a batch norm makes such channels; float32 does not mind, the step of the layer's common range does.
    """
    before, conv = module.get_submodule("network.net.decoder.squeeze8.0"), module.get_submodule(SPOILT)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(conv, nn.Conv2d)
    assert before.bias is not None
    before.weight[:8] /= 1000
    before.bias[:8] /= 1000
    conv.weight[:8] *= 1000
    return module


@pytest.fixture(scope="module")
def int8(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> tuple[FilePath, dict[str, Any]]:
    """`mini`, calibrated on the parity inputs."""
    path = tmp_path_factory.mktemp("int8") / "int8.pte"
    part = Part(FORWARD, wrap(network_of(supernet, PATH)), pairs()[0], pairs())
    return path, executorch.build_int8([part], path, {"path": str(PATH)})


def test_an_int8_file_is_its_own_network_and_no_other(
    int8: tuple[FilePath, dict[str, Any]], supernet: Supernet
) -> None:
    inputs = cases(SIZE)[:4]
    alphas = alphas_of(executorch.load, int8[0], inputs)
    near, same = ParityGate(None, 1e-2), ParityGate(None, 1e-6)
    own = compare(reference(network_of(supernet, PATH), inputs), alphas, near)
    assert own.passed, str(own)
    assert own.mean_abs > same.mean_abs, "something was rounded"
    for bits in ("111", "000"):
        other = compare(reference(network_of(supernet, Path.parse(bits)), inputs), alphas, near)
        assert other.mean_abs > 2 * own.mean_abs


def test_nothing_runs_outside_the_delegate_and_the_record_is_complete(int8: tuple[FilePath, dict[str, Any]]) -> None:
    backend = int8[1]
    assert (backend["leftovers"], backend["delegates"]) == (0, 1)
    assert backend["calibration"] == [{"images": 4, "size": SIZE}]
    assert backend["float_layers"][FORWARD][0] == LAST
    assert 0 < backend["simulated_loss"][FORWARD] <= quantize.LIMIT
    assert set(backend["layer_loss"][FORWARD]) >= {"network.net.encoder.stem", "network.net.decoder.level1"}
    assert executorch.facts(int8[0]) == {"path": str(PATH)}


def test_known_pixels_stay_exact(int8: tuple[FilePath, dict[str, Any]]) -> None:
    case = cases(SIZE)[0]
    (alpha,) = alphas_of(executorch.load, int8[0], [case])
    assert torch.equal(alpha[case.trimap == 255], torch.ones(int((case.trimap == 255).sum())))
    assert not alpha[case.trimap == 0].any()


def test_weights_are_int8_but_for_the_prior_the_last_convolution_and_what_is_kept(prior_supernet: Supernet) -> None:
    """Seen in the graph: a convolution is quantised if and only if its weight comes out of a dequantisation."""
    with quiet("quantising"), torch.no_grad():
        found = quantize.quantise(prepared(prior_supernet), pairs()[0], pairs(2), limit=1.0)
    convs = [n for n in found.graph.graph.nodes if n.target == torch.ops.aten.conv2d.default]
    names = {n: list(n.meta["nn_module_stack"].values())[-1][0] for n in convs}
    floats = {names[n] for n in convs if "dequantize" not in str(n.args[1].target)}
    assert floats == {f"{LAST}.0", f"{LAST}.1"}
    assert len(convs) > 30
    prior = [n for n in found.graph.graph.nodes if "network.net.prior" in str(n.meta.get("nn_module_stack"))]
    assert len([n for n in prior if n.op == "call_function"]) > 100
    assert not any("dequantize" in str(source.target) for n in prior for source in n.all_input_nodes)
    blend = [
        n
        for n in found.graph.graph.nodes
        if list((n.meta.get("nn_module_stack") or {0: [""]}).values())[-1][0] == "network.net"
    ]
    assert len([n for n in blend if n.op == "call_function"]) > 8
    assert not any(
        "quantize_per" in str(user.target)
        for n in blend
        for user in n.users
        if n.target == torch.ops.aten.clamp.default
    )


def test_a_layer_that_does_not_stand_it_is_found_and_kept(supernet: Supernet) -> None:
    limit = 0.01
    with torch.no_grad():
        good = quantize.sensitive(prepared(supernet), pairs(2), limit)
        bad = quantize.sensitive(spoil(prepared(supernet)), pairs(2), limit)
        careless = quantize.sensitive(spoil(prepared(supernet)), pairs(2), limit=1.0)
    assert good.floats == careless.floats == ()
    assert bad.floats == (SPOILT,)
    assert max(good.loss, bad.loss) <= limit < careless.loss


class Additive:
    """A simulation in which every layer has a loss of its own."""

    macs: ClassVar = {"dear": 1000, "cheap": 10, "harmless": 1}
    losses: ClassVar = {"dear": 0.006, "cheap": 0.005, "harmless": 0.0001}

    def __init__(self, *given: Any) -> None: ...

    def loss(self, names: Iterable[str]) -> float:
        return sum(self.losses[name] for name in names)


@pytest.mark.parametrize(("limit", "floats"), [(0.02, ()), (0.007, ("cheap",)), (0.001, ("cheap", "dear"))])
def test_what_stays_float_costs_little_and_no_more_than_is_needed(
    limit: float, floats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "Simulation", Additive)
    monkeypatch.setattr(quantize, "groups", lambda module: {f"level of {name}": [name] for name in Additive.macs})
    assert quantize.sensitive(nn.Identity(), [], limit).floats == floats


@torch.no_grad()
def crowd(module: nn.Module) -> nn.Module:
    """Make what the decoder joins with a skip many times larger, and the weights that read it smaller by that.

    float32 does not mind. In int8 the skip takes that tensor's scale, and with it the encoder behind the skip.
    """
    before, after = (module.get_submodule(f"network.net.decoder.{name}.0") for name in ("squeeze16", "squeeze8"))
    skipped = module.get_submodule("network.net.decoder.units16")
    assert len(skipped) == 0, "units would see the larger features"
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.Conv2d)
    assert before.bias is not None
    before.weight *= CROWD
    before.bias *= CROWD
    after.weight[:, : before.out_channels] /= CROWD
    return module


@torch.no_grad()
def rounding_loss(module: nn.Module, limit: float) -> tuple[float, quantize.Quantised]:
    """The mean difference of alpha that the quantised graph makes."""
    inputs = pairs()
    with quiet("quantising"):
        found = quantize.quantise(module, inputs[0], inputs, limit)
        differences = [(found.graph(*pair)[0] - module(*pair)[0]).abs().mean() for pair in inputs]
    return float(torch.stack(differences).mean()), found


def test_a_concatenation_whose_scale_ruins_a_skip_stays_float(
    supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 0.01
    plain, untouched = rounding_loss(prepared(supernet), limit)
    kept, crowded = rounding_loss(crowd(prepared(supernet)), limit)
    assert JOIN in untouched.sensitivity.losses
    assert untouched.sensitivity.floats == ()
    assert JOIN in crowded.sensitivity.floats
    monkeypatch.setattr(concatenations, "losses", lambda *given: [])
    joined, _ = rounding_loss(crowd(prepared(supernet)), limit)
    assert kept < 1.5 * plain
    assert joined > 3 * kept


def test_the_simulation_leaves_the_network_as_it_was(supernet: Supernet) -> None:
    module, inputs = prepared(supernet), pairs(2)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        simulation = quantize.Simulation(module, inputs)
        names = [name for group in quantize.groups(module).values() for name in group]
        assert simulation.loss([]) == 0
        assert simulation.loss(names) > 0
        assert simulation.loss(names) == simulation.loss(names)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_every_convolution_is_in_one_group_or_always_float(prior_supernet: Supernet) -> None:
    module = prepared(prior_supernet)
    grouped = [name for names in quantize.groups(module).values() for name in names]
    convs = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    assert sorted([*grouped, f"{LAST}.0", f"{LAST}.1"]) == sorted(convs)
    assert quantize.always_float(module) == ["network.net.prior", LAST]


@given(seed=st.integers(0, 2**31), channels=st.integers(1, 5), scale=st.floats(1e-3, 1e3))
def test_rounded_weights_lie_on_255_levels_per_channel(seed: int, channels: int, scale: float) -> None:
    weight = scale * torch.randn(channels, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    rounded = quantize.round_per_channel(weight)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert float(levels.abs().max()) <= 127.001
    assert bool(((weight - rounded).abs() <= 0.501 * step).all())
    assert not quantize.round_per_channel(torch.zeros(2, 1, 3, 3)).any()


def test_without_calibration_inputs_it_is_refused(supernet: Supernet, tmp_path: FilePath) -> None:
    part = Part(FORWARD, wrap(network_of(supernet, PATH)), pairs()[0])
    with pytest.raises(UsageError, match="forward has no calibration inputs"):
        executorch.build_int8([part], tmp_path / "no.pte", {})
    assert not list(tmp_path.iterdir())
