"""Time and memory of one call on a GPU. On the CPU the numbers mean nothing; they only show that the harness runs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from cases import OURS, Case

FLUSH = 2**28
"""Bytes written between two runs: more than any L2 cache holds."""


class Cost(NamedTuple):
    """Median ms; MiB above the start at the peak, and after the call while its result is held. NaN on the CPU."""

    ms: float
    peak: float
    held: float


@dataclass(frozen=True)
class Measured:
    """What each implementation of a case costs, and the work of the case."""

    op: str
    pass_: str
    size: int
    shape: str
    dtype: str
    costs: dict[str, Cost] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0


def measure_case(case: Case, device: str) -> Measured:
    """All implementations of a case. One that fails has no cost; that is said. Raises what the kernel raises."""
    costs: dict[str, Cost] = {}
    with torch.set_grad_enabled("training" in case.pass_):
        for name, function in case.passes(device).items():
            try:
                costs[name] = measure(function, device)
            except Exception as error:  # of whichever library
                if name == OURS:
                    raise
                failed(f"{name} cannot run {case}", error)
    shape, dtype = "x".join(map(str, case.shape)), str(case.dtype).removeprefix("torch.")
    return Measured(case.op, case.pass_, case.size, shape, dtype, costs, case.bytes, case.flops)


def measure(function: Callable[[], object], device: str, runs: int = 30, seconds: float = 0.15) -> Cost:
    """Median of 5 to `runs` calls, as many as fit into `seconds`, after a warm-up; timed by CUDA events."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return Cost((time.perf_counter() - start) * 1e3, float("nan"), float("nan"))
    function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    peak, held = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    del result
    count = max(5, min(runs, int(seconds / once)))
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device)
    for _ in range(count // 3):
        function()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for first, last in events:
        flush.zero_()
        first.record()
        function()
        last.record()
    torch.cuda.synchronize()
    ms = statistics.median(first.elapsed_time(last) for first, last in events)
    return Cost(ms, peak / 2**20, held / 2**20)


def failed(what: str, error: Exception) -> None:
    """Say it and go on. Raises if the device itself has failed, after which nothing runs any more."""
    say(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
