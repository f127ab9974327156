"""The interpreter's arithmetic is a GPU's: round to nearest even, exact products, sums in the accumulator's dtype."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pam_kernels.arithmetic import EMU, dot, round_to


@triton.jit
def _round(x, y, N: tl.constexpr, EMU: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, round_to(tl.load(x + i).to(tl.float32), y.dtype.element_ty, EMU))


@triton.jit
def _product(a, b, c, K: tl.constexpr, EMU: tl.constexpr):
    i, k = tl.arange(0, 16), tl.arange(0, K)
    x = tl.load(a + i[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * 16 + i[None, :])
    tl.store(c + i[:, None] * 16 + i[None, :], dot(x, y, tl.zeros((16, 16), c.dtype.element_ty), EMU))


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty(x.numel(), dtype=dtype)
    _round[(1,)](x, y, x.numel(), EMU)
    return y


def test_the_suite_runs_in_the_interpreter() -> None:
    assert EMU


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, on overflow to infinity
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_that_of_torch(dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (2**16,)).to(torch.int32)
    bits[:8] = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 1, -(2**31)])
    x = bits.view(torch.float32)
    x[8:10] = torch.tensor([float("inf"), -float("inf")])
    y = _rounded(x, dtype)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "accumulator"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_dot_rounds_only_its_sums(dtype: torch.dtype, accumulator: torch.dtype) -> None:
    a, b = torch.randn(16, 32).to(dtype), torch.randn(32, 16).to(dtype)
    c = torch.empty(16, 16, dtype=accumulator)
    _product[(1,)](a, b, c, 32, EMU)
    a, b = a.double(), b.double()
    bound = 36 * torch.finfo(accumulator).eps / 2 * (a.abs() @ b.abs())
    assert ((c - a @ b).abs() <= bound).all()


def test_every_bfloat16_widens_exactly_but_for_subnormals() -> None:
    """Those are off by up to 1e-38 in the interpreter, which no bound of this suite notices."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    y = torch.empty(x.numel())
    _round[(1,)](x, y, x.numel(), EMU)
    normal = ~((x.float().abs() < torch.finfo(torch.bfloat16).tiny) & (x != 0))
    torch.testing.assert_close(y[normal], x[normal].float(), rtol=0, atol=0, equal_nan=True)
