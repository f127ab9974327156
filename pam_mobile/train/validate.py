"""Held-out composites, the error of a path on them, and the search for the best path per budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from ..budget import Budget, knapsack
from ..config import HeldOut
from ..cost import CostTable
from ..data.bank import HELD_OUT_SEED, synthetic_bank
from ..data.compose import Batch, Composer
from ..model.supernet import Supernet
from ..path import Path, PathSpace
from ..pathtable import MeasuredPath, PathTable
from ..reporter import Reporter, Silent
from .losses import unknown_mask

BATCH = 8
PROPOSALS = 8
"""Budgets between the smallest and the largest path for which candidates are proposed."""
RANDOM_PER_BUDGET = 2

SELECTION, REPORT, VOTES = 1, 2, 3
"""Paths are chosen on one held-out set, reported on another, and a third votes for the path prior; they share no matte, and none
is ever trained on."""
SPLIT_SEEDS = 1_000_000


def held_out_composites(
    held_out: HeldOut, kinds: Sequence[str], split: int, device: torch.device, reporter: Reporter | None = None
) -> list[Batch]:
    """Fixed composites in batches, every matte once and whole. split: SELECTION, REPORT or VOTES."""
    count = held_out.composites
    seed = HELD_OUT_SEED + split * SPLIT_SEEDS
    bank = synthetic_bank(seed, count, count, held_out.size, kinds, reporter).to(device)
    rng = Generator().manual_seed(split)
    composer = Composer(second=0, hard=0, known=0)
    batches = [composer.whole(bank, first, min(BATCH, count - first), rng) for first in range(0, count, BATCH)]
    return [b._replace(image=b.image.contiguous(memory_format=torch.channels_last)) for b in batches]


def sad_per_image(alpha: Tensor, batch: Batch) -> Tensor:
    """SAD / 1000 over the unknown pixels of each image, (N,).  alpha: (N, 1, H, W)."""
    return ((alpha - batch.alpha).abs() * unknown_mask(batch.trimap)).sum((1, 2, 3)) / 1000


@torch.inference_mode()
def sads(supernet: Supernet, batches: Sequence[Batch], path: Path) -> Tensor:
    """SAD / 1000 over the unknown pixels of every composite on one path, (N,)."""
    training = supernet.training
    supernet.eval()
    scores = torch.cat([sad_per_image(supernet(b.image, b.trimap, path=path), b) for b in batches])
    supernet.train(training)
    return scores


@torch.inference_mode()
def chosen_sads(supernet: Supernet, batches: Sequence[Batch], budget: Budget) -> tuple[Tensor, list[Path]]:
    """The same on the path that the planning head chooses for each composite within a budget, and these paths."""
    training = supernet.training
    supernet.eval()
    scores, paths = [], []
    for batch in batches:
        table = CostTable.of(supernet.preset, *batch.image.shape[2:])
        if budget.macs(table) >= table.largest:
            chosen = [Path.all_run(len(supernet.units))] * len(batch.image)
            alpha = supernet(batch.image, batch.trimap, path=chosen)
        else:
            alpha, chosen = supernet.plan(batch.image, batch.trimap, budget)
        scores.append(sad_per_image(alpha, batch))
        paths += chosen
    supernet.train(training)
    return torch.cat(scores), paths


def half_sads(batches: Sequence[Batch]) -> Tensor:
    """The same for the answer alpha = 0.5."""
    return torch.cat([sad_per_image(torch.full_like(b.alpha, 0.5), b) for b in batches])


@torch.inference_mode()
def prior_sads(batches: Sequence[Batch]) -> Tensor:
    """The same for the colour prior alone."""
    from ..model.prior import ColourPrior
    from ..model.trunk import known_masks

    prior = ColourPrior()
    return torch.cat([sad_per_image(prior(b.image, *known_masks(b.trimap))[:, 1:2], b) for b in batches])


def change(scores: Tensor, baseline: Tensor) -> tuple[float, float]:
    """Relative change of the mean score against a baseline on the same images, and its standard error over images.

    The error is that of a ratio of means (first order). scores, baseline: (N,).
    """
    n, ratio = len(scores), scores.sum() / baseline.sum()
    residual = scores - ratio * baseline
    error = (residual.square().sum() * n / max(1, n - 1)).sqrt() / baseline.sum()
    return float(ratio - 1), float(error)


def search_paths(supernet: Supernet, batches: Sequence[Batch], reporter: Reporter | None = None) -> PathTable:
    """Measure the paths that are worth running, for budgets from the smallest to the largest.

    What each unit is worth is measured by bypassing it alone in the whole network and by running it alone in the smallest;
    the exact knapsack over these scores proposes one path per budget, and random paths near the budget compete with it.
    """
    reporter = reporter or Silent()
    preset = supernet.preset
    table = CostTable.of(preset, preset.reference, preset.reference)
    space = PathSpace(table)
    full, none = Path.all_run(space.units), Path.all_bypass(space.units)
    singles = [p.flip(unit) for p in (full, none) for unit in range(space.units)]
    measured: dict[Path, float] = {}
    total = len(singles) + 2 + PROPOSALS * (1 + RANDOM_PER_BUDGET)
    with reporter.progress("measuring paths on held-out composites", total) as advance:

        def measure(path: Path) -> float:
            if path not in measured:
                measured[path] = float(sads(supernet, batches, path).mean())
            advance()
            return measured[path]

        for path in (full, none, *singles):
            measure(path)
        worth = [
            (measured[full.flip(u)] - measured[full] + measured[none] - measured[none.flip(u)]) / 2
            for u in range(space.units)
        ]
        rng = np.random.default_rng(SELECTION)
        window = (table.largest - table.smallest) // PROPOSALS
        for macs in np.linspace(table.smallest, table.largest, PROPOSALS + 2)[1:-1].astype(np.int64).tolist():
            measure(knapsack(worth, table, macs))
            near = space.near(macs, window) or [none]
            for index in rng.integers(len(near), size=RANDOM_PER_BUDGET):
                measure(near[index])
    return PathTable(MeasuredPath(path, sad) for path, sad in measured.items())
