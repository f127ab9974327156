"""A table of contenders: the four metrics, the cost, and the change of SAD against one of them on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..cost import GIGA
from ..errors import UsageError
from ..imageio import to_integers
from ..reporter import Reporter
from ..tables import markdown_table
from ..train.validate import change
from .contenders import Answer, Contender
from .images import ImageSet
from .metrics import Scores, score


@dataclass(frozen=True)
class Change:
    """Relative change of the mean SAD against a reference on the same images, and its standard error over images."""

    change: float
    standard_error: float

    @classmethod
    def of(cls, scores: Sequence[float], reference: Sequence[float]) -> Change:
        """Raises ValueError if the reference makes no error."""
        if not sum(reference) > 0:
            raise ValueError("a change against a mean of 0 is not defined")
        return cls(*change(torch.tensor(scores, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)))

    def __str__(self) -> str:
        return f"{self.change:+.1%} ± {self.standard_error:.1%}"


@dataclass(frozen=True)
class Row:
    """Means over the images. Metrics over the unknown pixels, in the published scales (docs/evaluation.md)."""

    model: str
    budget: str
    sad: float
    sad_standard_error: float | None
    """Over images; None for a single one."""
    mse: float
    grad: float
    conn: float
    against: Change | None
    """None for the reference itself, and where it has no row of this budget or makes no error."""
    gmacs_mean: float | None
    """None for what is no network."""
    gmacs_max: float | None
    over_budget: int
    """Images whose path cost more than the budget; always 0."""
    defaulted: int
    """Images that were answered with 0.5."""
    paths: int
    """Distinct paths that were run."""
    images: int


def evaluate(contenders: Sequence[Contender], images: ImageSet, against: str, reporter: Reporter) -> list[Row]:
    """Score every contender on every image. against: the name of those that the others are compared with.

    Raises UsageError if there is none of that name, InputError for unusable files, BudgetError if a budget cannot be met.
    """
    names = check_reference(contenders, against)
    answers: list[list[Answer]] = [[] for _ in contenders]
    scores: list[list[Scores]] = [[] for _ in contenders]
    with reporter.progress(f"evaluating {', '.join(names)}", len(images.readers) * len(contenders)) as advance:
        for read in images.readers:
            sample = read()
            for contender, said, scored in zip(contenders, answers, scores, strict=True):
                answer = contender.answer(sample)
                scored.append(score(to_integers(answer.alpha, 8), sample.alpha, sample.trimap))
                said.append(answer._replace(alpha=np.empty(0)))
                advance(1, note=sample.name)
    rows = []
    for contender, said, scored in zip(contenders, answers, scores, strict=True):
        reference = _reference(contender, contenders, against)
        errors = [] if reference is None else _sads(scores[reference])
        rows.append(_row(contender, said, scored, Change.of(_sads(scored), errors) if sum(errors) > 0 else None))
    return rows


def check_reference(contenders: Sequence[Contender], against: str) -> list[str]:
    """The names in the table. Raises UsageError if `against` is none of them."""
    names = list(dict.fromkeys(contender.name for contender in contenders))
    if against not in names:
        raise UsageError(f"there is no row {against!r} to compare with", f"choose among {', '.join(names)}")
    return names


def _reference(contender: Contender, contenders: Sequence[Contender], against: str) -> int | None:
    """The row to compare with: the only one of the reference, or its row of the same budget."""
    if contender.name == against:
        return None
    rows = [i for i, c in enumerate(contenders) if c.name == against]
    same = [i for i in rows if contenders[i].budget == contender.budget]
    return rows[0] if len(rows) == 1 else same[0] if same else None


def _sads(scores: Sequence[Scores]) -> list[float]:
    return [row.sad for row in scores]


def _row(contender: Contender, answers: Sequence[Answer], scores: Sequence[Scores], against: Change | None) -> Row:
    means = Scores(*(float(np.mean(column)) for column in zip(*scores, strict=True)))
    count = len(scores)
    error = float(np.std(_sads(scores), ddof=1)) / math.sqrt(count) if count > 1 else None
    gmacs = [answer.macs / GIGA for answer in answers if answer.macs is not None]
    return Row(
        model=contender.name,
        budget=contender.budget,
        **{name: round(value, 4) for name, value in means._asdict().items()},
        sad_standard_error=None if error is None else round(error, 4),
        against=against,
        gmacs_mean=round(float(np.mean(gmacs)), 4) if gmacs else None,
        gmacs_max=round(max(gmacs), 4) if gmacs else None,
        over_budget=sum(answer.over_budget for answer in answers),
        defaulted=sum(answer.defaulted for answer in answers),
        paths=len({answer.path for answer in answers} - {""}),
        images=count,
    )


def to_text(images: ImageSet, rows: Sequence[Row], against: str) -> str:
    """The rows as a table, and what their numbers are."""
    header = ("model", "budget", "SAD", "MSE", "GRAD", "CONN", f"SAD against {against}", "GMACs", "GMACs max", "paths")
    cells = [
        (
            row.model,
            row.budget or "-",
            f"{row.sad:.3f}" + ("" if row.sad_standard_error is None else f" ± {row.sad_standard_error:.3f}"),
            *(f"{value:.3f}" for value in (row.mse, row.grad, row.conn)),
            row.against or "-",
            *("-" if value is None else f"{value:.3f}" for value in (row.gmacs_mean, row.gmacs_max)),
            row.paths or "-",
        )
        for row in rows
    ]
    notes = [
        f"\n{row.model} cannot answer {row.defaulted} of the images, whose trimaps lack known foreground or background; "
        "0.5 stands there"
        for row in rows
        if row.defaulted
    ]
    return (
        f"{images.label}: {rows[0].images} images, unknown pixels; SAD, GRAD, CONN /1000, MSE x1e3; means over images, "
        f"± standard error over images\n\n{markdown_table(header, cells)}" + "".join(notes)
    )


def to_json(images: ImageSet, rows: Sequence[Row], against: str) -> dict[str, Any]:
    return {
        **images.facts,
        "region": "unknown pixels",
        "scales": {"sad": "/1000", "mse": "x1e3", "grad": "/1000", "conn": "/1000"},
        "against": against,
        "rows": [asdict(row) for row in rows],
    }
