"""The Triton kernels of the connect layer, in Triton's interpreter: values, gradients, memory, determinism.

PAM_KERNEL_CASES=5000 makes the long run of both operators' kernels.
"""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch
from connect_cases import ACTIVATIONS, Case, check_forward, check_gradients, laid_out
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shares import cases as share
from torch import Tensor

pytest.importorskip("triton")
from pam_kernels.connect.backward import connect_backward, connect_backward_kernel
from pam_kernels.connect.configs import TABLE, Config
from pam_kernels.connect.forward import connect_forward, connect_forward_kernel, launch

cases = st.builds(
    Case,
    images=st.integers(1, 3),
    channels=st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33])),
    hidden=st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33])),
    height=st.integers(1, 9),
    width=st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 40])),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "expanded"]),
    kind=st.sampled_from(["normal", "normal", "offset"]),
    seed=st.integers(0, 2**31),
)

SMALL = Config(channels=16, hidden=16, pixels=16, warps=4, stages=1)
EXAMPLES = [
    Case(1, 1, 1, 1, 1),
    Case(2, 17, 33, 1, 65, torch.bfloat16),
    Case(1, 33, 17, 4, 16, torch.float16, "gelu", "channels_last"),
]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")


def _run(case: Case) -> tuple[Tensor, tuple[Tensor, ...], Tensor, list[Tensor], Tensor]:
    """y, gradients, x, weights, grad of the custom op."""
    x, weights, grad = case.tensors()
    inputs = [t.requires_grad_() for t in (x.detach(), *weights)]
    y = torch.ops.pam.connect(*inputs, case.activation)
    gradients = torch.autograd.grad(y, inputs, grad)
    return y.detach(), gradients, x.detach(), [w.detach() for w in weights], grad


@settings(max_examples=share("connect"))
@given(cases)
@example(EXAMPLES[0])
@example(EXAMPLES[1])
@example(EXAMPLES[2])
def test_values_and_gradients_are_those_of_float64_within_their_rounding_errors(case: Case) -> None:
    y, gradients, x, weights, grad = _run(case)
    check_forward(case, y, x, weights)
    check_gradients(case, gradients, x, weights, grad)


@settings(max_examples=share("connect on integers"))
@given(cases)
def test_integers_come_out_exactly(case: Case) -> None:
    case = replace(case, kind="integers", dtype=torch.float32, activation="relu")
    y, gradients, x, weights, grad = _run(case)
    inputs = [t.double().requires_grad_() for t in (x, *weights)]
    exact = _plain(*inputs)
    assert torch.equal(y.double(), exact)
    for got, wanted in zip(gradients, torch.autograd.grad(exact, inputs, grad.double()), strict=True):
        assert torch.equal(got.double(), wanted)


def _plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    h = torch.einsum("mc,nchw->nmhw", w1, x) + b1[:, None, None]
    return x + torch.einsum("cm,nmhw->nchw", w2, h.relu()) + b2[:, None, None]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [64, 96, 128, 144, 192, 224, 256, 312, 512])
def test_every_channel_count_of_the_networks(channels: int, layout: str) -> None:
    dtype = torch.float32 if layout == "channels_last" and channels in (96, 224) else torch.bfloat16
    case = Case(1, channels, channels // 2, 3, 7, dtype, "gelu", layout)
    y, gradients, x, weights, grad = _run(case)
    check_forward(case, y, x, weights)
    check_gradients(case, gradients, x, weights, grad)


# The configuration does not show


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_size_of_the_pixel_block_does_not_change_a_bit(kernel: str) -> None:
    case = Case(2, 20, 18, 5, 11, torch.bfloat16, "gelu")
    results = [_direct(case, kernel, replace(SMALL, pixels=pixels)) for pixels in (16, 32, 128)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("config", sorted({c for rows in TABLE.values() for _, c in rows}, key=str), ids=str)
def test_every_configuration_is_exact_on_integers(config: Config) -> None:
    case = Case(2, config.channels + 3, config.hidden + 5, 1, config.pixels + 7, kind="integers")
    x, weights, grad = case.tensors()
    assert torch.equal(connect_forward(x, *weights, "relu", config), _plain(x, *weights))
    dx, a, d = connect_backward(grad, x, *weights[:3], "relu", config)
    h = torch.einsum("mc,nchw->nmhw", weights[0], x) + weights[1][:, None, None]
    da = torch.einsum("cm,nchw->nmhw", weights[2], grad)
    assert torch.equal(a, h.relu())
    assert torch.equal(d, da * (h > 0))
    assert torch.equal(dx, grad + torch.einsum("mc,nmhw->nchw", weights[0], d))


def test_every_configuration_is_compiled_by_the_gate() -> None:
    from pam_kernels.connect.builds import builds

    built = {
        (b.constants["C"], b.constants["BC"], b.constants["BM"], b.constants["BP"], b.warps, b.stages) for b in builds()
    }
    assert built == {(channels, *astuple(config)) for rows in TABLE.values() for channels, config in rows}


def _direct(case: Case, kernel: str, config: Config) -> tuple[Tensor, ...]:
    x, weights, grad = case.tensors()
    if kernel == "forward":
        return (connect_forward(x, *weights, case.activation, config),)
    return connect_backward(grad, x, *weights[:3], case.activation, config)


# Memory


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("channels", "hidden", "width"), [(16, 16, 16), (17, 15, 31), (5, 33, 3)])
def test_nothing_is_read_or_written_outside_the_tensors(channels: int, hidden: int, width: int, layout: str) -> None:
    case = Case(2, channels, hidden, 3, width, torch.bfloat16, layout=layout)
    x, weights, grad = case.tensors()
    a = torch.empty((2, hidden, 3, width), dtype=case.dtype)
    inputs = [_Guarded(t) for t in (x, *weights, grad)]
    outputs = [_Guarded(laid_out(t, layout), fill=float("nan")) for t in (x, x, a, a)]
    gx, w1, b1, w2, b2, g = (t.tensor for t in inputs)
    y, dx, a, d = (t.tensor for t in outputs)
    launch(connect_forward_kernel, (gx, w1, b1, w2, b2, y), "relu", SMALL)
    launch(connect_backward_kernel, (gx, w1, b1, w2, g, dx, a, d), "relu", SMALL)
    check_forward(case, y, x, weights)
    for part in (*inputs, *outputs):
        assert not part.tensor.isnan().any()
        assert part.intact()


class _Guarded:
    """A copy of a dense tensor with 4096 NaN on either side of it."""

    BAND = 4096

    def __init__(self, tensor: Tensor, fill: float | None = None) -> None:
        self.buffer = torch.full((tensor.numel() + 2 * self.BAND,), float("nan"), dtype=tensor.dtype)
        self.tensor = self.buffer.as_strided(tensor.shape, tensor.stride(), self.BAND)
        self.tensor.copy_(tensor if fill is None else torch.full_like(tensor, fill))

    def intact(self) -> bool:
        return bool(self.buffer[: self.BAND].isnan().all() and self.buffer[-self.BAND :].isnan().all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_bad_pixel_stays_alone(activation: str, bad: float) -> None:
    x, weights, grad = Case(2, 5, 3, 4, 9, activation=activation).tensors()
    for where in (x, grad):
        kept = where[1, 2, 1, 4].item()
        where[1, 2, 1, 4] = bad
        y = connect_forward(x, *weights, activation)
        dx = connect_backward(grad, x, *weights[:3], activation)[0]
        for result, reached in ((y, where is x), (dx, where is grad)):
            finite = result.isfinite().all(1)
            assert not reached or not result[1, 2, 1, 4].isfinite()
            finite[1, 1, 4] = True
            assert finite.all()
        where[1, 2, 1, 4] = kept


def test_two_runs_agree_bit_for_bit() -> None:
    case = Case(2, 20, 18, 5, 11, torch.bfloat16, "gelu")
    first, again = _run(case), _run(case)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_gradient_is_the_adjoint(layout: str) -> None:
    """Without an activation y is linear but for the biases: <grad, y(x) - y(0)> = <dx, x>, exactly so on integers."""
    case = Case(2, 6, 5, 3, 8, activation="identity", layout=layout, kind="integers")
    y, (dx, *_), x, weights, grad = _run(case)
    at_zero = torch.ops.pam.connect(torch.zeros_like(x), *weights, "identity")
    assert (grad * (y - at_zero)).sum() == (dx * x).sum()
