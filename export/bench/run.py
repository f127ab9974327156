"""PyTorch eager against the .pte of the same path, on this machine's CPU. Random weights: times only, no quality.

    python export/bench/run.py              all rows, several minutes; writes export/results/bench.csv
    python export/bench/run.py --quick      one small row, to see that it works

Both sides are warmed up, then run in turns, so that both see the same machine. A host's times are no phone's times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from pam_export import executorch
from pam_export.artifact import FORWARD, Part
from pam_export.parity import cases
from pam_export.quiet import quiet
from pam_export.rows import Row, machine, origin, write
from pam_export.wrapper import PriorAlone, network_of, wrap
from pam_mobile.budget import Budget, knapsack
from pam_mobile.cost import CostTable
from pam_mobile.model.presets import PRESETS, preset
from pam_mobile.model.supernet import Supernet

RESULTS = FilePath(__file__).resolve().parents[1] / "results" / "bench.csv"
WARM_UP = 3
BUSY = 0.7
"""Load average above which times mean little."""
TOLERANCE = 1e-4
"""Mean difference above which a time is not worth reporting."""


@dataclass(frozen=True)
class Case:
    """A network to time: a preset on the path of a budget, or the colour prior alone."""

    name: str
    preset: str
    prior: bool
    budget: str
    network: bool = True


CASES = (
    *(Case(f"tiny-{share}", "tiny", False, f"{share}%") for share in (80, 90, 100)),
    *(Case(f"tiny-prior-{share}", "tiny", True, f"{share}%") for share in (80, 90, 100)),
    *(Case(f"{name}-100", name, False, "100%") for name in PRESETS if name != "tiny"),
    Case("prior-alone", "tiny", True, "100%", network=False),
)
QUICK = (Case("tiny-80", "tiny", False, "80%"),)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PyTorch eager against ExecuTorch on this CPU, random weights.")
    parser.add_argument("--quick", action="store_true", help="one row at 64x64")
    parser.add_argument("--size", type=int, default=512, help="height and width, default 512")
    parser.add_argument("--runs", type=int, default=20, help="timed runs per side, default 20")
    parser.add_argument("--only", default="", help="only cases whose name starts so")
    parser.add_argument("--out", type=FilePath, default=RESULTS, help=f"CSV file, default {RESULTS}")
    options = parser.parse_args()
    chosen = QUICK if options.quick else tuple(case for case in CASES if case.name.startswith(options.only))
    size, runs = (64, 3) if options.quick else (options.size, options.runs)
    threads = (1,) if options.quick else (1, 2)
    if os.getloadavg()[0] > BUSY:
        print("warning: other programs are running; two threads suffer most", file=sys.stderr)  # noqa: T201
    rows: list[Row] = []
    for case in chosen:
        rows += measure(case, size, runs, threads)
        write(options.out, rows)
    show(rows)
    print(f"random weights; medians of {runs} runs; written to {options.out}")  # noqa: T201


def measure(case: Case, size: int, runs: int, threads: Iterable[int]) -> list[Row]:
    """One row per number of threads."""
    torch.manual_seed(0)
    table = CostTable.of(preset(case.preset, case.prior), size, size)
    inputs = cases(size)[0].inputs()
    if case.network:
        path = knapsack([1.0] * len(table.run), table, Budget.parse(case.budget).macs(table))
        module = network_of(Supernet(preset(case.preset, case.prior)), path)
        description, macs = str(path), table.cost(path)
    else:
        module, description, macs = PriorAlone().eval(), "-", table.prior
    with tempfile.TemporaryDirectory() as folder:
        artifact = FilePath(folder) / "bench.pte"
        started = time.perf_counter()
        executorch.build([Part(FORWARD, wrap(module), inputs)], artifact, {})
        print(f"{case.name}: lowered in {time.perf_counter() - started:.0f} s", file=sys.stderr)  # noqa: T201
        rows = []
        for count in threads:
            eager_ms, pte_ms = race(module, artifact, inputs, runs, count)
            times = {"eager_ms": round(eager_ms, 2), "pte_ms": round(pte_ms, 2), "ratio": round(eager_ms / pte_ms, 3)}
            what = {"case": case.name, "preset": case.preset, "prior": case.prior, "path": description, "macs": macs}
            rows.append({**what, "size": size, "threads": count, **times, "runs": runs, **facts()})
    return rows


@torch.inference_mode()
def race(
    module: nn.Module, artifact: FilePath, inputs: tuple[Tensor, Tensor], runs: int, threads: int
) -> tuple[float, float]:
    """Median milliseconds of (eager, .pte), run in turns. Raises ValueError if their results differ."""
    torch.set_num_threads(threads)
    with quiet("timing ExecuTorch"):
        from executorch.extension.pybindings import _portable_lib

        # A runtime keeps the thread pool that it finds when it is loaded.
        _portable_lib._unsafe_reset_threadpool(threads)
        program = executorch.open_program(artifact)
        method = program.load_method(FORWARD)
        difference = float((module(*inputs) - method.execute(inputs)[0]).abs().mean())
        sides: list[Callable[[], Any]] = [lambda: module(*inputs), lambda: method.execute(inputs)]
        samples = [[_milliseconds(side) for side in sides] for _ in range(WARM_UP + runs)][WARM_UP:]
    if not difference <= TOLERANCE:
        raise ValueError(f"{artifact.name} differs from PyTorch by {difference:.1e} on average: nothing to time")
    eager, pte = zip(*samples, strict=True)
    return statistics.median(eager), statistics.median(pte)


def _milliseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def facts() -> Row:
    return {"torch": torch.__version__, "executorch": version("executorch"), "cpu": machine(), **origin()}


def show(rows: list[Row]) -> None:
    print(f"{'case':<16}{'GMACs':>8}{'threads':>9}{'eager ms':>10}{'.pte ms':>10}{'ratio':>8}")  # noqa: T201
    for row in rows:
        gmacs = row["macs"] / 1e9
        print(  # noqa: T201
            f"{row['case']:<16}{gmacs:>8.2f}{row['threads']:>9}{row['eager_ms']:>10.1f}{row['pte_ms']:>10.1f}{row['ratio']:>8.2f}"
        )


if __name__ == "__main__":
    main()
