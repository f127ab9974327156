"""Bench: what every artifact of an export folder costs on this machine, beside what is known of it elsewhere.

Times are taken in turns, one run of everything and then the next, so that all see the same machine: one child per target keeps its
artifacts loaded. Memory is that of another fresh child, which loads one artifact and asks it one thing.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath
from typing import IO, Any

from pam_mobile.errors import InputError, IntegrityError
from pam_mobile.reporter import Reporter, Silent

from . import manifest
from .artifact import request_of
from .device import LABEL, OUTSIDE, PHONES, estimate
from .parity import Gate, Parity
from .quiet import last_lines
from .recipe import ADAPTIVE, NOT_EXECUTED, SINGLE, recipe_of
from .rows import Row, machine, origin, read
from .verify import check_files

WARM_UP = 3
COUNTS = FilePath(__file__).resolve().parents[1] / "results" / "arm64.csv"
"""What export/arm64/run.py wrote; in a checkout only."""


@dataclass(frozen=True)
class Subject:
    """One method of one artifact of the manifest of `folder`. told: the path that it is told to run, "" for its own."""

    folder: FilePath
    artifact: Mapping[str, Any]
    method: Mapping[str, Any]
    told: str = ""

    @property
    def executed(self) -> bool:
        """Whether it really runs here: an interpreter's time says nothing."""
        return recipe_of(self.artifact).executed

    @property
    def name(self) -> str:
        return f"{self.artifact['name']} {self.method['name']} {self.method['budget']['text']}"

    def order(self) -> dict[str, Any]:
        """What a child has to be told."""
        golden = self.method["golden"]
        return {
            "key": recipe_of(self.artifact).key,
            "file": str(self.folder / self.artifact["name"]),
            "request": asdict(replace(request_of(self.method), path=self.told)),
            "golden": str(self.folder / golden["file"]),
            "alpha": golden["alpha"],
        }


@dataclass(frozen=True)
class Cost:
    """ms: of every run after the warm-up; path: the one that ran; peak: bytes above what the runtime alone takes, if known.

    fixed_ms, fixed_path: the same of an adaptive artifact that chooses and is then told to run the path of the fixed artifact
    of its budget. A chosen path is seldom one that a fixed artifact has, and only on the same path do their times compare.
    """

    ms: tuple[float, ...]
    path: str
    peak: int | None
    fixed_ms: tuple[float, ...] = ()
    fixed_path: str = ""


def bench_folder(
    folder: FilePath, *, threads: int = 1, runs: int = 20, counts: FilePath = COUNTS, reporter: Reporter | None = None
) -> list[Row]:
    """One row per artifact and method, in the manifest's order. counts: CSV file of export/arm64/run.py, if there is one.

    Raises as verify_folder does; IntegrityError too if an artifact fails or no longer gives its golden alpha.
    """
    reporter = reporter or Silent()
    content = manifest.read(folder)
    check_files(folder, content)
    subjects = [
        Subject(folder, artifact, method) for artifact in content["artifacts"] for method in artifact["methods"]
    ]
    timed = [subject for subject in subjects if subject.executed]
    for subject in timed:
        recipe_of(subject.artifact).require()
    busy = os.getloadavg()[0]
    peaks = _peaks(timed, threads, reporter)
    told = [twin for subject in timed if (twin := told_fixed_path(subject, subjects))]
    times = _times([*timed, *told], threads, runs, reporter)
    own, twins = times[: len(timed)], times[len(timed) :]
    costs = {s.name: Cost(*time, peak) for s, time, peak in zip(timed, own, peaks, strict=True)}
    for subject, time in zip(told, twins, strict=True):
        costs[subject.name] = replace(costs[subject.name], fixed_ms=time[0], fixed_path=time[1])
    known = read_counts(counts)
    facts = _environment(content, threads, runs, busy)
    return [row | facts for row in with_ratios([row_of(s, costs.get(s.name), known) for s in subjects])]


def read_counts(path: FilePath) -> list[Row]:
    """The rows of export/arm64/run.py; none if there is no such file. Raises InputError if it is another kind of file."""
    if not path.exists():
        return []
    rows = read(path)
    if any(not {"sha256", "method", "cpu", "m_total"} <= row.keys() for row in rows):
        raise InputError(f"{path} was not written by export/arm64/run.py", "name its CSV file")
    return rows


def told_fixed_path(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """The same subject, told to run the path of the fixed artifact of its budget; None if there is none, or it cannot be told."""
    if not recipe_of(subject.artifact).hosted:
        return None

    def kind(item: Subject) -> tuple[Any, ...]:
        return item.artifact["target"], item.artifact["precision"], item.method["height"], item.method["budget"]["text"]

    fixed = [s for s in subjects if s.artifact["form"] == SINGLE and kind(s) == kind(subject)]
    return replace(subject, told=fixed[0].method["path"]) if fixed else None


def _peaks(subjects: Sequence[Subject], threads: int, reporter: Reporter) -> list[int | None]:
    peaks = []
    with reporter.progress("memory, a fresh process each", len(subjects)) as advance:
        for subject in subjects:
            with _child(subject.artifact["target"], threads) as ask:
                answer = ask(subject)
            judge(subject, answer)
            peaks.append(answer["peak"])
            advance()
    return peaks


def _times(
    subjects: Sequence[Subject], threads: int, runs: int, reporter: Reporter
) -> list[tuple[tuple[float, ...], str]]:
    """Per subject the milliseconds of every run after the warm-up, and the path."""
    turns: list[list[dict[str, Any]]] = []
    with ExitStack() as stack, reporter.progress("time, in turns", WARM_UP + runs) as advance:
        targets = dict.fromkeys(subject.artifact["target"] for subject in subjects)
        children = {target: stack.enter_context(_child(target, threads)) for target in targets}
        for _ in range(WARM_UP + runs):
            turns.append([children[subject.artifact["target"]](subject) for subject in subjects])
            advance()
    counted = turns[WARM_UP:]
    return [(tuple(turn[i]["ms"] for turn in counted), counted[0][i]["path"]) for i in range(len(subjects))]


def judge(subject: Subject, answer: Mapping[str, Any]) -> None:
    """Raise IntegrityError unless the artifact gave its golden alpha: what is wrong is not timed."""
    parity = Parity(answer["max_abs"], answer["mean_abs"], Gate(**subject.method["golden"]["tolerance"]))
    if not parity.passed:
        raise IntegrityError(f"{subject.name} differs from its golden alpha: {parity}", "export again")


class Child:
    """A process that runs artifacts of one target on request."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self.log = log

    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Run a subject once. Raises IntegrityError in the child's words, or if the child died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{json.dumps(subject.order())}\n".encode())
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.log.seek(0)
            tail = last_lines(self.log.read().decode(errors="replace"))
            raise IntegrityError(f"{subject.name} crashed its process (exit code {self.process.wait()})", tail)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise IntegrityError(f"{subject.name} cannot be run: {answer['error']}", "export again")
        return answer


@contextmanager
def _child(target: str, threads: int) -> Iterator[Child]:
    """A child that is gone when the block ends, however it ends."""
    command = [sys.executable, "-m", "pam_export.bench_child", target, str(threads)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    with tempfile.TemporaryFile("w+b") as log:
        # Without buffers nothing is left to be written to a child that is gone.
        process = subprocess.Popen(
            command, bufsize=0, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        with process:
            try:
                yield Child(process, log)
            finally:
                process.kill()


def row_of(subject: Subject, cost: Cost | None, known: Sequence[Row]) -> Row:
    """What is known of one method; empty where nothing is."""
    artifact, method = subject.artifact, subject.method
    row: Row = {
        "file": artifact["name"],
        "target": artifact["target"],
        "form": artifact["form"],
        "precision": artifact["precision"],
        "method": method["name"],
        "size": method["height"],
        "budget": method["budget"]["text"],
        "path": method["path"] or (cost.path if cost else ""),
        "macs": method["macs"],
        "file_mb": round(sum(file["bytes"] for file in artifact["files"]) / 1e6, 3),
        "ms_p50": "",
        "ms_p90": "",
        "fixed_path": "",
        "fixed_path_ms": "",
        "peak_mb": "",
        "note": "" if cost else NOT_EXECUTED,
    }
    if cost:
        row |= {"ms_p50": round(statistics.median(cost.ms), 3), "ms_p90": round(percentile(cost.ms, 90), 3)}
        row["peak_mb"] = "" if cost.peak is None else round(cost.peak / 1e6, 1)
        if cost.fixed_ms:
            row |= {"fixed_path": cost.fixed_path, "fixed_path_ms": round(statistics.median(cost.fixed_ms), 3)}
    return row | _elsewhere(subject, known)


def _elsewhere(subject: Subject, known: Sequence[Row]) -> Row:
    """Counted instructions of exactly this file, and the estimates that follow from them."""
    hashes = {file["sha256"] for file in subject.artifact["files"]}
    row: Row = {}
    for phone in PHONES:
        totals = [
            float(k["m_total"])
            for k in known
            if k["sha256"] in hashes and (k["method"], k["cpu"]) == (subject.method["name"], phone.cpu)
        ]
        guess = estimate(phone, totals[0], subject.method["macs"], subject.artifact["precision"]) if totals else None
        inside = guess is not None and guess.calibrated
        row |= {
            f"m_instructions_{phone.cpu}": totals[0] if totals else "",
            f"{phone.name} ms": round(guess.ms, 1) if guess else "",
            f"{phone.name} low": round(guess.low, 1) if guess and inside else "",
            f"{phone.name} high": round(guess.high, 1) if guess and inside else "",
            f"{phone.name}": "" if guess is None else LABEL if inside else f"{LABEL}; {OUTSIDE}",
        }
    return row


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows with what they are in relation to each other."""
    return [row | _ratios(row, rows) for row in rows]


def _ratios(row: Row, rows: Sequence[Row]) -> Row:
    """Time and MACs against the largest budget of the same kind, and time against float32 and the artifact of the same path."""

    def alike(*columns: str, **other: object) -> list[Row]:
        return [r for r in rows if all(r[c] == row[c] for c in columns) and all(r[k] == v for k, v in other.items())]

    kind = ["target", "form", "precision", "size"] + (["method"] if row["form"] == ADAPTIVE else [])
    largest = max(alike(*kind), key=lambda r: int(r["macs"]))
    fp32 = alike("target", "form", "size", "budget", "path", precision="fp32")
    path, ms = (row["fixed_path"], row["fixed_path_ms"]) if row["fixed_path"] else (row["path"], row["ms_p50"])
    single = alike("target", "precision", "size", form=SINGLE, path=path) if row["form"] == ADAPTIVE else []
    return {
        "macs_vs_largest": round(row["macs"] / largest["macs"], 3),
        "ms_vs_largest": _ratio(row["ms_p50"], largest),
        "ms_vs_fp32": _ratio(row["ms_p50"], fp32[0]) if fp32 and row["precision"] != "fp32" else "",
        "ms_vs_single": _ratio(ms, single[0]) if single else "",
    }


def _ratio(ms: float | str, other: Row) -> float | str:
    return round(float(ms) / other["ms_p50"], 3) if ms and other["ms_p50"] else ""


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least so many percent of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _environment(content: Mapping[str, Any], threads: int, runs: int, busy: float) -> Row:
    """The facts that every row carries."""
    tools = manifest.toolchain()
    return {
        "network": content["model"]["arch"],
        "threads": threads,
        "runs": runs,
        "load_before": round(busy, 2),
        "machine": machine(),
        **{tool: tools.get(tool) or "" for tool in ("torch", "executorch", "onnxruntime")},
        **origin(),
    }
