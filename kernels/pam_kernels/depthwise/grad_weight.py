"""Weight gradient of the depthwise convolution, on tensor cores and deterministic.

    dW[ky, kx] = sum over images, rows and columns of dY[o, j] X[o s + ky - P, j s + kx - P]

For one row r of X this is a product over columns: the rows of dY that meet r, one for each ky, times the Hankel matrix
X[r, j s + kx - P] (columns j, taps kx). A program adds up some rows of one image and writes a partial sum; PyTorch adds those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import EMU, dot
from .configs import Hankel, weight_grad_config


@triton.jit
def hankel_kernel(
    x,
    g,
    partial,
    C,
    HI,
    WI,
    HO,
    WO,
    K: tl.constexpr,
    S: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    BX: tl.constexpr,
    ACROSS: tl.constexpr,
    EMU: tl.constexpr,
):
    """x: (N, C, HI, WI); g: (N, C, HO, WO); partial: (N * splits, C, K, K). ACROSS blocks of BX columns cover WO."""
    P: tl.constexpr = K // 2
    ACC: tl.constexpr = partial.dtype.element_ty
    splits = tl.cdiv(HI, ROWS)
    c = tl.program_id(0) % C
    part = tl.program_id(0) // C
    plane = (part // splits).to(tl.int64) * C + c
    taps = tl.arange(0, KP)
    sums = tl.zeros((KP, KP), ACC)
    for i in tl.range(0, ROWS):
        row = part % splits * ROWS + i
        above = row + P - taps
        out = above // S
        meets = (taps < K) & (above >= 0) & (above % S == 0) & (out < HO) & (taps * 0 + row < HI)
        for block in tl.range(0, ACROSS):
            j = block * BX + tl.arange(0, BX)
            a = tl.load(
                g + (plane * HO + out)[:, None] * WO + j[None, :], mask=meets[:, None] & (j < WO)[None, :], other=0.0
            )
            column = (j * S - P)[:, None] + taps[None, :]
            mask = (taps < K)[None, :] & (column >= 0) & (column < WI) & (j * 0 + row < HI)[:, None]
            b = tl.load(x + (plane * HI + row) * WI + column, mask=mask, other=0.0)
            sums = dot(a, b, sums, EMU)
    offsets = tl.program_id(0).to(tl.int64) * (K * K) + taps[:, None] * K + taps[None, :]
    tl.store(partial + offsets, sums, mask=(taps < K)[:, None] & (taps < K)[None, :])


def weight_grad(grad: Tensor, x: Tensor, k: int, stride: int, config: Hankel | None = None) -> Tensor:
    """dW: (C, 1, k, k) in float32 (float64 for float64).

    grad: (N, C, ceil(H / stride), ceil(W / stride)) and x: (N, C, H, W), contiguous and of one dtype.
    """
    n, c, h, w = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return x.new_zeros((c, 1, k, k), dtype=dtype)
    config = config or weight_grad_config(k, x.dtype, EMU)
    parts = n * triton.cdiv(h, config.rows)
    partial = x.new_empty((parts, c, 1, k, k), dtype=dtype)
    height, width = grad.shape[2:]
    with torch.cuda.device_of(x):
        hankel_kernel[(parts * c,)](
            *(x, grad, partial, c, h, w, height, width),
            **constants(k, stride, width, config),
            EMU=EMU,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )
    return partial.sum(0)


def constants(k: int, stride: int, width: int, config: Hankel) -> dict[str, int]:
    """Compile-time constants of hankel_kernel.  width: of the output of the convolution."""
    return {
        "K": k,
        "S": stride,
        "KP": max(16, triton.next_power_of_2(k)),
        "ROWS": config.rows,
        "BX": config.columns,
        "ACROSS": triton.cdiv(width, config.columns),
    }
