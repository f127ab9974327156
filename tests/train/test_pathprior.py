"""The path prior: votes, draws, what it knows more than chance, and its file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pam_mobile import tensorfile
from pam_mobile.config import HeldOut
from pam_mobile.cost import CostTable
from pam_mobile.data.compose import Batch
from pam_mobile.errors import BudgetError, InputError, IntegrityError, SetupError
from pam_mobile.files import read_sealed_json, write_sealed_json
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path, PathSpace
from pam_mobile.train import pathprior
from pam_mobile.train.pathprior import PathPrior, budget_rows, estimate_prior, prior_report, window
from pam_mobile.train.validate import VOTES, held_out_composites

TINY = preset("tiny")
SPACE = PathSpace(CostTable.of(TINY, 512, 512))
FLAT = PathPrior.flat(TINY, SPACE)


def voted(seed: int = 0, images: int = 40, favourite: float = 0.5) -> PathPrior:
    """Votes that prefer one path per budget by the share `favourite`."""
    rng = np.random.default_rng(seed)
    votes = np.zeros_like(FLAT.votes)
    for row, macs in enumerate(FLAT.budgets):
        near = window(SPACE, macs, FLAT.step)
        for image in range(images):
            winner = near[0] if rng.random() < favourite else rng.choice(near)
            votes[image % 2, row, winner] += 1
    return replace(FLAT, votes=votes)


@pytest.mark.parametrize(("name", "first", "last"), [("full", 55, 75), ("phone", 38, 57), ("tiny", 19, 28)])
def test_budgets_are_the_rows_of_the_embedding(name: str, first: int, last: int) -> None:
    step = preset(name).budget_step
    assert budget_rows(preset(name)) == tuple(step * i for i in range(first, last + 1))


@pytest.mark.parametrize("prior", [FLAT, voted()], ids=["flat", "voted"])
def test_probabilities_are_a_distribution_over_exactly_the_feasible_paths(prior: PathPrior) -> None:
    for row, macs in enumerate(prior.budgets):
        p = prior.probabilities(row)
        assert p.sum() == pytest.approx(1)
        assert np.array_equal(p > 0, SPACE.costs <= macs)
        near = window(SPACE, macs, prior.step)
        assert p[near].sum() >= 0.9


def test_votes_raise_the_probability() -> None:
    p, near = voted().probabilities(4), window(SPACE, FLAT.budgets[4], FLAT.step)
    assert p.argmax() == near[0]
    assert p[near[0]] == pytest.approx(0.9 * 0.5, abs=0.15)


@given(st.integers(0, 9), st.integers(1, 600), st.integers(0, 10**6))
def test_draws_are_distinct_and_within_the_budget(row: int, count: int, seed: int) -> None:
    macs = FLAT.budgets[row]
    paths = voted().draw(macs, count, np.random.default_rng(seed))
    assert len(paths) == len(set(paths)) == min(count, SPACE.count(macs))
    assert all(SPACE.table.cost(path) <= macs for path in paths)


def test_single_draws_follow_the_probabilities() -> None:
    prior, rng = voted(), np.random.default_rng(0)
    drawn = [str(prior.draw(FLAT.budgets[1], 1, rng)[0]) for _ in range(3000)]
    p = prior.probabilities(1)
    expected = {str(SPACE[int(i)]): 3000 * p[i] for i in np.flatnonzero(p)}
    counts = [drawn.count(path) for path in expected]
    assert sum(counts) == 3000
    assert stats.chisquare(counts, list(expected.values())).pvalue > 1e-3


def test_a_budget_between_two_rows_takes_the_lower_one() -> None:
    assert FLAT.row(FLAT.budgets[3]) == 3
    assert FLAT.row(FLAT.budgets[3] + FLAT.step - 1) == 3
    assert FLAT.row(10**15) == len(FLAT.budgets) - 1
    with pytest.raises(BudgetError):
        FLAT.row(SPACE.table.smallest - 1)


def test_each_image_votes_once_per_budget_for_its_best_path(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = held_out_composites(HeldOut(3, 64), ("solid",), VOTES, torch.device("cpu"))

    def errors(network: Supernet, batches: list[Batch], path: Path) -> torch.Tensor:
        """Image i wants unit i to run; the rest of the path matters little."""
        return torch.tensor([1.0 - path.bits[i] + 0.01 * path.bits[8] for i in range(3)])

    monkeypatch.setattr(pathprior, "sads", errors)
    prior = estimate_prior(Supernet(TINY), "a" * 64, batches, SPACE, 1000, seed=0)
    assert prior.judge == "a" * 64
    assert (prior.votes.sum((0, 2)) == 3).all()
    assert (prior.votes[0].sum(1) == 2).all()
    for row, macs in enumerate(prior.budgets):
        near = window(SPACE, macs, prior.step)
        (winner,) = np.flatnonzero(prior.votes[1, row])
        rank = {index: (not SPACE.bits[index][1], SPACE.bits[index][8], SPACE.costs[index]) for index in near}
        assert rank[winner] == min(rank.values())


def test_a_prior_of_random_votes_shows_no_concentration_and_one_with_a_favourite_does() -> None:
    chance = [row for row in prior_report(voted(favourite=0.0, images=4000)) if row["paths"] > 3]
    taste = [row for row in prior_report(voted(favourite=0.5, images=4000)) if row["paths"] > 3]
    assert len(chance) > 4
    for row in chance:
        assert row["concentration"] == pytest.approx(1, abs=0.12)
    for row in taste:
        assert row["concentration"] > 1 + 0.2 * (row["paths"] - 1)
        assert row["shuffled"] == pytest.approx(1, abs=0.12)
        assert row["correlation"] > 0.9


def test_a_saved_prior_reads_back_for_the_same_network_and_costs_only(tmp_path: FilePath) -> None:
    prior = replace(voted(), judge="a" * 64)
    prior.save(tmp_path)
    again = PathPrior.load(tmp_path, SPACE, "a" * 64)
    assert np.array_equal(again.votes, prior.votes)
    assert (again.budgets, again.step) == (prior.budgets, prior.step)
    with pytest.raises(InputError, match="another network"):
        PathPrior.load(tmp_path, SPACE, "b" * 64)
    with pytest.raises(InputError, match="another cost table"):
        PathPrior.load(tmp_path, PathSpace(CostTable.of(preset("tiny", prior=True), 512, 512)), "a" * 64)
    data = bytearray((tmp_path / pathprior.TENSORS).read_bytes())
    data[-1] ^= 1
    (tmp_path / pathprior.TENSORS).write_bytes(data)
    with pytest.raises(IntegrityError):
        PathPrior.load(tmp_path, SPACE, "a" * 64)


def test_processes_share_the_counting_and_the_votes_are_those_of_one() -> None:
    torch.manual_seed(0)
    network = Supernet(TINY)
    batches = held_out_composites(HeldOut(10, 64), ("solid", "hair"), VOTES, torch.device("cpu"))
    alone = estimate_prior(network, "a" * 64, batches, SPACE, 2, seed=5)
    parts = [estimate_prior(network, "a" * 64, batches, SPACE, 2, seed=5, part=(i, 3)) for i in range(3)]
    assert np.array_equal(sum(part.votes for part in parts), alone.votes)
    assert all(part.votes.any() for part in parts)
    assert not np.array_equal(estimate_prior(network, "a" * 64, batches, SPACE, 2, seed=6).votes, alone.votes)


@pytest.mark.parametrize(
    ("votes", "complaint"),
    [
        (torch.ones(3, 3, dtype=torch.int32), r"does not hold votes .* int32 \(3, 3\), not int32 \(3, 4\)"),
        (torch.ones(3, 4), r"does not hold votes .* float32 \(3, 4\), not int32"),
        (torch.tensor(1, dtype=torch.int32), "does not hold votes"),
        (torch.tensor([[0, 0, 0, 1], [2, 0, 0, 1]], dtype=torch.int32), "other budgets or paths"),
        (torch.tensor([[0, len(FLAT.budgets), 0, 1]], dtype=torch.int32), "other budgets or paths"),
        (torch.tensor([[0, 0, len(SPACE), 1]], dtype=torch.int32), "other budgets or paths"),
        (torch.tensor([[0, -1, 0, 1]], dtype=torch.int32), "other budgets or paths"),
    ],
)
def test_votes_that_are_none_are_refused(votes: Tensor, complaint: str, tmp_path: FilePath) -> None:
    replace(voted(), judge="a" * 64).save(tmp_path)
    document = read_sealed_json(tmp_path / pathprior.DOCUMENT, "")
    document["tensors_sha256"] = tensorfile.write(tmp_path / pathprior.TENSORS, {"votes": votes})
    write_sealed_json(tmp_path / pathprior.DOCUMENT, document)
    with pytest.raises(InputError, match=complaint):
        PathPrior.load(tmp_path, SPACE, "a" * 64)


def test_a_prior_without_votes_reads_back(tmp_path: FilePath) -> None:
    replace(FLAT, judge="a" * 64).save(tmp_path)
    assert not PathPrior.load(tmp_path, SPACE, "a" * 64).votes.any()


def test_a_disk_that_drops_votes_is_noticed(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = replace(voted(), judge="a" * 64)
    monkeypatch.setattr(os, "write", lambda handle, data: len(data))
    with pytest.raises(SetupError, match="read back"):
        prior.save(tmp_path / "other")
