"""Building artifacts: lowering is slow Python that keeps one core busy, so several run at the same time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

from safetensors.torch import save
from torch import nn

from pam_mobile.errors import PamError
from pam_mobile.files import read_sealed_json, write_sealed_json
from pam_mobile.model.supernet import Supernet
from pam_mobile.reporter import Reporter
from pam_mobile.workers import in_processes

from . import manifest
from .adaptive import Adaptive
from .artifact import Pair, Part
from .parity import Case, cases
from .plan import Plan, key_facts
from .publish import keep_only, note, remove
from .quality import calibration_cases
from .recipe import ADAPTIVE
from .wrapper import network_of, wrap


@dataclass(frozen=True)
class Order:
    """What it takes to build one artifact. networks: one per method, or the supernet alone."""

    plan: Plan
    networks: tuple[nn.Module, ...]
    folder: FilePath
    info: Mapping[str, Any]
    calibration: Mapping[int, list[Case]]
    fingerprint: str

    @property
    def file(self) -> FilePath:
        return self.folder / self.plan.name


@dataclass(frozen=True)
class Built:
    """An artifact in the staging folder."""

    plan: Plan
    info: Mapping[str, Any]
    backend: dict[str, Any]
    seconds: float


def build_all(
    supernet: Supernet,
    plans: Sequence[Plan],
    folder: FilePath,
    model: Mapping[str, Any],
    reporter: Reporter,
    workers: int,
) -> list[Built]:
    """Build every plan in `folder`; what an export that was interrupted or refused left there complete is taken over."""
    keep_only(folder, {p.name for p in plans})
    sizes = {size for p in plans if p.recipe.calibrated for size in p.sizes}
    calibration = {size: calibration_cases(size) for size in sorted(sizes)}
    weights = hashlib.sha256(save({k: t.contiguous() for k, t in supernet.state_dict().items()})).hexdigest()
    orders = [_order(supernet, p, folder, key_facts(p, supernet.preset, model), calibration, weights) for p in plans]
    workers = min(workers, len(orders))
    with reporter.progress("building artifacts", len(orders)) as advance:
        built = []
        for item in in_processes(_build, orders, workers) if workers > 1 else map(_build, orders):
            built.append(item)
            advance(note=item.plan.name)
            took = f"{item.seconds:.0f} s" if item.seconds else "taken over from the export before"
            operations = f"{item.backend['delegated_ops']} of {item.backend['total_ops']} operations delegated"
            reporter.detail(f"{item.plan.name}: {took}, {operations}")
    return built


def _order(
    supernet: Supernet,
    p: Plan,
    folder: FilePath,
    info: Mapping[str, Any],
    calibration: Mapping[int, list[Case]],
    weights: str,
) -> Order:
    chooses = p.recipe.form == ADAPTIVE
    networks = (supernet,) if chooses else tuple(network_of(supernet, m.path) for m in p.methods if m.path)
    used = {size: calibration[size] for size in p.sizes} if p.recipe.calibrated else {}
    methods = [(method.name, str(method.path), method.size) for method in p.methods]
    what = [p.recipe.key, p.name, methods, dict(info), weights, manifest.toolchain()]
    fingerprint = hashlib.sha256(json.dumps(what, default=list).encode()).hexdigest()
    return Order(p, networks, folder, info, used, fingerprint)


def _build(order: Order) -> Built:
    backend = _taken_over(order)
    if backend is not None:
        return Built(order.plan, order.info, backend, 0.0)
    started = time.monotonic()
    remove(order.file)
    backend = order.plan.recipe.build(_parts(order), order.file, order.info)
    files = manifest.file_entries(order.folder, order.file)
    write_sealed_json(
        note(order.folder, order.plan.name), {"fingerprint": order.fingerprint, "files": files, "backend": backend}
    )
    return Built(order.plan, order.info, backend, time.monotonic() - started)


def _parts(order: Order) -> list[Part]:
    methods = order.plan.methods
    if order.plan.recipe.form == ADAPTIVE:
        (supernet,), size = order.networks, methods[0].size
        return [Part(ADAPTIVE, Adaptive(cast(Supernet, supernet), size), _example(size))]
    return [
        Part(method.name, wrap(network), _example(method.size), _pairs(order.calibration.get(method.size, ())))
        for method, network in zip(methods, order.networks, strict=True)
    ]


def _taken_over(order: Order) -> dict[str, Any] | None:
    """What is recorded of the artifact if the export before made the very same one and it is intact."""
    try:
        said = read_sealed_json(note(order.folder, order.plan.name), "")
        same = said["fingerprint"] == order.fingerprint
        if same and said["files"] == manifest.file_entries(order.folder, order.file):
            return dict(said["backend"])
    except (PamError, OSError, KeyError):
        return None
    return None


def _example(size: int) -> Pair:
    return cases(size)[0].inputs()


def _pairs(calibration: Sequence[Case]) -> list[Pair]:
    return [case.inputs() for case in calibration]
