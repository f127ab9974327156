"""Procedural composites that nothing was trained on and no path was chosen by, as images to score on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ..config import HeldOut
from ..data.compose import Batch
from ..data.synthetic import KINDS, SMALLEST
from ..errors import UsageError
from ..imageio import to_integers
from ..reporter import Reporter
from ..train.validate import REPORT, held_out_composites
from .images import ImageSet, Sample

HELD_OUT = "held-out"
COUNT, SIZE = 64, 384
SPLITS_PER_SEED = 10
"""Splits of other seeds lie between those that training uses (train/validate.py)."""


def composites(
    count: int = COUNT,
    size: int = SIZE,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[Batch]:
    """Whole procedural objects over procedural backgrounds. Sets of different seeds share no matte.

    Raises UsageError for an unknown kind, or a count, size or seed that makes no sense.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise UsageError(f"{', '.join(unknown) or 'nothing'} is no kind of matte", f"choose among {', '.join(KINDS)}")
    if count < 1 or size < SMALLEST or seed < 0:
        raise UsageError(
            f"{count} held-out composites of {size} pixels with seed {seed} cannot be made",
            f"count from 1, size from {SMALLEST}, seed from 0 on",
        )
    ordered = [kind for kind in KINDS if kind in kinds]
    split = REPORT + SPLITS_PER_SEED * seed
    return held_out_composites(HeldOut(count, size), ordered, split, torch.device("cpu"), reporter)


def held_out_images(
    count: int = COUNT,
    size: int = SIZE,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> ImageSet:
    """The same as images to score on. Raises as `composites` does."""
    batches = composites(count, size, kinds, seed, reporter)
    places = [(batch, row) for batch in batches for row in range(len(batch.image))]
    label = f"{count} held-out procedural composites of {size}x{size} pixels ({', '.join(kinds)}; seed {seed})"
    facts = {"data": HELD_OUT, "count": count, "size": size, "kinds": list(kinds), "seed": seed}
    return ImageSet(label, facts, [partial(_sample, *place, number) for number, place in enumerate(places)])


def _sample(batch: Batch, row: int, number: int) -> Sample:
    trimap = np.array([0, 128, 255], np.uint8)[(2 * batch.trimap[row, 0]).round().long().numpy()]
    photo = np.ascontiguousarray(batch.image[row].permute(1, 2, 0).numpy(), dtype=np.float32)
    return Sample(f"composite {number}", photo, trimap, to_integers(batch.alpha[row, 0].numpy(), 8))
