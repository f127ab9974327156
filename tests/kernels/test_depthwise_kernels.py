"""The depthwise kernels in Triton's interpreter: random cases against the derived bounds, and properties of their own."""

from __future__ import annotations

import pytest
import torch
from depthwise_cases import Case, check, guarded_results, run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shares import PERCENT, TOTAL
from shares import cases as share

from pam_kernels import depthwise_conv2d
from pam_kernels.depthwise.configs import Direct, Hankel, Toeplitz


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")


sides = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20])
shared = {
    "images": st.sampled_from([1, 1, 1, 2, 3]),
    "channels": st.sampled_from([1, 1, 2, 3]),
    "stride": st.sampled_from([1, 2]),
    "bias": st.booleans(),
    "layout": st.sampled_from(["guarded", "channels_last", "sliced", "transposed", "expanded"]),
    "kind": st.sampled_from(["normal", "integers", "impulse", "offset"]),
    "seed": st.integers(0, 2**31),
}
tensor_core_cases = st.builds(
    Case,
    height=sides,
    width=st.sampled_from([1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40]),
    k=st.integers(3, 15).map(lambda half: 2 * half + 1),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    **shared,
)
direct_cases = st.builds(
    Case,
    height=sides,
    width=st.sampled_from([1, 2, 3, 7, 31, 63, 64, 65]),
    k=st.sampled_from([3, 3, 3, 5, 5, 7]),
    dtype=st.just(torch.float32),
    **shared,
) | st.builds(
    Case,
    height=sides,
    width=sides,
    k=st.sampled_from([3, 5]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    **shared,
)


@settings(max_examples=share("tensor cores"))
@given(tensor_core_cases)
def test_tensor_core_results_are_exact_up_to_rounding(case: Case) -> None:
    check(case)


@settings(max_examples=share("direct"))
@given(direct_cases)
@example(Case(1, 1, 3, 5, 31, 1, torch.float32))
@example(Case(1, 1, 4, 6, 13, 2, torch.float32, kind="integers"))
def test_direct_results_are_exact_up_to_rounding(case: Case) -> None:
    check(case)


def test_all_together_the_random_cases_are_as_many_as_asked_for() -> None:
    assert sum(map(share, PERCENT)) >= TOTAL


@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_two_runs_agree_bit_for_bit(k: int, stride: int) -> None:
    case = Case(k=k, stride=stride)
    first, second = run(case), run(case)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("k", [5, 13])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_are_adjoint_to_the_convolution(k: int, stride: int) -> None:
    """<g, conv(x)> = <dx, x> = <dW, W>, exactly: all values are small integers."""
    x = torch.randint(-1, 2, (2, 2, 9, 18)).bfloat16().requires_grad_()
    weight = torch.randint(-1, 2, (2, 1, k, k)).bfloat16().requires_grad_()
    y = depthwise_conv2d(x, weight, None, stride)
    grad = torch.randint(-1, 2, y.shape).bfloat16()
    dx, dw = torch.autograd.grad(y, (x, weight), grad)
    product = (grad.double() * y.double()).sum()
    assert product == (dx.double() * x.double()).sum()
    assert product == (dw.double() * weight.double()).sum()


@pytest.mark.parametrize(
    "config",
    [
        Direct(2, 4, 16, 4),
        Direct(8, 2, 32, 4),
        Toeplitz(2, 16, 16, 4, 1),
        Toeplitz(8, 16, 16, 4, 1),
        Toeplitz(4, 32, 16, 4, 1),
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_block_sizes_change_no_result(config: Direct | Toeplitz, stride: int) -> None:
    from pam_kernels.depthwise.forward import convolve, input_grad

    case = Case(1, 1, 9, 19, 7, stride, kind="integers")
    x, weight, bias, grad = case.tensors()
    results = run(case)
    with guarded_results():
        assert torch.equal(convolve(x, weight, bias, stride, config), results["y"])
        assert torch.equal(input_grad(grad, weight, 9, 19, stride, config), results["x"])


@pytest.mark.parametrize("config", [Hankel(1, 16, 4), Hankel(4, 32, 4), Hankel(64, 64, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_splits_change_no_weight_gradient(config: Hankel, stride: int) -> None:
    from pam_kernels.depthwise.grad_weight import weight_grad

    case = Case(2, 1, 9, 19, 7, stride, kind="integers")
    x, _, _, grad = case.tensors()
    with guarded_results():
        result = weight_grad(grad, x, 7, stride, config)
    assert torch.equal(result.bfloat16(), run(case)["weight"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, on inf - inf
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("inf"), torch.float32), (-float("inf"), torch.bfloat16), (float("nan"), torch.bfloat16)],
)
def test_what_is_not_finite_stays_near(value: float, dtype: torch.dtype) -> None:
    """Direct kernels spread it as far as the taps reach; tensor cores over the tiles that read it, never to another plane."""
    k, (row, column) = 7, (12, 70)
    x = torch.randn(2, 1, 24, 140).to(dtype)
    weight = (torch.rand(1, 1, k, k) + 0.5).to(dtype)
    clean = depthwise_conv2d(x, weight)
    x[1, 0, row, column] = value
    y = depthwise_conv2d(x, weight)
    reached = torch.zeros_like(y, dtype=torch.bool)
    reached[1, 0, row - 3 : row + 4, column - 3 : column + 4] = True
    assert not y[reached].isfinite().any()
    near = reached.clone()
    if dtype == torch.bfloat16:
        near[1, 0, row - 3 - 8 : row + 4 + 8, column - 64 : column + 65] = True
    assert torch.equal(y[~near], clean[~near])
