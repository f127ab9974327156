"""A unit: what the network may run or bypass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pam_kernels import Connect

from .block import DenseBlock, DepthwiseBlock
from .presets import UnitSpec
from .selection import ChannelAttention, SelectionHead


class Unit(nn.Module):
    """Channel attention, then either the blocks (run) or the connect layer (bypass); without a connect layer, nothing."""

    def __init__(self, spec: UnitSpec, kernel: int, connect: bool = True) -> None:
        super().__init__()
        self.attention = ChannelAttention(spec.channels)
        self.head = SelectionHead(spec.channels)
        self.blocks = nn.Sequential(
            *(
                DenseBlock(spec.channels) if spec.dense else DepthwiseBlock(spec.channels, kernel)
                for _ in range(spec.blocks)
            )
        )
        self.connect = Connect(spec.channels) if connect else nn.Identity()

    def forward(self, x: Tensor, run: Sequence[bool]) -> Tensor:
        """x: (N, c, H, W); run: one decision for the batch, or one per image."""
        x = self.attention(x)
        if all(run):
            return self.blocks(x)
        if not any(run):
            return self.connect(x)
        mask = torch.tensor(list(run), device=x.device)
        ran, bypassed = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        branches = torch.cat([self.blocks(x[ran]), self.connect(x[bypassed])])
        return branches[torch.cat([ran, bypassed]).argsort()]

    def blend(self, x: Tensor, choice: Tensor) -> Tensor:
        """Both branches weighted by a choice (N, 2) of (bypass, run), so that it gets a gradient.  x: (N, c, H, W)."""
        x = self.attention(x)
        bypass, run = choice.to(x.dtype)[:, :, None, None, None].unbind(1)
        return bypass * self.connect(x) + run * self.blocks(x)

    def branch(self, run: bool) -> nn.Sequential:
        """The plain module that is left when the decision is fixed; shares the parameters."""
        return nn.Sequential(self.attention, self.blocks if run else self.connect)
