"""Budgets are read, rounded down and never exceeded; the planners against brute force and against the paper's mask."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pam_mobile.budget import Budget, StepPlanner, knapsack
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, UsageError
from pam_mobile.model.presets import preset
from pam_mobile.path import Path

INF = math.inf
Planner = Callable[[Sequence[float], CostTable, int], Path]

NO_BUDGETS = (
    *("", "G", "4.5", "4,5G", "-1G", "+1G", "0G", "0%", "0.000M", "-80%", "1e3G", "nanG", "infG", "4.5GG", "4.5K"),
    *("4 5G", ".G", ".", "%", "80%G", "G4", "4.5.1G", "full", "4.5G\n80%"),
)

tables = st.builds(
    lambda base, units, selection: CostTable(
        height=32,
        width=32,
        base=base,
        run=tuple(bypass + delta for bypass, delta in units),
        bypass=tuple(bypass for bypass, _ in units),
        selection=selection,
        prior=0,
    ),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=7),
    st.integers(0, 5),
)
score = st.one_of(st.sampled_from([INF, -INF, 0.0, 1e300, -1e300]), st.integers(-24, 24).map(lambda n: n / 8))


def _scores(data: st.DataObject, table: CostTable) -> list[float]:
    return data.draw(st.lists(score, min_size=len(table.run), max_size=len(table.run)))


def _tiny() -> CostTable:
    return CostTable.of(preset("tiny"), 512, 512)


# Budgets


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("4.5G", 4_500_000_000),
        ("  4.5G ", 4_500_000_000),
        ("4.5 G", 4_500_000_000),
        ("850M", 850_000_000),
        (".5G", 500_000_000),
        ("2.G", 2_000_000_000),
        ("1T", 10**12),
        ("0.0000019M", 1),
        ("0.0000009M", 0),
        ("80%", 80 * _tiny().largest // 100),
        ("33.3 %", 333 * _tiny().largest // 1000),
        ("100%", _tiny().largest),
    ],
)
def test_budget_of_a_text(text: str, macs: int) -> None:
    assert Budget.parse(text).macs(_tiny()) == macs


@pytest.mark.parametrize(
    "text",
    NO_BUDGETS,
)
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"budget .* is not understood") as caught:
        Budget.parse(text)
    assert repr(text) in caught.value.message
    assert "4.5G" in caught.value.hint
    assert "80%" in caught.value.hint


def test_parse_takes_a_budget_as_it_is() -> None:
    budget = Budget.parse("80%")
    assert Budget.parse(budget) is budget


@given(st.fractions(min_value=Fraction(1, 10**6), max_value=10**12))
def test_an_amount_is_rounded_down_to_whole_macs(amount: Fraction) -> None:
    macs = Budget(amount, False).macs(_tiny())
    assert macs <= amount < macs + 1


@given(st.fractions(min_value=Fraction(1, 1000), max_value=3), st.integers(1, 400), st.integers(1, 400))
def test_a_share_is_rounded_down_to_whole_macs(share: Fraction, height: int, width: int) -> None:
    table = CostTable.of(preset("tiny", prior=True), height, width)
    macs = Budget(share, True).macs(table)
    assert macs <= share * table.largest < macs + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [("4.50 G", "4.5G"), ("850M", "0.85G"), ("1.25T", "1250G"), ("80.0 %", "80%"), ("66.6%", "66.6%")],
)
def test_text_form_is_short_and_reads_back(text: str, shown: str) -> None:
    budget = Budget.parse(text)
    assert str(budget) == shown
    assert Budget.parse(shown) == budget


def test_too_small_a_budget_names_the_smallest_and_the_largest_path() -> None:
    table = _tiny()
    with pytest.raises(BudgetError, match=r"budget 1\.000G .* 512x512: smallest 1\.873G, largest 2\.720G") as caught:
        knapsack([0.0] * 9, table, 10**9)
    assert caught.value.hint.startswith("use a budget of at least 1.874G or 68.9%")


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from(["full", "phone", "tiny"]), st.booleans())
def test_the_budgets_that_the_error_suggests_are_enough(height: int, width: int, name: str, selection: bool) -> None:
    table = CostTable.of(preset(name, prior=selection), height, width)
    with pytest.raises(BudgetError) as caught:
        table.require(table.smallest + selection * table.selection - 1, selection * table.selection)
    suggested = re.fullmatch(r"use a budget of at least (\S+G) or (\S+%)", caught.value.hint)
    assert suggested is not None
    for text in suggested.groups():
        table.require(Budget.parse(text).macs(table), selection * table.selection)


# The exact planner


def _exact(scores: Sequence[float], bits: Sequence[bool]) -> tuple[int, Fraction]:
    """Worth of a path as (what is too large to add up, the rest), exact."""
    huge, rest = 0, Fraction(0)
    for value, bit in zip(scores, bits, strict=True):
        if bit and abs(value) >= 1e300:
            huge += 1 if value > 0 else -1
        elif bit:
            rest += Fraction(value)
    return huge, rest


@given(tables, st.data())
def test_knapsack_is_the_best_of_all_paths_and_the_cheapest_of_the_best(table: CostTable, data: st.DataObject) -> None:
    scores = _scores(data, table)
    macs = data.draw(st.integers(table.smallest, table.largest + 3))
    path = knapsack(scores, table, macs)
    feasible = [bits for bits in product((False, True), repeat=len(scores)) if table.cost(bits) <= macs]
    best = max((_exact(scores, bits), -table.cost(bits)) for bits in feasible)
    assert (_exact(scores, path.bits), -table.cost(path)) == best


def test_knapsack_is_the_best_of_all_paths_of_a_preset() -> None:
    table, rng = _tiny(), np.random.default_rng(3)
    bits = np.array(list(product((False, True), repeat=9)))
    costs = table.smallest + bits @ np.array(table.deltas)
    for _ in range(100):
        scores = rng.normal(0.3, 1.5, 9)
        macs = int(rng.integers(table.smallest, table.largest + 1))
        path = knapsack(scores.tolist(), table, macs)
        assert table.cost(path) <= macs
        assert np.dot(path.bits, scores) == pytest.approx((bits @ scores)[costs <= macs].max(), abs=1e-9)


def test_infinite_scores_leave_the_finite_ones_their_say() -> None:
    table = CostTable(32, 32, base=0, run=(5, 5, 5), bypass=(0, 0, 0), selection=0, prior=0)
    assert str(knapsack([INF, 0.25, 0.5], table, 10)) == "101"
    assert str(knapsack([-INF, 0.25, 0.5], table, 10)) == "011"
    assert str(knapsack([INF, INF, INF], table, 9)).count("1") == 1


# What holds for every planner


def _unmasked(scores: Sequence[float], table: CostTable, macs: int) -> Path:
    """A planted fault: looks at what is spent so far, and forgets that the later units cost something, too."""
    table.require(macs, table.selection)
    spent, bits = table.base + table.selection, []
    for value, run, bypass in zip(scores, table.run, table.bypass, strict=True):
        bits.append(value > 0 and spent + run <= macs)
        spent += run if bits[-1] else bypass
    return Path(tuple(bits))


def plan_by_steps(scores: Sequence[float], table: CostTable, macs: int) -> Path:
    """The path that StepPlanner takes when the scores are known beforehand."""
    planner = StepPlanner(table, macs)
    return Path(tuple(planner.decide(score) for score in scores))


def _forgets_heads(scores: Sequence[float], table: CostTable, macs: int) -> Path:
    """A planted fault: does not count the selection heads that it runs."""
    return plan_by_steps(scores, table, macs + table.selection)


def _violations(planner: Planner, heads: bool) -> int:
    """How many of 300 random plans cost more than their budget."""
    rng, count = np.random.default_rng(5), 0
    for _ in range(300):
        table = CostTable.of(
            preset("tiny", bool(rng.integers(2))), int(rng.integers(1, 300)), int(rng.integers(1, 300))
        )
        selection = table.selection if heads else 0
        macs = int(rng.integers(table.smallest, table.largest + 1)) + selection
        scores = rng.normal(0.3, 1.5, 9)
        scores[rng.random(9) < 0.2] = INF
        count += table.cost(planner(scores.tolist(), table, macs)) + selection > macs
    return count


def test_no_planner_exceeds_its_budget() -> None:
    assert _violations(knapsack, heads=False) == 0
    assert _violations(plan_by_steps, heads=True) == 0


@pytest.mark.parametrize("planner", [_unmasked, _forgets_heads])
def test_a_planted_planner_that_exceeds_its_budget_is_caught(planner: Planner) -> None:
    assert _violations(planner, heads=True) > 0


@given(tables, st.data())
def test_too_small_a_budget_is_refused_at_once(table: CostTable, data: st.DataObject) -> None:
    scores = _scores(data, table)
    with pytest.raises(BudgetError):
        knapsack(scores, table, table.smallest - 1)
    with pytest.raises(BudgetError):
        StepPlanner(table, table.smallest + table.selection - 1)


def test_nan_and_the_wrong_number_of_scores_are_refused() -> None:
    table = _tiny()
    with pytest.raises(ValueError, match="NaN"):
        knapsack([0.0] * 8 + [math.nan], table, 2 * table.largest)
    with pytest.raises(ValueError, match="8 entries, the network has 9"):
        knapsack([0.0] * 8, table, 2 * table.largest)


# The step-by-step planner


def _masked_argmax(scores: Sequence[float], table: CostTable, budget: int) -> tuple[bool, ...]:
    """PAM, section 12: choice k at unit i is legal iff s + cost(i, k) + sum_{j > i} min_k cost(j, k) + tail <= C."""
    costs = list(zip(table.bypass, table.run, strict=True))
    spent, tail, chosen = table.base, table.selection, []
    for i, value in enumerate(scores):
        later = sum(min(costs[j]) for j in range(i + 1, len(costs)))
        legal = [k for k in (0, 1) if spent + costs[i][k] + later + tail <= budget]
        k = max(legal, key=lambda k: (0.0, value)[k])
        spent += costs[i][k]
        chosen.append(k == 1)
    return tuple(chosen)


@given(tables, st.data())
def test_steps_are_the_masked_argmax_and_never_above_the_budget(table: CostTable, data: st.DataObject) -> None:
    scores = _scores(data, table)
    macs = data.draw(st.integers(table.smallest, table.largest)) + table.selection
    path = plan_by_steps(scores, table, macs)
    assert path.bits == _masked_argmax(scores, table, macs)
    assert table.cost(path) + table.selection <= macs


@given(tables, st.data())
def test_an_ample_budget_leaves_the_unconstrained_argmax(table: CostTable, data: st.DataObject) -> None:
    scores = _scores(data, table)
    path = plan_by_steps(scores, table, table.largest + table.selection)
    assert path.bits == tuple(value > 0 for value in scores)


@given(tables, st.data())
def test_one_mac_too_little_for_the_last_wish_bypasses_it(table: CostTable, data: st.DataObject) -> None:
    scores = _scores(data, table)
    wish = Path(tuple(value > 0 for value in scores))
    assume(any(wish))
    need = table.cost(wish) + table.selection
    assert plan_by_steps(scores, table, need) == wish
    assert plan_by_steps(scores, table, need - 1) != wish


def test_what_was_decided_is_the_path_and_what_is_spare() -> None:
    table = _tiny()
    macs = (table.smallest + table.largest) // 2
    scores = [1.0, -1.0, 0.0, 2.0, INF, -INF, 1.0, 1.0, 1.0]
    planner = StepPlanner(table, macs)
    assert tuple(planner.decide(value) for value in scores) == planner.path.bits
    assert planner.path.bits == _masked_argmax(scores, table, macs)
    assert planner.spare == macs - table.selection - table.cost(planner.path)


def test_a_nan_met_while_deciding_is_refused_and_names_the_unit() -> None:
    planner = StepPlanner(_tiny(), _tiny().largest * 2)
    planner.decide(1.0)
    with pytest.raises(ValueError, match="unit 1 is NaN"):
        planner.decide(math.nan)
