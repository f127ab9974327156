"""Depthwise convolution and its input gradient: two kernels, both for both roles.

A role is a pair (UP, DOWN). With P = K // 2, output row o and tap u meet at the input row

    i = (o DOWN + u - P) / UP        where that is a whole number inside the image; columns likewise

    forward, stride s           UP = 1, DOWN = s
    input gradient, stride s    UP = s, DOWN = 1, taps in reverse order (FLIP): dY is the input

Planes are NCHW, offsets 64 bits wide, sums in float32 (float64 for float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import EMU, dot, round_to
from .configs import Direct, Toeplitz, convolution_config


@triton.jit
def direct_kernel(
    x,
    w,
    bias,
    y,
    C,
    HI,
    WI,
    HO,
    WO,
    K: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    FLIP: tl.constexpr,
    BIAS: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    BW: tl.constexpr,
    EMU: tl.constexpr,
):
    """T output rows of each strip stay in registers, so a value that is loaded meets up to K taps. T is a multiple of UP."""
    P: tl.constexpr = K // 2
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    tl.static_assert(T % UP == 0)
    across = tl.cdiv(WO, BW)
    tiles = tl.cdiv(HO, R * T) * across
    plane = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    rows = tile // across * (R * T) + tl.arange(0, R) * T
    columns = tile % across * BW + tl.arange(0, BW)
    c = plane % C
    x += plane.to(tl.int64) * HI * WI
    y += plane.to(tl.int64) * HO * WO
    w += c * (K * K)

    start = tl.zeros((R, BW), ACC)
    if BIAS:
        start += tl.load(bias + c).to(ACC)
    sums = ()
    for _ in tl.static_range(T):
        sums = sums + (start,)
    for kx in tl.range(0, K):
        taps = ()
        for ky in tl.static_range(K):
            tap = ky * K + kx
            taps = taps + (tl.load(w + (K * K - 1 - tap if FLIP else tap)).to(ACC),)
        column = columns * DOWN + kx - P
        inside = (column >= 0) & (column % UP == 0)
        column = column // UP
        inside = inside & (column < WI)
        for v in tl.static_range((T - 1) * DOWN + K):
            if (v - P) % UP == 0:
                row = rows * DOWN // UP + (v - P) // UP
                mask = ((row >= 0) & (row < HI))[:, None] & inside[None, :]
                values = tl.load(x + row.to(tl.int64)[:, None] * WI + column[None, :], mask=mask, other=0.0).to(ACC)
                updated = ()
                for t in tl.static_range(T):
                    if v >= t * DOWN and v - t * DOWN < K:
                        updated = updated + (sums[t] + values * taps[v - t * DOWN],)
                    else:
                        updated = updated + (sums[t],)
                sums = updated

    for t in tl.static_range(T):
        row = rows + t
        tl.store(
            y + row.to(tl.int64)[:, None] * WO + columns[None, :],
            round_to(sums[t], y.dtype.element_ty, EMU),
            mask=(row < HO)[:, None] & (columns < WO)[None, :],
        )


@triton.jit
def band_kernel(
    w,
    band,
    K: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    FLIP: tl.constexpr,
    R: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    KK: tl.constexpr,
    OFF: tl.constexpr,
):
    """band: (C, R, KK, BH * BW), the taps between KK columns of input row r of a tile and its BH x BW outputs, zero elsewhere."""
    P: tl.constexpr = K // 2
    c = tl.program_id(0) // R
    r = tl.program_id(0) % R
    i = tl.arange(0, KK)[:, None]
    o = tl.arange(0, BH * BW)[None, :]
    ky = (r - P // UP) * UP - o // BW * DOWN + P
    kx = (i - OFF) * UP - o % BW * DOWN + P
    tap = ky * K + kx
    mask = (ky >= 0) & (ky < K) & (kx >= 0) & (kx < K)
    values = tl.load(w + c * (K * K) + (K * K - 1 - tap if FLIP else tap), mask=mask, other=0.0)
    tl.store(band + tl.program_id(0).to(tl.int64) * (KK * BH * BW) + i * (BH * BW) + o, values)


@triton.jit
def toeplitz_kernel(
    x,
    band,
    bias,
    y,
    N,
    C,
    HI,
    WI,
    HO,
    WO,
    K: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    BIAS: tl.constexpr,
    R: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    KK: tl.constexpr,
    OFF: tl.constexpr,
    M: tl.constexpr,
    STAGES: tl.constexpr,
    EMU: tl.constexpr,
):
    """For each of the R input rows that a tile sees: (M tiles, KK columns) @ band[c, r] (KK, BH * BW), on tensor cores."""
    P: tl.constexpr = K // 2
    down_tiles = tl.cdiv(HO, BH)
    across = tl.cdiv(WO, BW)
    per_image = down_tiles * across
    blocks = tl.cdiv(N * per_image, M)
    c = tl.program_id(0) // blocks
    m = tl.program_id(0) % blocks * M + tl.arange(0, M)
    n = m // per_image
    ty = m % per_image // across
    tx = m % across
    valid = (n < N)[:, None]
    plane = n.to(tl.int64) * C + c

    i = tl.arange(0, KK)
    columns = (tx * (BW * DOWN // UP) - OFF)[:, None] + i[None, :]
    inside = valid & (columns >= 0) & (columns < WI)
    o = tl.arange(0, BH * BW)
    band += c.to(tl.int64) * (R * KK * BH * BW) + i[:, None] * (BH * BW) + o[None, :]
    sums = tl.zeros((M, BH * BW), tl.float32)
    if BIAS:
        sums += tl.load(bias + c).to(tl.float32)
    for r in tl.range(0, R, num_stages=STAGES):
        row = ty * (BH * DOWN // UP) + r - P // UP
        offsets = ((plane * HI + row) * WI)[:, None] + columns
        a = tl.load(x + offsets, mask=inside & ((row >= 0) & (row < HI))[:, None], other=0.0)
        b = tl.load(band + r * (KK * BH * BW))
        sums = dot(a, b, sums, EMU)

    oy = ty[:, None] * BH + o[None, :] // BW
    ox = tx[:, None] * BW + o[None, :] % BW
    offsets = (plane[:, None] * HO + oy) * WO + ox
    tl.store(y + offsets, round_to(sums, y.dtype.element_ty, EMU), mask=valid & (oy < HO) & (ox < WO))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, config: Direct | Toeplitz | None = None
) -> Tensor:
    """conv(x): (N, C, ceil(H / stride), ceil(W / stride)) in the dtype of x.

    x: (N, C, H, W) contiguous; weight: (C, 1, k, k) contiguous, of the dtype of x; bias: (C,) of any float dtype.
    """
    role = Role(weight.shape[-1], 1, stride, False)
    return _launch(role, x, weight, bias, (-(-x.shape[2] // stride), -(-x.shape[3] // stride)), config)


def input_grad(
    grad: Tensor, weight: Tensor, height: int, width: int, stride: int, config: Direct | Toeplitz | None = None
) -> Tensor:
    """dx: (N, C, height, width) from grad = dL/dy: (N, C, ceil(height / stride), ceil(width / stride)), contiguous."""
    return _launch(Role(weight.shape[-1], stride, 1, True), grad, weight, None, (height, width), config)


@dataclass(frozen=True)
class Role:
    """What a launch computes. See the head of this file."""

    k: int
    up: int
    down: int
    flip: bool

    def direct(self, config: Direct) -> dict[str, int]:
        """Compile-time constants of direct_kernel."""
        blocks = {"T": config.rows, "R": config.strips, "BW": config.columns}
        return {"K": self.k, "UP": self.up, "DOWN": self.down, "FLIP": self.flip, **blocks}

    def toeplitz(self, config: Toeplitz) -> dict[str, int]:
        """Compile-time constants of band_kernel and toeplitz_kernel."""
        reach = self.k // 2 // self.up
        off = -(-reach // 8) * 8  # tiles then start at columns that 128-bit loads can take
        last = ((config.width - 1) * self.down + self.k // 2) // self.up
        return {
            "K": self.k,
            "UP": self.up,
            "DOWN": self.down,
            "R": reach + ((config.height - 1) * self.down + self.k // 2) // self.up + 1,
            "BH": config.height,
            "BW": config.width,
            "KK": triton.next_power_of_2(off + last + 1),
            "OFF": off,
        }


def _launch(
    role: Role,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    config: Direct | Toeplitz | None,
) -> Tensor:
    (n, c, h, w), (height, width) = x.shape, size
    y = x.new_empty((n, c, height, width))
    if y.numel() == 0:
        return y
    config = config or convolution_config(role.k, x.dtype, role.up * role.down, EMU)
    addend = weight if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        if isinstance(config, Direct):
            across = triton.cdiv(width, config.columns)
            grid = (n * c * triton.cdiv(height, config.rows * config.strips) * across,)
            direct_kernel[grid](
                *(x, weight, addend, y, c, h, w, height, width),
                **role.direct(config),
                BIAS=bias is not None,
                EMU=EMU,
                num_warps=config.warps,
                enable_fp_fusion=True,
            )
        else:
            constants = role.toeplitz(config)
            band = x.new_empty((c, constants["R"], constants["KK"], config.height * config.width))
            band_kernel[(c * constants["R"],)](
                weight, band, **constants, FLIP=role.flip, num_warps=8, enable_fp_fusion=True
            )
            tiles = n * triton.cdiv(height, config.height) * triton.cdiv(width, config.width)
            toeplitz_kernel[(c * triton.cdiv(tiles, config.tiles),)](
                *(x, band, addend, y, n, c, h, w, height, width),
                **constants,
                BIAS=bias is not None,
                M=config.tiles,
                STAGES=config.stages,
                EMU=EMU,
                num_warps=config.warps,
                num_stages=config.stages,
                enable_fp_fusion=True,
            )
    return y
