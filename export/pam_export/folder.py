"""Export: paths x sizes x targets to a folder of artifacts, each compared with PyTorch before any of it is published."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pam_mobile.budget import Budget
from pam_mobile.cost import GIGA, CostTable
from pam_mobile.errors import BudgetError, IntegrityError, UsageError
from pam_mobile.model.presets import MAX_STRIDE, Preset
from pam_mobile.model.subnet import parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path
from pam_mobile.reporter import Reporter, Silent

from . import manifest
from .child import Job, Outcome, run_isolated
from .parity import Case, Parity, cases, compare, reference
from .publish import check_destination, staging
from .recipe import Recipe, recipe
from .wrapper import io_description, network_of, wrap


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


@dataclass(frozen=True)
class Built:
    """An artifact in the staging folder, and what PyTorch computes for it on the size's cases."""

    plan: Plan
    params: int
    backend: dict[str, Any]
    expected: list[Tensor]


def export_folder(
    supernet: Supernet,
    choices: Sequence[BudgetPath],
    *,
    targets: Sequence[str],
    sizes: Sequence[int],
    out: FilePath,
    model: Mapping[str, Any],
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Make one artifact per budget, target and square size, prove each, publish all of them as `out`; returns the manifest.

    sizes: heights (= widths), multiples of 32. model: goes into the manifest's `model`: name, weights_version,
    weights_sha256, licence, data_licence. An export folder that exists is replaced as a whole.
    Raises UsageError (targets, sizes, budgets), SetupError (missing package, `out` cannot be used), BudgetError if a path
    costs more than its budget, IntegrityError if an artifact differs from PyTorch. After an error nothing is published.
    """
    reporter = reporter or Silent()
    plans = plan(supernet.preset, choices, targets, sizes, model.get("weights_version", 0))
    check_destination(out)
    inputs = {size: cases(size) for size in sizes}
    with staging(out) as folder:
        built = [
            _build(supernet, p, folder, inputs[p.size], model, reporter, f"{i}/{len(plans)}")
            for i, p in enumerate(plans, 1)
        ]
        parities = _prove(built, folder, inputs, reporter)
        golden = [_write_golden(folder, size, inputs[size][0], built) for size in sizes]
        artifacts = [_entry(item, parity, folder) for item, parity in zip(built, parities, strict=True)]
        content = manifest.write(folder, manifest.document(supernet.preset, model, artifacts, golden))
    reporter.say(f"published {len(artifacts)} artifacts in {out}")
    return content


def plan(
    preset: Preset, choices: Sequence[BudgetPath], targets: Sequence[str], sizes: Sequence[int], version: int | str
) -> list[Plan]:
    """Everything that can be refused before the first second of work is spent. Raises as export_folder does."""
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


def _build(
    supernet: Supernet,
    p: Plan,
    folder: FilePath,
    inputs: list[Case],
    model: Mapping[str, Any],
    reporter: Reporter,
    position: str,
) -> Built:
    reporter.say(f"[{position}] {p.name}: building path {p.choice.path}, {p.macs / GIGA:.2f} GMACs")
    started = time.monotonic()
    network = network_of(supernet, p.choice.path)
    backend = p.recipe.build(wrap(network), inputs[0].inputs(), folder / p.name, key_facts(p, supernet.preset, model))
    reporter.detail(
        f"[{position}] {p.name}: {time.monotonic() - started:.0f} s, "
        f"{backend['delegated_ops']} of {backend['total_ops']} operations delegated"
    )
    return Built(p, parameter_count(network), backend, reference(network, inputs))


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


def _prove(
    built: Sequence[Built], folder: FilePath, inputs: Mapping[int, list[Case]], reporter: Reporter
) -> list[Parity]:
    """Parity of every artifact, executed in a child per target. Raises IntegrityError naming the first that fails."""
    reporter.say("comparing the artifacts with PyTorch")
    outcomes: dict[str, Outcome] = {}
    for row in {item.plan.recipe.target: item.plan.recipe for item in built}.values():
        items = [item for item in built if item.plan.recipe is row]
        jobs = [_job(item, folder, inputs[item.plan.size]) for item in items]
        outcomes |= {item.plan.name: outcome for item, outcome in zip(items, run_isolated(jobs), strict=True)}
    return [_judge(item, outcomes[item.plan.name], reporter) for item in built]


def _job(item: Built, folder: FilePath, inputs: list[Case]) -> Job:
    images, trimaps = torch.cat([c.image for c in inputs]), torch.cat([c.trimap for c in inputs])
    return Job(item.plan.recipe.target, folder / item.plan.name, images, trimaps)


def _judge(item: Built, outcome: Outcome, reporter: Reporter) -> Parity:
    name = item.plan.name
    if outcome.error:
        raise IntegrityError(f"{name} cannot be run: {outcome.error}", "nothing was published")
    parity = compare(item.expected, outcome.alphas, item.plan.recipe.gate)
    if not parity.passed:
        raise IntegrityError(f"{name} differs from PyTorch: {parity}", "nothing was published")
    reporter.say(f"{name}: {parity}")
    return parity


def _write_golden(folder: FilePath, size: int, case: Case, built: Sequence[Built]) -> dict[str, Any]:
    """One input and, per budget, what PyTorch makes of it; so that `verify` and the apps need no checkpoint."""
    alphas = {manifest.golden_tensor(b.plan.share): b.expected[0].contiguous() for b in built if b.plan.size == size}
    name = manifest.golden_name(size)
    save_file({"image": case.image.contiguous(), "trimap": case.trimap.contiguous(), **alphas}, folder / name)
    (entry,) = manifest.file_entries(folder, folder / name)
    return {"size": size, **entry}


def _entry(item: Built, parity: Parity, folder: FilePath) -> dict[str, Any]:
    p = item.plan
    gate = {"max_abs": parity.gate.max_abs, "mean_abs": parity.gate.mean_abs}
    return {
        "name": p.name,
        "target": p.recipe.target,
        "height": p.size,
        "width": p.size,
        "path": str(p.choice.path),
        "budget": {
            "text": str(p.choice.budget),
            "percent": p.share,
            "limit_macs": p.choice.budget.macs(p.table),
            "largest_macs": p.table.largest,
        },
        "macs": p.macs,
        "prior_macs": p.table.prior,
        "params": item.params,
        "counter": "exact table of convolution MACs",
        "io": io_description(p.size, p.recipe.images),
        "precision": {"weights": p.recipe.precision, "activations": p.recipe.precision, "calibration": None},
        "backend": item.backend,
        "files": manifest.file_entries(folder, folder / p.name),
        "parity": {
            "reference": f"PyTorch {torch.__version__} float32 CPU",
            "cases": len(item.expected),
            "max_abs": parity.max_abs,
            "mean_abs": parity.mean_abs,
            "gate": gate,
            "passed": parity.passed,
            "how": p.recipe.how,
        },
        "golden": {"file": manifest.golden_name(p.size), "alpha": manifest.golden_tensor(p.share), "tolerance": gate},
        "latency": [],
    }
