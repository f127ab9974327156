"""What is to be exported, and everything that can be refused before the first second of work is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pam_mobile.budget import Budget
from pam_mobile.cost import GIGA, CostTable
from pam_mobile.errors import BudgetError, UsageError
from pam_mobile.model.presets import MAX_STRIDE, Preset
from pam_mobile.path import Path

from . import manifest
from .recipe import Recipe, recipe


@dataclass(frozen=True)
class BudgetPath:
    """What was asked, and the path that runs for it."""

    budget: Budget
    path: Path


@dataclass(frozen=True)
class Plan:
    """One artifact that is to be made."""

    choice: BudgetPath
    recipe: Recipe
    table: CostTable
    name: str
    share: int

    @property
    def size(self) -> int:
        return self.table.height

    @property
    def macs(self) -> int:
        return self.table.cost(self.choice.path)


def plan(
    preset: Preset, choices: Sequence[BudgetPath], targets: Sequence[str], sizes: Sequence[int], version: int | str
) -> list[Plan]:
    """One plan per size, budget and target. Raises as export_folder does."""
    for name, values in (("budgets", choices), ("targets", targets), ("sizes", sizes)):
        if not values:
            raise UsageError(f"nothing to export: no {name}", f"give at least one of {name}")
    recipes = [recipe(target) for target in targets]
    for row in recipes:
        row.require()
    plans = [_plan(preset, choice, row, size, version) for size in sizes for choice in choices for row in recipes]
    names = [p.name for p in plans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two artifacts would be called {twice[0]}", "give each budget, target and size once")
    return plans


def _plan(preset: Preset, choice: BudgetPath, row: Recipe, size: int, version: int | str) -> Plan:
    if size <= 0 or size % MAX_STRIDE:
        raise UsageError(f"size {size} is not a multiple of {MAX_STRIDE}", "choose for example 512")
    if len(choice.path) != len(preset.units):
        raise UsageError(
            f"path {choice.path} has {len(choice.path)} units, {preset.label} has {len(preset.units)}",
            "choose the path with the same preset",
        )
    table = CostTable.of(preset, size, size)
    macs, limit = table.cost(choice.path), choice.budget.macs(table)
    if macs > limit:
        raise BudgetError(
            f"path {choice.path} costs {macs / GIGA:.3f}G at {size}x{size}, above the budget {choice.budget} ({limit / GIGA:.3f}G)",
            "choose a cheaper path or a larger budget",
        )
    share = manifest.percent(choice.budget, table)
    return Plan(choice, row, table, manifest.artifact_name(preset, version, share, size, row), share)


def key_facts(p: Plan, preset: Preset, model: Mapping[str, Any]) -> dict[str, str | int]:
    """The key facts that are written into the artifact itself."""
    return {
        "arch": preset.label,
        "path": str(p.choice.path),
        "macs": p.macs,
        "budget": str(p.choice.budget),
        "size": p.size,
        "weights_version": str(model.get("weights_version", "")),
        "weights_sha256": str(model.get("weights_sha256", "")),
    }
