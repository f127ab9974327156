"""Memory formats of the connect layer's tensors. The kernels read both formats, so no layout is ever converted for them."""

from __future__ import annotations

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """x if it is contiguous in either memory format, else a contiguous copy.  x: (N, C, H, W)."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a dense x."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def like(x: Tensor, other: Tensor) -> Tensor:
    """x in the memory format of `other`, which is dense."""
    return x.contiguous(memory_format=memory_format(other))


def hidden_like(x: Tensor, w1: Tensor) -> Tensor:
    """Uninitialised (N, M, H, W) in the memory format of x and the dtype of w1: (M, C)."""
    shape = (x.shape[0], w1.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=w1.dtype, device=x.device, memory_format=memory_format(x))
