"""Small features: a penalty on those that outgrow the scale on which they began.

Batch norm makes a unit indifferent to the scale of what it is given, so nothing in the losses is against features that grow, and from
run to run they do, to thousands; where it keeps its statistics, the scale passes through it, and training can go astray. Channel
attention then saturates to gates that are open or shut, and neither float16 nor 8 bits have steps fine enough for what is left
(docs/findings.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..model.supernet import Supernet
from ..model.unit import Unit

LIMIT = 64.0
"""Root mean square of the features that enter or leave a unit or the pyramid pooling, up to which nothing is asked of them.

Networks that pass every gate of the export come near it; held at 8, they lost more than training on gained (docs/findings.md)."""


@contextmanager
def magnitudes(network: Supernet) -> Iterator[list[Tensor]]:
    """Inside, features that are computed with gradients add their mean squares to the list.

    Those that enter the first unit of a level, and those that a unit or the pyramid makes; what other units are given is among them.
    """
    found: list[Tensor] = []

    def note(features: Tensor) -> None:
        if torch.is_grad_enabled():
            found.append(features.float().square().mean())

    def note_given(module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        note(given[0])

    def note_result(module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        note(result)

    entries = [cast(Unit, units[0]).attention for units in network.net.unit_lists() if len(units)]
    makers = [branch for unit in network.units for branch in (unit.blocks, unit.connect)]
    with ExitStack() as stack:
        for module in entries:
            stack.callback(module.register_forward_hook(note_given).remove)
        for module in (*makers, *network.net.encoder.ppm):
            stack.callback(module.register_forward_hook(note_result).remove)
        yield found


def excess(found: list[Tensor]) -> Tensor:
    """Scalar: sum of the logarithms of how many times features are too large; 0 if none are. found: mean squares.

    A sum, so that one place that grows is held as firmly among many as among few.
    """
    return (torch.stack(found) / LIMIT**2).clamp(min=1).log().sum() / 2
