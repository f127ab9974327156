"""Stage 3: the network learns to choose its path (PAM, equations 8 to 12 and Algorithm 1).

Who gets which gradient: the weights take the matting loss and the distillation on the label's path; the selection heads take the
cross-entropy with the label, the planning head the worth of the units on all paths that were tried, the budget embedding both.
With `gumbel_only` there are no labels: the matting loss reaches the heads through straight-through samples, as the paper's
ablation has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PathLearningSettings
from ..data.compose import Batch
from ..model.selection import Semantics, gumbel_one_hot
from ..model.supernet import Supernet, margin
from ..model.unit import Unit
from ..path import Path, PathSpace
from .labels import Label, find_labels, sample
from .losses import Loss, charbonnier, unknown_mask
from .pathprior import PathPrior

PASSES = 4
"""Random paths per composite on which heads are calibrated."""
WORTH = 0.02
"""What a unit with a planning score of 1 saves, as a share of the mean error."""


class PathLearning:
    """Labels by Algorithm 1, distillation from the frozen whole network, heads that learn to choose."""

    title = "stage 3, path learning"
    freeze_statistics = True

    def __init__(
        self,
        space: PathSpace,
        loss: Loss,
        settings: PathLearningSettings,
        teacher: Supernet,
        prior: PathPrior,
        composites: Sequence[Batch],
    ) -> None:
        """space: at the preset's reference size. teacher: the network as it enters the stage; only its largest path is used.

        composites: what the heads are calibrated on.
        """
        self.space, self.loss, self.settings = space, loss, settings
        self.teacher = teacher.eval().requires_grad_(False)
        self.prior, self.composites = prior, composites

    def begin(self, network: Supernet) -> None:
        calibrate_heads(network, self.composites, self.space, np.random.default_rng(0))

    def __call__(self, network: Supernet, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        macs = int(rng.choice(self.prior.budgets))
        wish = network.embedding(macs, self.space.table)
        if self.settings.gumbel_only:
            alpha, run = _blend(network, batch, wish, self.settings.temperature, rng)
            return self._with_distillation(alpha, batch) | {"run_share": run}
        with torch.autocast(batch.image.device.type, enabled=False):  # near-ties decide
            drawn = sample(network, batch, wish, rng)
            labels = find_labels(network, batch, drawn.paths, macs, self.prior, self.settings.candidates, rng)
        paths = [label.path for label in labels]
        losses = self._with_distillation(network(batch.image, batch.trimap, path=paths), batch)
        target = torch.tensor([list(path) for path in paths], device=batch.image.device).long()
        losses["choose"] = F.cross_entropy(drawn.steps.flatten(0, 1), target.flatten())
        losses["plan"] = worth_loss(margin(drawn.plans), labels)
        losses["loss"] = losses["loss"] + self.settings.path_weight * (losses["choose"] + losses["plan"])
        return losses | {
            "run_share": target.float().mean(),
            "own_share": target.new_tensor([float(label.own) for label in labels], dtype=torch.float32).mean(),
            "margin": target.new_tensor([label.margin for label in labels], dtype=torch.float32).mean(),
        }

    def finish(self, folder: FilePath) -> dict[str, Any]:
        """Keep the prior beside the network, for `eval --controls`."""
        if not self.prior.judge:
            return {}
        self.prior.save(folder)
        return {"path_prior_judge": self.prior.judge}

    def _with_distillation(self, alpha: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = self.loss(alpha, batch)
        if self.settings.distillation_weight:
            with torch.no_grad():
                taught = self.teacher(batch.image, batch.trimap, path=Path.all_run(self.space.units))
            losses["distillation"] = charbonnier(alpha.float() - taught.float(), unknown_mask(batch.trimap))
            losses["loss"] = losses["loss"] + self.settings.distillation_weight * losses["distillation"]
        return losses


def worth_loss(scores: Tensor, labels: Sequence[Label]) -> Tensor:
    """How far scores (N, units) are from what running the units was worth on the paths that were tried for each image.

    The planner adds up scores, so they have to add up to what a path saves: the errors of an image's paths, less their mean, are
    regressed on the units that run (smooth L1). Which path won says as much where all are alike as where one is far better; how
    much it won by does not. The unit is the batch's mean error, not the image's, so that images with large errors count for what
    they add to the SAD (docs/findings.md).
    """
    errors = [scores.new_tensor([error for _, error in label.tried]) for label in labels]
    unit = WORTH * torch.stack([error.mean() for error in errors]).mean().clamp(min=1e-6)
    losses = []
    for row, label, error in zip(scores, labels, errors, strict=True):
        run = row.new_tensor([list(path) for path, _ in label.tried])
        losses.append(F.smooth_l1_loss((run - run.mean(0)) @ row, (error.mean() - error) / unit))
    return torch.stack(losses).mean()


@torch.no_grad()
def calibrate_heads(network: Supernet, batches: Sequence[Batch], space: PathSpace, rng: np.random.Generator) -> None:
    """Tell every head how the features that it will see are distributed: on these composites, along random paths."""
    planning = network.planning.semantics
    heads = [unit.head.semantics for unit in network.units]
    seen: dict[Semantics, list[Tensor]] = {head: [] for head in (planning, *heads)}

    def run(batch: Batch, paths: Sequence[Path]) -> None:
        decisions = iter(zip(*paths, strict=True))

        def step(unit: nn.Module, x: Tensor) -> Tensor:
            pooled = x.float().mean((2, 3))
            seen[cast(Unit, unit).head.semantics].append(pooled)
            if unit is network.units[0]:
                seen[planning].append(pooled)
            return unit(x, next(decisions))

        network.net(batch.image, batch.trimap, step)

    for batch in batches:
        for _ in range(PASSES):
            run(batch, [space.sample(rng) for _ in batch.image])
    for head, pooled in seen.items():
        head.calibrate(torch.cat(pooled))


def _blend(
    network: Supernet, batch: Batch, wish: Tensor, temperature: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Alpha on straight-through samples: both branches run, weighted by the one-hot choice. Also the share of units that run."""
    wishes = wish.expand(len(batch.image), -1)
    runs: list[Tensor] = []

    def step(unit: nn.Module, x: Tensor) -> Tensor:
        choice = gumbel_one_hot(cast(Unit, unit).head(x.float(), wishes).float(), temperature, rng)
        runs.append(choice[:, 1].detach())
        return cast(Unit, unit).blend(x, choice)

    alpha = network.net(batch.image, batch.trimap, step)
    return alpha, torch.stack(runs).mean()
