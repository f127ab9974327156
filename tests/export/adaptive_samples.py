"""A small network that chooses different paths, and what every artifact that chooses must keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from export_samples import SIZE, lively, mini

from pam_export.adaptive import Adaptive
from pam_export.artifact import PLANNED, STEPWISE, Part, Request, Runner
from pam_export.controller import Costs
from pam_export.parity import Case, cases
from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path, PathSpace

IMAGES = cases(SIZE)[:3]
INFO = {"arch": "mini", "size": SIZE}


@torch.no_grad()
def choosy(prior: bool = False, size: int = SIZE) -> Supernet:
    """`mini` with several rows in its budget embedding and heads that ask for more than most budgets allow."""
    supernet = lively(replace(mini(prior), budget_step=4 * 10**6), size)
    for logits in (supernet.planning.logits, *(unit.head.logits for unit in supernet.units)):
        logits.bias[1::2] += 0.05
    return supernet


def parts(supernet: Supernet, size: int = SIZE) -> list[Part]:
    """The parts of an adaptive artifact."""
    return [Part("adaptive", Adaptive(supernet, size), cases(size)[0].inputs())]


def heads(table: CostTable, way: str) -> int:
    return table.planning if way == PLANNED else table.selection


def budgets(table: CostTable, way: str) -> Iterator[int]:
    """Exactly what every path costs with the heads, 1 MAC less where that is allowed, and more than all."""
    for cost in sorted({int(cost) for cost in PathSpace(table).costs}):
        if cost > table.smallest:
            yield cost + heads(table, way) - 1
        yield cost + heads(table, way)
    yield 10 * table.largest


@torch.no_grad()
def check_promises(run: Runner, supernet: Supernet, way: str, images: Sequence[Case], tolerance: float) -> set[str]:
    """Within every budget and for every image: the path that PyTorch takes, its alpha, never above the budget.

    Returns the paths that were taken.
    """
    table = CostTable.of(supernet.preset, *images[0].image.shape[2:])
    choose = supernet.plan if way == PLANNED else supernet.choose
    taken = set()
    for macs in budgets(table, way):
        for case in images:
            alpha, (path,) = choose(*case.inputs(), Budget(Fraction(macs), False))
            answer = run(case.image, case.trimap, Request(way, macs))
            assert answer.path is not None
            assert table.cost(answer.path) + heads(table, way) <= macs, f"{answer.path} breaks the budget {macs}"
            assert answer.path == path, f"{answer.path} is not PyTorch's path within {macs}"
            torch.testing.assert_close(answer.alpha, alpha, rtol=0, atol=tolerance)
            taken.add(str(answer.path))
    return taken


def check_refusals(run: Runner, supernet: Supernet, ways: tuple[str, ...], case: Case) -> None:
    """No path for too small a budget; no other way to choose than those that it has."""
    table = CostTable.of(supernet.preset, *case.image.shape[2:])
    for way in ways:
        with pytest.raises(BudgetError, match="below the smallest path"):
            run(case.image, case.trimap, Request(way, table.smallest + heads(table, way) - 1))
    for way in {PLANNED, STEPWISE, "forward"} - set(ways):
        with pytest.raises(ValueError, match=f"chooses its path {' or '.join(ways)}, not {way}"):
            run(case.image, case.trimap, Request(way, table.largest * 2))


def check_facts(facts: Mapping[str, str], supernet: Supernet, ways: Sequence[str]) -> None:
    """An artifact of `INFO` says all that a host must know."""
    assert Costs.of_facts(facts) == Costs.of(supernet, SIZE)
    assert facts["selection"] == ",".join(ways)
    assert facts.items() >= {key: str(value) for key, value in INFO.items()}.items()


def mixed(taken: set[str]) -> bool:
    """Whether all units were run at once, all bypassed at once, and neither."""
    units = len(next(iter(taken)))
    ends = {str(Path.all_run(units)), str(Path.all_bypass(units))}
    return ends < taken
