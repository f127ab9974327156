"""Images to score on, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..data.datasets import Triple, image_trimap_alpha, read_triple
from ..data.trimap import TRIMAP_RADIUS


class Sample(NamedTuple):
    """One image with its trimap and its true alpha."""

    name: str
    photo: np.ndarray
    """(H, W, 3) float32 sRGB in [0, 1]."""
    trimap: np.ndarray
    """(H, W) uint8 with 0, 128, 255."""
    alpha: np.ndarray
    """(H, W) uint8."""


@dataclass(frozen=True)
class ImageSet:
    """Samples, and what is said about them in a report."""

    label: str
    facts: dict[str, Any]
    readers: Sequence[Callable[[], Sample]]
    """One per image; called once for all rows of a table."""


def images_of(spec: str) -> ImageSet:
    """The test images of a data set or folder (data/layouts.py). Raises InputError if there are none or files are missing."""
    triples = image_trimap_alpha(spec)
    made = sum(triple.trimap is None for triple in triples)
    label = spec
    if made:
        label += f" ({made} trimaps made from the alphas: unknown within {TRIMAP_RADIUS} pixels of a soft edge)"
    return ImageSet(label, {"data": spec, "trimaps_made": made}, [partial(_read, triple) for triple in triples])


def _read(triple: Triple) -> Sample:
    return Sample(triple.name, *read_triple(triple))
