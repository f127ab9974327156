"""Parity: the inputs on which an artifact must equal the PyTorch network, and the gate that decides.

Inputs are 8-bit, as a camera and a brush give them, so that every platform can be fed the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pam_mobile.data.trimap import BACKGROUND, FOREGROUND, UNKNOWN
from pam_mobile.train.losses import unknown_mask

from .artifact import Pair, floats

SYNTHETIC = 4
SEED = 20240607


@dataclass(frozen=True)
class Gate:
    """What is still equal: the largest difference of a pixel, and the largest mean difference of an image.

    sad: for compressed networks, by how much (as a share) the SAD on held-out composites may exceed the network's. Their
    largest difference of a pixel is then free (max_abs None).
    """

    max_abs: float | None
    mean_abs: float
    sad: float | None = None


@dataclass(frozen=True)
class Case:
    """One input. image: (1, 3, H, W) uint8; trimap: (1, 1, H, W) uint8 of 0, 128, 255."""

    name: str
    image: Tensor
    trimap: Tensor

    def inputs(self) -> Pair:
        """The float tensors that the PyTorch network takes."""
        return floats(self.image, self.trimap)


@dataclass(frozen=True)
class Parity:
    """The outcome of a comparison; differences are infinite where shapes or finiteness differ."""

    max_abs: float
    mean_abs: float
    gate: Gate

    @property
    def passed(self) -> bool:
        return self.mean_abs <= self.gate.mean_abs and (self.gate.max_abs is None or self.max_abs <= self.gate.max_abs)

    def __str__(self) -> str:
        most = "" if self.gate.max_abs is None else f" (gate {self.gate.max_abs:.0e})"
        return f"max {self.max_abs:.1e}{most}, mean {self.mean_abs:.1e} (gate {self.gate.mean_abs:.0e})"


@cache
def cases(size: int) -> tuple[Case, ...]:
    """The inputs of every artifact of this size, always the same ones; the first is the golden one."""
    generator = torch.Generator().manual_seed(SEED + size)
    scenes = [_scene(size, generator) for _ in range(SYNTHETIC)]
    usual = [Case(f"synthetic-{i}", image, trimap) for i, (image, trimap) in enumerate(scenes)]
    (photo, trimap), (other, _) = scenes[:2]
    unknown = torch.full_like(trimap, UNKNOWN)
    noise = torch.randint(0, 256, photo.shape, generator=generator, dtype=torch.uint8)
    levels = torch.tensor([BACKGROUND, UNKNOWN, FOREGROUND], dtype=torch.uint8)
    noise_trimap = levels[torch.randint(0, 3, trimap.shape, generator=generator)]
    return (
        *usual,
        Case("all-unknown", other, unknown),
        Case("all-zero", torch.zeros_like(photo), trimap),
        Case("all-one", torch.full_like(photo, 255), unknown),
        Case("noise", noise, unknown),
        Case("noise-trimap", noise, noise_trimap),
    )


@torch.no_grad()
def reference(module: nn.Module, inputs: Sequence[Case]) -> list[Tensor]:
    """Alpha (1, 1, H, W) of the PyTorch network on every case."""
    return [module(*case.inputs()) for case in inputs]


def compare(expected: Sequence[Tensor], got: Sequence[Tensor], gate: Gate) -> Parity:
    """The worst differences over all images. Raises ValueError if their number differs."""
    pairs = [_difference(a, b) for a, b in zip(expected, got, strict=True)]
    return Parity(max(p[0] for p in pairs), max(p[1] for p in pairs), gate)


def unknown_difference(expected: Sequence[Tensor], got: Sequence[Tensor], inputs: Sequence[Pair]) -> float:
    """Mean absolute difference of the alphas over the unknown pixels of all inputs together; 0 if there are none."""
    unknown = [unknown_mask(trimap) for _, trimap in inputs]
    total = sum(float(((a - b).abs() * u).sum()) for a, b, u in zip(expected, got, unknown, strict=True))
    return total / max(1.0, sum(float(u.sum()) for u in unknown))


def worst(parities: Sequence[Parity]) -> Parity:
    """The worst of several comparisons under one gate."""
    return Parity(max(p.max_abs for p in parities), max(p.mean_abs for p in parities), parities[0].gate)


def _difference(expected: Tensor, got: Tensor) -> tuple[float, float]:
    if expected.shape != got.shape or not bool(torch.isfinite(got).all()):
        return float("inf"), float("inf")
    difference = (expected.double() - got.double()).abs()
    return float(difference.max()), float(difference.mean())


def _scene(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A soft shape of smooth colours over smooth colours with grain, and its trimap with a wide unknown band."""
    shape = _smooth(1, size, 5, generator)
    alpha = ((shape - shape.mean()) * 6 + 0.5).clamp(0, 1)
    image = alpha * _smooth(3, size, 8, generator) + (1 - alpha) * _smooth(3, size, 8, generator)
    image = image + 0.03 * torch.randn(1, 3, size, size, generator=generator)
    unknown = (alpha > 0) & (alpha < 1)
    trimap = torch.where(unknown, UNKNOWN, torch.where(alpha > 0.5, FOREGROUND, BACKGROUND))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), trimap.to(torch.uint8)


def _smooth(channels: int, size: int, cells: int, generator: torch.Generator) -> Tensor:
    """(1, channels, size, size) in [0, 1] that varies over about size / cells pixels."""
    coarse = torch.rand(1, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
