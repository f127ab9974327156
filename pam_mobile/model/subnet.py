"""The plain network that is left when the path is fixed."""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn

from ..path import Path
from .supernet import Supernet
from .trunk import MattingNet
from .unit import Unit


class Subnet(nn.Module):
    """A matting network without switches: no unit, no selection head, no unused branch."""

    def __init__(self, net: MattingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """As Supernet.forward on the extracted path."""
        return self.net(image, trimap, lambda unit, x: unit(x))


def extract(supernet: Supernet, path: Path) -> Subnet:
    """A copy of the supernet reduced to one path. Raises ValueError if the path has another number of units."""
    if len(path) != len(supernet.units):
        raise ValueError(f"path {path} has {len(path)} units, the network has {len(supernet.units)}")
    net = copy.deepcopy(supernet.net)
    bits = iter(path)
    for units in net.unit_lists():
        for i, unit in enumerate(units):
            units[i] = cast(Unit, unit).branch(next(bits))
    subnet = Subnet(net)
    return subnet.train(supernet.training)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
