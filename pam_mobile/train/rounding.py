"""Training for int8: features are rounded to 8 bits where an int8 artifact rounds them, and gradients pass as if they were not.

Without it a network may come to depend on differences far below such a step: a depthwise kernel that cancels all but a thousandth
of its input, amplified a hundred times by batch norm, costs nothing in float32. How much it matters: docs/findings.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pam_kernels import Connect

from ..model.block import DenseBlock, DepthwiseBlock
from ..model.layers import ConvBlock
from ..model.ppm import PyramidPooling
from ..model.selection import ChannelAttention

LEVELS = 255
ROUNDED = (ConvBlock, ChannelAttention, DenseBlock, DepthwiseBlock, Connect, PyramidPooling)
"""Modules whose results become features; inside a block, also what its norm and its activation give."""


@contextmanager
def rounded(network: nn.Module) -> Iterator[None]:
    """Inside, the features of the network are rounded to 255 steps of their tensor's range."""
    with ExitStack() as stack:
        for module in network.modules():
            inner = (module.norm, module.act) if isinstance(module, DenseBlock | DepthwiseBlock) else ()
            for place in (*inner, *((module,) if isinstance(module, ROUNDED) else ())):
                stack.callback(place.register_forward_hook(_round).remove)
        yield


def _round(module: nn.Module, given: Any, features: Tensor) -> Tensor:
    return features + (round_to_steps(features.detach()) - features.detach())


def round_to_steps(x: Tensor) -> Tensor:
    """x rounded to 255 equal steps between the smallest and the largest of its values and 0, of any shape and float dtype."""
    low, high = x.float().aminmax()
    return round_between(x.float(), low.clamp(max=0), high.clamp(min=0)).to(x.dtype)


def round_between(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """x rounded to the nearest of 255 equal steps from `low` to `high`. x: any shape, float32; low, high: scalars, low <= 0 <= high."""
    step = torch.as_tensor(high - low).clamp(min=1e-9) / LEVELS
    return ((x - low) / step).round().clamp(0, LEVELS) * step + low
