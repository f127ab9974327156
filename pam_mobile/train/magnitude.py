"""Small features: a penalty on those that outgrow the scale on which they began.

Batch norm makes a unit indifferent to the scale of what it is given, so nothing in the losses is against features that grow, and from
run to run they do, to thousands. Channel attention then saturates to gates that are open or shut, and neither float16 nor 8 bits
have steps fine enough for what is left (docs/findings.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..model.ppm import PyramidPooling
from ..model.selection import ChannelAttention

LIMIT = 8.0
"""Root mean square of the features that enter a unit or leave the pyramid pooling, up to which nothing is asked of them."""


@contextmanager
def magnitudes(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every unit and pyramid that runs with gradients adds the mean square of its features to the list."""
    found: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        if torch.is_grad_enabled():
            features = result if isinstance(module, PyramidPooling) else given[0]
            found.append(features.float().square().mean())

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, ChannelAttention | PyramidPooling):
                stack.callback(module.register_forward_hook(note).remove)
        yield found


def excess(found: list[Tensor]) -> Tensor:
    """Scalar: mean of the logarithm of how many times their features are too large; 0 if none are. found: mean squares."""
    return (torch.stack(found) / LIMIT**2).clamp(min=1).log().mean() / 2
