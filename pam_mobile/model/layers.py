"""The regular layers of the low levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU; same padding. Batch norm folds into the convolution at export."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear. By scale factor and not by size: exporters keep it whole."""
    return x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def same_layout(x: Tensor, like: Tensor) -> Tensor:
    """x in channels-last if `like` is. A concatenation of mixed layouts is not, and then every convolution copies its input."""
    channels_last = torch.channels_last
    return x.contiguous(memory_format=channels_last) if like.is_contiguous(memory_format=channels_last) else x
