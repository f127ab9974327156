"""P(path | budget): which paths tend to be best under a budget, counted on held-out composites (PAM, equation 7).

The random-path supernet of stage 2 is the judge. Per image and budget the path of lowest error among random ones near the
budget gets one vote; candidates for Algorithm 1 are then drawn from the votes instead of from all feasible paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from .. import tensorfile
from ..cost import GIGA, CostTable
from ..data.compose import Batch
from ..errors import InputError
from ..files import read_sealed_json, write_sealed_json
from ..model.presets import Preset
from ..model.supernet import Supernet
from ..path import Path, PathSpace
from ..reporter import Reporter, Silent
from .validate import sads

UNIFORM = 0.1
"""Share of a draw that ignores the votes, so that no feasible path has no chance."""
TENSORS, DOCUMENT = "path-prior.safetensors", "path-prior.json"
REMEDY = "delete path-prior.* in the run folder; it is made again"


def budget_rows(preset: Preset) -> tuple[int, ...]:
    """The budgets of the preset's embedding in MACs at its reference size: the whole steps that some path fits."""
    table = CostTable.of(preset, preset.reference, preset.reference)
    step = preset.budget_step
    return tuple(range(-(-table.smallest // step) * step, -(-table.largest // step) * step + 1, step))


def window(space: PathSpace, macs: int, width: int) -> np.ndarray:
    """Indices of the paths with cost in (macs - width, macs]; the dearest feasible one where there is none."""
    inside = np.flatnonzero((space.costs <= macs) & (space.costs > macs - width))
    if len(inside):
        return inside
    return np.array([int(np.argmax(np.where(space.costs <= macs, space.costs, -1)))])


@dataclass(frozen=True)
class PathPrior:
    """Votes for paths per budget, at the preset's reference size."""

    space: PathSpace
    budgets: tuple[int, ...]
    """MACs, ascending."""
    step: int
    """A budget's candidates cost between it less one step and itself."""
    votes: np.ndarray
    """(2, budgets, paths) int64: of the even and of the odd images, so that what they share can be told from chance."""
    judge: str = ""
    """SHA-256 of the weights that judged; empty without votes."""

    @classmethod
    def flat(cls, preset: Preset, space: PathSpace) -> PathPrior:
        """No votes: every path near a budget is equally likely."""
        budgets = budget_rows(preset)
        return cls(space, budgets, preset.budget_step, np.zeros((2, len(budgets), len(space)), np.int64))

    def row(self, macs: int) -> int:
        """The largest budget that is at most `macs`. Raises BudgetError if there is none."""
        self.space.table.require(macs)
        return max(0, int(np.searchsorted(self.budgets, macs, side="right")) - 1)

    def probabilities(self, row: int, votes: np.ndarray | None = None) -> np.ndarray:
        """P(path | budget of that row), (paths,): smoothed votes near the budget, mixed with all that is feasible."""
        counts = self.votes[:, row].sum(0) if votes is None else votes
        near = window(self.space, self.budgets[row], self.step)
        smoothed = np.zeros(len(self.space))
        smoothed[near] = counts[near] + 1 / len(near)
        feasible = self.space.costs <= self.budgets[row]
        return (1 - UNIFORM) * smoothed / smoothed.sum() + UNIFORM * feasible / feasible.sum()

    def draw(self, macs: int, count: int, rng: np.random.Generator) -> list[Path]:
        """Up to `count` distinct feasible paths, drawn one after the other without putting back (Gumbel-top-k)."""
        p = self.probabilities(self.row(macs))
        with np.errstate(divide="ignore"):
            keys = np.log(p) + rng.gumbel(size=len(p))
        best = np.argsort(-keys, kind="stable")[: min(count, int((p > 0).sum()))]
        return [self.space[int(index)] for index in best]

    def save(self, folder: FilePath) -> None:
        """Write the votes with the hashes of the network that judged and of the cost table.

        Nearly all paths have none, so a vote is a row of half, budget, path and count.
        """
        given = np.column_stack([*self.votes.nonzero(), self.votes[self.votes.nonzero()]])
        digest = tensorfile.write(folder / TENSORS, {"votes": torch.from_numpy(given.astype(np.int32))})
        document = {
            "budgets": list(self.budgets),
            "step": self.step,
            "judge_sha256": self.judge,
            "cost_sha256": cost_sha256(self.space.table),
            "tensors_sha256": digest,
            "report": prior_report(self),
        }
        write_sealed_json(folder / DOCUMENT, document)

    @classmethod
    def load(cls, folder: FilePath, space: PathSpace, judge: str) -> PathPrior:
        """Read a prior. Raises InputError if it belongs to another network or cost table, IntegrityError if it is damaged."""
        document = read_sealed_json(folder / DOCUMENT, REMEDY)
        for name, have in (("judge_sha256", judge), ("cost_sha256", cost_sha256(space.table))):
            if document[name] != have:
                kind = "network" if name.startswith("judge") else "cost table"
                raise InputError(f"{folder / DOCUMENT} was made with another {kind}", REMEDY)
        budgets, file = tuple(document["budgets"]), folder / TENSORS
        layout = tensorfile.read_layout(file, document["tensors_sha256"], REMEDY)
        count = next((shape[0] for _, shape in layout.values() if shape), 0)
        tensorfile.require_layout(layout, {"votes": (torch.int32, (count, 4))}, file, "votes for paths")
        given = tensorfile.read(file)["votes"].numpy().astype(np.int64)
        votes = np.zeros((2, len(budgets), len(space)), np.int64)
        if (given < 0).any() or (given[:, :3] >= votes.shape).any():
            raise InputError(f"{file} has votes for other budgets or paths", REMEDY)
        votes[tuple(given[:, :3].T)] = given[:, 3]
        return cls(space, budgets, document["step"], votes, judge)


def stored_prior(folder: FilePath, preset: Preset, document: dict[str, Any]) -> PathPrior | None:
    """The prior that a checkpoint's network learned with, kept beside it; None if it learned without.

    Raises as `PathPrior.load` does.
    """
    judge = document.get("path_prior_judge")
    reference = CostTable.of(preset, preset.reference, preset.reference)
    return PathPrior.load(folder, PathSpace(reference), judge) if judge else None


def cost_sha256(table: CostTable) -> str:
    """What identifies a cost table."""
    return hashlib.sha256(json.dumps([table.base, table.run, table.bypass]).encode()).hexdigest()


def estimate_prior(
    network: Supernet,
    judge: str,
    batches: Sequence[Batch],
    space: PathSpace,
    paths_per_budget: int,
    seed: int,
    part: tuple[int, int] = (0, 1),
    reporter: Reporter | None = None,
) -> PathPrior:
    """Let the network judge random paths near every budget on composites; each image votes for the best one.

    judge: SHA-256 of the network's weights; space: at the preset's reference size. Among equals the cheapest path wins.
    part: (i, n) casts the i-th of n parts of the votes; all parts together are the votes of (0, 1).
    """
    reporter = reporter or Silent()
    prior = replace(PathPrior.flat(network.preset, space), judge=judge)
    first, parts = part
    ballots = [(batch, row) for batch in range(len(batches)) for row in range(len(prior.budgets))][first::parts]
    with reporter.progress("counting the best paths per budget", len(ballots)) as advance:
        for batch, row in ballots:
            near = window(space, prior.budgets[row], prior.step)
            drawn = np.random.default_rng([seed, batch, row]).permutation(near)[:paths_per_budget]
            drawn = drawn[np.argsort(space.costs[drawn], kind="stable")]
            errors = np.stack([sads(network, [batches[batch]], space[int(index)]).cpu().numpy() for index in drawn])
            for image, winner in enumerate(drawn[errors.argmin(0)]):
                prior.votes[image % 2, row, winner] += 1
            advance(note=f"{prior.budgets[row] / GIGA:.1f}G")
    return prior


def prior_report(prior: PathPrior, seed: int = 0) -> list[dict[str, float | None]]:
    """Per budget: does the prior know more than chance?

    concentration: N sum_p P1(p) P2(p) with P1, P2 the votes of the two halves of the images and N the paths near the budget;
    unbiased by the number of images, 1 for votes at random, more where the same paths win again. shuffled: the same after
    dealing every vote to a random path. correlation: of the run shares per unit between the halves.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for row, macs in enumerate(prior.budgets):
        near = window(prior.space, macs, prior.step)
        first, second = prior.votes[0, row, near], prior.votes[1, row, near]
        dealt = [np.bincount(rng.integers(len(near), size=int(v.sum())), minlength=len(near)) for v in (first, second)]
        shares = [_run_shares(prior.space.bits[near], v) for v in (first, second)]
        rows.append(
            {
                "budget_gmacs": macs / GIGA,
                "paths": len(near),
                "images": int(first.sum() + second.sum()),
                "best_share": _ratio((first + second).max(), (first + second).sum()),
                "concentration": _overlap(first, second),
                "shuffled": _overlap(*dealt),
                "correlation": _correlation(*shares),
            }
        )
    return rows


def _overlap(first: np.ndarray, second: np.ndarray) -> float | None:
    return _ratio(len(first) * float(first @ second), float(first.sum() * second.sum()))


def _ratio(part: float, whole: float) -> float | None:
    return round(float(part / whole), 4) if whole else None


def _run_shares(bits: np.ndarray, votes: np.ndarray) -> np.ndarray:
    return votes @ bits / max(1, votes.sum())


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    if first.std() < 1e-9 or second.std() < 1e-9:
        return None
    return round(float(np.corrcoef(first, second)[0, 1]), 4)
