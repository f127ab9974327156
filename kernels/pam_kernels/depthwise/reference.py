"""Depthwise convolution in plain PyTorch: what every other implementation is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """y[n, c, i, j] = bias[c] + sum_uv weight[c, 0, u, v] x[n, c, i*stride + u - k//2, j*stride + v - k//2], zeros outside."""
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=weight.shape[0])
