"""Does the network's own choice of a path earn anything? Its choice against others of equal cost (PAM, controls).

Every control answers the same images within the same budgets. A network that has learned to read images beats the best fixed path
of a budget, and loses that when it is given the paths of other images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import Budget
from ..checkpoint import Checkpoint
from ..cost import GIGA, CostTable
from ..errors import UsageError
from ..path import Path, PathSpace
from ..predict.matter import padded_tensors
from ..reporter import Reporter
from ..tables import markdown_table
from ..train.pathprior import PathPrior, window
from .images import ImageSet, Sample
from .report import Change

BUDGETS = ("75%", "80%", "85%", "90%", "95%")
"""What is asked where nothing else is; at the largest path's cost there is nothing to choose."""
DRAWS = 3
"""Random controls are means over so many draws per image."""
CANDIDATES = 4
"""Paths of the prior that the oracle chooses among, beside all that the other controls took."""

RANDOM, ANOTHER, DRAWN, FIXED = "random path", "paths of other images", "drawn from the prior", "best fixed path"
PLANNED, STEPWISE, ORACLE = "network, planned", "network, stepwise", "oracle"


@dataclass(frozen=True)
class ControlRow:
    """One control at one budget, over all images."""

    budget: str
    control: str
    sad: float
    """SAD / 1000 over the unknown pixels, mean over the images."""
    sad_standard_error: float
    against_fixed: Change | None
    gmacs_mean: float
    """The heads included where the network chose."""
    over_budget: int
    """Images whose path cost more than the budget; always 0."""
    paths: int
    """Distinct paths that were run."""
    run_share: list[float]
    """Per unit: share of the images whose path runs it."""
    sads: list[float]
    """SAD / 1000 of every image, in order; of several paths the mean."""


class _Image:
    """An image as tensors, and the SAD of every path that was tried on it."""

    def __init__(self, checkpoint: Checkpoint, sample: Sample) -> None:
        height, width = sample.trimap.shape
        self.network = checkpoint.supernet
        device = next(self.network.parameters()).device
        image, trimap = padded_tensors(sample.photo, sample.trimap)
        self.inputs = image.to(device), trimap.to(device)
        self.target = torch.from_numpy(sample.alpha / np.float32(255))
        self.unknown = torch.from_numpy(sample.trimap == 128)
        self.space = _space(checkpoint, height, width)
        self.known: dict[Path, float] = {}

    def sad(self, path: Path) -> float:
        if path not in self.known:
            self.known[path] = self._score(self.network(*self.inputs, path=path))
        return self.known[path]

    def _score(self, alpha: Tensor) -> float:
        height, width = self.target.shape
        error = (alpha[0, 0, :height, :width].cpu() - self.target).abs()
        return float(error[self.unknown].sum()) / 1000


@torch.inference_mode()
def controls(
    checkpoint: Checkpoint,
    images: ImageSet,
    budgets: Sequence[Budget],
    prior: PathPrior | None,
    seed: int,
    reporter: Reporter,
) -> list[ControlRow]:
    """All controls at every budget, on the network's device. prior: none if the network was trained without one.

    Raises UsageError for a single image and for images without another one whose path fits, BudgetError if a budget leaves
    nothing to choose at some image's size.
    """
    if len(images.readers) < 2:
        raise UsageError("controls compare images, here is one", "give two or more")
    rng = np.random.default_rng(seed)
    rows = []
    with reporter.progress("controls", len(images.readers) * len(budgets)) as advance:
        loaded = [_Image(checkpoint, read()) for read in images.readers]
        for budget in budgets:
            taken: list[dict[str, list[Path]]] = []
            for image in loaded:
                taken.append(_choices(checkpoint, image, budget, prior, rng))
                for paths in taken[-1].values():
                    for path in paths:
                        image.sad(path)
                advance(note=str(budget))
            for i, (own, image) in enumerate(zip(taken, loaded, strict=True)):
                own[ANOTHER] = _of_others(taken[:i] + taken[i + 1 :], image.space.table, budget)
            for own, image in zip(taken, loaded, strict=True):
                tried = {path for paths in own.values() for path in paths}
                own[ORACLE] = [min(tried, key=lambda path: (image.sad(path), image.space.table.cost(path)))]
                own.pop("")
            rows += _rows(budget, loaded, taken)
    return rows


def _choices(
    checkpoint: Checkpoint, image: _Image, budget: Budget, prior: PathPrior | None, rng: np.random.Generator
) -> dict[str, list[Path]]:
    """What each control would run; under the empty name further candidates of the oracle."""
    network, table = checkpoint.supernet, image.space.table
    macs = budget.macs(table)
    table.require(macs, max(table.planning, table.selection))
    near = window(image.space, macs, network.preset.budget_step * table.smallest // _reference(checkpoint).smallest)
    exact = Budget(Fraction(macs), relative=False)
    choices = {
        RANDOM: [image.space[int(index)] for index in rng.choice(near, DRAWS)],
        FIXED: [checkpoint.paths.best(exact, table)],
        PLANNED: network.plan(*image.inputs, exact)[1],
        STEPWISE: network.choose(*image.inputs, exact)[1],
        "": [],
    }
    if prior is not None:
        scaled = macs * prior.space.table.smallest // table.smallest
        fits: Callable[[Path], bool] = lambda path: table.cost(path) <= macs  # noqa: E731  (costs scale almost exactly)
        choices[DRAWN] = [p for _ in range(DRAWS) for p in filter(fits, prior.draw(scaled, 1, rng))]
        choices[""] = [p for p in prior.draw(scaled, CANDIDATES, rng) if fits(p)]
    return choices


def _of_others(others: Sequence[dict[str, list[Path]]], table: CostTable, budget: Budget) -> list[Path]:
    """The planned paths of all other images; where sizes differ, of those whose path keeps the budget here, too.

    All instead of one: then only what the network read off the image itself distinguishes its own choice from them.
    """
    paths = [path for other in others for path in other[PLANNED] if table.cost(path) <= budget.macs(table)]
    if not paths:
        raise UsageError(
            f"no other image's path fits {budget} at {table.height}x{table.width}",
            "give images of similar sizes, or the budget as a share such as 80%",
        )
    return paths


def _rows(budget: Budget, images: Sequence[_Image], taken: Sequence[dict[str, list[Path]]]) -> list[ControlRow]:
    heads = {PLANNED: "planning", STEPWISE: "selection"}
    order = [name for name in (RANDOM, ANOTHER, DRAWN, FIXED, STEPWISE, PLANNED, ORACLE) if name in taken[0]]
    scores = {
        name: [float(np.mean([image.sad(p) for p in own[name]])) for image, own in zip(images, taken, strict=True)]
        for name in order
    }
    rows = []
    for name in order:
        costs, over = [], 0
        for image, own in zip(images, taken, strict=True):
            table = image.space.table
            extra = getattr(table, heads[name]) if name in heads else 0
            spent = [table.cost(path) + extra for path in own[name]]
            costs += spent
            over += max(spent) > budget.macs(table)
        paths = [path for own in taken for path in own[name]]
        rows.append(
            ControlRow(
                budget=str(budget),
                control=name,
                sad=round(float(np.mean(scores[name])), 4),
                sad_standard_error=round(float(np.std(scores[name], ddof=1)) / math.sqrt(len(images)), 4),
                against_fixed=None if name == FIXED else Change.of(scores[name], scores[FIXED]),
                gmacs_mean=round(float(np.mean(costs)) / GIGA, 4),
                over_budget=over,
                paths=len(set(paths)),
                run_share=[round(float(share), 3) for share in np.mean([list(path) for path in paths], axis=0)],
                sads=[round(score, 5) for score in scores[name]],
            )
        )
    return rows


def _reference(checkpoint: Checkpoint) -> CostTable:
    size = checkpoint.preset.reference
    return CostTable.of(checkpoint.preset, size, size)


def _space(checkpoint: Checkpoint, height: int, width: int) -> PathSpace:
    return PathSpace(CostTable.of(checkpoint.preset, height, width))


def adaptivity(rows: Sequence[ControlRow]) -> Change:
    """The planned path of every image against those of other images, all budgets together: what reading the image is worth."""
    own, others = (np.sum([row.sads for row in rows if row.control == name], axis=0) for name in (PLANNED, ANOTHER))
    return Change.of(list(own), list(others))


def verdict(rows: Sequence[ControlRow]) -> str:
    """What the planned choice is worth and whether it adapts to the image, in two sentences; two standard errors decide."""
    gains = [row.against_fixed for row in rows if row.control == PLANNED and row.against_fixed]
    better = sum(gain.change + 2 * gain.standard_error < 0 for gain in gains)
    worse = sum(gain.change - 2 * gain.standard_error > 0 for gain in gains)
    if better > len(gains) / 2 and not worse:
        said = "the network's choice beats the best fixed path"
    elif worse:
        said = "the network's choice is worse than the best fixed path somewhere: use --selection fixed"
    else:
        said = "that the network's choice beats the best fixed path is unproved"
    gain = adaptivity(rows)
    adapts = gain.change + 2 * gain.standard_error < 0
    return (
        f"{said} ({better} budgets better, {worse} worse, of {len(gains)}; two standard errors)\n"
        f"{'it adapts to the image' if adapts else 'that it adapts to the image is unproved'}: "
        f"against the {ANOTHER} {gain}, all budgets together"
    )


def to_text(images: ImageSet, rows: Sequence[ControlRow]) -> str:
    """The controls as a table, the run shares of the planned choice, and the verdict."""
    header = ("budget", "control", "SAD", f"SAD against {FIXED}", "GMACs", "paths")
    cells = [
        (
            row.budget,
            row.control,
            f"{row.sad:.3f} ± {row.sad_standard_error:.3f}",
            row.against_fixed or "-",
            f"{row.gmacs_mean:.3f}",
            row.paths,
        )
        for row in rows
    ]
    planned = [row for row in rows if row.control == PLANNED]
    units = [f"unit {i + 1}" for i in range(len(planned[0].run_share))]
    shares = [(row.budget, *(f"{share:.0%}" for share in row.run_share)) for row in planned]
    return (
        f"{images.label}: {len(images.readers)} images, SAD / 1000 over the unknown pixels, ± standard error over images\n\n"
        f"{markdown_table(header, cells)}\n\nhow often the planned path runs a unit\n\n"
        f"{markdown_table(('budget', *units), shares)}\n\n{verdict(rows)}"
    )


def to_json(images: ImageSet, rows: Sequence[ControlRow]) -> dict[str, Any]:
    return {**images.facts, "region": "unknown pixels", "rows": [asdict(row) for row in rows], "verdict": verdict(rows)}
