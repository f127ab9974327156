"""A path through the supernet, and the space of all paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .cost import CostTable
from .errors import UsageError

MAX_UNITS = 20


@dataclass(frozen=True)
class Path:
    """One decision per unit, in the order of execution: True runs the unit's blocks, False bypasses them."""

    bits: tuple[bool, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """Path of its text form, for example `1101100111` (1 = run). Raises UsageError for other characters."""
        if not text or set(text) - {"0", "1"}:
            raise UsageError(
                f"path {text!r} is not a row of 0 and 1", "write one digit per unit: 1 runs it, 0 bypasses it"
            )
        return cls(tuple(digit == "1" for digit in text))

    @classmethod
    def all_run(cls, units: int) -> Path:
        return cls((True,) * units)

    @classmethod
    def all_bypass(cls, units: int) -> Path:
        return cls((False,) * units)

    def __str__(self) -> str:
        return "".join("1" if bit else "0" for bit in self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __iter__(self) -> Iterator[bool]:
        return iter(self.bits)

    def flip(self, unit: int) -> Path:
        """The path that differs in one unit. Raises IndexError for a unit that it does not have."""
        if not 0 <= unit < len(self.bits):
            raise IndexError(f"unit must be in 0..{len(self.bits) - 1}, unit = {unit}")
        return Path(tuple(bit != (i == unit) for i, bit in enumerate(self.bits)))


class PathSpace:
    """All paths of a supernet with their exact costs at one input size.

    Costs are enumerated, so the number of units is limited to 20 (about a million paths).
    """

    def __init__(self, table: CostTable) -> None:
        units = len(table.run)
        if units > MAX_UNITS:
            raise ValueError(f"PathSpace enumerates at most 2^{MAX_UNITS} paths, units = {units}")
        self.table = table
        self.units = units

    @cached_property
    def bits(self) -> np.ndarray:
        """(2^units, units) bool, row i is the path with index i (first unit = highest bit)."""
        index = np.arange(2**self.units)[:, None]
        return (index >> np.arange(self.units)[::-1]) & 1 == 1

    @cached_property
    def costs(self) -> np.ndarray:
        """(2^units,) int64 MACs of every path."""
        return self.table.smallest + self.bits @ np.array(self.table.deltas, dtype=np.int64)

    def __len__(self) -> int:
        return int(2**self.units)

    def __getitem__(self, index: int) -> Path:
        return Path(tuple(bool(bit) for bit in self.bits[index]))

    def __iter__(self) -> Iterator[Path]:
        return (self[i] for i in range(len(self)))

    def count(self, macs: int) -> int:
        """How many paths cost at most `macs`."""
        return int((self.costs <= macs).sum())

    def sample(self, rng: np.random.Generator, macs: int | None = None) -> Path:
        """A path drawn uniformly among those that cost at most `macs`. Raises BudgetError if there is none."""
        if macs is None:
            return self[int(rng.integers(len(self)))]
        self.table.require(macs)
        return self[int(rng.choice(np.flatnonzero(self.costs <= macs)))]

    def near(self, macs: int, window: int) -> list[Path]:
        """The paths with cost in (macs - window, macs], dearest first."""
        inside = np.flatnonzero((self.costs <= macs) & (self.costs > macs - window))
        return [self[int(i)] for i in inside[np.argsort(-self.costs[inside], kind="stable")]]
