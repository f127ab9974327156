"""Budgets, and the planners that turn scores and a budget into a path. A budget is a promise: no path here ever costs more."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .cost import CostTable
from .errors import UsageError
from .path import Path

UNITS = {"M": 10**6, "G": 10**9, "T": 10**12}
SCORE_LIMIT = 1e9
"""Infinite scores are clipped here, so that sums stay finite and small differences still count."""


@dataclass(frozen=True)
class Budget:
    """An upper bound on MACs: an amount at the given input size, or a share of the largest path."""

    amount: Fraction
    relative: bool

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Budget of `4.5G`, `850M` or `80%`. Raises UsageError for anything else."""
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([MGT%])\s*", text)
        if not match or not Fraction(match[1]):
            raise UsageError(
                f"budget {text!r} is not understood", "write GMACs like 4.5G or a share of the largest path like 80%"
            )
        number, unit = Fraction(match[1]), match[2]
        return cls(number / 100, True) if unit == "%" else cls(number * UNITS[unit], False)

    def macs(self, table: CostTable) -> int:
        """The bound in whole MACs at the table's input size, rounded down."""
        return math.floor(self.amount * table.largest if self.relative else self.amount)

    def __str__(self) -> str:
        if self.relative:
            return f"{float(self.amount * 100):g}%"
        return f"{float(self.amount / UNITS['G']):g}G"


def knapsack(scores: Sequence[float], table: CostTable, macs: int) -> Path:
    """The path of highest total score that costs at most `macs`, exactly; among equals the cheapest.

    scores: one number per unit, what running it is worth more than bypassing it; infinities are allowed.
    Keeps the Pareto front of (cost, score) unit by unit. Raises BudgetError if no path fits, ValueError for NaN.
    """
    _check_scores(scores, len(table.run))
    table.require(macs)
    front: list[tuple[int, float, tuple[bool, ...]]] = [(table.smallest, 0.0, ())]
    for score, delta in zip(scores, table.deltas, strict=True):
        gain = min(max(float(score), -SCORE_LIMIT), SCORE_LIMIT)
        bypass = [(cost, value, (*bits, False)) for cost, value, bits in front]
        run = [(cost + delta, value + gain, (*bits, True)) for cost, value, bits in front if cost + delta <= macs]
        front = []
        for state in sorted(bypass + run, key=lambda s: (s[0], -s[1])):
            if not front or state[1] > front[-1][1]:
                front.append(state)
    return Path(front[-1][2])


class StepPlanner:
    """Decides unit by unit while the network runs, and runs a unit only if all later ones can still be bypassed.

    The selection heads are part of what is spent. Raises BudgetError at once if no path fits.
    """

    def __init__(self, table: CostTable, macs: int) -> None:
        table.require(macs, table.selection)
        self.table = table
        self.spare = macs - table.smallest - table.selection
        self.bits: tuple[bool, ...] = ()

    def decide(self, score: float) -> bool:
        """Decision for the next unit; score > 0 asks to run it. Raises ValueError for NaN."""
        if math.isnan(score):
            raise ValueError(f"score of unit {len(self.bits)} is NaN")
        delta = self.table.deltas[len(self.bits)]
        run = score > 0 and delta <= self.spare
        self.spare -= delta if run else 0
        self.bits = (*self.bits, run)
        return run

    @property
    def path(self) -> Path:
        return Path(self.bits)


def _check_scores(scores: Sequence[float], units: int) -> None:
    if len(scores) != units:
        raise ValueError(f"scores has {len(scores)} entries, the network has {units} units")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"scores contain NaN: {list(scores)}")
