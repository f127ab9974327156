"""What is compared with what: anything that answers an image with an alpha, above all a model at a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..budget import Budget
from ..predict.matter import PRIOR, Matter
from .images import Sample

AUTO = "auto"
"""The selection that is not named in a row."""


class Answer(NamedTuple):
    """What a contender says about one image."""

    alpha: np.ndarray
    """(H, W) float in [0, 1]."""
    macs: int | None = None
    path: str = ""
    over_budget: bool = False
    defaulted: bool = False
    """The contender cannot answer this image; alpha is 0.5."""


@dataclass(frozen=True)
class Contender:
    """A row of the table: a model at a budget, or a baseline."""

    name: str
    budget: str
    """Empty: it has none."""
    answer: Callable[[Sample], Answer]


def of_model(matter: Matter, name: str, budget: Budget | None = None) -> Contender:
    """A model at a budget. The prior alone has no choice and takes none."""

    def answer(sample: Sample) -> Answer:
        matte = matter.matte(sample.photo, sample.trimap, budget)
        plan = matte.plan
        over = plan.budget_macs is not None and plan.macs > plan.budget_macs
        return Answer(matte.alpha, plan.macs, str(plan.path or ""), over)

    return Contender(name, str(budget or ""), answer)


def models(
    names: Sequence[str], budgets: Sequence[Budget], device: str, selections: Sequence[str] = (AUTO,)
) -> list[Contender]:
    """Every model at every budget, and with every selection, which is then part of the row's name. Raises as `Matter.load` does."""
    rows = []
    for name in dict.fromkeys(names):
        if name == PRIOR:
            rows.append(of_model(Matter.load(name, device), name))
            continue
        for selection in selections:
            matter = Matter.load(name, device, selection)
            title = name if selection == AUTO else f"{name} {selection}"
            rows += [of_model(matter, title, budget) for budget in budgets]
    return rows
