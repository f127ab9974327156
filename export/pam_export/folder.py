"""Export: paths x sizes x recipes to a folder of artifacts, each compared with PyTorch before any of it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch

from pam_mobile.model.supernet import Supernet
from pam_mobile.reporter import Reporter, Silent
from pam_mobile.workers import worker_count

from . import manifest
from .artifact import Answer, text
from .build import build_all
from .parity import Gate, cases
from .plan import BudgetPath, Method, plan
from .proof import Proof, prove, write_golden
from .publish import DONE, check_destination, remove, staging
from .recipe import SINGLE, missing, select
from .wrapper import io_description


def export_folder(
    supernet: Supernet,
    choices: Sequence[BudgetPath],
    *,
    targets: Sequence[str],
    sizes: Sequence[int],
    out: FilePath,
    model: Mapping[str, Any],
    forms: Sequence[str] = (SINGLE,),
    precisions: Sequence[str] = (),
    learned: bool = False,
    reporter: Reporter | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make the artifacts of all targets, forms and square sizes, prove each, publish all as `out`; returns the manifest.

    sizes: heights (= widths), multiples of 32. forms: of recipe.FORMS. precisions: each target makes those that it has; its
    first by default. learned: whether the network can choose its path. model: goes into the manifest's `model`: name,
    weights_version, weights_sha256, licence, data_licence. workers: processes that build at the same time, one per core by
    default. An export folder that exists is replaced as a whole.
    Raises UsageError (targets, forms, precisions, sizes, budgets), SetupError (missing package, `out` cannot be used),
    BudgetError if a path costs more than its budget, IntegrityError if an artifact differs from PyTorch. After an error nothing
    is published. After an interruption or an IntegrityError neither, but the same call takes over what was complete.
    """
    reporter = reporter or Silent()
    recipes = select(targets, forms, precisions)
    plans = plan(supernet.preset, choices, recipes, sizes, model.get("weights_version", 0), learned)
    check_destination(out)
    for what in missing(targets, forms, precisions):
        reporter.warn(f"there is no such artifact, it is left out: {what}")
    with staging(out) as folder:
        built = build_all(supernet, plans, folder, model, reporter, workers or worker_count())
        proofs = prove(built, folder, supernet, reporter)
        golden = write_golden(folder, proofs)
        artifacts = [_entry(proof, folder) for proof in proofs]
        remove(folder / DONE)
        content = manifest.write(folder, manifest.document(supernet.preset, model, artifacts, golden))
    reporter.say(f"published {len(artifacts)} artifacts in {out}")
    return content


def _entry(proof: Proof, folder: FilePath) -> dict[str, Any]:
    p, row = proof.built.plan, proof.built.plan.recipe
    gate, parity = row.gate, proof.parity
    return {
        "name": p.name,
        "target": row.target,
        "form": row.form,
        "precision": row.precision,
        "methods": [_method(m, a, n, gate) for m, a, n in zip(p.methods, proof.golden, proof.params, strict=True)],
        "counter": "exact table of convolution MACs",
        "io": {str(size): io_description(size, row.images) for size in p.sizes},
        "backend": proof.built.backend,
        "info": {key: text(value) for key, value in proof.built.info.items()},
        "files": manifest.file_entries(folder, folder / p.name),
        "parity": {
            "how": row.how,
            "executed": row.executed,
            "compared": row.compared,
            "reference": f"PyTorch {torch.__version__} float32 CPU",
            "cases": len(cases(p.sizes[0])),
            "max_abs": parity and parity.max_abs,
            "mean_abs": parity and parity.mean_abs,
            "sad_change": proof.sad_change,
            "gate": {"max_abs": gate.max_abs, "mean_abs": gate.mean_abs, "sad_change": gate.sad},
        },
    }


def _method(method: Method, golden: Answer, params: int, gate: Gate) -> dict[str, Any]:
    return {
        "name": method.name,
        "height": method.size,
        "width": method.size,
        "path": str(method.path) if method.path else None,
        "macs": method.macs,
        "prior_macs": method.table.prior,
        "params": params,
        "budget": {
            "text": str(method.budget),
            "percent": method.share,
            "limit_macs": method.limit,
            "largest_macs": method.table.largest,
        },
        "golden": {
            "file": manifest.golden_name(method.size),
            "alpha": method.golden,
            "path": str(golden.path) if golden.path else None,
            "tolerance": {"max_abs": gate.max_abs, "mean_abs": gate.mean_abs},
        },
    }
