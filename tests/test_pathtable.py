"""The measured path that is run for a budget."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError
from pam_mobile.path import Path, PathSpace
from pam_mobile.pathtable import WINDOW, MeasuredPath, PathTable

# Costs 100, 110, 120, ... 170; the span is 70 and the window 8.4, so that neighbours are not in each other's window.
TABLE = CostTable(32, 32, base=100, run=(40, 20, 10), bypass=(0, 0, 0), selection=0, prior=0)
# Costs 100 ... 104 and 200 ... 204; the span is 104 and the window 12.48, so that many paths share one.
FINE = CostTable(32, 32, base=100, run=(1, 1, 1, 1, 100), bypass=(0, 0, 0, 0, 0), selection=0, prior=0)


def _macs(macs: int) -> Budget:
    return Budget.parse(f"{macs / 10**6:.6f}M")


def _paths(**sads: float) -> PathTable:
    return PathTable(MeasuredPath(Path.parse(name[1:]), sad) for name, sad in sads.items())


def test_the_lowest_error_among_the_paths_that_use_the_budget() -> None:
    measured = _paths(p00000=9.0, p11000=5.0, p00110=4.0, p10100=6.0)
    assert str(measured.best(_macs(102), FINE)) == "00110"


def test_a_cheaper_path_of_lower_error_is_not_taken_when_it_leaves_most_of_the_budget_unused() -> None:
    measured = _paths(p000=1.0, p100=5.0, p011=6.0)
    assert str(measured.best(_macs(140), TABLE)) == "100"
    assert str(measured.best(_macs(139), TABLE)) == "011"


def test_the_window_is_open_at_its_lower_end() -> None:
    table = CostTable(32, 32, base=100, run=(88, 12), bypass=(0, 0), selection=0, prior=0)
    measured = _paths(p00=1.0, p01=2.0)
    assert table.largest - table.smallest == 100
    assert WINDOW == 0.12
    assert str(measured.best(_macs(112), table)) == "01"  # 100 is not above 112 - 12
    nearer = CostTable(32, 32, base=100, run=(89, 11), bypass=(0, 0), selection=0, prior=0)
    assert str(measured.best(_macs(111), nearer)) == "00"  # 100 is above 111 - 12


def test_of_equal_errors_the_cheaper() -> None:
    assert str(_paths(p00000=3.0, p10000=3.0, p11000=3.0).best(_macs(103), FINE)) == "00000"
    assert str(_paths(p01100=3.0, p10000=3.0).best(_macs(103), FINE)) == "10000"


def test_where_nothing_was_measured_the_dearest_that_fits() -> None:
    measured = _paths(p000=1.0, p001=8.0, p111=0.5)
    assert str(measured.best(_macs(165), TABLE)) == "001"


@pytest.mark.parametrize("macs", [170, 171, 10**6])
def test_from_the_largest_path_on_all_units_run_even_if_that_was_not_measured(macs: int) -> None:
    assert _paths(p000=1.0).best(_macs(macs), TABLE) == Path.all_run(3)
    assert _paths(p000=1.0).best(_macs(169), TABLE) == Path.all_bypass(3)


def test_below_the_smallest_path_there_is_no_answer() -> None:
    with pytest.raises(BudgetError, match="smallest"):
        _paths(p000=1.0).best(_macs(99), TABLE)
    assert _paths(p000=1.0).best(_macs(100), TABLE) == Path.all_bypass(3)


@given(st.dictionaries(st.integers(1, 31), st.integers(0, 5)), st.integers(100, 210), st.booleans())
def test_the_answer_fits_and_is_the_best_of_its_window(sads: dict[int, int], macs: int, relative: bool) -> None:
    space = PathSpace(FINE)
    measured = PathTable(MeasuredPath(space[i], float(sad)) for i, sad in {0: 3, **sads}.items())
    budget = Budget(_macs(macs).amount / FINE.largest, True) if relative else _macs(macs)
    path = measured.best(budget, FINE)
    cost = FINE.cost(path)
    assert cost <= macs
    if macs >= FINE.largest:
        assert cost == FINE.largest
        return
    sad = {m.path: m.sad for m in measured.measured}
    fitting = [p for p in sad if FINE.cost(p) <= macs]
    window = [p for p in fitting if FINE.cost(p) > macs - 0.12 * 104]
    assert path in fitting
    if window:
        assert path in window
        assert sad[path] == min(sad[p] for p in window)
    else:
        assert cost == max(FINE.cost(p) for p in fitting)


def test_json_round_trip_keeps_the_answers() -> None:
    measured = _paths(p000=1.25, p100=5.123456, p011=6.0)
    rows = json.loads(json.dumps(measured.to_json()))
    assert rows[0] == {"path": "000", "sad": 1.25}
    again = PathTable.from_json(rows)
    assert again.measured == measured.measured
    assert again.to_json() == measured.to_json()


def test_the_order_of_measuring_does_not_matter() -> None:
    rows = [MeasuredPath(Path.parse("000"), 1.0), MeasuredPath(Path.parse("100"), 2.0)]
    assert PathTable(rows).measured == PathTable(reversed(rows)).measured
