"""connect as an operator of PyTorch: registered, differentiable, traceable, and forced either way by PAM_KERNELS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from connect_cases import ACTIVATIONS, Case, check_forward, check_gradients, laid_out
from torch import Tensor

pytest.importorskip("triton")
from pam_kernels import Connect, connect
from pam_kernels.connect import op
from pam_kernels.connect.backward import connect_backward
from pam_kernels.connect.reference import connect_backward_reference, connect_reference
from pam_kernels.dispatch import Choice

LAYOUTS = ["contiguous", "channels_last", "sliced", "transposed", "expanded"]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton kernels that ran."""
    from pam_kernels.connect import backward, forward

    names: list[str] = []

    def counted(kernel: Any, *rest: Any) -> None:
        names.append(kernel.fn.__name__)
        launch(kernel, *rest)

    launch = forward.launch
    monkeypatch.setattr(forward, "launch", counted)
    monkeypatch.setattr(backward, "launch", counted)
    return names


@pytest.mark.parametrize(
    ("activation", "layout"),
    [*(("relu", layout) for layout in LAYOUTS), ("gelu", "channels_last"), ("silu", "contiguous")],
)
def test_opcheck(activation: str, layout: str) -> None:
    x, weights, grad = Case(2, 5, 3, 2, 4, activation=activation, layout=layout).tensors()
    inputs = (x.requires_grad_(), *(w.requires_grad_() for w in weights), activation)
    torch.library.opcheck(torch.ops.pam.connect.default, inputs)
    torch.library.opcheck(torch.ops.pam.connect_backward.default, (grad, *(t.detach() for t in inputs[:4]), activation))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradcheck_of_the_kernels_in_float64(
    activation: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    monkeypatch.setattr(op, "choose", lambda *_, **__: Choice("triton", "the test asks for it"))
    x, weights, _ = Case(2, 3, 4, 2, 3, torch.float64, activation).tensors()
    inputs = (x.requires_grad_(), *(w.requires_grad_() for w in weights))
    assert torch.autograd.gradcheck(lambda *t: connect(*t, activation), inputs, fast_mode=True)
    assert set(calls) == {"connect_forward_kernel", "connect_backward_kernel"}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_kernel_and_its_reference_agree_on_the_way_back(activation: str, layout: str) -> None:
    x, weights, grad = Case(2, 5, 3, 2, 4, torch.float64, activation, layout).tensors()
    for got, wanted in zip(
        connect_backward(grad, x, *weights[:3], activation),
        connect_backward_reference(grad, x, *weights[:3], activation),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_makes_one_graph_with_the_same_values(dynamic: bool, calls: list[str]) -> None:
    case = Case(2, 5, 3, 3, 4)
    x, weights, grad = case.tensors()
    inputs = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    compiled = torch.compile(connect, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    y, plain = compiled(*inputs), connect(*inputs)
    assert torch.equal(y, plain)
    for got, wanted in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True):
        assert torch.equal(got, wanted)
    assert calls == ["connect_forward_kernel"] * 2 + ["connect_backward_kernel"] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_products_and_not_the_residual(dtype: torch.dtype, calls: list[str]) -> None:
    case = Case(2, 17, 9, 3, 5, dtype, "gelu")
    x, weights, grad = replace(case, dtype=torch.float32).tensors()
    inputs = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    with torch.autocast("cpu", dtype):
        y = connect(*inputs, "gelu")
        assert y.dtype == connect_reference(*inputs, "gelu").dtype == torch.float32
    gradients = torch.autograd.grad(y, inputs, grad)
    assert [g.dtype for g in gradients] == [torch.float32] * 5
    rounded = [w.detach().to(dtype) if w.dim() == 2 else w.detach() for w in weights]
    check_forward(case, y.detach(), x.detach(), rounded)
    check_gradients(case, gradients, x.detach(), rounded, grad)
    assert calls == ["connect_forward_kernel", "connect_backward_kernel"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_values_and_gradients_of_the_contiguous_one(layout: str, calls: list[str]) -> None:
    x, weights, grad = Case(2, 5, 3, 3, 4).tensors()
    if layout == "expanded":
        x, grad = x[:1].repeat(2, 1, 1, 1), grad[:1].repeat(2, 1, 1, 1)
    results = []
    for images in (x, laid_out(x, layout)):
        inputs = [images.detach().requires_grad_(), *(w.requires_grad_() for w in weights)]
        y = connect(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, laid_out(grad, layout) if images is not x else grad)))
    for got, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, wanted)
    assert results[1][0].is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert len(calls) == 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients(layout: str) -> None:
    _, weights, _ = Case(channels=4, hidden=2).tensors()
    for function in (connect, torch.ops.pam.connect):
        inputs = [laid_out(torch.empty(0, 4, 3, 5), layout).requires_grad_(), *(w.requires_grad_() for w in weights)]
        y = function(*inputs, "relu")
        assert y.shape == (0, 4, 3, 5)
        for gradient, value in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True):
            assert torch.equal(gradient, torch.zeros_like(value))


def test_frozen_weights_cost_no_product() -> None:
    x, weights, grad = Case().tensors()
    y = connect(x.requires_grad_(), *weights)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(y, x, grad)
    assert not {"aten::bmm", "aten::sum"} & {event.key for event in profile.key_averages()}


# What is kept for backward


def _saved(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        function(*inputs)
    return saved


def test_nothing_but_the_inputs_is_saved_for_backward() -> None:
    x, weights, _ = Case(2, 6, 24, 5, 5).tensors()
    inputs = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    given = {t.data_ptr() for t in inputs}
    assert {t.data_ptr() for t in _saved(connect, inputs)} <= given
    hidden = 2 * 24 * 5 * 5
    assert hidden in {t.numel() for t in _saved(connect_reference, inputs)}


# The route


def test_torch_runs_no_kernel_and_triton_runs_nothing_else(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    x, weights, _ = Case().tensors()
    connect(x, *weights)
    assert calls == ["connect_forward_kernel"]
    for mode in ("torch", "auto"):
        monkeypatch.setenv("PAM_KERNELS", mode)
        assert torch.equal(connect(x, *weights), connect_reference(x, *weights))
    assert calls == ["connect_forward_kernel"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", ["connect", "connect_backward"])
def test_each_pass_has_its_own_choice(
    kernel: str, layout: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    case = Case(2, 5, 3, 3, 4, layout=layout)
    x, weights, grad = case.tensors()
    inputs = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    monkeypatch.setattr(op, "choose", lambda name, *_, **__: Choice("triton" if name == kernel else "torch", "test"))
    y = connect(*inputs)
    gradients = torch.autograd.grad(y, inputs, grad)
    check_forward(case, y.detach(), x.detach(), [w.detach() for w in weights])
    check_gradients(case, gradients, x.detach(), [w.detach() for w in weights], grad)
    assert calls == ["connect_forward_kernel" if kernel == "connect" else "connect_backward_kernel"]
    assert {t.data_ptr() for t in _saved(connect, inputs)} <= {t.data_ptr() for t in inputs}


def test_an_exported_connect_layer_is_plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "auto")
    graph = torch.export.export(Connect(4).eval(), (torch.rand(1, 4, 3, 3),)).graph
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in target for target in targets) == 2
    assert not [target for target in targets if "pam" in target]


# Refusals


@pytest.mark.parametrize("shape", [(4,), (2, 4, 1, 1), ()])
def test_a_w1_that_is_no_matrix_is_refused_and_shown(shape: tuple[int, ...]) -> None:
    _, weights, _ = Case(channels=4, hidden=2).tensors()
    with pytest.raises(ValueError, match=r"w1 must be \(M, C\)") as caught:
        connect(torch.rand(1, 4, 2, 2), torch.rand(shape), *weights[1:])
    assert str(shape) in str(caught.value)


def test_mixed_dtypes_outside_autocast_are_refused() -> None:
    x, weights, _ = Case().tensors()
    with pytest.raises(ValueError, match="share a dtype outside autocast"):
        connect(x.half(), *weights)
