"""The supernet on given and on chosen paths, the subnets cut out of it, and the trunk that both share."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from fractions import Fraction
from functools import cache, partial

import pytest
import torch
from cattrs import structure
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pam_mobile.budget import Budget, knapsack
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError
from pam_mobile.model.block import DenseBlock, DepthwiseBlock
from pam_mobile.model.presets import PRESETS, Preset, preset
from pam_mobile.model.selection import BudgetEmbedding, PlanningHead, SelectionHead
from pam_mobile.model.subnet import extract, parameter_count
from pam_mobile.model.supernet import Supernet, chooses
from pam_mobile.model.trunk import known_masks
from pam_mobile.model.unit import Unit
from pam_mobile.path import Path

UNITS = 9
NAMES = ("tiny", "tiny+prior", "phone-wide")
MOST = 14
names = st.sampled_from(NAMES)
decisions = st.lists(st.booleans(), min_size=MOST, max_size=MOST)


def _preset(name: str) -> Preset:
    bare, _, prior = name.partition("+")
    return preset(bare, bool(prior))


def _path(net: Supernet, bits: list[bool]) -> Path:
    """The first of the decisions, as many as the network has units."""
    return Path(tuple(bits[: len(net.units)]))


@cache
def _randomised(name: str) -> Supernet:
    """A network in evaluation mode whose statistics and biases are not those of the start, alpha mostly inside (0, 1)."""
    torch.manual_seed(11)
    net = Supernet(_preset(name)).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("bias") and "decoder.head" not in name:
            tensor.normal_(0, 0.05)
        elif name.endswith(("project.weight", "decoder.head.weight")):
            tensor.mul_(10)
    return net


def _inputs(batch: int, height: int = 32, width: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and trimaps of 0, 0.5 and 1, half of it unknown."""
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, height, width, generator=random)
    return image, torch.tensor([0.0, 0.5, 0.5, 1.0])[torch.randint(0, 4, (batch, 1, height, width), generator=random)]


def _seen(trimap: Tensor, alpha: Tensor) -> Tensor:
    return alpha[trimap == 0.5]


# Given paths


@pytest.mark.parametrize("name", NAMES)
def test_the_randomised_network_is_sensitive_to_its_path_image_and_trimap(name: str) -> None:
    """Otherwise the comparisons below would compare constants."""
    net, (image, trimap) = _randomised(name), _inputs(1)
    all_run = Path.all_run(len(net.units))
    with torch.no_grad():
        alpha = _seen(trimap, net(image, trimap, path=all_run))
        assert ((alpha > 0.01) & (alpha < 0.99)).float().mean() > 0.3
        assert (alpha - _seen(trimap, net(1 - image, trimap, path=all_run))).abs().max() > 1e-3
        for unit in range(len(net.units)):
            other = _seen(trimap, net(image, trimap, path=all_run.flip(unit)))
            assert (alpha - other).abs().max() > 1e-4, unit


@settings(max_examples=25)
@given(st.lists(decisions, min_size=1, max_size=4), names, st.integers(0, 1000))
def test_a_batch_with_a_path_per_image_is_the_images_one_by_one(rows: list[list[bool]], name: str, seed: int) -> None:
    net, (image, trimap) = _randomised(name), _inputs(len(rows), seed=seed)
    batch = [_path(net, bits) for bits in rows]
    with torch.no_grad():
        together = net(image, trimap, path=batch)
        single = [net(image[i : i + 1], trimap[i : i + 1], path=path) for i, path in enumerate(batch)]
    torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=2e-5)


def test_one_path_serves_the_whole_batch() -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(2)
    path = Path.parse("101100110")
    with torch.no_grad():
        torch.testing.assert_close(net(image, trimap, path=path), net(image, trimap, path=[path, path]))


@settings(max_examples=10)
@given(decisions, names)
def test_only_what_the_path_says_is_executed(bits: list[bool], name: str) -> None:
    net, (image, trimap) = _randomised(name), _inputs(1)
    path = _path(net, bits)
    assert _executed(net, lambda: net(image, trimap, path=path)) == [(int(bit), int(not bit), 0) for bit in path]


def _executed(net: Supernet, run: object) -> list[tuple[int, int, int]]:
    """How many images went through the blocks, the connect layer and the head of each unit."""
    counts = [[0, 0, 0] for _ in net.units]

    def count(row: list[int], column: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        row[column] += inputs[0].shape[0]

    handles = [
        part.register_forward_pre_hook(partial(count, counts[i], column))
        for i, unit in enumerate(net.units)
        for column, part in enumerate((unit.blocks, unit.connect, unit.head))
    ]
    with torch.no_grad():
        run()  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return [(a, b, c) for a, b, c in counts]


# Chosen paths


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(0, 110))
def test_the_chosen_paths_are_those_executed_and_within_the_budget(batch: int, seed: int, percent: int) -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(batch, seed=seed)
    torch.manual_seed(seed)
    for unit in net.units:
        for weight in unit.head.parameters():
            nn.init.normal_(weight, std=1)
    table = CostTable.of(net.preset, 32, 32)
    macs = table.smallest + table.selection + (table.largest - table.smallest) * percent // 100
    budget = Budget(Fraction(macs), relative=False)
    chosen: list[Path] = []
    executed = _executed(net, lambda: chosen.extend(net.choose(image, trimap, budget)[1]))
    assert len(chosen) == batch
    assert all(table.cost(path) + table.selection <= macs for path in chosen)
    ran = [sum(bits) for bits in zip(*chosen, strict=True)]
    assert executed == [(n, batch - n, batch) for n in ran]
    with torch.no_grad():
        given_paths = net(image, trimap, path=chosen)
        torch.testing.assert_close(net(image, trimap, budget=budget), given_paths, rtol=0, atol=2e-5)


def test_each_image_gets_a_path_of_its_own() -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(8)
    image = image * torch.logspace(-3, 1, 8)[:, None, None, None]
    torch.manual_seed(3)
    for unit in net.units:
        for weight in unit.head.parameters():
            nn.init.normal_(weight, std=1)
    with torch.no_grad():
        together = net.choose(image, trimap, Budget.parse("200%"))[1]
        alone = [net.choose(image[i : i + 1], trimap[i : i + 1], Budget.parse("200%"))[1][0] for i in range(8)]
    assert len(set(together)) > 1
    assert together == alone


@pytest.mark.parametrize("run", [True, False])
def test_the_second_logit_is_the_wish_to_run(run: bool) -> None:
    net = Supernet(preset("tiny")).eval()
    for unit in net.units:
        nn.init.zeros_(unit.head.logits.weight)
        with torch.no_grad():
            unit.head.logits.bias.copy_(torch.tensor([0.0, 1.0] if run else [1.0, 0.0]))
    with torch.no_grad():
        assert net.choose(*_inputs(2), Budget.parse("200%"))[1] == [Path((run,) * UNITS)] * 2


def test_a_budget_below_the_smallest_path_and_its_heads_is_refused() -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(1)
    table = CostTable.of(net.preset, 32, 32)
    with pytest.raises(BudgetError, match="smallest"):
        net(image, trimap, budget=Budget(Fraction(table.smallest + table.selection - 1), relative=False))


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(0, 110))
def test_planned_paths_are_the_best_within_the_budget_and_those_executed(batch: int, seed: int, percent: int) -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(batch, seed=seed)
    torch.manual_seed(seed)
    for weight in net.planning.parameters():
        nn.init.normal_(weight, std=1)
    table = CostTable.of(net.preset, 32, 32)
    macs = table.smallest + table.planning + (table.largest - table.smallest) * percent // 100
    planned: list[Path] = []
    scores: list[list[float]] = []
    handle = net.planning.register_forward_hook(lambda *a: scores.extend((a[2][..., 1] - a[2][..., 0]).tolist()))
    executed = _executed(net, lambda: planned.extend(net.plan(image, trimap, Budget(Fraction(macs), False))[1]))
    handle.remove()
    assert planned == [knapsack(row, table, macs - table.planning) for row in scores]
    ran = [sum(bits) for bits in zip(*planned, strict=True)]
    assert executed == [(n, batch - n, 0) for n in ran]


def test_a_plan_needs_a_budget_for_its_head() -> None:
    net, (image, trimap) = _randomised("tiny"), _inputs(1)
    table = CostTable.of(net.preset, 32, 32)
    with pytest.raises(BudgetError, match="smallest"):
        net.plan(image, trimap, Budget(Fraction(table.smallest + table.planning - 1), False))


# Subnets


@settings(max_examples=10)
@given(decisions, names, st.integers(0, 1000))
def test_a_subnet_computes_what_the_supernet_computes_on_its_path(bits: list[bool], name: str, seed: int) -> None:
    net, (image, trimap) = _randomised(name), _inputs(2, 32, 64, seed)
    path = _path(net, bits)
    subnet = extract(net, path)
    with torch.no_grad():
        torch.testing.assert_close(subnet(image, trimap), net(image, trimap, path=path), rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(decisions, names)
def test_a_subnet_holds_nothing_that_its_path_does_not_use(bits: list[bool], name: str) -> None:
    net = _randomised(name)
    path = _path(net, bits)
    subnet = extract(net, path)
    switches = Unit | SelectionHead | PlanningHead | BudgetEmbedding
    assert not any(isinstance(module, switches) for module in subnet.modules())
    unused = parameter_count(net.embedding) + parameter_count(net.planning)
    for unit, run in zip(net.units, path, strict=True):
        unused += parameter_count(unit.head) + parameter_count(unit.connect if run else unit.blocks)
    assert parameter_count(subnet) == parameter_count(net) - unused
    assert all(isinstance(unit, Unit) for unit in net.units)


def test_a_subnet_is_a_copy() -> None:
    net = _randomised("tiny")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    subnet = extract(net, Path.all_run(UNITS))
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_subnet_has_the_mode_of_its_supernet() -> None:
    for training in (True, False):
        net = Supernet(preset("tiny")).train(training)
        modes = {module.training for module in extract(net, Path.all_bypass(UNITS)).modules()}
        assert modes == {training}


@pytest.mark.parametrize("units", [8, 10, 0])
def test_a_subnet_of_a_path_of_another_network_is_refused(units: int) -> None:
    with pytest.raises(ValueError, match=f"has {units} units, the network has 9"):
        extract(_randomised("tiny"), Path((True,) * units))


# Known pixels and the range of alpha


def test_the_masks_are_exact_for_all_8_bit_trimaps() -> None:
    levels = torch.arange(256)
    fg, bg = known_masks((levels / 255)[None, None, None])
    assert torch.equal(fg[0, 0, 0], (levels >= 170).float())
    assert torch.equal(bg[0, 0, 0], (levels < 85).float())


@settings(max_examples=15)
@given(
    st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0]), st.booleans(), st.booleans(), st.sampled_from([127, 128])
)
def test_known_pixels_are_exact_and_alpha_is_in_range_whatever_the_weights(
    seed: int, scale: float, prior: bool, training: bool, grey: int
) -> None:
    torch.manual_seed(seed)
    net = Supernet(preset("tiny", prior)).train(training)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.net.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(parameter * scale * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
        levels = torch.tensor([0, grey, 255])[torch.randint(0, 3, (2, 1, 64, 64), generator=random)]
        alpha = net(torch.rand(2, 3, 64, 64, generator=random), levels / 255, path=Path.all_run(UNITS))
    assert alpha.isfinite().all()
    assert (alpha[levels == 255] == 1).all()
    assert (alpha[levels == 0] == 0).all()
    if not training:
        assert alpha.min() >= 0
        assert alpha.max() <= 1


@pytest.mark.parametrize(("bias", "clamped"), [(3.0, 1.0), (-3.0, 0.0)])
def test_while_training_a_pixel_beyond_the_range_is_clamped_and_keeps_its_gradient(bias: float, clamped: float) -> None:
    net = Supernet(preset("tiny")).train()
    nn.init.constant_(net.net.decoder.head.bias, bias)
    image, trimap = _inputs(2, 64, 64)
    alpha = _seen(trimap, net(image, trimap, path=Path.all_run(UNITS)))
    torch.testing.assert_close(alpha, torch.full_like(alpha, clamped), rtol=0, atol=1e-6)
    alpha.sum().backward()
    assert net.net.decoder.head.bias.grad == alpha.numel()


def test_without_connect_layers_a_bypassed_unit_only_refines_its_features() -> None:
    net = Supernet(preset("tiny", connect=False))
    assert net.preset.label == "tiny+skip"
    assert not any("connect" in name for name in net.state_dict())
    unit, x = net.units[0], torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(unit(x, [False, False]), unit.attention(x))


# Presets


FINGERPRINTS = {
    "full": "233fcd4ee72d7753",
    "full+prior": "3cfc47ab9eed606c",
    "phone": "3c0735b9086672b2",
    "phone+prior": "619cc19ff855288a",
    "tiny": "79d87f722d03cacc",
    "tiny+prior": "bff27c89a23cbc34",
}
"""Of the tensors' names and shapes in version 0.1.0, whose checkpoints must load for ever; what chooses a path is newer."""


def _fingerprint(numbers: Preset) -> str:
    with torch.device("meta"):
        state = Supernet(numbers).state_dict()
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items() if not chooses(name))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", list(FINGERPRINTS))
def test_the_trunk_of_an_old_preset_has_the_tensors_it_always_had(name: str) -> None:
    assert _fingerprint(_preset(name)) == FINGERPRINTS[name]
    assert _fingerprint(replace(_preset(name), tail_units=(0, 1))) != FINGERPRINTS[name]
    assert _fingerprint(replace(_preset(name), tail_kernel=1)) != FINGERPRINTS[name]


def test_a_preset_written_before_the_tail_was_elastic_is_still_read() -> None:
    written = asdict(preset("phone", prior=True))
    del written["tail_units"], written["tail_kernel"]
    assert structure(written, Preset) == preset("phone", prior=True)
    written = asdict(preset("phone-wide"))
    assert structure(written, Preset) == preset("phone-wide")


def test_the_tail_of_the_wide_preset_is_dense_units_in_the_order_of_execution() -> None:
    net = Supernet(preset("phone-wide"))
    strides = [spec.stride for spec in net.preset.units]
    assert strides == [8, 8, 16, 16, 16, 32, 32, 16, 8, 8, 4, 4, 2, 1]
    kinds = [type(unit.blocks[0]) for unit in net.units]
    assert kinds == [DepthwiseBlock] * 12 + [DenseBlock] * 2
    seen: list[int] = []
    for unit in net.units:
        unit.register_forward_pre_hook(lambda _, args: seen.append(64 // args[0].shape[-1]))
    with torch.no_grad():
        net.eval()(*_inputs(1, 64, 64), path=Path.all_run(len(net.units)))
    assert seen == strides


# Sizes and shapes


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_trunk_works_at_multiples_of_32(name: str) -> None:
    net = Supernet(preset(name, prior=True)).eval()
    for height, width in ((32, 32), (32, 64), (160, 96)):
        image, trimap = _inputs(1, height, width)
        with torch.no_grad():
            alpha = net(image, trimap, path=Path.all_bypass(len(net.units)).flip(0))
        assert alpha.shape == (1, 1, height, width)
        assert _seen(trimap, alpha).unique().numel() > 10


@pytest.mark.parametrize(
    ("image", "trimap", "said"),
    [
        ((1, 3, 33, 32), (1, 1, 33, 32), r"image must be .* multiples of 32, image.shape = \(1, 3, 33, 32\)"),
        ((1, 3, 32, 48), (1, 1, 32, 48), "image must be"),
        ((1, 4, 32, 32), (1, 1, 32, 32), "image must be"),
        ((3, 32, 32), (1, 32, 32), "image must be"),
        ((1, 3, 32, 32), (1, 3, 32, 32), r"trimap must be .* trimap.shape = \(1, 3, 32, 32\)"),
        ((2, 3, 32, 32), (1, 1, 32, 32), "trimap must be"),
        ((1, 3, 32, 32), (1, 1, 64, 32), "trimap must be"),
    ],
)
def test_other_shapes_are_refused_and_shown(image: tuple[int, ...], trimap: tuple[int, ...], said: str) -> None:
    net = _randomised("tiny")
    with pytest.raises(ValueError, match=said):
        net(torch.rand(image), torch.rand(trimap), path=Path.all_run(UNITS))
    with pytest.raises(ValueError, match=said):
        net(torch.rand(image), torch.rand(trimap), budget=Budget.parse("100%"))


@pytest.mark.parametrize(
    "path", [Path.all_run(8), Path.all_run(10), [Path.all_run(9)] * 3, [Path.all_run(9), Path.all_run(8)], []]
)
def test_paths_that_do_not_fit_are_refused(path: Path | list[Path]) -> None:
    with pytest.raises(ValueError, match="path must be one or 2 paths of 9 units"):
        _randomised("tiny")(*_inputs(2), path=path)


def test_either_a_path_or_a_budget_is_needed() -> None:
    net, inputs = _randomised("tiny"), _inputs(1)
    with pytest.raises(ValueError, match="either path or budget"):
        net(*inputs)
    with pytest.raises(ValueError, match="either path or budget"):
        net(*inputs, path=Path.all_run(UNITS), budget=Budget.parse("100%"))


# Gradients


@settings(max_examples=8)
@given(st.lists(decisions, min_size=1, max_size=2), names)
def test_exactly_what_ran_gets_a_gradient(rows: list[list[bool]], name: str) -> None:
    net = Supernet(_preset(name)).train()
    batch = [_path(net, bits) for bits in rows]
    image, trimap = _inputs(2, 64, 64)
    alpha = net(image, trimap, path=batch[0] if len(batch) == 1 else batch)
    (alpha - torch.rand_like(alpha)).square().sum().backward()
    for unit, bits in zip(net.units, zip(*batch, strict=True), strict=True):
        assert {p.grad is not None for p in unit.blocks.parameters()} == {any(bits)}
        assert {p.grad is not None for p in unit.connect.parameters()} == {not all(bits)}
        assert {p.grad is not None for p in unit.attention.parameters()} == {True}
        assert {p.grad is not None for p in unit.head.parameters()} == {False}
    assert net.embedding.rows.weight.grad is None
    inside = {id(p) for unit in net.units for p in unit.parameters()}
    trunk = [p for p in net.net.parameters() if id(p) not in inside]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk)


@pytest.mark.parametrize("name", ["tiny", "phone-wide"])
def test_the_whole_path_reaches_every_block_and_no_connect_layer_or_head(name: str) -> None:
    net = Supernet(preset(name)).train()
    image, trimap = _inputs(2, 64, 64)
    net(image, trimap, path=Path.all_run(len(net.units))).square().sum().backward()
    for unit in net.units:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unit.blocks.parameters() if p.dim() == 4)
        assert all(p.grad is None for part in (unit.connect, unit.head) for p in part.parameters())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_convolutions_read_the_layout_of_the_image(layout: torch.memory_format) -> None:
    """The prior's maps are contiguous; joined with a channels-last image they would cost a copy at every convolution."""
    net, (image, trimap) = _randomised("tiny+prior"), _inputs(2)
    seen: list[bool] = []
    convolution = net.net.encoder.stem[0]
    hook = convolution.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=layout))
    )
    net(image.contiguous(memory_format=layout), trimap, path=Path.all_run(UNITS))
    hook.remove()
    assert seen == [True]
