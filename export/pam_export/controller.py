"""What a host must know to choose a path within a budget: it lies inside the artifact, so that no checkpoint is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pam_mobile.cost import CostTable
from pam_mobile.model.supernet import Supernet

from .artifact import PLANNED, STEPWISE, Info, Request

FLOAT32_WHOLE = 2**24
"""Whole numbers up to here are exact in float32."""


@dataclass(frozen=True)
class Costs:
    """Exact MACs at the artifact's size, and where the learned budget embedding lies on that scale."""

    size: int
    smallest: int
    deltas: tuple[int, ...]
    """What running each unit costs more than bypassing it."""
    planning: int
    """The planning head's share, when it chooses."""
    selection: int
    """The selection heads' share, when they choose."""
    embedding: tuple[int, int, int, int]
    """MACs of the smallest path at the reference size, MACs between two rows, number of the first row, and of rows."""

    @classmethod
    def of(cls, supernet: Supernet, size: int) -> Costs:
        table, rows = CostTable.of(supernet.preset, size, size), supernet.embedding
        embedding = rows.reference, rows.step, rows.first, rows.rows.num_embeddings
        return cls(size, table.smallest, table.deltas, table.planning, table.selection, embedding)

    @classmethod
    def of_facts(cls, facts: Mapping[str, str]) -> Costs:
        """The costs that `info` wrote. Raises KeyError or ValueError if the artifact does not hold them."""
        (size,), (smallest,), (planning,), (selection,) = (
            _ints(facts[name]) for name in ("size", "smallest", "planning_macs", "selection_macs")
        )
        reference, step, first, rows = _ints(facts["embedding"])
        return cls(size, smallest, _ints(facts["deltas"]), planning, selection, (reference, step, first, rows))

    def info(self, ways: Sequence[str]) -> Info:
        """The facts of an artifact that can choose in these ways."""
        return {
            "selection": ",".join(ways),
            "size": self.size,
            "smallest": self.smallest,
            "deltas": self.deltas,
            "grain": self.grain,
            "planning_macs": self.planning,
            "selection_macs": self.selection,
            "embedding": self.embedding,
        }

    @property
    def table(self) -> CostTable:
        """A cost table with these costs of paths; planners want no more of it."""
        bypass = (0,) * len(self.deltas)
        return CostTable(self.size, self.size, self.smallest, self.deltas, bypass, self.selection, self.planning)

    @property
    def grain(self) -> int:
        """All deltas are whole multiples of this many MACs."""
        return math.gcd(*self.deltas)

    @property
    def steps(self) -> tuple[int, ...]:
        """The deltas in grains. Raises ValueError if float32 cannot count them."""
        if sum(self.deltas) // self.grain >= FLOAT32_WHOLE:
            raise ValueError(f"{sum(self.deltas)} MACs in steps of {self.grain} cannot be counted in float32")
        return tuple(delta // self.grain for delta in self.deltas)

    def position(self, macs: int) -> float:
        """Where a budget lies among the rows of the embedding (model/selection.py, BudgetEmbedding)."""
        reference, step, first, rows = self.embedding
        return min(max(macs * reference / self.smallest / step - first, 0.0), rows - 1.0)

    def spare(self, macs: int) -> int:
        """What a budget leaves for running units when the selection heads choose, in whole grains.

        Enough for all is as much as any budget leaves, so that float32 holds it. Raises BudgetError if no path fits.
        """
        self.table.require(macs, self.selection)
        return min((macs - self.smallest - self.selection) // self.grain, sum(self.steps))


def require_way(request: Request, ways: Sequence[str] = (PLANNED, STEPWISE)) -> None:
    """Raise ValueError if a request's way of choosing is none of these."""
    if request.method not in ways:
        raise ValueError(f"this artifact chooses its path {' or '.join(ways)}, not {request.method}")


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
