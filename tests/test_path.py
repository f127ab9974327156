"""Paths as values and their text form; the space of all paths against brute force; fair sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, UsageError
from pam_mobile.model.presets import preset
from pam_mobile.path import MAX_UNITS, Path, PathSpace

bit_rows = st.lists(st.booleans(), min_size=1, max_size=20)
small_units = st.lists(st.tuples(st.integers(1, 4), st.integers(5, 12)), min_size=1, max_size=6)


def _table(units: list[tuple[int, int]], base: int = 10) -> CostTable:
    """A table of (bypass, run) costs so small that many paths cost the same."""
    bypass, run = zip(*units, strict=True)
    return CostTable(height=32, width=32, base=base, run=run, bypass=bypass, selection=0, prior=0)


def _all_paths(table: CostTable) -> list[tuple[Path, int]]:
    """Every path with its cost, by literal enumeration, first unit slowest."""
    rows = []
    for bits in product((False, True), repeat=len(table.run)):
        cost = table.base
        for i, bit in enumerate(bits):
            cost += table.run[i] if bit else table.bypass[i]
        rows.append((Path(bits), cost))
    return rows


@given(bit_rows)
def test_text_form_reads_back_as_the_same_path(bits: list[bool]) -> None:
    path = Path(tuple(bits))
    assert Path.parse(str(path)) == path
    assert (len(path), list(path)) == (len(bits), bits)


@given(st.text("01", min_size=1, max_size=20))
def test_path_of_a_text_has_the_same_text(text: str) -> None:
    path = Path.parse(text)
    assert str(path) == text
    assert [bit is True for bit in path] == [digit == "1" for digit in text]


@pytest.mark.parametrize("text", ["", " ", "2", "01x", "0 1", "1\n", "0b1", "١٠", "-1"])  # noqa: RUF001
def test_other_texts_are_refused_and_shown(text: str) -> None:
    with pytest.raises(UsageError, match="is not a row of 0 and 1") as caught:
        Path.parse(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


def test_path_is_a_frozen_hashable_value() -> None:
    path = Path.parse("101")
    assert {path: "a"}[Path((True, False, True))] == "a"
    assert path != Path.parse("100")
    with pytest.raises(FrozenInstanceError):
        path.bits = (True,)  # type: ignore[misc]


@given(bit_rows, st.data())
def test_flip_changes_one_unit_and_undoes_itself(bits: list[bool], data: st.DataObject) -> None:
    path = Path(tuple(bits))
    unit = data.draw(st.integers(0, len(bits) - 1))
    flipped = path.flip(unit)
    assert [i for i, (a, b) in enumerate(zip(path, flipped, strict=True)) if a != b] == [unit]
    assert flipped.flip(unit) == path
    for outside in (-1, len(path)):
        with pytest.raises(IndexError, match="unit must be in"):
            path.flip(outside)


def test_all_run_and_all_bypass() -> None:
    assert str(Path.all_run(4)) == "1111"
    assert str(Path.all_bypass(3)) == "000"


@given(small_units)
def test_space_holds_every_path_once_with_its_cost(units: list[tuple[int, int]]) -> None:
    table = _table(units)
    space = PathSpace(table)
    expected = _all_paths(table)
    assert len(space) == len(expected)
    assert list(space) == [path for path, _ in expected]
    assert space.costs.tolist() == [cost for _, cost in expected]
    assert space.costs.dtype == np.int64


@given(small_units, st.integers(-5, 100))
def test_count_is_the_number_of_paths_within(units: list[tuple[int, int]], macs: int) -> None:
    table = _table(units)
    assert PathSpace(table).count(macs) == sum(cost <= macs for _, cost in _all_paths(table))


@given(small_units, st.integers(0, 100), st.integers(0, 30))
def test_near_is_the_window_below_the_budget_dearest_first(
    units: list[tuple[int, int]], macs: int, window: int
) -> None:
    table = _table(units)
    near = PathSpace(table).near(macs, window)
    assert set(near) == {path for path, cost in _all_paths(table) if macs - window < cost <= macs}
    assert len(set(near)) == len(near)
    costs = [table.cost(path) for path in near]
    assert costs == sorted(costs, reverse=True)


@given(small_units, st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_sample_stays_within_the_budget(units: list[tuple[int, int]], extra: int, seed: int) -> None:
    table = _table(units)
    macs = table.smallest + extra
    assert table.cost(PathSpace(table).sample(np.random.default_rng(seed), macs)) <= macs


def test_sample_below_the_smallest_path_is_refused() -> None:
    table = _table([(2, 9), (3, 8)])
    with pytest.raises(BudgetError):
        PathSpace(table).sample(np.random.default_rng(0), table.smallest - 1)


def _is_uniform(sample: Callable[[], Path], support: list[Path], draws: int) -> bool:
    """Chi-square test: would a fair sampler do this in more than one of 10,000 runs?"""
    seen = Counter(sample() for _ in range(draws))
    if set(seen) - set(support):
        return False
    return bool(stats.chisquare([seen[path] for path in support]).pvalue > 1e-4)


def _space_and_budget() -> tuple[PathSpace, int, list[Path]]:
    table = CostTable.of(preset("tiny"), 512, 512)
    space, macs = PathSpace(table), 2_150_000_000
    return space, macs, [path for path, cost in _all_paths(table) if cost <= macs]


def test_sample_is_uniform_among_the_feasible() -> None:
    space, macs, feasible = _space_and_budget()
    rng = np.random.default_rng(1)
    assert 50 < len(feasible) < 200
    assert _is_uniform(lambda: space.sample(rng, macs), feasible, 60 * len(feasible))


def test_sample_without_a_budget_is_uniform_among_all() -> None:
    space = PathSpace(_table([(1, 9)] * 6))
    rng = np.random.default_rng(2)
    assert _is_uniform(lambda: space.sample(rng), list(space), 60 * len(space))


def test_the_uniformity_check_catches_a_sampler_that_decides_unit_by_unit() -> None:
    space, macs, feasible = _space_and_budget()
    rng = np.random.default_rng(1)

    def biased() -> Path:
        spare, bits = macs - space.table.smallest, []
        for delta in space.table.deltas:
            bits.append(bool(rng.integers(2)) and delta <= spare)
            spare -= delta if bits[-1] else 0
        return Path(tuple(bits))

    assert not _is_uniform(biased, feasible, 60 * len(feasible))


def test_the_uniformity_check_catches_a_path_beyond_the_budget() -> None:
    space, _, feasible = _space_and_budget()
    rng = np.random.default_rng(1)
    assert not _is_uniform(lambda: space.sample(rng), feasible, 60 * len(feasible))


def test_more_units_than_can_be_enumerated_are_refused() -> None:
    assert len(PathSpace(_table([(1, 2)] * MAX_UNITS))) == 2**20
    with pytest.raises(ValueError, match=r"units = 21"):
        PathSpace(_table([(1, 2)] * (MAX_UNITS + 1)))
