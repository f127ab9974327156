"""What a stage trains: which path the network takes at a step.

Stage 3 (path learning: prior, Algorithm 1, distillation) gets its row here when it exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..path import Path, PathSpace

ChoosePath = Callable[[PathSpace, np.random.Generator], Path]


WHOLE_SHARE = 0.25


class StageRule(NamedTuple):
    title: str
    path: ChoosePath
    freeze_statistics: bool
    """Keep batch norm's statistics: averaged over random paths they would fit none, the whole network least of all."""


def whole_network(space: PathSpace, rng: np.random.Generator) -> Path:
    """Every unit runs."""
    return Path.all_run(space.units)


def random_path(space: PathSpace, rng: np.random.Generator) -> Path:
    """Every unit's bit is uniform, one path per step (single path one-shot); every fourth step or so the whole network.

    Without the latter the largest path, one of many, is forgotten while the others learn (docs/findings.md).
    """
    return whole_network(space, rng) if rng.random() < WHOLE_SHARE else space.sample(rng)


STAGES = {
    1: StageRule("stage 1, whole network", whole_network, freeze_statistics=False),
    2: StageRule("stage 2, random paths", random_path, freeze_statistics=True),
}
