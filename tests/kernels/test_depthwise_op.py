"""The depthwise operator as PyTorch sees it: registration, gradients, compilation, autocast, empty and mixed inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from depthwise_cases import Case, check, run
from torch import Tensor, nn

from pam_kernels import DepthwiseConv2d, depthwise_conv2d, dispatch
from pam_kernels.depthwise import op
from pam_kernels.dispatch import Choice


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")


def _tensors(dtype: torch.dtype = torch.float32, k: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = torch.randn(2, 2, 5, 6).to(dtype), torch.randn(2, 1, k, k).to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(2, requires_grad=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(stride: int, layout: torch.memory_format) -> None:
    x, weight, bias = _tensors()
    x = x.detach().to(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.pam.depthwise_conv2d.default, (x, weight, bias, stride))


def test_opcheck_of_the_gradients() -> None:
    x, weight, _ = (v.detach() for v in _tensors())
    torch.library.opcheck(torch.ops.pam.depthwise_conv2d_input_grad.default, (x, weight, 9, 12, 2))
    torch.library.opcheck(torch.ops.pam.depthwise_conv2d_weight_grad.default, (x, x, 3, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck_of_the_kernels(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter computes in float64 what a GPU is not asked to: dispatch is overruled."""
    monkeypatch.setattr(op, "_in_torch", lambda *_: False)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def convolve(*inputs: Tensor) -> Tensor:
        return torch.ops.pam.depthwise_conv2d(*inputs, stride)

    assert torch.autograd.gradcheck(convolve, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(dynamic: bool) -> None:
    module = DepthwiseConv2d(2, 3, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = torch.randn(2, 2, 5, 6, requires_grad=True)
    for function in (module, compiled):
        module.zero_grad()
        x.grad = None
        y = function(x)
        y.square().sum().backward()
        results = [y.detach(), x.grad, module.weight.grad, module.bias.grad]
        if function is module:
            expected = results
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_export_holds_the_convolution_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAM_KERNELS")
    program = torch.export.export(DepthwiseConv2d(2, 3), (torch.randn(1, 2, 5, 5),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]


def test_autocast_multiplies_in_its_dtype_and_returns_gradients_in_theirs() -> None:
    x, weight, bias = _tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert [v.grad.dtype for v in (x, weight, bias) if v.grad is not None] == [torch.float32] * 3
    lower = depthwise_conv2d(x.bfloat16(), weight.bfloat16(), bias)
    assert torch.equal(y, lower)


def test_mixed_dtypes_are_refused_outside_autocast() -> None:
    with pytest.raises(ValueError, match=r"share a dtype outside autocast: torch\.bfloat16, torch\.float32"):
        depthwise_conv2d(torch.rand(1, 2, 4, 4).bfloat16(), torch.rand(2, 1, 3, 3))


def test_the_ops_bear_an_empty_batch() -> None:
    x, weight = torch.empty(0, 3, 5, 7, requires_grad=True), torch.randn(3, 1, 3, 3, requires_grad=True)
    for function in (depthwise_conv2d, torch.ops.pam.depthwise_conv2d):
        y = function(x, weight, None, 2)
        assert y.shape == (0, 3, 3, 4)
        dx, dw = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.shape == x.shape
        assert torch.equal(dw, torch.zeros_like(weight))
    empty = torch.empty(0, 3, 5, 7)
    assert torch.ops.pam.depthwise_conv2d_input_grad(empty, weight, 9, 13, 2).shape == (0, 3, 9, 13)
    dw = torch.ops.pam.depthwise_conv2d_weight_grad(empty, empty, 3, 1)
    assert torch.equal(dw, torch.zeros(3, 1, 3, 3))


@pytest.mark.parametrize("fast", dispatch.DEPTHWISE)
@pytest.mark.parametrize("stride", [1, 2])
def test_each_pass_has_a_choice_of_its_own(fast: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a card is faster in one pass only, the others run in PyTorch, with the same results."""
    monkeypatch.setattr(op, "choose", lambda name, *_, **__: Choice("triton" if name == fast else "torch", "a test"))
    called = []
    with monkeypatch.context() as patch:
        for module, name in (("forward", "convolve"), ("forward", "input_grad"), ("grad_weight", "weight_grad")):
            _record(patch, f"pam_kernels.depthwise.{module}.{name}", called)
        x, weight, bias, grad = Case(1, 2, 5, 6, 3, stride, torch.float32, kind="integers").tensors()
        leaves = [v.requires_grad_() for v in (x, weight, bias) if v is not None]
        y = depthwise_conv2d(x, weight, bias, stride)
        gradients = torch.autograd.grad(y, leaves, grad)
    assert called == [{"depthwise_conv2d": "convolve"}.get(fast, fast.removeprefix("depthwise_conv2d_"))]
    results = {"y": y.detach()} | dict(zip(("x", "weight", "bias"), gradients, strict=True))
    check(Case(1, 2, 5, 6, 3, stride, torch.float32, kind="integers"), results)


def _record(patch: pytest.MonkeyPatch, path: str, called: list[str]) -> None:
    module, _, name = path.rpartition(".")
    original: Callable[..., Tensor] = getattr(__import__(module, fromlist=[name]), name)

    def recorded(*args: object) -> Tensor:
        called.append(name)
        return original(*args)

    patch.setattr(path, recorded)


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for module, name in (("forward", "input_grad"), ("grad_weight", "weight_grad")):
        _record(monkeypatch, f"pam_kernels.depthwise.{module}.{name}", called)
    x, weight, bias = _tensors()
    depthwise_conv2d(x.detach(), weight.detach(), bias).sum().backward()
    assert called == []
    depthwise_conv2d(x, weight.detach(), bias).sum().backward()
    assert called == ["input_grad"]


def test_a_network_trained_with_the_kernels_follows_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps of a small network with both strides; the losses stay together."""

    def losses() -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(DepthwiseConv2d(1, 3), nn.ReLU(), DepthwiseConv2d(1, 3, 2))
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        x, target = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 4, 4)
        values = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = (net(x) - target).square().mean()
            loss.backward()
            optimiser.step()
            values.append(loss.item())
        return values

    kernels = losses()
    monkeypatch.setenv("PAM_KERNELS", "torch")
    reference = losses()
    assert reference[-1] < 0.8 * reference[0]
    torch.testing.assert_close(kernels, reference, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 3), (2, 1, 3, 3, 1)])
def test_a_weight_without_four_dimensions_is_shown(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight must be \(C, 1, k, k\)") as caught:
        depthwise_conv2d(torch.rand(1, 3, 8, 8), torch.rand(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1)])
def test_a_bias_that_does_not_fit_is_shown(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"bias must be \(3,\)") as caught:
        depthwise_conv2d(torch.rand(1, 3, 8, 8), torch.rand(3, 1, 3, 3), torch.rand(shape))
    assert str(shape) in str(caught.value)


def test_the_kernels_run_where_they_are_asked_for() -> None:
    """Else every test of this folder would compare PyTorch with itself."""
    check(Case(1, 1, 3, 4, 3), run(Case(1, 1, 3, 4, 3)))
    assert dispatch.choose("depthwise_conv2d", torch.rand(1, 1, 3, 4), kernel=3).implementation == "triton"
