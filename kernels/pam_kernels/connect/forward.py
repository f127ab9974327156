"""Forward of the connect layer. A program computes all channels of a block of pixels; the hidden activation stays on the chip.

    for each chunk of the hidden width:    H = W1[chunk] X + b1[chunk]         (BM, BP), X: (C, BP) is read once
                                           Y += W2[:, chunk] act(H)            (C, BP)
    starting from                          Y = X + b2

X and Y are tuples of (BC, BP) tiles, so that any channel count costs at most BC - 1 padded channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import EMU as INTERPRETED
from ..arithmetic import dot, round_to
from .configs import Config, pick


@triton.jit
def sigmoid(h):
    e = tl.exp(-tl.abs(h))  # never overflows
    return tl.where(h < 0, e, 1.0) / (1 + e)


@triton.jit
def activate(h, ACT: tl.constexpr):
    if ACT == "relu":
        a = tl.where(h < 0, 0.0, h)  # not a maximum: NaN stays NaN
    elif ACT == "gelu":
        a = h * 0.5 * (1 + tl.erf(h * 0.7071067811865476))
    elif ACT == "silu":
        a = h * sigmoid(h)
    else:
        tl.static_assert(ACT == "identity")
        a = h
    return a


@triton.jit
def pixel_block(P, BP: tl.constexpr):
    """Image and pixels of this program. The image index is 64 bits wide, and with it every offset made from it."""
    blocks = tl.cdiv(P, BP)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * BP + tl.arange(0, BP)


@triton.jit
def tile(n, p, rows, P, ROWS: tl.constexpr, LAST: tl.constexpr):
    """Offsets and mask of `rows` (channels) of pixels p in a tensor (N, ROWS, P), or (N, P, ROWS) if LAST."""
    offsets = (n * P + p[None, :]) * ROWS + rows[:, None] if LAST else (n * ROWS + rows[:, None]) * P + p[None, :]
    return offsets, (rows < ROWS)[:, None] & (p < P)[None, :]


@triton.jit
def append(tiles, new):
    return tiles + (new,)


@triton.jit
def matrix(w, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Block of a matrix (ROWS, COLUMNS), zero outside."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(w + rows[:, None] * COLUMNS + columns[None, :], mask=mask, other=0.0)


@triton.jit
def connect_forward_kernel(
    x,
    w1,
    b1,
    w2,
    b2,
    y,
    P,
    C: tl.constexpr,
    M: tl.constexpr,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BP: tl.constexpr,
    ACT: tl.constexpr,
    LAST: tl.constexpr,
    EMU: tl.constexpr,
):
    """x, y: (N, C, P) or (N, P, C); w1: (M, C); b1: (M,); w2: (C, M); b2: (C,). Products in the dtype of w1."""
    DT: tl.constexpr = w1.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DT == tl.float64 else tl.float32
    TILES: tl.constexpr = (C + BC - 1) // BC
    n, p = pixel_block(P, BP)

    xs, ys = (), ()
    for i in tl.static_range(TILES):
        c = i * BC + tl.arange(0, BC)
        offsets, inside = tile(n, p, c, P, C, LAST)
        xi = tl.load(x + offsets, mask=inside, other=0.0)
        xs = append(xs, xi if xi.dtype == DT else round_to(xi.to(ACC), DT, EMU))
        ys = append(ys, xi.to(ACC) + tl.load(b2 + c, mask=c < C, other=0.0).to(ACC)[:, None])

    for m0 in tl.range(0, M, BM):
        m = m0 + tl.arange(0, BM)
        h = tl.zeros((BM, BP), ACC) + tl.load(b1 + m, mask=m < M, other=0.0).to(ACC)[:, None]
        for i in tl.static_range(TILES):
            h = dot(matrix(w1, m, i * BC + tl.arange(0, BC), M, C), xs[i], h, EMU)
        a = round_to(activate(h, ACT), DT, EMU)
        sums = ()
        for i in tl.static_range(TILES):
            sums = append(sums, dot(matrix(w2, i * BC + tl.arange(0, BC), m, C, M), a, ys[i], EMU))
        ys = sums

    for i in tl.static_range(TILES):
        offsets, inside = tile(n, p, i * BC + tl.arange(0, BC), P, C, LAST)
        tl.store(y + offsets, round_to(ys[i], y.dtype.element_ty, EMU), mask=inside)


def connect_forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, config: Config | None = None
) -> Tensor:
    """y like x. x: (N, C, H, W), dense; w1: (M, C); b1: (M,); w2: (C, M); b2: (C,), all contiguous."""
    y = torch.empty_like(x)
    launch(connect_forward_kernel, (x, w1, b1, w2, b2, y), activation, config or pick("forward", w1))
    return y


def launch(kernel: Any, tensors: tuple[Tensor, ...], activation: str, config: Config) -> None:
    """Run a connect kernel on its tensors, the first two of which are x: (N, C, H, W) and w1: (M, C)."""
    x, w1 = tensors[:2]
    images, channels, height, width = x.shape
    grid = (images * triton.cdiv(height * width, config.pixels),)
    with torch.cuda.device_of(x):
        kernel[grid](
            *tensors,
            height * width,
            C=channels,
            M=w1.shape[0],
            BC=config.channels,
            BM=config.hidden,
            BP=config.pixels,
            ACT=activation,
            LAST=not x.is_contiguous(),
            EMU=INTERPRETED,
            num_warps=config.warps,
            num_stages=config.stages,
            enable_fp_fusion=True,
        )
