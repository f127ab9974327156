"""The .pte: the colour prior inside, nothing left outside the delegate, and the rewrites that make it so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from export_samples import PTE, SIZE, alphas_of, single
from torch import Tensor, nn

from pam_export import RECIPES, executorch
from pam_export.artifact import Part, Request
from pam_export.parity import Gate, cases, compare, reference
from pam_export.plain import PlainConnect, plain
from pam_export.quiet import quiet
from pam_export.rewrite import (
    MAX_TAPS,
    SplitDepthwise,
    columns_and_rows,
    fold_batch_norm,
    for_xnnpack,
    means_in_steps,
    split_depthwise,
    split_single_channel,
    windows,
)
from pam_export.wrapper import network_of, wrap
from pam_kernels import Connect, DepthwiseConv2d
from pam_mobile.errors import IntegrityError
from pam_mobile.files import sha256
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path


class Large(nn.Module):
    """Three large depthwise convolutions, the first with batch norm; two inputs as exporters want them."""

    def __init__(self, kernels: tuple[int, ...] = (7, 9, 13)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(DepthwiseConv2d(4, k) for k in kernels)
        self.first = nn.Sequential(DepthwiseConv2d(4, 7, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        x = self.first(torch.cat([image, trimap], 1))
        for conv in self.convs:
            x = conv(x)
        return 1 - x[:, 1:2] * 0.5


def test_the_colour_prior_is_inside_and_equal(prior_supernet: Supernet, tmp_path: FilePath) -> None:
    network = network_of(prior_supernet, Path.parse("010"))
    inputs = cases(SIZE)
    backend = executorch.build(single(wrap(network), inputs[0].inputs()), tmp_path / "prior.pte", {"path": "010"})
    assert (backend["leftovers"], backend["delegates"]) == (0, 1)
    alphas = alphas_of(executorch.load, tmp_path / "prior.pte", inputs)
    wanted = reference(network, inputs)
    parity = compare(wanted, alphas, RECIPES[PTE].gate)
    assert parity.passed, str(parity)
    other = reference(network_of(prior_supernet, Path.parse("111")), inputs)
    assert not compare(other, alphas, RECIPES[PTE].gate).passed


NAMES = {"b100_64x64": ("111", 64), "b096_64x64": ("000", 64), "b097_32x32": ("010", 32)}
FACTS = {"macs": (30, 10, 20), "budgets": "100%,96%,97.5%", "largest": 10**12}
FACTS_AS_TEXT = {"macs": "30,10,20", "budgets": "100%,96%,97.5%", "largest": "1000000000000"}


@pytest.fixture(scope="module")
def shared(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> tuple[FilePath, dict[str, Any]]:
    """One file for two budgets at 64 pixels and one at 32, and what was said of it."""
    path = tmp_path_factory.mktemp("shared") / "shared.pte"
    parts = [
        Part(name, wrap(network_of(supernet, Path.parse(bits))), cases(size)[0].inputs())
        for name, (bits, size) in NAMES.items()
    ]
    return path, executorch.build(parts, path, FACTS)


def test_every_method_of_a_shared_file_is_its_own_network(
    shared: tuple[FilePath, dict[str, Any]], supernet: Supernet
) -> None:
    path, backend = shared
    assert (backend["leftovers"], backend["delegates"]) == (0, len(NAMES))
    gate = RECIPES[PTE].gate
    for name, (bits, size) in NAMES.items():
        inputs = cases(size)
        alphas = alphas_of(executorch.load, path, inputs, Request(name))
        for other in ("111", "000", "010"):
            wanted = reference(network_of(supernet, Path.parse(other)), inputs)
            assert compare(wanted, alphas, gate).passed == (other == bits), (name, other)


@pytest.mark.parametrize(
    ("build", "gate"), [(executorch.build, RECIPES[PTE].gate), (executorch.build_int8, Gate(None, 1e-2))]
)
def test_a_shared_file_holds_the_colour_prior_once(
    build: Callable[..., dict[str, Any]], gate: Gate, prior_supernet: Supernet, tmp_path: FilePath
) -> None:
    paths, path, inputs = ("111", "010"), tmp_path / "shared.pte", cases(SIZE)[:4]
    networks = [network_of(prior_supernet, Path.parse(bits)) for bits in paths]
    pairs = [case.inputs() for case in inputs]
    parts = [Part(bits, wrap(net), pairs[0], pairs) for bits, net in zip(paths, networks, strict=True)]
    backend = build(parts, path, {})
    assert (backend["leftovers"], backend["delegates"]) == (0, 4)
    with quiet("reading"):
        from executorch.exir._serialize._program import deserialize_pte_binary

        program = deserialize_pte_binary(path.read_bytes()).program
    data = [bytes(delegate.data) for delegate in program.backend_delegate_data]
    first, second = ({data[delegate.processed.index] for delegate in plan.delegates} for plan in program.execution_plan)
    assert (len(first), len(second), len(first & second)) == (2, 2, 1)
    assert path.read_bytes().count((first & second).pop()) == 1
    for bits, net in zip(paths, networks, strict=True):
        alphas = alphas_of(executorch.load, path, inputs, Request(bits))
        own = compare(reference(net, inputs), alphas, gate)
        assert own.passed, str(own)
        other = compare(reference(networks[bits == "111"], inputs), alphas, gate)
        assert other.mean_abs > 2 * own.mean_abs


def test_facts_of_a_shared_file_are_read_without_loading_a_network(
    shared: tuple[FilePath, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    opened = executorch.open_program(shared[0])

    class Watched:
        method_names, metadata = opened.method_names, staticmethod(opened.metadata)

        @staticmethod
        def load_method(name: str) -> Any:
            loaded.append(name)
            return opened.load_method(name)

    monkeypatch.setattr(executorch, "open_program", lambda path: Watched)
    assert executorch.facts(shared[0]) == FACTS_AS_TEXT
    assert set(loaded) == set(FACTS)


def test_a_method_is_loaded_when_it_is_first_asked_for(
    shared: tuple[FilePath, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    opened = executorch.open_program(shared[0])

    class Watched:
        @staticmethod
        def load_method(name: str) -> Any:
            loaded.append(name)
            return opened.load_method(name)

    monkeypatch.setattr(executorch, "open_program", lambda path: Watched)
    run, case = executorch.load(shared[0]), cases(64)[0]
    assert loaded == []
    first = run(case.image, case.trimap, Request("b096_64x64")).alpha
    again = run(case.image, case.trimap, Request("b096_64x64")).alpha
    assert torch.equal(first, again)
    assert loaded == ["b096_64x64"]


def test_a_shared_file_holds_its_weights_once(shared: tuple[FilePath, dict[str, Any]], supernet: Supernet) -> None:
    """Counted in the bytes of the file, where XNNPACK's weights are channels-last and batch norm is folded."""
    data = shared[0].read_bytes()
    convs = [
        m
        for bits in ("111", "000")
        for m in for_xnnpack(wrap(network_of(supernet, Path.parse(bits)))).modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1 and min(m.weight.shape[:2]) > 1
    ]
    found = [data.count(conv.weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes()) for conv in convs]
    assert len(found) > 20
    assert set(found) == {1}


class Unsupported(nn.Module):
    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return F.interpolate(image * trimap, scale_factor=2.0, mode="nearest")


def test_an_operation_outside_the_delegate_is_refused(tmp_path: FilePath) -> None:
    with pytest.raises(
        IntegrityError, match=r"XNNPACK left \d+ operations outside its delegate: .*upsample_nearest2d.vec x1$"
    ):
        executorch.build(single(Unsupported(), cases(32)[0].inputs()), tmp_path / "bad.pte", {})
    assert not (tmp_path / "bad.pte").exists()


@pytest.mark.parametrize("lift", [True, False])
def test_numbers_stay_inside_only_when_they_are_lifted(lift: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lift:
        monkeypatch.setattr(executorch, "lift_scalars", lambda module: module)
    with quiet("lowering"):
        edge = executorch.lower_all({"forward": executorch.exported(Large((5,)), cases(32)[0].inputs())}, {})
    assert bool(executorch.leftovers(edge.exported_program().graph_module.graph)) != lift


@pytest.mark.parametrize("k", [7, 9, 11, 13, 31])
def test_windows_tile_the_kernel_with_at_most_25_taps(k: int) -> None:
    covered = torch.zeros(k, k)
    for a, b, c, d in windows(k):
        assert (b - a) * (d - c) <= MAX_TAPS
        covered[a:b, c:d] += 1
    assert torch.equal(covered, torch.ones(k, k))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [7, 9, 13])
def test_the_split_is_exact(k: int, bias: bool) -> None:
    conv = nn.Conv2d(3, 3, k, padding=k // 2, groups=3, bias=bias).double()
    x = torch.rand(2, 3, 17, 22, dtype=torch.float64)
    split = SplitDepthwise(conv).double()
    assert max(part.kernel_size[0] * part.kernel_size[1] for part in split.parts) <= MAX_TAPS  # type: ignore[union-attr, operator]
    torch.testing.assert_close(split(x), conv(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("k", "channels"), [(3, 12), (3, 2), (5, 8)])
def test_a_convolution_to_one_channel_is_its_columns_and_its_rows(k: int, channels: int, bias: bool) -> None:
    conv = nn.Conv2d(channels, 1, k, padding=k // 2, bias=bias).double()
    x = torch.rand(2, channels, 9, 14, dtype=torch.float64)
    split = columns_and_rows(conv).double()
    torch.testing.assert_close(split(x), conv(x), rtol=0, atol=1e-13)
    split[1].weight.copy_(split[1].weight.flip(1))
    assert (split(x) - conv(x)).abs().mean() > 1e-3, "rows the other way round are another convolution"


def test_only_plain_convolutions_to_one_channel_are_split() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)),
        nn.Conv2d(1, 1, 3, padding=1),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 1, 1),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 1, 3, stride=2, padding=1),
    )
    x = torch.rand(1, 4, 20, 18)
    before = net(x)
    assert split_single_channel(net) == 1
    torch.testing.assert_close(net(x), before)


def test_only_large_plain_depthwise_kernels_are_split() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 7, padding=3),
        nn.Conv2d(4, 4, 7, stride=2, padding=3, groups=4),
        nn.Sequential(DepthwiseConv2d(4, 9)),
    )
    x = torch.rand(1, 4, 20, 18)
    before = net(x)
    assert split_depthwise(net) == 2
    torch.testing.assert_close(net(x), before)


def test_batch_norm_is_folded_into_a_copy() -> None:
    net = Large((5,))
    norm = net.first[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4) + 0.5
    net.eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    inputs = cases(32)[0].inputs()
    rewritten = for_xnnpack(net)
    torch.testing.assert_close(rewritten(*inputs), net(*inputs))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in rewritten.modules())
    assert sum(isinstance(m, SplitDepthwise) for m in rewritten.modules()) == 1
    assert not any(isinstance(m, SplitDepthwise) for m in net.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert fold_batch_norm(net) == 1


def test_split_kernels_keep_one_delegate_and_their_numbers(tmp_path: FilePath) -> None:
    net = Large().eval()
    case = cases(32)[1]
    backend = executorch.build(single(net, case.inputs()), tmp_path / "large.pte", {})
    assert (backend["leftovers"], backend["delegates"]) == (0, 1)
    (got,) = alphas_of(executorch.load, tmp_path / "large.pte", [case])
    torch.testing.assert_close(got, net(*case.inputs()), rtol=0, atol=1e-5)


class Flat(nn.Module):
    """The mean over the pixels, which of a flat image is a pixel's value, as a map."""

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return (image * 0.7).mean((2, 3), keepdim=True) + trimap * 0.0


@pytest.mark.parametrize("steps", [True, False])
def test_the_mean_of_a_flat_image_keeps_its_digits_in_steps(
    steps: bool, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not steps:
        monkeypatch.setattr(executorch, "means_in_steps", lambda module: module)
    inputs = torch.ones(1, 3, 512, 512), torch.ones(1, 1, 512, 512)
    backend = executorch.build(single(Flat(), inputs), tmp_path / "flat.pte", {})
    assert (backend["leftovers"], backend["delegates"]) == (0, 1)
    (got,) = executorch.open_program(tmp_path / "flat.pte").load_method("forward").execute(list(inputs))
    error = float((got.double() - 0.7).abs().max())
    assert error < 1e-6 if steps else error > 1e-5


def test_only_means_over_whole_images_are_taken_in_steps() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.mean((2, 3)), x.mean((-1, -2), keepdim=True), x[..., :36].mean((2, 3)), x.mean(1), x.mean((1, 2))

    x = torch.rand(2, 3, 64, 40)
    graph = torch.export.export(Means(), (x,)).module(check_guards=False)
    for got, expected in zip(means_in_steps(graph)(x), Means()(x), strict=True):
        torch.testing.assert_close(got, expected)
    pooled = [node for node in graph.graph.nodes if node.target == torch.ops.aten.avg_pool2d.default]
    assert len(pooled) == 2, "64 x 40 once for each of the first two, never where a side is no multiple of 8"


def test_the_split_is_for_xnnpack_only() -> None:
    """Core ML's part of the exporter gets the whole kernels."""
    import coremltools as ct

    from pam_export import coreml

    with quiet("converting"):
        model = coreml.convert(wrap(Large((9,)).eval()), cases(32)[0].inputs())
    convolutions = model._mil_program.functions["main"].find_ops(op_type="conv")
    assert sorted(op.inputs["weight"].shape[2:] for op in convolutions) == [(7, 7), (9, 9)]
    assert ct.__version__


@pytest.mark.parametrize("activation", ["relu", "gelu", "identity"])
def test_own_operators_become_plain_layers_with_the_same_numbers(activation: str) -> None:
    net = nn.Sequential(Connect(6, activation), DepthwiseConv2d(6, 5), DepthwiseConv2d(6, 7, stride=2, bias=False))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    x = torch.rand(1, 6, 12, 10)
    rewritten = plain(net)
    torch.testing.assert_close(rewritten(x), net(x))
    assert [type(m) for m in rewritten] == [PlainConnect, nn.Conv2d, nn.Conv2d]  # type: ignore[attr-defined]
    assert isinstance(net[0], Connect)


def digests(folder: FilePath) -> list[str]:
    """SHA-256 of a float32 file of two methods and of an int8 file."""
    torch.manual_seed(0)
    net, pairs = Large((5,)).eval(), [case.inputs() for case in cases(32)[:2]]
    executorch.build([Part(name, net, pairs[0]) for name in ("one", "two")], folder / "fp32.pte", FACTS)
    executorch.build_int8([Part("one", net, pairs[0], pairs)], folder / "int8.pte", FACTS)
    return [sha256(folder / name) for name in ("fp32.pte", "int8.pte")]


def test_another_process_writes_the_same_bytes(tmp_path: FilePath) -> None:
    (tmp_path / "other").mkdir()
    code = "import sys, pathlib, test_export_executorch as t; print(*t.digests(pathlib.Path(sys.argv[1])), sep='\\n')"
    paths = os.pathsep.join([str(FilePath(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-2:] == digests(tmp_path)
