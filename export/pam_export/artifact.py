"""What all formats have in common: parts go in, a file comes out, requests are answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor, nn

from pam_mobile.path import Path

Pair = tuple[Tensor, Tensor]
"""Image (1, 3, H, W) in [0, 1] and trimap (1, 1, H, W) of 0, 0.5, 1, float32."""
Info = Mapping[str, str | int | Sequence[int]]
"""Facts that are written into the artifact itself."""

FORWARD = "forward"
PLANNED, STEPWISE = "planned", "stepwise"


@dataclass(frozen=True)
class Part:
    """One network of an artifact and the name by which it is asked for.

    module: takes `inputs`; made by `wrapper.wrap`, of an adaptive artifact by `adaptive.Adaptive`.
    calibration: more inputs of the size, from no test's images; only for recipes that quantise activations.
    """

    name: str
    module: nn.Module
    inputs: Pair
    calibration: Sequence[Pair] = ()


@dataclass(frozen=True)
class Request:
    """What is asked of an artifact.

    method: name of a part; of an adaptive artifact the way the path is chosen, `planned` or `stepwise`.
    macs: the budget at the artifact's size; adaptive only.
    path: the path that then runs whatever was chosen, "" for the chosen one; only where a host runs the network's pieces.
    """

    method: str = FORWARD
    macs: int = 0
    path: str = ""


def request_of(method: Mapping[str, Any]) -> Request:
    """What is asked of an artifact of a manifest by one of its methods."""
    return Request(method["name"], 0 if method["path"] else method["budget"]["limit_macs"])


@dataclass(frozen=True)
class Answer:
    """alpha: (1, 1, H, W) float32; path: the one that ran, where the artifact chose it."""

    alpha: Tensor
    path: Path | None = None


Runner = Callable[[Tensor, Tensor, Request], Answer]
"""runner(image uint8 (1, 3, H, W), trimap uint8 (1, 1, H, W), request): an artifact that is loaded."""
Build = Callable[[Sequence[Part], FilePath, Info], dict[str, Any]]
"""build(parts, path, info) writes the artifact with `info` inside and returns the manifest's `backend`."""
Load = Callable[[FilePath], Runner]
Facts = Callable[[FilePath], dict[str, str]]
"""facts(path) returns the `info` that is inside the artifact, each value as `text` gives it."""


def floats(image: Tensor, trimap: Tensor) -> Pair:
    """8-bit inputs as networks take them.

    Contiguous, because runtimes read memory as it lies: an image with channels-last strides would be taken for another.
    """
    return (image / 255).contiguous(), (trimap / 255).contiguous()


def text(value: str | int | Sequence[int]) -> str:
    """A fact as text, the same for every format."""
    return str(value) if isinstance(value, str | int) else ",".join(str(v) for v in value)
