"""The project's own operators as plain torch layers, which every exporter knows; the numbers stay the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pam_kernels import Connect, DepthwiseConv2d

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "identity": nn.Identity}


class PlainConnect(nn.Module):
    """x + W2 act(W1 x + b1) + b2 with pointwise convolutions, whose weights are constants and not views of parameters."""

    def __init__(self, connect: Connect) -> None:
        super().__init__()
        hidden, channels = connect.w1.shape
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = ACTIVATIONS[connect.activation]()
        self.restore = nn.Conv2d(hidden, channels, 1)
        _copy(self.reduce, connect.w1[:, :, None, None], connect.b1)
        _copy(self.restore, connect.w2[:, :, None, None], connect.b2)

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.restore(self.act(self.reduce(x)))
        return x + restored


def plain(module: nn.Module) -> nn.Module:
    """A copy of `module` without the project's own operators."""
    module = copy.deepcopy(module)
    _replace(module)
    return module


def _replace(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, Connect):
            setattr(module, name, PlainConnect(child))
        elif isinstance(child, DepthwiseConv2d):
            setattr(module, name, _plain_depthwise(child))
        else:
            _replace(child)


def _plain_depthwise(conv: DepthwiseConv2d) -> nn.Conv2d:
    k, c = conv.kernel_size[0], conv.in_channels
    result = nn.Conv2d(c, c, k, conv.stride[0], k // 2, groups=c, bias=conv.bias is not None)
    _copy(result, conv.weight, conv.bias)
    return result


@torch.no_grad()
def _copy(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    conv.weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
