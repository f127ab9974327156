"""The promise of the project: a path executes exactly the MACs of the table, and never more than its budget.

What is executed is counted in three ways that share no code with the table and none with each other: torch's FlopCounterMode, a
dispatch mode written from the definitions, and forward hooks on real modules. Every check is also fed a planted fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pam_kernels import Connect
from pam_mobile.budget import Budget, StepPlanner, knapsack
from pam_mobile.cost import CostTable, padded, ppm_macs
from pam_mobile.errors import BudgetError
from pam_mobile.model.presets import PRESETS, preset
from pam_mobile.model.prior import ColourPrior
from pam_mobile.model.subnet import extract, parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path, PathSpace

NAMES = tuple(PRESETS)
TINY_PATHS = 512
path_numbers = st.integers(0, TINY_PATHS - 1)


@cache
def _supernet(name: str, prior: bool) -> Supernet:
    return Supernet(preset(name, prior)).eval()


def _path(number: int, units: int = 9) -> Path:
    return Path(tuple(bool(number >> i & 1) for i in range(units)))


def _inputs(height: int, width: int, batch: int = 1, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Noise and a trimap, padded to what the network takes: the next multiples of 32."""
    image, trimap = (
        torch.rand(batch, 3, height, width, device=device),
        torch.rand(batch, 1, height, width, device=device),
    )
    margin = (0, -width % 32, 0, -height % 32)
    return F.pad(image, margin), F.pad(trimap, margin)


# Three ways to count


class DispatchCounter(TorchDispatchMode):
    """MACs of all convolutions and matrix products that are dispatched, from their definitions."""

    UNKNOWN = frozenset({"bmm", "baddbmm", "mv", "addmv", "dot", "addbmm", "_convolution", "convolution_overrideable"})

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.UNKNOWN, name
        if name == "convolution":
            weight = args[
                1
            ]  # (out, in / groups, k, k): an output value needs as many MACs as one of its filters has taps
            self.macs += out.numel() * (weight.numel() // weight.shape[0])
        elif name in ("mm", "addmm"):
            self.macs += out.numel() * args[-1].shape[0]
        return out


def count_dispatched(run: Callable[[], Any]) -> int:
    with torch.no_grad(), DispatchCounter() as counter:
        run()
    return counter.macs


def count_flops(run: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def count_hooked(network: nn.Module, run: Callable[[], Any]) -> int:
    """MACs of the modules that are called. The colour prior calls functions, not modules, and is not seen."""
    total = 0

    def conv(module: nn.Conv2d, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        pixels = out.shape[0] * out.shape[2] * out.shape[3]
        taps = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
        total += pixels * module.out_channels * taps

    def linear(module: nn.Linear, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        total += out.shape[0] * module.in_features * module.out_features

    def connect(module: Connect, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        hidden, channels = module.w1.shape
        total += out.shape[0] * out.shape[2] * out.shape[3] * 2 * hidden * channels

    kinds = {nn.Conv2d: conv, nn.Linear: linear, Connect: connect}
    handles = []
    for module in network.modules():
        for kind, hook in kinds.items():
            if isinstance(module, kind):
                handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("name", "prior", "number"),
    [("tiny", False, 0b110010101), ("phone", True, 0b1001110), ("full", False, 0), ("phone-wide", True, 0b1011)],
)
def test_the_three_counters_agree(name: str, prior: bool, number: int) -> None:
    net = _supernet(name, prior)
    image, trimap = _inputs(32, 64, batch=2)
    path = _path(number, len(net.units))
    known = net.net.prior

    def run() -> Tensor:
        return net(image, trimap, path=path)

    counted = count_dispatched(run)
    unhooked = count_dispatched(lambda: known(image, trimap, 1 - trimap)) if known is not None else 0
    assert count_flops(run) == counted
    assert count_hooked(net, run) + unhooked == counted


@pytest.mark.parametrize("count", [count_dispatched, count_flops])
def test_a_counter_counts_what_it_should(count: Callable[[Callable[[], Any]], int]) -> None:
    x, w = torch.rand(2, 6, 9, 7), torch.rand(4, 3, 3, 5)
    assert count(lambda: F.conv2d(x, w, stride=2, padding=(1, 2), groups=2)) == 2 * 4 * 5 * 4 * (3 * 3 * 5)
    assert count(lambda: F.linear(torch.rand(5, 3), torch.rand(2, 3), torch.rand(2))) == 5 * 3 * 2
    assert count(lambda: F.linear(torch.rand(5, 3), torch.rand(2, 3))) == 5 * 3 * 2


# Every path, every budget


Executed = dict[Path, int]


@cache
def _executed(prior: bool) -> Executed:
    """MACs that each of the 512 paths of `tiny` executes at 32x32."""
    net = _supernet("tiny", prior)
    image, trimap = _inputs(32, 32)
    paths = [_path(number) for number in range(TINY_PATHS)]
    return {path: count_dispatched(lambda path=path: net(image, trimap, path=path)) for path in paths}


def assert_exact(executed: Executed, table: CostTable) -> None:
    """What is executed is what the table says, for every path."""
    for path, macs in executed.items():
        assert macs == table.cost(path), str(path)


def assert_promise(executed: Executed, table: CostTable, budgets: Iterable[int]) -> None:
    """Whatever path is planned for a budget executes at most that, and no path that fits is withheld."""
    rng = np.random.default_rng(0)
    space = PathSpace(table)
    costs = np.array([executed[path] for path in space])
    for budget in budgets:
        scores = rng.normal(0.5, 1, len(table.run))
        assert executed[knapsack(scores, table, budget)] <= budget
        assert executed[space.sample(rng, budget)] <= budget
        assert space.count(budget) == (costs <= budget).sum()


def _all_budgets(executed: Executed) -> list[int]:
    """All budgets that differ in what fits: each path's cost, and one MAC less. Below the smallest path is none."""
    costs = sorted(set(executed.values()))
    return costs + [cost - 1 for cost in costs[1:]] + [10 * costs[-1]]


@pytest.mark.parametrize("prior", [False, True])
def test_all_paths_of_tiny_execute_exactly_their_cost(prior: bool) -> None:
    executed = _executed(prior)
    assert len(executed) == TINY_PATHS
    assert_exact(executed, CostTable.of(preset("tiny", prior), 32, 32))


@pytest.mark.parametrize("prior", [False, True])
def test_no_path_planned_for_a_budget_executes_more(prior: bool) -> None:
    executed = _executed(prior)
    assert_promise(executed, CostTable.of(preset("tiny", prior), 32, 32), _all_budgets(executed))


def _off_by_one(table: CostTable) -> list[CostTable]:
    """Tables with one MAC too few or too many, in the base or in one unit."""
    faults = [replace(table, base=table.base + change) for change in (-1, 1)]
    for unit in (0, len(table.run) - 1):
        for field in ("run", "bypass"):
            for change in (-1, 1):
                values = list(getattr(table, field))
                values[unit] += change
                faults.append(replace(table, **{field: tuple(values)}))
    return faults


def test_a_table_that_is_off_by_one_mac_is_caught() -> None:
    executed = _executed(False)
    for fault in _off_by_one(CostTable.of(preset("tiny"), 32, 32)):
        with pytest.raises(AssertionError):
            assert_exact(executed, fault)


def test_a_table_that_is_off_by_one_mac_breaks_the_promise() -> None:
    executed = _executed(False)
    for fault in _off_by_one(CostTable.of(preset("tiny"), 32, 32)):
        with pytest.raises((AssertionError, BudgetError)):
            assert_promise(executed, fault, _all_budgets(executed))


def test_a_network_that_does_more_than_the_table_says_is_caught() -> None:
    net = Supernet(preset("tiny")).eval()
    wider = net.units[3].connect
    wider.w1, wider.b1 = nn.Parameter(torch.rand(49, 96)), nn.Parameter(torch.rand(49))
    wider.w2 = nn.Parameter(torch.rand(96, 49))
    image, trimap = _inputs(32, 32)
    executed = {
        path: count_dispatched(lambda path=path: net(image, trimap, path=path)) for path in map(_path, (0, 511))
    }
    table = CostTable.of(preset("tiny"), 32, 32)
    assert_exact({Path.all_run(9): executed[Path.all_run(9)]}, table)
    with pytest.raises(AssertionError):
        assert_exact(executed, table)


@settings(max_examples=12)
@given(path_numbers, st.integers(1, 130), st.integers(1, 130), st.booleans())
def test_supernet_and_subnet_execute_the_cost_at_any_size(number: int, height: int, width: int, prior: bool) -> None:
    net, path = _supernet("tiny", prior), _path(number)
    inputs = _inputs(height, width)
    table = CostTable.of(net.preset, height, width)
    assert_exact({path: count_flops(lambda: net(*inputs, path=path))}, table)
    subnet = extract(net, path)
    assert_exact({path: count_flops(lambda: subnet(*inputs))}, table)


@pytest.mark.parametrize(
    ("name", "prior", "number", "height", "width"),
    [("full", True, 8191, 1024, 1024), ("phone", False, 0b1001110, 500, 771), ("tiny", True, 0b101, 512, 512)],
)
def test_the_cost_of_large_images_is_what_runs_on_meta_tensors(
    name: str, prior: bool, number: int, height: int, width: int
) -> None:
    with torch.device("meta"):
        net = Supernet(preset(name, prior)).eval()
    path = _path(number, len(net.units))
    inputs = _inputs(height, width, device="meta")
    table = CostTable.of(net.preset, height, width)
    assert_exact({path: count_flops(lambda: net(*inputs, path=path))}, table)
    subnet = extract(net, path)
    assert_exact({path: count_flops(lambda: subnet(*inputs))}, table)


@pytest.mark.parametrize("number", [0, 0b1, 0b1001110, 0b111111111])
def test_naive_skips_cost_nothing(number: int) -> None:
    with torch.device("meta"):
        net = Supernet(preset("tiny", connect=False)).eval()
    path, inputs = _path(number, 9), _inputs(64, 96, device="meta")
    table = CostTable.of(net.preset, 64, 96)
    assert set(table.bypass) == {0}
    assert_exact({path: count_flops(lambda: net(*inputs, path=path))}, table)
    subnet = extract(net, path)
    assert_exact({path: count_flops(lambda: subnet(*inputs))}, table)


WIDE_SIZES = [(512, 512), (96, 160), (771, 500)]


@cache
def _executed_wide(prior: bool, height: int, width: int) -> Executed:
    """MACs of 20 paths of `phone-wide` at one size, the two extremes among them."""
    with torch.device("meta"):
        net = Supernet(preset("phone-wide", prior)).eval()
    inputs = _inputs(height, width, device="meta")
    numbers = [0, 2**14 - 1, *np.random.default_rng(height).integers(2**14, size=18).tolist()]
    paths = [_path(number, 14) for number in numbers]
    return {path: count_flops(lambda path=path: net(*inputs, path=path)) for path in paths}


@pytest.mark.parametrize(("prior", "size"), [*((False, size) for size in WIDE_SIZES), (True, WIDE_SIZES[1])])
def test_paths_of_the_wide_preset_execute_exactly_their_cost(prior: bool, size: tuple[int, int]) -> None:
    executed = _executed_wide(prior, *size)
    assert len(executed) == 20
    assert_exact(executed, CostTable.of(preset("phone-wide", prior), *size))


@pytest.mark.parametrize(
    "fault",
    [
        {"tail_kernel": 3},
        {"tail_units": (0, 2)},
        {"decoder_channels": (24, 13)},
        {"last_unit_blocks": 1},
    ],
)
def test_a_table_of_another_tail_is_caught(fault: dict) -> None:
    executed = _executed_wide(False, *WIDE_SIZES[1])
    with pytest.raises(AssertionError):
        assert_exact(executed, CostTable.of(replace(preset("phone-wide"), **fault), *WIDE_SIZES[1]))


def test_a_table_of_the_wide_preset_that_is_off_by_one_mac_is_caught() -> None:
    executed = _executed_wide(False, *WIDE_SIZES[1])
    for fault in _off_by_one(CostTable.of(preset("phone-wide"), *WIDE_SIZES[1])):
        with pytest.raises(AssertionError):
            assert_exact(executed, fault)


def test_a_subnet_of_the_wide_preset_executes_its_cost() -> None:
    with torch.device("meta"):
        net = Supernet(preset("phone-wide", prior=True)).eval()
    inputs = _inputs(96, 160, device="meta")
    for number in (0, 2**14 - 1, 0b10, 0b01):
        subnet = extract(net, _path(number, 14))
        executed = count_flops(lambda subnet=subnet: subnet(*inputs))
        assert_exact({_path(number, 14): executed}, CostTable.of(net.preset, 96, 160))


@settings(max_examples=12)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 1.0, 1e3, 1e9]),
    st.sampled_from([(32, 32), (20, 64), (50, 33)]),
    st.integers(1, 3),
    st.integers(-5, 105),
    st.booleans(),
    st.booleans(),
)
def test_a_network_that_chooses_its_paths_never_executes_more_than_the_budget(
    seed: int, scale: float, size: tuple[int, int], batch: int, percent: int, prior: bool, at_once: bool
) -> None:
    torch.manual_seed(seed)
    net = _supernet("tiny", prior)
    for head in (net.planning, *(unit.head for unit in net.units)):
        for weight in head.parameters():
            nn.init.normal_(weight, std=scale)
    inputs = _inputs(*size, batch)
    table = CostTable.of(net.preset, *size)
    choose, heads = (net.plan, table.planning) if at_once else (net.choose, table.selection)
    macs = table.smallest + heads + percent * (table.largest - table.smallest) // 100
    budget = Budget(Fraction(macs), relative=False)
    if percent < 0:
        with pytest.raises(BudgetError):
            choose(*inputs, budget)
        return
    chosen: list[Path] = []
    executed = count_dispatched(lambda: chosen.extend(choose(*inputs, budget)[1]))
    assert executed == sum(table.cost(path) + heads for path in chosen)
    assert all(table.cost(path) + heads <= macs for path in chosen)
    assert executed <= batch * macs


# The table itself


def test_a_size_costs_as_much_as_the_size_it_is_padded_to() -> None:
    assert [padded(size) for size in (1, 31, 32, 33, 64, 65)] == [32, 32, 32, 64, 64, 96]
    for name in NAMES:
        assert replace(CostTable.of(preset(name, True), 33, 100), height=64, width=128) == CostTable.of(
            preset(name, True), 64, 128
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prior", [False, True])
def test_costs_are_additive(name: str, prior: bool) -> None:
    table = CostTable.of(preset(name, prior), 96, 160)
    units = len(table.run)
    assert table.cost(Path.all_bypass(units)) == table.smallest
    assert table.cost(Path.all_run(units)) == table.largest == table.smallest + sum(table.deltas)
    for unit in range(units):
        assert table.cost(Path.all_bypass(units).flip(unit)) == table.smallest + table.deltas[unit]
        assert table.deltas[unit] > 0


def test_a_path_of_another_network_has_no_cost() -> None:
    table = CostTable.of(preset("tiny"), 32, 32)
    for length in (8, 10):
        with pytest.raises(ValueError, match="zip"):
            table.cost(Path.all_run(length))


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (160, 64), (224, 224)])
def test_the_prior_costs_what_its_constants_say(size: tuple[int, int]) -> None:
    image, trimap = _inputs(*size)
    table = CostTable.of(preset("tiny", prior=True), *size)
    assert count_flops(lambda: ColourPrior()(image, trimap, 1 - trimap)) == table.prior
    assert CostTable.of(preset("tiny"), *size).prior == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_selection_heads_cost_below_a_third_of_a_mmac_each_at_any_size(name: str) -> None:
    small, large = (CostTable.of(preset(name), size, size) for size in (32, 1024))
    assert small.selection == large.selection
    assert 0 < small.selection < 0.3e6 * len(small.run)


# PAM, section 10 and 11: what the paper's network and this project's presets are said to cost


TOTALS = {"full": (7.09, 54.50, 74.55), "phone": (3.20, 3.77, 5.65), "tiny": (1.20, 1.87, 2.72)}
DELTAS = {
    "full": [2.085] * 2 + [1.134] * 3 + [0.729] * 2 + [1.134] * 2 + [2.085] * 2 + [2.290] * 2,
    "phone": [0.284, 0.284, 0.156, 0.156, 0.156, 0.093, 0.093, 0.156, 0.284, 0.216],
    "tiny": [0.130, 0.130, 0.071, 0.071, 0.048, 0.071, 0.130, 0.130, 0.063],
}
FEASIBLE = {
    "full": {55: 1, 57: 35, 60: 558, 65: 4551, 70: 7925, 74: 8191, 75: 8192},
    "phone": {3.8: 1, 4.0: 9, 4.2: 55, 4.5: 270, 4.8: 606, 5.0: 839, 5.2: 957, 5.5: 1021, 5.7: 1024},
    "tiny": {1.9: 1, 2.0: 10, 2.2: 138, 2.4: 393, 2.6: 505, 2.8: 512},
}


def _reference_table(name: str) -> CostTable:
    return CostTable.of(preset(name), preset(name).reference, preset(name).reference)


@pytest.mark.parametrize("name", list(TOTALS))
def test_totals_are_those_of_the_specification(name: str) -> None:
    table = _reference_table(name)
    with torch.device("meta"):
        parameters = parameter_count(Supernet(preset(name)))
    have = parameters / 1e6, table.smallest / 1e9, table.largest / 1e9
    assert have == pytest.approx(TOTALS[name], rel=0.02)


@pytest.mark.parametrize("name", list(TOTALS))
def test_units_cost_what_the_specification_says(name: str) -> None:
    deltas = [delta / 1e9 for delta in _reference_table(name).deltas]
    assert deltas == pytest.approx(DELTAS[name], abs=1.1e-3)  # the specification gives differences of rounded numbers


@pytest.mark.parametrize("name", list(TOTALS))
def test_as_many_paths_fit_as_the_specification_says(name: str) -> None:
    """The specification counts a pyramid pooling that is a little cheaper than ours; budgets are moved by that difference."""
    table, c = _reference_table(name), preset(name).channels[-1]
    pixels = (preset(name).reference // 32) ** 2
    cells = 1 + 4 + 9 + 36
    theirs = cells * c * (c // 4) + 2 * c * c * pixels
    more = preset(name).ppm * (ppm_macs(c, pixels) - theirs)
    assert 0 < more < 0.002 * table.smallest
    space = PathSpace(table)
    assert {budget: space.count(round(budget * 1e9) + more) for budget in FEASIBLE[name]} == FEASIBLE[name]


@pytest.mark.parametrize("prior", [False, True])
def test_the_wide_preset_spans_a_range_of_two_and_a_half(prior: bool) -> None:
    table = CostTable.of(preset("phone-wide", prior), 512, 512)
    assert table.largest >= 2.5 * table.smallest
    assert table.largest <= 1.02 * CostTable.of(preset("phone", prior), 512, 512).largest


SMALLEST_AND_LARGEST = {
    "full": (13650145408, 18661838976),
    "full+prior": (13974548608, 18986242176),
    "phone": (3779461408, 5657035040),
    "phone+prior": (3962306848, 5839880480),
    "tiny": (1873460224, 2719939584),
    "tiny+prior": (1999682560, 2846161920),
}
"""At 512x512: costs that checkpoints and manifests of this version state."""


@pytest.mark.parametrize("name", list(SMALLEST_AND_LARGEST))
def test_an_old_preset_costs_what_it_always_did(name: str) -> None:
    bare, _, prior = name.partition("+")
    table = CostTable.of(preset(bare, bool(prior)), 512, 512)
    assert (table.smallest, table.largest) == SMALLEST_AND_LARGEST[name]


def test_planning_by_steps_spends_the_heads_too() -> None:
    table = _reference_table("tiny")
    enough, too_little = (StepPlanner(table, table.largest + table.selection - missing) for missing in (0, 1))
    assert all(enough.decide(1.0) for _ in range(9))
    assert not all(too_little.decide(1.0) for _ in range(9))
