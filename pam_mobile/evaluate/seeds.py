"""The controls over training seeds: what is the method's, and what one training's luck.

Networks of the same settings and different seeds answer the same images. Each is compared with its own best fixed path; the spread is
over networks, while the spread in a network's own table is over images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..tables import markdown_table
from . import controls
from .controls import FIXED, ControlRow
from .images import ImageSet
from .report import Change


@dataclass(frozen=True)
class SeedRow:
    """One control at one budget: its change of SAD against the best fixed path, mean and standard error over networks."""

    budget: str
    control: str
    against_fixed: Change


def over_seeds(tables: Sequence[Sequence[ControlRow]]) -> list[SeedRow]:
    """The controls that all networks have. tables: the rows of two networks or more, for the same budgets and images."""
    found = [
        {(row.budget, row.control): row.against_fixed for row in table if row.against_fixed is not None}
        for table in tables
    ]
    return [SeedRow(*key, _mean([own[key] for own in found])) for key in found[0] if all(key in own for own in found)]


def adaptivity(tables: Sequence[Sequence[ControlRow]]) -> Change:
    """What reading the image is worth, all budgets together: mean and standard error over networks."""
    return _mean([controls.adaptivity(table) for table in tables])


def _mean(changes: Sequence[Change]) -> Change:
    values = [change.change for change in changes]
    return Change(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def to_text(images: ImageSet, names: Sequence[str], tables: Sequence[Sequence[ControlRow]]) -> str:
    """Every network's table and verdict, then the means over networks."""
    rows = over_seeds(tables)
    kinds = list(dict.fromkeys(row.control for row in rows))
    changes = {(row.budget, row.control): row.against_fixed for row in rows}
    cells = [
        (budget, *(changes[budget, kind] for kind in kinds)) for budget in dict.fromkeys(row.budget for row in rows)
    ]
    own = [f"{name}\n\n{controls.to_text(images, table)}" for name, table in zip(names, tables, strict=True)]
    return "\n\n".join(
        [
            *own,
            f"SAD against the {FIXED}: mean over {len(tables)} networks ± standard error over networks",
            markdown_table(("budget", *kinds), cells),
            f"against the {controls.ANOTHER} {adaptivity(tables)}, all budgets together",
        ]
    )


def to_json(images: ImageSet, names: Sequence[str], tables: Sequence[Sequence[ControlRow]]) -> dict[str, Any]:
    return {
        "networks": {name: controls.to_json(images, table) for name, table in zip(names, tables, strict=True)},
        "over_networks": [asdict(row) for row in over_seeds(tables)],
        "adaptivity": asdict(adaptivity(tables)),
    }
