"""Export: paths x sizes x targets to a folder of artifacts, each compared with PyTorch before any of it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import save_file

from pam_mobile.errors import IntegrityError
from pam_mobile.model.supernet import Supernet
from pam_mobile.reporter import Reporter, Silent
from pam_mobile.workers import worker_count

from . import manifest
from .build import Built, build_all
from .child import Job, Outcome, run_isolated
from .parity import Case, Parity, cases, compare
from .plan import BudgetPath, plan
from .publish import check_destination, staging
from .wrapper import io_description


def export_folder(
    supernet: Supernet,
    choices: Sequence[BudgetPath],
    *,
    targets: Sequence[str],
    sizes: Sequence[int],
    out: FilePath,
    model: Mapping[str, Any],
    reporter: Reporter | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make one artifact per budget, target and square size, prove each, publish all of them as `out`; returns the manifest.

    sizes: heights (= widths), multiples of 32. model: goes into the manifest's `model`: name, weights_version,
    weights_sha256, licence, data_licence. workers: processes that build at the same time, one per core by default.
    An export folder that exists is replaced as a whole.
    Raises UsageError (targets, sizes, budgets), SetupError (missing package, `out` cannot be used), BudgetError if a path
    costs more than its budget, IntegrityError if an artifact differs from PyTorch. After an error nothing is published.
    """
    reporter = reporter or Silent()
    plans = plan(supernet.preset, choices, targets, sizes, model.get("weights_version", 0))
    check_destination(out)
    inputs = {size: cases(size) for size in sizes}
    with staging(out) as folder:
        built = build_all(supernet, plans, folder, inputs, model, reporter, workers or worker_count())
        parities = _prove(built, folder, inputs, reporter)
        golden = [_write_golden(folder, size, inputs[size][0], built) for size in sizes]
        artifacts = [_entry(item, parity, folder) for item, parity in zip(built, parities, strict=True)]
        content = manifest.write(folder, manifest.document(supernet.preset, model, artifacts, golden))
    reporter.say(f"published {len(artifacts)} artifacts in {out}")
    return content


def _prove(
    built: Sequence[Built], folder: FilePath, inputs: Mapping[int, list[Case]], reporter: Reporter
) -> list[Parity]:
    """Parity of every artifact, executed in a child per target. Raises IntegrityError naming the first that fails."""
    reporter.say("comparing the artifacts with PyTorch")
    outcomes: dict[str, Outcome] = {}
    for target in dict.fromkeys(item.plan.recipe.target for item in built):
        items = [item for item in built if item.plan.recipe.target == target]
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
