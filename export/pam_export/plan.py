"""What is to be exported, and everything that can be refused before the first second of work is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pam_mobile.budget import Budget
from pam_mobile.cost import GIGA, CostTable
from pam_mobile.errors import BudgetError, UsageError
from pam_mobile.model.presets import MAX_STRIDE, Preset
from pam_mobile.path import Path

from . import manifest
from .artifact import FORWARD, PLANNED, STEPWISE, Info, Request
from .recipe import ADAPTIVE, SHARED, SINGLE, Recipe


@dataclass(frozen=True)
class BudgetPath:
    """What was asked, and the path that runs for it."""

    budget: Budget
    path: Path


@dataclass(frozen=True)
class Method:
    """One way to ask an artifact: for a budget at a size, on a fixed path, or on the path that it chooses (path None)."""

    name: str
    budget: Budget
    path: Path | None
    table: CostTable

    @property
    def size(self) -> int:
        return self.table.height

    @property
    def share(self) -> int:
        return manifest.percent(self.budget, self.table)

    @property
    def limit(self) -> int:
        return self.budget.macs(self.table)

    @property
    def macs(self) -> int:
        """Of the fixed path; of a path that is chosen, the most that it may cost."""
        return self.table.cost(self.path) if self.path else self.limit

    @property
    def request(self) -> Request:
        return Request(self.name, 0 if self.path else self.limit)

    @property
    def golden(self) -> str:
        """Name of the expected alpha in the golden file of its size."""
        return f"alpha_b{self.share:03d}" if self.path else f"alpha_{self.name}_b{self.share:03d}"


@dataclass(frozen=True)
class Plan:
    """One artifact that is to be made. methods: all ways to ask it, each of which is proved."""

    recipe: Recipe
    name: str
    methods: tuple[Method, ...]

    @property
    def sizes(self) -> list[int]:
        return list(dict.fromkeys(method.size for method in self.methods))


def plan(
    preset: Preset,
    choices: Sequence[BudgetPath],
    recipes: Sequence[Recipe],
    sizes: Sequence[int],
    version: int | str,
    learned: bool,
) -> list[Plan]:
    """One plan per artifact. learned: whether the network can choose its path. Raises as export_folder does."""
    for name, values in (("budgets", choices), ("sizes", sizes)):
        if not values:
            raise UsageError(f"nothing to export: no {name}", f"give at least one of {name}")
    for row in recipes:
        row.require()
        if row.form == ADAPTIVE and not learned:
            raise UsageError(
                "this network has not learned to choose its path", "train it through stage 3, or leave out --adaptive"
            )
    stem = f"pam-{preset.label.replace('+', '-')}-v{version}"
    tables = [_table(preset, size) for size in sizes]
    fixed = [[_fixed(preset, choice, table) for choice in choices] for table in tables]
    plans: list[Plan] = []
    for methods in fixed:
        for method in methods:
            for row in _of(recipes, SINGLE):
                name = f"{stem}_b{method.share:03d}_{_square(method)}_{row.precision}.{row.suffix}"
                plans.append(Plan(row, name, (replace(method, name=FORWARD),)))
    everything = tuple(method for methods in fixed for method in methods)
    for row in _of(recipes, SHARED):
        squares = "-".join(_square(methods[0]) for methods in fixed)
        plans.append(Plan(row, f"{stem}_shared_{squares}_{row.precision}.{row.suffix}", everything))
    for table in tables:
        for row in _of(recipes, ADAPTIVE):
            asked = _chosen(choices, table, row.selection)
            plans.append(Plan(row, f"{stem}_adaptive_{_square(asked[0])}_{row.precision}.{row.suffix}", asked))
    _check_names([p.name for p in plans])
    for p in plans:
        _check_names([f"{m.name} at {_square(m)} for {m.share}%" for m in p.methods])
    return plans


def _of(recipes: Sequence[Recipe], form: str) -> list[Recipe]:
    return [row for row in recipes if row.form == form]


def _table(preset: Preset, size: int) -> CostTable:
    if size <= 0 or size % MAX_STRIDE:
        raise UsageError(f"size {size} is not a multiple of {MAX_STRIDE}", "choose for example 512")
    return CostTable.of(preset, size, size)


def _fixed(preset: Preset, choice: BudgetPath, table: CostTable) -> Method:
    if len(choice.path) != len(preset.units):
        raise UsageError(
            f"path {choice.path} has {len(choice.path)} units, {preset.label} has {len(preset.units)}",
            "choose the path with the same preset",
        )
    method = Method(manifest.method_name(choice.budget, table), choice.budget, choice.path, table)
    macs = table.cost(choice.path)
    if macs > method.limit:
        size, limit = _square(method), f"{method.limit / GIGA:.3f}G"
        raise BudgetError(
            f"path {choice.path} costs {macs / GIGA:.3f}G at {size}, above the budget {choice.budget} ({limit})",
            "choose a cheaper path or a larger budget",
        )
    return method


def _chosen(choices: Sequence[BudgetPath], table: CostTable, ways: Sequence[str]) -> tuple[Method, ...]:
    """Every way to choose with every budget that pays for the heads. Raises BudgetError if none does."""
    heads = {PLANNED: table.planning, STEPWISE: table.selection}
    methods = [Method(way, choice.budget, None, table) for way in ways for choice in choices]
    if not any(method.limit >= table.smallest + heads[method.name] for method in methods):
        table.require(max(method.limit for method in methods), min(heads[way] for way in ways))
    return tuple(method for method in methods if method.limit >= table.smallest + heads[method.name])


def _square(method: Method) -> str:
    return f"{method.size}x{method.size}"


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two artifacts would be called {twice[0]}", "give each budget, target and size once")


def key_facts(p: Plan, preset: Preset, model: Mapping[str, Any]) -> Info:
    """The key facts that are written into the artifact itself."""
    facts = {
        "arch": preset.label,
        "weights_version": str(model.get("weights_version", "")),
        "weights_sha256": str(model.get("weights_sha256", "")),
    }
    first = p.methods[0]
    if p.recipe.form == ADAPTIVE:
        table = first.table
        return facts | {
            "size": first.size,
            "smallest": table.smallest,
            "deltas": table.deltas,
            "planning_macs": table.planning,
            "selection_macs": table.selection,
            "selection": ",".join(p.recipe.selection),
        }
    if p.recipe.form == SHARED:
        return facts | {
            "methods": ",".join(method.name for method in p.methods),
            "budgets": ",".join(str(method.budget) for method in p.methods),
            "paths": ",".join(str(method.path) for method in p.methods),
            "macs": [method.macs for method in p.methods],
        }
    return facts | {"path": str(first.path), "macs": first.macs, "budget": str(first.budget), "size": first.size}
