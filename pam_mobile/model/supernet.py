"""The supernet: one set of weights for every path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from ..budget import Budget, StepPlanner, knapsack
from ..cost import CostTable
from ..path import Path
from .block import DenseBlock, DepthwiseBlock
from .presets import MAX_STRIDE, Preset
from .selection import BudgetEmbedding, PlanningHead, SelectionHead
from .trunk import MattingNet
from .unit import Unit


class Supernet(nn.Module):
    """Matting network whose units are run or bypassed, by a given path or by its own choice under a budget."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.net = MattingNet(preset, [Unit(spec, preset.kernel, preset.connect) for spec in preset.units])
        self.embedding = BudgetEmbedding(preset)
        self.apply(_initialise)
        last = self.net.decoder.head
        nn.init.normal_(last.weight, std=0.001)
        nn.init.constant_(cast(Tensor, last.bias), 0.0 if preset.prior else 0.5)
        self.planning = PlanningHead(preset.units[0].channels, len(preset.units)).apply(_initialise)

    @property
    def units(self) -> list[Unit]:
        return [cast(Unit, unit) for units in self.net.unit_lists() for unit in units]

    def forward(
        self,
        image: Tensor,
        trimap: Tensor,
        *,
        path: Path | Sequence[Path] | None = None,
        budget: Budget | None = None,
    ) -> Tensor:
        """Alpha (N, 1, H, W) on a given path, or on the path that the network chooses within a budget.

        image: (N, 3, H, W) sRGB in [0, 1]; trimap: (N, 1, H, W) with 0, 0.5, 1; H and W multiples of 32.
        path: one for the batch, or one per image. budget: chosen per image, never exceeded.
        Raises ValueError for other shapes, BudgetError if no path fits.
        """
        if (path is None) == (budget is None):
            raise ValueError("give either path or budget")
        if budget is not None:
            return self.choose(image, trimap, budget)[0]
        _check_size(image, trimap)
        paths = [path] if isinstance(path, Path) else list(path or ())
        if len(paths) not in (1, image.shape[0]) or any(len(p) != len(self.units) for p in paths):
            raise ValueError(f"path must be one or {image.shape[0]} paths of {len(self.units)} units, path = {path}")
        decisions = iter(zip(*paths, strict=True))
        return self.net(image, trimap, lambda unit, x: unit(x, next(decisions)))

    def choose(self, image: Tensor, trimap: Tensor, budget: Budget) -> tuple[Tensor, list[Path]]:
        """Alpha and the path taken per image when the selection heads decide, unit by unit (PAM, section 4)."""
        _check_size(image, trimap)
        table = CostTable.of(self.preset, image.shape[2], image.shape[3])
        macs = budget.macs(table)
        planners = [StepPlanner(table, macs) for _ in range(image.shape[0])]
        wish = self.embedding(macs, table).expand(image.shape[0], -1)

        def step(unit: nn.Module, x: Tensor) -> Tensor:
            scores = margin(cast(Unit, unit).head(x, wish.to(x.dtype))).tolist()
            return unit(x, [planner.decide(score) for planner, score in zip(planners, scores, strict=True)])

        alpha = self.net(image, trimap, step)
        return alpha, [planner.path for planner in planners]

    def plan(self, image: Tensor, trimap: Tensor, budget: Budget) -> tuple[Tensor, list[Path]]:
        """Alpha and the path taken per image when the planning head decides all units before the first one runs."""
        _check_size(image, trimap)
        table = CostTable.of(self.preset, image.shape[2], image.shape[3])
        macs = budget.macs(table)
        table.require(macs, table.planning)
        wish = self.embedding(macs, table).expand(image.shape[0], -1)
        paths: list[Path] = []
        decisions: Iterator[tuple[bool, ...]] = iter(())

        def step(unit: nn.Module, x: Tensor) -> Tensor:
            nonlocal decisions
            if not paths:
                scores = margin(self.planning(x, wish.to(x.dtype))).tolist()
                paths.extend(knapsack(row, table, macs - table.planning) for row in scores)
                decisions = iter(zip(*paths, strict=True))
            return unit(x, next(decisions))

        return self.net(image, trimap, step), paths


def chooses(name: str) -> bool:
    """Whether a tensor of the supernet belongs to what chooses the path: the budget embedding or a head."""
    return re.match(r"(embedding|planning)\.|net\.\w+\.units\d+\.\d+\.head\.", name) is not None


def margin(logits: Tensor) -> Tensor:
    """What running is worth more than bypassing.  logits: (..., 2) of (bypass, run). Returns (...)."""
    bypass, run = logits.float().unbind(-1)
    return run - bypass


def _check_size(image: Tensor, trimap: Tensor) -> None:
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % MAX_STRIDE or image.shape[3] % MAX_STRIDE:
        raise ValueError(
            f"image must be (N, 3, H, W) with H and W multiples of {MAX_STRIDE}, image.shape = {tuple(image.shape)}"
        )
    if trimap.shape != (image.shape[0], 1, *image.shape[2:]):
        raise ValueError(
            f"trimap must be (N, 1, H, W) like image {tuple(image.shape)}, trimap.shape = {tuple(trimap.shape)}"
        )


def _initialise(module: nn.Module) -> None:
    """Blocks, connect layers and heads start near zero: noise from fresh weights would take long to unlearn."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DepthwiseBlock | DenseBlock):
        module.project.weight.data.mul_(0.1)
    elif isinstance(module, SelectionHead | PlanningHead):
        module.logits.weight.data.mul_(0.1)
