"""Algorithm 1: which path becomes an image's label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pam_mobile.config import HeldOut
from pam_mobile.cost import CostTable
from pam_mobile.data.compose import Batch
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path, PathSpace
from pam_mobile.train import labels
from pam_mobile.train.labels import Label, best_path, find_labels, path_errors, sample
from pam_mobile.train.losses import unknown_mask
from pam_mobile.train.pathprior import PathPrior
from pam_mobile.train.validate import VOTES, held_out_composites

TABLE = CostTable(32, 32, base=100, run=(40, 20, 10), bypass=(0, 0, 0))
PATHS = [Path(bits) for bits in product((False, True), repeat=3)]
FEASIBLE = [path for path in PATHS if TABLE.cost(path) <= 150]


def network(seed: int = 0) -> Supernet:
    """A tiny supernet whose paths and heads all matter."""
    torch.manual_seed(seed)
    net = Supernet(preset("tiny", prior=True)).eval()
    for unit in net.units:
        for weight in unit.head.parameters():
            nn.init.normal_(weight, std=0.5)
    nn.init.normal_(net.net.decoder.head.weight, std=0.3)
    return net


def composites(count: int = 3) -> Batch:
    (batch,) = held_out_composites(HeldOut(count, 64), ("solid",), VOTES, torch.device("cpu"))
    return batch


subsets = st.lists(st.sampled_from(FEASIBLE), min_size=1, max_size=5, unique=True)
few_errors = st.sampled_from([0.0, 0.1, 0.2, 0.3])


@given(st.data(), subsets, st.sampled_from(PATHS), few_errors)
def test_the_label_is_the_argmin_within_the_budget(
    data: st.DataObject, candidates: list[Path], own: Path, own_error: float
) -> None:
    errors = [data.draw(few_errors) for _ in candidates]
    label = best_path(candidates, errors, own, own_error, TABLE, 150)
    entries = list(zip(errors, map(TABLE.cost, candidates), candidates, strict=True))
    own_wins = TABLE.cost(own) <= 150 and own not in candidates and own_error < min(errors)
    if own_wins:
        expected = own
        rest = errors
    else:
        expected = min(entries, key=lambda e: e[:2])[2]
        rest = [e for e, path in zip(errors, candidates, strict=True) if path != expected]
        rest += [own_error] if TABLE.cost(own) <= 150 and own not in candidates else []
    assert label.path == expected
    assert TABLE.cost(label.path) <= 150
    assert label.own == own_wins
    assert label.margin == pytest.approx(min(rest) - label.error if rest else 0)
    assert label.margin >= 0


def test_an_own_path_above_the_budget_loses_even_without_error() -> None:
    own = Path((True, True, False))
    assert TABLE.cost(own) == 160
    label = best_path([Path((False, False, True))], [0.9], own, 0.0, TABLE, 150)
    assert label == Label(Path((False, False, True)), 0.9, 0.0, own=False)
    assert best_path([Path((False, False, True))], [0.9], own, 0.0, TABLE, 160).path == own


def test_equal_errors_go_to_the_cheaper_path() -> None:
    dear, cheap = Path((True, False, False)), Path((False, True, False))
    assert best_path([dear, cheap], [0.5, 0.5], dear, 0.5, TABLE, 150).path == cheap
    own = Path((False, False, False))
    assert best_path([dear, cheap], [0.5, 0.5], own, 0.5, TABLE, 150) == Label(cheap, 0.5, 0.0, own=False)


def test_errors_are_those_of_each_image_on_each_of_its_paths() -> None:
    net, batch = network(), composites(3)
    rng = np.random.default_rng(0)
    space = PathSpace(CostTable.of(net.preset, 512, 512))
    paths = [[space.sample(rng) for _ in range(n)] for n in (3, 1, 2)]
    got = path_errors(net, batch, paths)
    assert [len(row) for row in got] == [3, 1, 2]
    mask = unknown_mask(batch.trimap)
    for i, own in enumerate(paths):
        for j, path in enumerate(own):
            with torch.no_grad():
                alpha = net(batch.image[i : i + 1], batch.trimap[i : i + 1], path=path)
            expected = float(((alpha - batch.alpha[i]).abs() * mask[i]).sum() / mask[i].sum())
            assert got[i][j] == pytest.approx(expected, rel=1e-4)
    assert len({round(e, 7) for row in got for e in row}) == 6


def test_sampled_paths_follow_the_heads_and_the_generator() -> None:
    net, batch = network(), composites(3)
    wish = net.embedding(2_400_000_000, CostTable.of(net.preset, 512, 512))
    first, again, other = (sample(net, batch, wish, np.random.default_rng(s)).paths for s in (0, 0, 1))
    assert first == again != other
    for unit in net.units:
        nn.init.zeros_(unit.head.logits.weight)
        with torch.no_grad():
            unit.head.logits.bias.copy_(torch.tensor([0.0, 60.0]))
    assert sample(net, batch, wish, np.random.default_rng(2)).paths == [Path.all_run(9)] * 3


def test_a_sample_holds_what_the_heads_say_on_its_paths() -> None:
    net, batch = network(), composites(2)
    wish = net.embedding(2_400_000_000, CostTable.of(net.preset, 512, 512))
    drawn = sample(net, batch, wish, np.random.default_rng(0))
    assert drawn.steps.shape == drawn.plans.shape == (2, 9, 2)
    seen: list[torch.Tensor] = []
    handles = [unit.head.register_forward_hook(lambda *a: seen.append(a[2])) for unit in net.units]
    decisions = iter(zip(*drawn.paths, strict=True))

    def step(unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
        unit.head(x, wish.expand(2, -1))
        return unit(x, next(decisions))  # type: ignore[no-any-return]

    with torch.no_grad():
        net.net(batch.image, batch.trimap, step)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(drawn.steps, torch.stack(seen, 1))


def test_every_image_of_a_batch_gets_the_label_of_its_own_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = network(), composites(3)
    space = PathSpace(CostTable.of(net.preset, 512, 512))
    prior = PathPrior.flat(net.preset, space)
    macs = prior.budgets[5]
    asked: list[Sequence[Sequence[Path]]] = []

    def fake(network: Supernet, batch: Batch, paths: Sequence[Sequence[Path]]) -> list[list[float]]:
        """Image i likes unit i to run and nothing else."""
        asked.append(paths)
        return [[-10.0 * path.bits[i] + sum(path) for path in own] for i, own in enumerate(paths)]

    monkeypatch.setattr(labels, "path_errors", fake)
    drawn = [Path.parse("100000000"), Path.all_run(9), Path.parse("001000000")]
    found = find_labels(net, batch, drawn, macs, prior, 4, np.random.default_rng(0))
    assert found[0].path == drawn[0]
    assert found[0].own
    assert found[2].path == drawn[2]
    assert not found[1].own
    for i, (label, own) in enumerate(zip(found, asked[0], strict=True)):
        assert 4 <= len(own) <= 5
        assert len(set(own)) == len(own)
        assert label.tried == tuple((path, -10.0 * path.bits[i] + sum(path)) for path in own)
        feasible = [path for path in own if space.table.cost(path) <= macs]
        assert label.error == min(-10.0 * path.bits[i] + sum(path) for path in feasible)
        assert label.path in feasible
