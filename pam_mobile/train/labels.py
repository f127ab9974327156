"""The best path of an image under a budget, found during training (PAM, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..cost import CostTable
from ..data.compose import Batch
from ..model.selection import gumbel_one_hot
from ..model.supernet import Supernet
from ..model.trunk import Inputs
from ..model.unit import Unit
from ..path import Path
from .losses import unknown_mask
from .pathprior import PathPrior


class Label(NamedTuple):
    """The path that an image should take."""

    path: Path
    error: float
    margin: float
    """Error of the second best less that of the best; 0 if there is no second."""
    own: bool
    """The network's own sample won."""
    tried: tuple[tuple[Path, float], ...] = ()
    """Every path that was tried, and its error."""


def best_path(
    candidates: Sequence[Path], errors: Sequence[float], own: Path, own_error: float, table: CostTable, macs: int
) -> Label:
    """The candidate of lowest error; the network's own path instead if it is better and within the budget.

    Ties go to the cheaper candidate, and to a candidate before the own path. candidates: distinct and feasible. An own path above
    the budget is rejected whatever its error.
    """
    best = min(range(len(candidates)), key=lambda i: (errors[i], table.cost(candidates[i])))
    others = [e for i, e in enumerate(errors) if i != best]
    if table.cost(own) <= macs and own not in candidates:
        if own_error < errors[best]:
            return Label(own, own_error, errors[best] - own_error, own=True)
        others.append(own_error)
    margin = min(others) - errors[best] if others else 0.0
    return Label(candidates[best], errors[best], margin, own=False)


class Sample(NamedTuple):
    """Paths as the selection heads would have them, and what all heads said."""

    paths: list[Path]
    steps: Tensor
    """(N, units, 2) logits of the selection heads on these paths."""
    plans: Tensor
    """(N, units, 2) logits of the planning head."""


def sample(network: Supernet, batch: Batch, wish: Tensor, rng: np.random.Generator) -> Sample:
    """Draw a path per image, unit by unit; no budget is enforced (PAM, equation 8).

    wish: (1, 64) embedded budget. The logits carry gradients to the heads and the embedding, none to the features.
    """
    wishes = wish.expand(len(batch.image), -1)
    decisions: list[list[bool]] = []
    steps: list[Tensor] = []
    plans: list[Tensor] = []

    def step(unit: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            if not plans:
                plans.append(network.planning(x.float(), wishes))
            steps.append(cast(Unit, unit).head(x.float(), wishes))
        decisions.append((gumbel_one_hot(steps[-1], 1.0, rng)[:, 1] > 0.5).tolist())
        return unit(x, decisions[-1])

    with torch.no_grad():
        network.net(batch.image, batch.trimap, step)
    return Sample([Path(bits) for bits in zip(*decisions, strict=True)], torch.stack(steps, 1), plans[0])


@torch.no_grad()
def path_errors(network: Supernet, batch: Batch, paths: Sequence[Sequence[Path]]) -> list[list[float]]:
    """Mean |error| over the unknown pixels of every image on every one of its paths.

    What the paths of an image share is computed once, up to the end of the encoder; the decoder runs once per path.
    """
    net, tree = network.net, _Tree(paths)
    inputs = net.inputs(batch.image, batch.trimap)
    features = net.encoder(inputs.x, tree.step)
    rows = tree.image
    decisions = iter(list(zip(*tree.paths, strict=True))[tree.depth :])
    guess = None if inputs.guess is None else inputs.guess[rows]
    spread = Inputs(inputs.x[rows], inputs.unknown[rows], inputs.fg[rows], guess)
    alpha = net.decode(tuple(tree.spread(f) for f in features), spread, lambda unit, x: unit(x, next(decisions)))
    mask = unknown_mask(batch.trimap)[rows]
    errors = ((alpha.float() - batch.alpha[rows]).abs() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    scores = iter(errors.tolist())
    return [[next(scores) for _ in own] for own in paths]


class _Tree:
    """The prefixes of several paths per image: one row of features for each that differs."""

    def __init__(self, paths: Sequence[Sequence[Path]]) -> None:
        self.paths = [path for own in paths for path in own]
        self.image = torch.tensor([i for i, own in enumerate(paths) for _ in own])
        self.depth = 0
        self.node = self.image.tolist()
        """Of every path: the row of its prefix."""
        self.nodes = len(paths)
        self.rows = {self.nodes: self.image}
        """Of every number of rows that there was: which of them each path had. Rows only become more, so the number says when."""

    def step(self, unit: nn.Module, x: Tensor) -> Tensor:
        """Run a unit on every prefix, after splitting those whose paths part here."""
        keys = [(node, path.bits[self.depth]) for node, path in zip(self.node, self.paths, strict=True)]
        distinct = list(dict.fromkeys(keys))
        place = {key: row for row, key in enumerate(distinct)}
        self.node = [place[key] for key in keys]
        self.depth += 1
        if len(distinct) > self.nodes:
            x = x[torch.tensor([node for node, _ in distinct])]
            self.nodes = len(distinct)
        self.rows[self.nodes] = torch.tensor(self.node)
        return cast(Tensor, unit(x, [bit for _, bit in distinct]))

    def spread(self, features: Tensor) -> Tensor:
        """A row per path."""
        return features[self.rows[len(features)]]


def find_labels(
    network: Supernet,
    batch: Batch,
    own: Sequence[Path],
    macs: int,
    prior: PathPrior,
    count: int,
    rng: np.random.Generator,
) -> list[Label]:
    """Algorithm 1 for every image: `count` candidates of the prior against the network's own sample.

    own: one path per image; macs: the budget at the prior's reference size.
    """
    candidates = [prior.draw(macs, count, rng) for _ in own]
    distinct = [[*drawn, *([path] if path not in drawn else [])] for drawn, path in zip(candidates, own, strict=True)]
    errors = path_errors(network, batch, distinct)
    table = prior.space.table
    return [
        best_path(drawn, e[: len(drawn)], path, e[-1], table, macs)._replace(tried=tuple(zip(tried, e, strict=True)))
        for drawn, path, tried, e in zip(candidates, own, distinct, errors, strict=True)
    ]
