"""The module that is exported: fixed names, fixed order, one size; all preprocessing is inside the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pam_mobile.model.prior import ColourPrior
from pam_mobile.model.subnet import extract
from pam_mobile.model.supernet import Supernet
from pam_mobile.model.trunk import known_masks
from pam_mobile.path import Path

from .plain import plain

IMAGE, TRIMAP, ALPHA = "image", "trimap", "alpha"


class Wrapper(nn.Module):
    """A network with one path and the names `image`, `trimap` -> `alpha`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """image: (1, 3, H, W) sRGB in [0, 1]; trimap: (1, 1, H, W) of 0, 0.5, 1. Returns alpha (1, 1, H, W) in [0, 1]."""
        alpha: Tensor = self.network(image, trimap)
        return alpha


class PriorAlone(nn.Module):
    """The colour prior with the inputs of a network, to measure what it takes of one."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = ColourPrior()

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """As Wrapper.forward, but returns what the prior says (1, 3, H, W)."""
        guess: Tensor = self.prior(image, *known_masks(trimap))
        return guess


def network_of(supernet: Supernet, path: Path) -> nn.Module:
    """The float32 CPU copy of one path, ready for inference: what artifacts are compared with."""
    return extract(supernet, path).cpu().float().eval().requires_grad_(False)


def wrap(network: nn.Module) -> Wrapper:
    """A network of `network_of` as exporters want it. The original is left alone."""
    return Wrapper(plain(network)).eval().requires_grad_(False)


def io_description(size: int, images: bool) -> list[dict[str, Any]]:
    """The manifest's `io`. images: whether inputs are 8-bit images that the artifact scales itself, or float tensors."""
    kind = {"type": "image", "dtype": "uint8"} if images else {"type": "tensor", "dtype": "float32", "layout": "NCHW"}
    top = 255 if images else 1
    image = {"name": IMAGE, "shape": [1, 3, size, size], "colour": "sRGB", "range": [0, top]}
    values = [0, 128, 255] if images else [0, 0.5, 1]
    trimap = {"name": TRIMAP, "shape": [1, 1, size, size], "colour": "grey", "values": values}
    alpha = {"name": ALPHA, "shape": [1, 1, size, size], "colour": "grey", "range": [0, 1]}
    return [
        {**image, **kind, "role": "input"},
        {**trimap, **kind, "role": "input"},
        {**alpha, "type": "tensor", "dtype": "float32", "layout": "NCHW", "role": "output"},
    ]
