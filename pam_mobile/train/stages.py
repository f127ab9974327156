"""What a stage trains: the objective of one step.

An objective maps (network, batch, rng) to losses; everything random in it comes from the generator, so that a step can be repeated.
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..data.compose import Batch
from ..model.supernet import Supernet
from ..path import Path, PathSpace
from .losses import Loss

WHOLE_SHARE = 0.25


class Objective(Protocol):
    """One stage's losses."""

    title: str
    freeze_statistics: bool
    """Keep batch norm's statistics: averaged over random paths they would fit none, the whole network least of all."""

    def begin(self, network: Supernet) -> None:
        """Prepare the network for the stage; not called again on resume."""
        ...

    def __call__(self, network: Supernet, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Scalar losses by name; `loss` is the one that is minimised."""
        ...

    def finish(self, folder: FilePath) -> dict[str, Any]:
        """Add to the stage's checkpoint folder; returns facts for its document."""
        ...


class WholeNetwork:
    """Stage 1: every unit runs."""

    title = "stage 1, whole network"
    freeze_statistics = False

    def __init__(self, space: PathSpace, loss: Loss) -> None:
        self.space, self.loss = space, loss

    def begin(self, network: Supernet) -> None:
        pass

    def path(self, rng: np.random.Generator) -> Path:
        return Path.all_run(self.space.units)

    def __call__(self, network: Supernet, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        alpha = network(batch.image, batch.trimap, path=self.path(rng))
        return self.loss(alpha, batch)

    def finish(self, folder: FilePath) -> dict[str, Any]:
        return {}


class RandomPaths(WholeNetwork):
    """Stage 2: every unit's bit is uniform, one path per batch (single path one-shot); now and then the whole network.

    Without the latter the largest path, one of many, is forgotten while the others learn (docs/findings.md).
    """

    title = "stage 2, random paths"
    freeze_statistics = True

    def path(self, rng: np.random.Generator) -> Path:
        return super().path(rng) if rng.random() < WHOLE_SHARE else self.space.sample(rng)
