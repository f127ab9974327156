"""Evaluation of a model on a folder of images: the four metrics and the cost, per budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..budget import Budget
from ..cost import GIGA
from ..data.datasets import Triple, image_trimap_alpha
from ..errors import InputError
from ..imageio import read_grey, read_photo, read_trimap, to_integers
from ..predict.matter import Matter
from ..reporter import Reporter
from .metrics import Scores, score


@dataclass(frozen=True)
class Row:
    """Means over the images of one budget. Metrics over the unknown pixels, in the published scales (METRICS in docs/evaluation.md)."""

    budget: str
    sad: float
    mse: float
    grad: float
    conn: float
    gmacs_mean: float
    gmacs_max: float
    over_budget: int
    """Images whose path cost more than the budget; always 0."""
    paths: int
    """Distinct paths that were run."""
    images: int


def evaluate(matter: Matter, folder: FilePath, budgets: Sequence[Budget], reporter: Reporter) -> list[Row]:
    """Score a model on image/, trimap/ and alpha/ of `folder` at every budget.

    Raises InputError for unusable files, BudgetError if a budget cannot be met at some image's size.
    """
    triples = image_trimap_alpha(folder)
    results: list[list[_Result]] = [[] for _ in budgets]
    with reporter.progress(f"evaluating {matter.name}", len(triples) * len(budgets)) as advance:
        for triple in triples:
            photo, trimap, target = _read(triple)
            for budget, rows in zip(budgets, results, strict=True):
                plan = matter.plan(trimap.shape[0], trimap.shape[1], budget)
                alpha = matter.run(photo, trimap, plan)
                over = plan.budget_macs is not None and plan.macs > plan.budget_macs
                rows.append(_Result(score(to_integers(alpha, 8), target, trimap), plan.macs, str(plan.path), over))
                advance(1, note=triple.name)
    return [_row(budget, rows) for budget, rows in zip(budgets, results, strict=True)]


@dataclass(frozen=True)
class _Result:
    scores: Scores
    macs: int
    path: str
    over: bool


def _row(budget: Budget, results: list[_Result]) -> Row:
    means = Scores(*(float(np.mean([r.scores[i] for r in results])) for i in range(4)))
    macs = [r.macs / GIGA for r in results]
    return Row(
        budget=str(budget),
        **{name: round(value, 4) for name, value in means._asdict().items()},
        gmacs_mean=round(float(np.mean(macs)), 4),
        gmacs_max=round(max(macs), 4),
        over_budget=sum(r.over for r in results),
        paths=len({r.path for r in results}),
        images=len(results),
    )


def _read(triple: Triple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    photo = read_photo(triple.image).pixels
    size = (photo.shape[0], photo.shape[1])
    trimap = read_trimap(triple.trimap, size, str(triple.image))
    target = to_integers(read_grey(triple.alpha), 8)
    if target.shape != size:
        raise InputError(
            f"{triple.alpha} is {target.shape[1]}x{target.shape[0]}, {triple.image} is {size[1]}x{size[0]}",
            "an alpha has the size of its image; do not resize it",
        )
    return photo, trimap, target


def to_json(model: str, folder: FilePath, rows: list[Row]) -> dict[str, Any]:
    return {
        "model": model,
        "data": str(folder),
        "region": "unknown pixels",
        "scales": {"sad": "/1000", "mse": "x1e3", "grad": "/1000", "conn": "/1000"},
        "rows": [asdict(row) for row in rows],
    }
