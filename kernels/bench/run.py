"""Check and measure the kernels on one NVIDIA GPU: `make gpu`, under ten minutes, no download.

1. the properties of the tests at real sizes (check.py), in several processes because most of their time is compilation; beside
them a few under compute-sanitizer where there is one, and a process that compiles the training steps; 2. a training step of the
network `full`; 3. the cases of cases.py against the best existing implementations, the most telling first.
Rows go to kernels/bench/results/<gpu>.csv, and to the folder $OUT if that is set, each as soon as it is measured. What fails is
said and has no row; an operator of which a check failed has none at all, and neither has the training step then.

Exit codes: 0 done, 1 a check or a kernel failed, 3 no NVIDIA GPU (nothing was run).
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(path) for path in (HERE, ROOT / "kernels", ROOT, ROOT / "tests" / "kernels")]
sys.path[:0] = PATHS

import cases  # noqa: E402
import check  # noqa: E402
import step  # noqa: E402
from measure import Measured, failed, measure_case, say  # noqa: E402

NO_GPU = 3
MINUTES = 9.0


class Deadlines(NamedTuple):
    """Shares of the time from the start."""

    checks: float = 0.22
    """No check is begun after it."""
    checks_end: float = 0.37
    """Checks and the compilation of training steps are given up."""
    steps_end: float = 0.5
    """No training step is begun after it."""

    def seconds(self, minutes: float) -> Deadlines:
        return Deadlines(*(60 * minutes * share for share in self))


PROCESSES = 12
MEMCHECK = ("--tool", "memcheck", "--error-exitcode", "9")
BASELINES = (cases.CUDNN_NCHW, cases.CUDNN_LAST, cases.ATEN, cases.COMPILED)
COLUMNS = (
    *("op", "pass", "size", "shape", "dtype", "ms", "gb_per_s", "tflop_per_s"),
    *(f"vs_{name}" for name in BASELINES),
    *("peak_mib", "held_mib", "peak_vs_torch_compile", "held_vs_torch_compile"),
    *("gpu", "torch", "triton", "cuda", "commit", "date_utc"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Check and measure the kernels on one NVIDIA GPU.",
        epilog=f"exit codes: 0 done, 1 a check or a kernel failed, {NO_GPU} no NVIDIA GPU",
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no case is begun later (%(default)g)")
    parser.add_argument("--dry", type=Path, metavar="CSV", help="run everything at tiny sizes on the CPU, write there")
    options = parser.parse_args()
    started = time.perf_counter()
    if not options.dry and (not torch.cuda.is_available() or torch.version.cuda is None):
        say("make gpu needs an NVIDIA GPU that PyTorch can use; nothing was run")
        return NO_GPU
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
        cases.BACKEND = "aot_eager"
    os.environ["PAM_KERNELS"] = "triton"
    minutes = math.inf if options.dry else options.minutes  # a CPU takes its time
    deadlines = Deadlines().seconds(minutes)
    compiling = None if options.dry else _start(step.__file__, [])
    wrong = wrong_operators(options.dry is not None, deadlines)
    if compiling:
        _finish(compiling, started + deadlines.checks_end)
    say(f"checks: {'wrong: ' + ', '.join(sorted(wrong)) if wrong else 'ok'} ({time.perf_counter() - started:.0f} s)")
    device = "cpu" if options.dry else "cuda"
    files = [options.dry] if options.dry else result_files(torch.cuda.get_device_name())
    facts = environment(device)
    rows: dict[tuple[object, ...], dict[str, object]] = {}
    complete = not wrong
    for measured in measure_all(device, options.dry is not None, started, minutes, wrong):
        if measured is None:
            complete = False
            continue
        row = row_of(measured, facts)
        rows[tuple(row[key] for key in COLUMNS[:5])] = row
        say(" ".join(f"{key} {row[key]}" for key in COLUMNS[:12] if row[key] != ""))
        write(files, rows.values())
    say(f"{len(rows)} rows in {', '.join(map(str, files))} ({time.perf_counter() - started:.0f} s)")
    say("python kernels/bench/tables.py shows them in docs/kernels.md")
    return int(not complete)


def wrong_operators(dry: bool, deadlines: Deadlines) -> set[str]:
    """The operators of which a check fails; all if the checks themselves fail."""
    count = 1 if dry else max(1, min(PROCESSES, (os.cpu_count() or 1) - 1))
    size = ["--size", "dry"] if dry else ["--size", "large", "--seconds", str(deadlines.checks)]
    running = [_start(check.__file__, [*size, "--share", f"{part}/{count}"]) for part in range(1, count + 1)]
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    sanitizer = None
    if program is None:
        say("compute-sanitizer is not installed: skipped")
    elif not dry:
        sanitizer = _start(
            check.__file__, ["--size", "small", "--seconds", str(deadlines.checks)], [program, *MEMCHECK]
        )
    wrong: set[str] = set()
    end = time.perf_counter() + (600 if dry else deadlines.checks_end)
    for process in running:
        code, output = _finish(process, end)
        if output:
            say(output)
        found = {line.split()[1] for line in output.splitlines() if line.startswith(check.WRONG)}
        wrong |= found if code == 0 or (code == 1 and found) else {check.DEPTHWISE, check.CONNECT}
    if sanitizer is not None:
        code, output = _finish(sanitizer, end)
        say(f"compute-sanitizer: exit code {code}" + ("" if code == 0 else f"\n{output[-2000:]}"))
        if code == 9:
            wrong |= {check.DEPTHWISE, check.CONNECT}
        elif code != 0:
            say("compute-sanitizer could not run, or not in time: skipped")
    return wrong


def _start(program: str, arguments: list[str], before: list[str] | None = None) -> subprocess.Popen[str]:
    """A Python process with a group of its own: compute-sanitizer has children, which must end with it."""
    own = os.environ.get("PYTHONPATH")  # torch may come from there
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*PATHS, *([own] if own else [])])}
    if before:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [*(before or []), sys.executable, program, *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def _finish(process: subprocess.Popen[str], end: float) -> tuple[int, str]:
    """Exit code and output; -9 and what there is if it has not ended in time."""
    try:
        output, _ = process.communicate(timeout=max(1, end - time.perf_counter()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return process.returncode, output.strip()


def measure_all(device: str, dry: bool, started: float, minutes: float, wrong: set[str]) -> Iterator[Measured | None]:
    """Training steps and cases; None for one that fails. Those that no longer fit the time are counted."""
    given = iter(cases.dry_cases() if dry else cases.cases())
    deadlines = Deadlines().seconds(minutes)
    try:
        for path in step.PATHS[: 1 if dry else None]:
            if wrong:
                say(f"no training step {path}: a check failed")
            elif time.perf_counter() > started + deadlines.steps_end:
                say(f"the training step {path} did not fit into {deadlines.steps_end:.0f} s: no row")
            else:
                yield from _measure_step(path, device, dry)
        yield from _measure_cases(given, device, started + 60 * minutes, wrong)
    except RuntimeError as error:
        say(f"the device failed, nothing more is measured: {' '.join(str(error).split())[:300]}")
        yield None
    late = sum(case.op not in wrong for case in given)
    if late:
        say(f"{late} cases have no rows: they did not fit into {minutes:g} minutes")


def _measure_cases(
    given: Iterator[cases.Case], device: str, until: float, wrong: set[str]
) -> Iterator[Measured | None]:
    """What can be begun in time; the rest stays in the iterator."""
    while time.perf_counter() < until and (case := next(given, None)) is not None:
        if case.op in wrong:
            continue
        try:
            yield measure_case(case, device)
        except Exception as error:  # one case must not lose the others
            failed(f"no row of {case}", error)
            yield None


def _measure_step(path: str, device: str, dry: bool) -> Iterator[Measured | None]:
    try:
        yield from step.measure_step(path, device, dry)
    except Exception as error:  # it must not lose the rows of other cases
        failed(f"no row of the training step {path}", error)
        yield None


def row_of(measured: Measured, facts: dict[str, str]) -> dict[str, object]:
    """The row of a case: our time, speed and memory, and how many times as long each other implementation takes."""
    ours, compiled = measured.costs[cases.OURS], measured.costs.get(cases.COMPILED)
    row: dict[str, object] = dict.fromkeys(COLUMNS, "") | facts
    row |= {
        "op": measured.op,
        "pass": measured.pass_,
        "size": measured.size,
        "shape": measured.shape,
        "dtype": measured.dtype,
        "ms": f"{ours.ms:.4f}",
        "gb_per_s": f"{measured.bytes / ours.ms / 1e6:.1f}" if measured.bytes else "",
        "tflop_per_s": f"{measured.flops / ours.ms / 1e9:.2f}" if measured.flops else "",
        "peak_mib": f"{ours.peak:.1f}",
        "held_mib": f"{ours.held:.1f}",
    }
    row |= {f"vs_{name}": f"{measured.costs[name].ms / ours.ms:.3f}" for name in BASELINES if name in measured.costs}
    if compiled is not None and compiled.peak > 0:
        row["peak_vs_torch_compile"] = f"{ours.peak / compiled.peak:.3f}"
    if compiled is not None and compiled.held > 0:
        row["held_vs_torch_compile"] = f"{ours.held / compiled.held:.3f}"
    return row


def environment(device: str) -> dict[str, str]:
    """The facts that every row carries."""
    import triton

    commit = ""
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "none",
        "commit": commit or os.environ.get("PAM_COMMIT", "unknown"),
        "date_utc": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def result_files(gpu: str) -> list[Path]:
    """Where the rows of this GPU go."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".csv"
    return [HERE / "results" / name] + ([Path(os.environ["OUT"]) / name] if os.environ.get("OUT") else [])


def write(files: Iterable[Path], rows: Iterable[dict[str, object]]) -> None:
    """The whole files, in one piece each: a run that is cut off leaves what it had."""
    kept = list(rows)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, file)


if __name__ == "__main__":
    sys.exit(main())
