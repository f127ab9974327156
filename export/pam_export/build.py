"""Building artifacts: lowering is slow Python that keeps one core busy, so several run at the same time."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor, nn

from pam_mobile.cost import GIGA
from pam_mobile.model.subnet import parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.reporter import Reporter
from pam_mobile.workers import in_processes

from .parity import Case, reference
from .plan import Plan, key_facts
from .wrapper import network_of, wrap


@dataclass(frozen=True)
class Order:
    """What it takes to build one artifact. inputs: the size's cases."""

    plan: Plan
    network: nn.Module
    file: FilePath
    facts: dict[str, str | int]
    inputs: list[Case]


@dataclass(frozen=True)
class Built:
    """An artifact in the staging folder, and what PyTorch computes for it on the size's cases."""

    plan: Plan
    params: int
    backend: dict[str, Any]
    expected: list[Tensor]
    seconds: float


def build_all(
    supernet: Supernet,
    plans: Sequence[Plan],
    folder: FilePath,
    inputs: Mapping[int, list[Case]],
    model: Mapping[str, Any],
    reporter: Reporter,
    workers: int,
) -> list[Built]:
    """Build every plan; lowering is slow Python that keeps one core busy, so several run at the same time."""
    orders = [
        Order(
            p,
            network_of(supernet, p.choice.path),
            folder / p.name,
            key_facts(p, supernet.preset, model),
            inputs[p.size],
        )
        for p in plans
    ]
    workers = min(workers, len(orders))
    with reporter.progress("building artifacts", len(orders)) as advance:
        built = []
        for item in _build_in_processes(orders, workers) if workers > 1 else map(_build, orders):
            built.append(item)
            advance(note=item.plan.name)
            reporter.detail(
                f"{item.plan.name}: path {item.plan.choice.path}, {item.plan.macs / GIGA:.2f} GMACs, {item.seconds:.0f} s, "
                f"{item.backend['delegated_ops']} of {item.backend['total_ops']} operations delegated"
            )
    return built


def _build(order: Order) -> Built:
    started = time.monotonic()
    network, inputs = order.network, order.inputs
    backend = order.plan.recipe.build(wrap(network), inputs[0].inputs(), order.file, order.facts)
    return Built(order.plan, parameter_count(network), backend, reference(network, inputs), time.monotonic() - started)


def _build_in_processes(orders: Sequence[Order], workers: int) -> Iterator[Built]:
    # Pickled here and by value: pools hand tensors over in shared memory, of which containers have little.
    return map(pickle.loads, in_processes(_build_pickled, [pickle.dumps(order) for order in orders], workers))


def _build_pickled(order: bytes) -> bytes:
    return pickle.dumps(_build(pickle.loads(order)))
