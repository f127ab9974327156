"""The one place that picks an implementation for an operator, and says why.

A kernel of this package runs only where it was measured at least MARGIN times as fast as the best of the existing
implementations: on this architecture, for this kernel size (connect: channel count), dtype, stride, class of size and memory
layout, and rows of pixels that are as aligned as the measured ones. The measurements are the files tables/sm_*.json, written by
`python -m pam_kernels.tune`. Everything else runs in PyTorch.

The environment variable PAM_KERNELS forces an implementation: `auto` (default), `triton` or `torch`. It is read at every
call, but only once by a function that torch.compile has traced.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

MARGIN = 1.2
TABLES = Path(__file__).parent / "tables"
DEPTHWISE = ("depthwise_conv2d", "depthwise_conv2d_input_grad", "depthwise_conv2d_weight_grad")
CONNECT = ("connect", "connect_backward")
KERNEL_SIZES = tuple(range(3, 32, 2))
WIDTHS = (32, 64, 128, 256, 512)
ALIGNED = 16
"""Triton loads 128 bits at once where the distance between rows is a multiple of this."""
LAYOUTS = ("contiguous", "channels_last")
MODES = ("auto", "triton", "torch")


@dataclass(frozen=True)
class Choice:
    """What runs, and the reason in words."""

    implementation: Literal["triton", "torch"]
    reason: str


class Cell(NamedTuple):
    """What one measurement stands for: all inputs that agree in these six."""

    op: str
    size: int
    """Kernel size; connect: channels, rounded up to one of WIDTHS, 0 above the last."""
    stride: int
    dtype: str
    scale: str
    """`small`, `medium` or `large`: fewer than 2^23 elements in x, fewer than 2^26, or more."""
    layout: str
    """Memory format of x: one of LAYOUTS."""


def autocasts(x: Tensor) -> bool:
    """Whether autocast computes a convolution of x in its dtype. Never in float64, nor for meta tensors, which have no autocast."""
    return x.device.type != "meta" and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def choose(
    op: str, x: Tensor, *, kernel: int | None = None, stride: int = 1, dtype: torch.dtype | None = None
) -> Choice:
    """The implementation of `op` for the input x: (N, C, H, W). The gradients of an operator are ops of their own.

    op: a name in DEPTHWISE or CONNECT; kernel: kernel size, needed by the depthwise ops; dtype: of the products, if not of x.
    Raises ValueError for an unknown op or value of PAM_KERNELS, RuntimeError if Triton is forced where it cannot run.
    """
    mode = _mode()
    device = x.device.type
    dtype = dtype or x.dtype
    if mode == "torch":
        return Choice("torch", "PAM_KERNELS=torch asks for it")
    if mode == "auto" and device != "cuda":
        return Choice("torch", f"there are no kernels for the device type {device}")
    if mode == "auto":
        choice = decide(op, _architecture(x.device), dtype, x.shape, kernel=kernel, stride=stride, layout=_layout(x))
        if choice.implementation == "torch":
            return choice
        if op in CONNECT and dtype != x.dtype:
            return Choice("torch", f"{_name(dtype)} products of a {_name(x.dtype)} input are not measured")
        return choice if _has_triton() else Choice("torch", "triton is not installed")
    impossible = _impossible(op, dtype, x.shape, kernel)
    if impossible is not None:
        return Choice("torch", impossible)
    _require_triton(device)
    return Choice("triton", "PAM_KERNELS=triton asks for it")


def explain(op: str, x: Tensor, *, kernel: int | None = None, stride: int = 1) -> str:
    """The choice for x and its reason, in one line."""
    choice = choose(op, x, kernel=kernel, stride=stride)
    return f"{op}: {choice.implementation}, because {choice.reason}"


def decide(
    op: str,
    arch: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    kernel: int | None = None,
    stride: int = 1,
    layout: str = LAYOUTS[0],
) -> Choice:
    """As `choose` in the mode `auto`, for an architecture such as `sm_90` and without a tensor.  shape: (N, C, H, W)."""
    impossible = _impossible(op, dtype, shape, kernel)
    if impossible is not None:
        return Choice("torch", impossible)
    what, row = ("pixel counts", shape[2] * shape[3]) if op in CONNECT else ("widths", shape[3])
    if row % (ALIGNED * stride) != 0:
        return Choice("torch", f"only {what} in multiples of {ALIGNED * stride} are measured")
    ratio = _ratio(arch, *cell_of(op, dtype, shape, kernel=kernel, stride=stride, layout=layout))
    if ratio is None:
        return Choice("torch", f"this case is not measured on {arch} yet (python -m pam_kernels.tune does it)")
    if ratio < MARGIN:
        return Choice("torch", f"measured {ratio:.2f} times as fast on {arch}, less than {MARGIN}")
    return Choice("triton", f"measured {ratio:.2f} times as fast as the best existing implementation on {arch}")


@contextmanager
def forced(mode: str) -> Iterator[None]:
    """PAM_KERNELS=mode inside, for benchmarks."""
    before = os.environ.get("PAM_KERNELS")
    os.environ["PAM_KERNELS"] = mode
    try:
        yield
    finally:
        del os.environ["PAM_KERNELS"]
        if before is not None:
            os.environ["PAM_KERNELS"] = before


def cell_of(
    op: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    kernel: int | None = None,
    stride: int = 1,
    layout: str = LAYOUTS[0],
) -> Cell:
    """The cell of an input.  shape: (N, C, H, W)."""
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    scale = "small" if elements < 2**23 else "medium" if elements < 2**26 else "large"
    # Sizes are picked from lists, so that they are plain numbers even where torch.compile traces symbols.
    if kernel is None:
        size = next((width for width in WIDTHS if shape[1] <= width), 0)
    else:
        size = next(value for value in KERNEL_SIZES if value == kernel)
    return Cell(op, size, 1 if stride == 1 else 2, _name(dtype), scale, layout)


@functools.cache
def measured(arch: str) -> dict[Cell, dict[str, Any]]:
    """The rows of the table of an architecture by cell; the slowest row of a cell counts. Empty without a table."""
    path = TABLES / f"{arch}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    cells: dict[Cell, dict[str, Any]] = {}
    for row in rows:
        cell = Cell(*(row[field] for field in Cell._fields))
        if cell not in cells or row["ratio"] < cells[cell]["ratio"]:
            cells[cell] = row
    return cells


def _impossible(op: str, dtype: torch.dtype, shape: tuple[int, ...], kernel: int | None) -> str | None:
    """Why no kernel can run, if so."""
    if op not in DEPTHWISE + CONNECT:
        raise ValueError(f"op must be one of {', '.join(DEPTHWISE + CONNECT)}, op = {op!r}")
    if op in DEPTHWISE and kernel not in KERNEL_SIZES:
        return f"the kernels are for odd sizes from {KERNEL_SIZES[0]} to {KERNEL_SIZES[-1]}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels are for float32, float16 and bfloat16, not {_name(dtype)}"
    if shape[0] * shape[1] * shape[2] * shape[3] == 0:
        return "the input is empty"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _layout(x: Tensor) -> str:
    """One of LAYOUTS, or `strided`, which no table knows."""
    if x.is_contiguous():
        return LAYOUTS[0]
    return LAYOUTS[1] if x.is_contiguous(memory_format=torch.channels_last) else "strided"


# Facts about the process. A graph that torch.compile makes holds them as constants.


def _constant(function: Function) -> Function:
    """torch.compiler.assume_constant_result, without its import of the whole compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _mode() -> str:
    mode = os.environ.get("PAM_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"PAM_KERNELS must be one of {', '.join(MODES)}, PAM_KERNELS = {mode!r}")
    return mode


@_constant
def _ratio(arch: str, *cell: Any) -> float | None:
    row = measured(arch).get(Cell(*cell))
    return None if row is None else float(row["ratio"])


@_constant
def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{'sm' if torch.version.hip is None else 'rocm'}_{major}{minor}"


@_constant
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@_constant
def _require_triton(device: str) -> None:
    if not _has_triton():
        raise RuntimeError("PAM_KERNELS=triton needs triton: pip install 'pam-mobile[kernels]'")
    if device == "cuda":
        return
    from .arithmetic import EMU

    if not (device == "cpu" and EMU):
        raise RuntimeError(
            f"PAM_KERNELS=triton cannot run on {device}: move the tensors to a CUDA device, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU"
        )
