"""The connect layer in plain PyTorch: what every other implementation is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def connect_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu") -> Tensor:
    """y = x + W2 act(W1 x + b1) + b2 at every pixel (PAM, equation 4)."""
    return x + connect_branch(x, w1, b1, w2, b2, activation)


def connect_branch(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
    """W2 act(W1 x + b1) + b2 at every pixel, all in one dtype."""
    hidden = F.conv2d(x, w1[:, :, None, None], b1)
    return F.conv2d(ACTIVATIONS[activation](hidden), w2[:, :, None, None], b2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}


def connect_backward_reference(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, A = act(W1 x + b1) and D = act'(W1 x + b1) * (W2' grad), computed again from x.

    grad, x: (N, C, H, W); w1: (M, C); b1: (M,); w2: (C, M). Returns (N, C, H, W) and twice (N, M, H, W).
    """
    g = grad.to(w1.dtype)
    hidden = F.conv2d(x.to(w1.dtype), w1[:, :, None, None], b1.to(w1.dtype))
    d = DERIVATIVES[activation](F.conv2d(g, w2.mT[:, :, None, None]), hidden)
    return grad + F.conv2d(d, w1.mT[:, :, None, None]), ACTIVATIONS[activation](hidden), d


DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda g, h: torch.ops.aten.threshold_backward(g, h, 0),
    "gelu": torch.ops.aten.gelu_backward,
    "silu": torch.ops.aten.silu_backward,
    "identity": lambda g, h: g.clone(),
}
"""(gradient after the activation, input of the activation) -> gradient before it."""
