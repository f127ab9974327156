"""Backward of the connect layer. The hidden activation is computed again, so the forward saves nothing of its size.

The kernel gives dx and, for the moment of one layer's backward, the two factors of the weight gradients:
    H = W1 X + b1,  A = act(H),  D = act'(H) * (W2' G),  dX = G + W1' D
    dW1 = D X',  dW2 = G A',  db1 = D 1,  db2 = G 1            plain matrix products, see op.py
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import dot, round_to
from .configs import Config, pick
from .forward import activate, append, launch, matrix, pixel_block, sigmoid, tile
from .layout import hidden_like


@triton.jit
def activation_grad(h, g, ACT: tl.constexpr):
    """act'(h) g. A branch that is shut passes nothing, not even from an infinite g."""
    if ACT == "relu":
        d = tl.where(h <= 0, 0.0, g)
    elif ACT == "gelu":
        normal = 0.5 * (1 + tl.erf(h * 0.7071067811865476))
        d = g * (normal + h * tl.exp(h * h * -0.5) * 0.3989422804014327)
    elif ACT == "silu":
        s = sigmoid(h)
        d = g * s * (1 + h * (1 - s))
    else:
        tl.static_assert(ACT == "identity")
        d = g
    return d


@triton.jit
def connect_backward_kernel(
    x,
    w1,
    b1,
    w2,
    g,
    dx,
    a,
    d,
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
    """x, g, dx: (N, C, P) or (N, P, C); a, d: (N, M, P) or (N, P, M) in the dtype of w1: (M, C); w2: (C, M)."""
    DT: tl.constexpr = w1.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if DT == tl.float64 else tl.float32
    TILES: tl.constexpr = (C + BC - 1) // BC
    n, p = pixel_block(P, BP)

    xs, gs, dxs = (), (), ()
    for i in tl.static_range(TILES):
        offsets, inside = tile(n, p, i * BC + tl.arange(0, BC), P, C, LAST)
        xi = tl.load(x + offsets, mask=inside, other=0.0)
        gi = tl.load(g + offsets, mask=inside, other=0.0)
        xs = append(xs, xi if xi.dtype == DT else round_to(xi.to(ACC), DT, EMU))
        gs = append(gs, gi if gi.dtype == DT else round_to(gi.to(ACC), DT, EMU))
        dxs = append(dxs, gi.to(ACC))

    for m0 in tl.range(0, M, BM):
        m = m0 + tl.arange(0, BM)
        h = tl.zeros((BM, BP), ACC) + tl.load(b1 + m, mask=m < M, other=0.0).to(ACC)[:, None]
        da = tl.zeros((BM, BP), ACC)
        for i in tl.static_range(TILES):
            c = i * BC + tl.arange(0, BC)
            h = dot(matrix(w1, m, c, M, C), xs[i], h, EMU)
            da = dot(tl.trans(matrix(w2, c, m, C, M)), gs[i], da, EMU)
        di = round_to(activation_grad(h, da, ACT), DT, EMU)
        hidden, valid = tile(n, p, m, P, M, LAST)
        tl.store(a + hidden, round_to(activate(h, ACT), DT, EMU), mask=valid)
        tl.store(d + hidden, di, mask=valid)
        sums = ()
        for i in tl.static_range(TILES):
            w = matrix(w1, m, i * BC + tl.arange(0, BC), M, C)
            sums = append(sums, dot(tl.trans(w), di, dxs[i], EMU))
        dxs = sums

    for i in tl.static_range(TILES):
        offsets, inside = tile(n, p, i * BC + tl.arange(0, BC), P, C, LAST)
        tl.store(dx + offsets, round_to(dxs[i], dx.dtype.element_ty, EMU), mask=inside)


def connect_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, activation: str, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx like x, A and D: (N, M, H, W) in the dtype of w1.

    x, grad: (N, C, H, W), dense and in the same memory format; w1: (M, C); b1: (M,); w2: (C, M), all contiguous.
    """
    dx, a, d = torch.empty_like(x), hidden_like(x, w1), hidden_like(x, w1)
    tensors = (x, w1, b1, w2, grad, dx, a, d)
    launch(connect_backward_kernel, tensors, activation, config or pick("backward", w1))
    return dx, a, d
