"""The public depthwise operator and its module."""

from __future__ import annotations

from torch import Tensor, nn

from .reference import depthwise_conv2d_reference

MAX_KERNEL = 31


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Convolve each channel with its own kernel, same padding.

    x: (N, C, H, W); weight: (C, 1, k, k) with odd k in 3..31; bias: (C,) or None; stride: 1 or 2.
    Returns (N, C, ceil(H / stride), ceil(W / stride)) in the dtype of x. Raises ValueError for other shapes.
    """
    channels, one, k, k2 = weight.shape
    if one != 1 or k != k2 or k % 2 == 0 or not 3 <= k <= MAX_KERNEL:
        raise ValueError(
            f"weight must be (C, 1, k, k) with odd k in 3..{MAX_KERNEL}, weight.shape = {tuple(weight.shape)}"
        )
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, H, W) to fit weight, x.shape = {tuple(x.shape)}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, stride = {stride}")
    return depthwise_conv2d_reference(x, weight, bias, stride)


class DepthwiseConv2d(nn.Conv2d):
    """Drop-in for `nn.Conv2d(c, c, k, stride, padding=k // 2, groups=c)`: same parameters, same state_dict."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, self.stride[0])
