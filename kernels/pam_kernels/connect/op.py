"""The public connect operator and its module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .reference import ACTIVATIONS, connect_reference


def connect(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu") -> Tensor:
    """y = x + W2 act(W1 x + b1) + b2 at every pixel.

    x: (N, C, H, W); w1: (M, C); b1: (M,); w2: (C, M); b2: (C,); activation: `relu`, `gelu` or `identity`.
    Returns (N, C, H, W) in the dtype of x. Raises ValueError for other shapes or names.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, activation = {activation!r}")
    hidden, channels = w1.shape
    if w2.shape != (channels, hidden) or b1.shape != (hidden,) or b2.shape != (channels,):
        raise ValueError(
            f"w1 {tuple(w1.shape)}, b1 {tuple(b1.shape)}, w2 {tuple(w2.shape)}, b2 {tuple(b2.shape)} do not fit"
        )
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, H, W) to fit w1, x.shape = {tuple(x.shape)}")
    return connect_reference(x, w1, b1, w2, b2, activation)


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
