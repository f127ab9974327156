"""Planted bugs in the connect kernels: the checks of the other tests must see each of them.

A bug is one replacement in the source of a kernel file, which is then loaded beside the original.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from connect_cases import Case, check_forward, check_gradients
from torch import Tensor

pytest.importorskip("triton")
from mutants import altered, start_at

from pam_kernels.connect import backward, forward, op
from pam_kernels.connect.configs import Config

CONFIG = Config(channels=16, hidden=16, pixels=16, warps=4, stages=1)
CASES = (
    Case(2, 20, 18, 3, 7, torch.bfloat16, "gelu"),
    Case(2, 5, 3, 3, 21, torch.bfloat16),
    Case(1, 17, 9, 2, 5, activation="gelu"),
    Case(1, 3, 9, 4, 9, kind="integers"),
)


def _planted(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The module with one replacement in its source."""
    assert Path(str(module.__file__)).read_text().count(old) == 1
    return altered(module, folder, {old: new})


def _forward_check(module: ModuleType, case: Case) -> None:
    x, weights, _ = case.tensors()
    check_forward(case, module.connect_forward(x, *weights, case.activation, CONFIG), x, weights)


def _backward_check(module: ModuleType, case: Case) -> None:
    x, weights, grad = case.tensors()
    dx, a, d = module.connect_backward(grad, x, *weights[:3], case.activation, CONFIG)
    gradients = (dx, op._outer(d, x), op._sum(d), op._outer(grad, a), op._sum(grad))
    check_gradients(case, gradients, x, weights, grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_as_they_are_pass(case: Case) -> None:
    _forward_check(forward, case)
    _backward_check(backward, case)


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("last pixels never written", "% blocks * BP + tl.arange(0, BP)", "% blocks * BP + tl.arange(0, BP) * (P // BP > 0)"),
        ("last hidden chunk skipped", "tl.range(0, M, BM)", "tl.range(0, M - BM + 1, BM)"),
        ("bf16 cut off instead of rounded", "round_to(ys[i], y.dtype.element_ty, EMU)", "ys[i].to(y.dtype.element_ty)"),
        ("hidden bias forgotten", "tl.load(b1 + m, mask=m < M, other=0.0)", "tl.zeros((BM,), ACC)"),
        ("tanh in the place of erf", "tl.erf(h * 0.7071067811865476)", "2 * sigmoid(1.5957691216 * (h + 0.044715 * h * h * h)) - 1"),
        ("channels of the wrong tile", "tile(n, p, i * BC + tl.arange(0, BC), P, C, LAST)", "tile(n, p, tl.arange(0, BC), P, C, LAST)"),
    ],
)  # fmt: skip
def test_a_bug_in_the_forward_is_seen(what: str, old: str, new: str, tmp_path: Path) -> None:
    planted = _planted(forward, old, new, tmp_path)
    assert _seen(lambda case: _forward_check(planted, case)), f"nobody saw: {what}"


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("residual gradient forgotten", "append(dxs, gi.to(ACC))", "append(dxs, gi.to(ACC) * 0)"),
        ("slope of a shut relu", "tl.where(h <= 0, 0.0, g)", "tl.where(h < 0, 0.0, g)"),
        ("slope of gelu without its second term", "(normal + h * tl.exp(h * h * -0.5) * 0.3989422804014327)", "normal"),
        ("A written before the activation", "round_to(activate(h, ACT), DT, EMU)", "round_to(h, DT, EMU)"),
    ],
)
def test_a_bug_in_the_backward_is_seen(what: str, old: str, new: str, tmp_path: Path) -> None:
    planted = _planted(backward, old, new, tmp_path)
    assert _seen(lambda case: _backward_check(planted, case)), f"nobody saw: {what}"


@pytest.mark.parametrize("name", ["_sum", "_outer"])
def test_a_dropped_weight_gradient_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(op, name)
    monkeypatch.setattr(op, name, lambda *t: original(*t) * 0)
    assert _seen(lambda case: _backward_check(backward, case))


def _seen(check: Callable[[Case], None]) -> bool:
    """Whether the check fails in one of the cases."""
    for case in CASES:
        try:
            check(case)
        except AssertionError:
            return True
    return False


# Offsets beyond 2^31. The tensors lie in sparse files, of which the last program of the grid touches a few pages.

CHANNELS, HIDDEN, PIXELS = 3, 2, 2**30
ELEMENTS = CHANNELS * PIXELS


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_offsets_beyond_2_31_elements(last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, exact = _last_program(forward, last, tmp_path, monkeypatch)
    assert torch.equal(y, exact)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_offsets_of_32_bits_are_seen(last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = _planted(forward, "(program // blocks).to(tl.int64)", "program // blocks", tmp_path)
    y, exact = _last_program(planted, last, tmp_path, monkeypatch)
    assert not torch.equal(y, exact)


def _last_program(
    module: ModuleType, last: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """y at the last pixels of an image of 2^30, as the last program of the forward kernel leaves it, and its exact value."""
    x, y = (_sparse(folder / name) for name in "xy")
    values, weights, _ = Case(1, CHANNELS, HIDDEN, 1, CONFIG.pixels, torch.float16, kind="integers").tensors()
    w1, b1, w2, b2 = weights

    def end(memory: np.ndarray) -> np.ndarray:
        """The last pixels, (C, BP)."""
        image = memory[ELEMENTS:]
        return (
            image.reshape(PIXELS, CHANNELS).T[:, -CONFIG.pixels :]
            if last
            else image.reshape(CHANNELS, -1)[:, -CONFIG.pixels :]
        )

    end(x)[...] = values[0, :, 0].numpy()
    start_at(PIXELS // CONFIG.pixels - 1, monkeypatch)
    start_x, start_y = (torch.from_numpy(memory[ELEMENTS : ELEMENTS + 1]) for memory in (x, y))
    module.connect_forward_kernel[(1,)](
        *(start_x, w1, b1, w2, b2, start_y, PIXELS),
        C=CHANNELS,
        M=HIDDEN,
        BC=CONFIG.channels,
        BM=CONFIG.hidden,
        BP=CONFIG.pixels,
        ACT="relu",
        LAST=last,
        EMU=True,
    )
    h = (w1.double() @ values[0, :, 0].double() + b1.double()[:, None]).relu()
    exact = values[0, :, 0].double() + w2.double() @ h + b2.double()[:, None]
    return torch.from_numpy(end(y).astype(np.float64)), exact


def _sparse(file: Path) -> np.ndarray:
    """Zeros that take no room before they are written: an image, and before it the place where wrapped offsets lead."""
    return np.memmap(file, np.float16, "w+", shape=(2 * ELEMENTS,))
