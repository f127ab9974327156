"""The connect layer in plain PyTorch: what every other implementation is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def connect_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu") -> Tensor:
    """y = x + W2 act(W1 x + b1) + b2 at every pixel (PAM, equation 4)."""
    hidden = F.conv2d(x, w1[:, :, None, None], b1)
    return x + F.conv2d(ACTIVATIONS[activation](hidden), w2[:, :, None, None], b2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "identity": lambda x: x}
