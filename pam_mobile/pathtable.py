"""Paths whose error was measured on held-out composites, and the best one for a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .budget import Budget
from .cost import CostTable
from .path import Path

WINDOW = 0.12
"""A budget's candidates use at least the budget less this share of the span between smallest and largest path."""


@dataclass(frozen=True)
class MeasuredPath:
    """A path and its SAD on held-out composites."""

    path: Path
    sad: float


class PathTable:
    """Measured paths of one network. Contains the all-bypass path, so that every reachable budget has an answer."""

    def __init__(self, measured: Iterable[MeasuredPath]) -> None:
        self.measured = tuple(sorted(measured, key=lambda m: str(m.path)))

    def best(self, budget: Budget, table: CostTable) -> Path:
        """The measured path to run within a budget at the table's input size.

        Lowest SAD among the paths that use most of the budget; where none was measured there, the dearest that fits. From the
        largest path's cost on, the largest path. Raises BudgetError if no path fits.
        """
        macs = budget.macs(table)
        table.require(macs)
        if macs >= table.largest:
            return Path.all_run(len(table.run))
        fitting = [m for m in self.measured if table.cost(m.path) <= macs]
        window = WINDOW * (table.largest - table.smallest)
        near = [m for m in fitting if table.cost(m.path) > macs - window]
        if near:
            return min(near, key=lambda m: (m.sad, table.cost(m.path))).path
        return max(fitting, key=lambda m: table.cost(m.path)).path

    def to_json(self) -> list[dict[str, Any]]:
        return [{"path": str(m.path), "sad": round(m.sad, 6)} for m in self.measured]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> PathTable:
        return cls(MeasuredPath(Path.parse(row["path"]), float(row["sad"])) for row in rows)
