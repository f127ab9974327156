"""The blocks that a unit runs: depthwise at the high levels, dense at strides 2 and 1."""

from __future__ import annotations

from torch import Tensor, nn

from pam_kernels import DepthwiseConv2d


class DepthwiseBlock(nn.Module):
    """x + PW(2c -> c)( ReLU( PW(c -> 2c)( BN( DW_kxk(x) ) ) ) ).  x: (N, c, H, W)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv2d(channels, kernel, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.act = nn.ReLU()
        self.project = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.act(self.expand(self.norm(self.depthwise(x)))))


class DenseBlock(nn.Module):
    """x + Conv3x3( ReLU( BN( Conv3x3(x) ) ) ).  x: (N, c, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.project = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.act(self.norm(self.filter(x))))
