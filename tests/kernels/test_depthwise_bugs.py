"""Bugs planted in the depthwise kernels: the suite's own checks must find each of them. And offsets beyond 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mutants
import pytest
import torch
import torch.nn.functional as F
from depthwise_cases import Case, check
from mutants import replace_text
from torch import Tensor

from pam_kernels import arithmetic
from pam_kernels.depthwise import forward, grad_weight, op
from pam_kernels.depthwise.configs import Direct, Hankel, Toeplitz

DIRECT = Case(1, 2, 5, 6, 3, dtype=torch.float32, kind="integers")
TENSOR_CORE = Case(1, 2, 9, 18, 7, kind="integers")


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")


BUGS = {
    "direct: first column is taken for padding": (forward, "(column >= 0) & (column % UP", "(column > 0) & (column % UP", DIRECT),
    "direct: no mask at the right border": (forward, "inside & (column < WI)", "inside", DIRECT),
    "direct: last row is not written": (forward, "(row < HO)", "(row < HO - 1)", DIRECT),
    "direct: taps of the gradient are not reversed": (forward, "if FLIP else tap)).to", "if False else tap)).to", DIRECT),
    "band: one tap too far to the right": (forward, "o % BW * DOWN + P", "o % BW * DOWN + P - 1", TENSOR_CORE),
    "band: taps of the gradient are not reversed": (forward, "if FLIP else tap), mask", "if False else tap), mask", TENSOR_CORE),
    "tensor cores: no mask at the left border": (forward, "valid & (columns >= 0)", "valid", TENSOR_CORE),
    "tensor cores: one input row too few": (forward, "tl.range(0, R, num", "tl.range(0, R - 1, num", TENSOR_CORE),
    "tensor cores: last column is not written": (forward, "(oy < HO) & (ox < WO)", "(oy < HO) & (ox < WO - 1)", TENSOR_CORE),
    "tensor cores: writes below the image": (forward, "& (oy < HO) & (ox < WO)", "& (ox < WO)", TENSOR_CORE),
    "weight gradient: no mask above the last row": (grad_weight, "& (out < HO)", "", TENSOR_CORE),
    "weight gradient: off by a column": (grad_weight, "(j * S - P)", "(j * S - P + 1)", TENSOR_CORE),
    "rounding: truncated": (arithmetic, "bits + 0x7FFF + ((bits >> 16) & 1)", "bits", Case(1, 1, 4, 9)),
    "rounding: ties away from zero": (arithmetic, "0x7FFF + ((bits >> 16) & 1)", "0x8000", Case(1, 1, 9, 18, kind="integers")),
}  # fmt: skip


@pytest.mark.parametrize("case", [DIRECT, TENSOR_CORE, Case(1, 1, 4, 9), Case(1, 1, 9, 18, kind="integers")])
def test_without_a_bug_the_checks_pass(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new, case = BUGS[bug]
    replace_text(monkeypatch, tmp_path, module, {old: new})
    with pytest.raises(AssertionError, match=r"wrong, first at|a kernel wrote"):
        check(case)


def test_a_dropped_bias_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_bias_grad", lambda grad: torch.zeros(grad.shape[1]))
    with pytest.raises(AssertionError, match="bias: 2 of 2 wrong"):
        check(DIRECT)


def test_a_forgotten_bias_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    convolve = forward.convolve
    monkeypatch.setattr(forward, "convolve", lambda x, weight, bias, stride: convolve(x, weight, None, stride))
    with pytest.raises(AssertionError, match="y: "):
        check(TENSOR_CORE)


# Beyond 2^31 elements: image 1 of two, of which only channel 0 is computed. The files are sparse.

CHANNELS, HEIGHT, WIDTH, K = 2**22, 16, 32, 3
PLANE = HEIGHT * WIDTH
FAR = CHANNELS * PLANE
SIZES = (CHANNELS, HEIGHT, WIDTH, HEIGHT, WIDTH)


def _huge(file: Path) -> Tensor:
    """Zeros of which the element FAR starts image 0 and 2 FAR image 1. An offset that wraps to -2^31 leads to element 0."""
    return torch.from_file(str(file), shared=True, size=2 * FAR + PLANE, dtype=torch.float16)


def _far_convolution(folder: Path, start_at: Callable[[int], None], direct: bool) -> tuple[Tensor, Tensor]:
    """The far plane of a convolution, and what it must be."""
    x, y = _huge(folder / "x"), _huge(folder / "y")
    weight = torch.randint(-8, 9, (1, 1, K, K)).half()
    x[2 * FAR :] = torch.randint(-8, 9, (PLANE,)).half()
    role = forward.Role(K, 1, 1, False)
    if direct:
        config = Direct(2, 8, 32, 4)
        start_at(CHANNELS)
        forward.direct_kernel[(1,)](
            x[FAR:], weight, weight, y[FAR:], *SIZES, **role.direct(config), BIAS=False, EMU=True
        )
    else:
        fixed = role.toeplitz(Toeplitz(4, 16, 16, 4, 1))
        band = torch.empty(fixed["R"], fixed["KK"], 64, dtype=torch.float16)
        forward.band_kernel[(fixed["R"],)](weight, band, **fixed, FLIP=False)
        arguments = (x[FAR:], band, band, y[FAR:], 2, *SIZES)
        forward.toeplitz_kernel[(1,)](*arguments, **fixed, BIAS=False, M=16, STAGES=1, EMU=True)
    exact = F.conv2d(x[2 * FAR :].view(1, 1, HEIGHT, WIDTH).double(), weight.double(), padding=K // 2)
    return y[2 * FAR :].double(), exact.flatten()


def _far_weight_grad(folder: Path, start_at: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    x, grad = _huge(folder / "x"), _huge(folder / "grad")
    x[2 * FAR :], grad[2 * FAR :] = torch.randint(-8, 9, (2, PLANE)).half()
    sums = torch.from_file(str(folder / "partial"), shared=True, size=(CHANNELS + 1) * K * K)
    start_at(CHANNELS)
    fixed = grad_weight.constants(K, 1, WIDTH, Hankel(HEIGHT, WIDTH, 4))
    grad_weight.hankel_kernel[(1,)](x[FAR:], grad[FAR:], sums, *SIZES, **fixed, EMU=True)
    weight = torch.zeros(1, 1, K, K, dtype=torch.float64, requires_grad=True)
    image, upstream = (v[2 * FAR :].view(1, 1, HEIGHT, WIDTH).double() for v in (x, grad))
    (exact,) = torch.autograd.grad(F.conv2d(image, weight, padding=K // 2), weight, upstream)
    return sums[-K * K :].double(), exact.flatten()


FAR_RUNS = {
    "direct": (forward, "plane.to(tl.int64)", "plane", partial(_far_convolution, direct=True)),
    "tensor cores": (forward, "n.to(tl.int64)", "n", partial(_far_convolution, direct=False)),
    "weight gradient": (grad_weight, "(part // splits).to(tl.int64)", "(part // splits)", _far_weight_grad),
}


@pytest.fixture
def start_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return partial(mutants.start_at, monkeypatch=monkeypatch)


@pytest.mark.parametrize("name", FAR_RUNS)
def test_offsets_beyond_2_31_elements(name: str, start_at: Callable[[int], None], tmp_path: Path) -> None:
    result, exact = FAR_RUNS[name][3](tmp_path, start_at)
    assert exact.any()
    assert torch.equal(result, exact)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, on the overflow that is the point
@pytest.mark.parametrize("name", FAR_RUNS)
def test_offsets_of_32_bits_are_found(
    name: str, start_at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, old, new, far_run = FAR_RUNS[name]
    replace_text(monkeypatch, tmp_path, module, {old: new})
    result, exact = far_run(tmp_path, start_at)
    assert not torch.equal(result, exact)
