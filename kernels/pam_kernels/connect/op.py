"""The public connect operator, its custom ops and its module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import CONNECT, autocasts, choose
from .layout import dense, hidden_like, like
from .reference import ACTIVATIONS, connect_backward_reference, connect_branch, connect_reference


def connect(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu") -> Tensor:
    """y = x + W2 act(W1 x + b1) + b2 at every pixel.

    x: (N, C, H, W); w1: (M, C); b1: (M,); w2: (C, M); b2: (C,); activation: `relu`, `gelu` (exact), `silu` or `identity`.
    Returns (N, C, H, W) in the dtype and memory format of x. Raises ValueError for other shapes or names.
    Source: PAM, equation 4. Nothing of the size of the hidden activation is saved for backward by the Triton kernels.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, activation = {activation!r}")
    if w1.dim() != 2:
        raise ValueError(f"w1 must be (M, C), w1.shape = {tuple(w1.shape)}")
    hidden, channels = w1.shape
    if w2.shape != (channels, hidden) or b1.shape != (hidden,) or b2.shape != (channels,):
        raise ValueError(
            f"w1 {tuple(w1.shape)}, b1 {tuple(b1.shape)}, w2 {tuple(w2.shape)}, b2 {tuple(b2.shape)} do not fit"
        )
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, H, W) to fit w1, x.shape = {tuple(x.shape)}")
    lower = autocasts(x)
    dtype = torch.get_autocast_dtype(x.device.type) if lower else x.dtype
    if all(_in_torch(op, x, dtype) for op in CONNECT):
        return connect_reference(x, w1, b1, w2, b2, activation)
    if lower:
        # As autocast does it for convolutions, x stays what it is: only the products are in the lower precision.
        w1, w2 = w1.to(dtype), w2.to(dtype)
    elif not x.dtype == w1.dtype == w2.dtype:
        raise ValueError(f"x, w1 and w2 must share a dtype outside autocast: {x.dtype}, {w1.dtype}, {w2.dtype}")
    return torch.ops.pam.connect(x, w1, b1, w2, b2, activation)


# Triton is imported by the first call of a kernel, so that the package needs torch only. Each pass has a choice of its own: a
# card may be measured faster in one of them only. Neither keeps a hidden activation.


@torch.library.custom_op("pam::connect", mutates_args=())
def _connect(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
    in_torch, x = _in_torch("connect", x, w1.dtype), dense(x)
    if in_torch:
        dtype = w1.dtype
        return like(x + connect_branch(x.to(dtype), w1, b1.to(dtype), w2, b2.to(dtype), activation), x)
    from .forward import connect_forward

    return connect_forward(x, w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous(), activation)


@_connect.register_fake
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
    return torch.empty_like(dense(x))


@torch.library.custom_op("pam::connect_backward", mutates_args=())
def _connect_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dx like x, and (N, M, H, W) in the dtype of w1: A = act(W1 x + b1) and D, the gradient before the activation."""
    in_torch, x = _in_torch("connect_backward", x, w1.dtype), dense(x)
    if in_torch:
        results = connect_backward_reference(grad, x, w1, b1, w2, activation)
        return like(results[0], x), like(results[1], x), like(results[2], x)
    from .backward import connect_backward

    return connect_backward(like(grad, x), x, w1.contiguous(), b1.contiguous(), w2.contiguous(), activation)


@_connect_backward.register_fake
def _(grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return torch.empty_like(x), hidden_like(x, w1), hidden_like(x, w1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w1, b1, w2, b2, activation = inputs
    ctx.save_for_backward(x, w1, b1, w2)
    ctx.activation, ctx.b2_dtype = activation, b2.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w1, b1, w2 = ctx.saved_tensors
    dx, a, d = torch.ops.pam.connect_backward(grad, x, w1, b1, w2, ctx.activation)
    _, of_w1, of_b1, of_w2, of_b2, _ = ctx.needs_input_grad
    return (
        dx,
        _outer(d, x).to(w1.dtype) if of_w1 else None,
        _sum(d).to(b1.dtype) if of_b1 else None,
        _outer(grad, a).to(w2.dtype) if of_w2 else None,
        _sum(grad).to(ctx.b2_dtype) if of_b2 else None,
        None,
    )


_connect.register_autograd(_backward, setup_context=_setup_context)


def _in_torch(name: str, x: Tensor, dtype: torch.dtype) -> bool:
    return choose(name, x, dtype=dtype).implementation == "torch"


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """(R, C) sums over images and pixels of the products of (N, R, H, W) and (N, C, H, W), in the dtype of D and A."""
    dtype = rows.dtype if rows.dtype.itemsize <= columns.dtype.itemsize else columns.dtype
    images = torch.bmm(rows.to(dtype).flatten(2), columns.to(dtype).flatten(2).mT)
    return images.sum(0, dtype=_accumulator(dtype))


def _sum(x: Tensor) -> Tensor:
    """(C,) sums of (N, C, H, W) over images and pixels."""
    return x.sum((0, 2, 3), dtype=_accumulator(x.dtype))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Connect(nn.Module):
    """Connect layer of `channels` with a hidden width of half of them. Starts near the identity."""

    def __init__(self, channels: int, activation: str = "relu") -> None:
        super().__init__()
        hidden = channels // 2
        self.activation = activation
        self.w1 = nn.Parameter(torch.randn(hidden, channels) * math.sqrt(2 / channels))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.randn(channels, hidden) * math.sqrt(0.02 / hidden))
        self.b2 = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return connect(x, self.w1, self.b1, self.w2, self.b2, self.activation)
