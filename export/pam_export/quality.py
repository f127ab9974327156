"""Composites for artifacts whose numbers may differ: some to calibrate with, others to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pam_mobile.data.synthetic import SMALLEST
from pam_mobile.data.trimap import UNKNOWN
from pam_mobile.errors import UsageError
from pam_mobile.evaluate.heldout import composites

from .parity import Case

CALIBRATION, JUDGED = 16, 12
CALIBRATION_SEED, JUDGED_SEED = 7, 6


@dataclass(frozen=True)
class Composite:
    """An input whose alpha is known.  alpha: (1, 1, H, W)."""

    case: Case
    alpha: Tensor


def calibration_cases(size: int) -> list[Case]:
    """Inputs to measure ranges of activations on; none of them is judged."""
    return [composite.case for composite in _composites(size, CALIBRATION, CALIBRATION_SEED)]


@cache
def judged_composites(size: int) -> list[Composite]:
    """What the SAD of compressed artifacts is measured on."""
    return _composites(size, JUDGED, JUDGED_SEED)


def sad(alphas: Sequence[Tensor], judged: Sequence[Composite]) -> float:
    """Sum of absolute differences over the unknown pixels of all composites, in thousands. Infinite if a pixel is not finite."""
    total = 0.0
    for alpha, composite in zip(alphas, judged, strict=True):
        unknown = composite.case.trimap == UNKNOWN
        total += float((alpha - composite.alpha)[unknown].double().abs().sum()) / 1000
    return total if total == total else float("inf")


def _composites(size: int, count: int, seed: int) -> list[Composite]:
    if size < SMALLEST:
        raise UsageError(f"size {size} is too small to calibrate for", f"choose at least {SMALLEST}, or precision fp32")
    found: list[Composite] = []
    for batch in composites(count, size, seed=seed):
        images, trimaps = (batch.image * 255).round().to(torch.uint8), (batch.trimap * 255).round().to(torch.uint8)
        for image, trimap, alpha in zip(images.split(1), trimaps.split(1), batch.alpha.split(1), strict=True):
            trimap = torch.where((trimap > 0) & (trimap < 255), UNKNOWN, trimap)
            found.append(Composite(Case(f"composite-{len(found)}", image, trimap), alpha))
    return found
