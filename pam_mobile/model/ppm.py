"""Pyramid pooling at the lowest resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = (3, 7, 15)
"""Pooling windows in pixels at stride 32, that is 96, 224 and 480 pixels of the image."""


class PyramidPooling(nn.Module):
    """Residual pyramid pooling with windows of fixed size, so that it means the same at every image size.

    The convolution to c/4 comes before the pooling: both are linear, and a pooled map then needs no upsampling. The global
    bin is added instead of concatenated, which is the same matrix product without a broadcast copy.  x: (N, c, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.squeeze = nn.ModuleList(nn.Conv2d(channels, quarter, 1) for _ in BINS)
        self.squeeze_global = nn.Conv2d(channels, quarter, 1)
        self.fuse = nn.Conv2d(channels + len(BINS) * quarter, channels, 1)
        self.fuse_global = nn.Conv2d(quarter, channels, 1, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        local = [F.avg_pool2d(s(x), k, 1, k // 2, False, False) for s, k in zip(self.squeeze, BINS, strict=True)]
        scene = self.fuse_global(self.act(self.squeeze_global(x.mean((2, 3), keepdim=True))))
        return x + self.act(self.fuse(torch.cat([x, *local], 1)) + scene)
