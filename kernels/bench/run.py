"""Check and measure the kernels on one NVIDIA GPU: `make gpu`, under ten minutes, no download.

1. the properties of the tests at real sizes (check.py), 2. the same under compute-sanitizer where there is one,
3. every case of cases.py against the best existing implementations, 4. a training step of the network `full`.
Rows go to kernels/bench/results/<gpu>.csv, and to the folder $OUT if that is set. Rows are written even when the time is up
or a later part fails, but never after a failed check.

Exit codes: 0 done, 1 a check failed, 3 no NVIDIA GPU (nothing was run).
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [str(path) for path in (HERE, ROOT / "kernels", ROOT, ROOT / "tests" / "kernels")]
sys.path[:0] = PATHS

import cases  # noqa: E402
import check  # noqa: E402
import step  # noqa: E402
from measure import Measured, measure_case, say  # noqa: E402

NO_GPU = 3
CASES_UNTIL, STEPS_UNTIL = 270, 420
"""Seconds from the start after which no new case and no new training step is begun."""
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
        epilog=f"exit codes: 0 done, 1 a check failed, {NO_GPU} no NVIDIA GPU",
    )
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
    device = "cpu" if options.dry else "cuda"
    wrong = check.run("dry" if options.dry else "large", device)
    wrong += [] if options.dry else sanitizer()
    if wrong:
        say(*wrong)
        return 1
    say(f"all checks pass ({time.perf_counter() - started:.0f} s)")
    files = [options.dry] if options.dry else result_files(torch.cuda.get_device_name())
    facts = environment(device)
    rows: list[dict[str, object]] = []
    for measured in measure_all(device, options.dry is not None, started):
        rows.append(row_of(measured, facts))
        say(" ".join(f"{key} {rows[-1][key]}" for key in COLUMNS[:12] if rows[-1][key] != ""))
        write(files, rows)
    say(f"{len(rows)} rows in {', '.join(map(str, files))} ({time.perf_counter() - started:.0f} s)")
    return 0


def sanitizer() -> list[str]:
    """What compute-sanitizer finds in the small checks; nothing if it is not installed."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        say("compute-sanitizer is not installed: skipped")
        return []
    command = [
        program,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        str(HERE / "check.py"),
        "--small",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        say("compute-sanitizer took longer than 150 s: skipped")
        return []
    say("compute-sanitizer: " + ("clean" if done.returncode == 0 else f"exit code {done.returncode}"))
    return [] if done.returncode == 0 else ["compute-sanitizer: " + (done.stdout + done.stderr)[-2000:]]


def measure_all(device: str, dry: bool, started: float) -> Iterator[Measured]:
    """Every case, then the training step; those that no longer fit the time are counted."""
    late = 0
    for case in cases.dry_cases() if dry else cases.cases():
        if time.perf_counter() - started > CASES_UNTIL:
            late += 1
        else:
            yield measure_case(case, device)
    if late:
        say(f"{late} cases did not fit into {CASES_UNTIL} s: no rows")
    for path in step.PATHS[: 1 if dry else None]:
        if time.perf_counter() - started > STEPS_UNTIL:
            say(f"the training step {path} did not fit into {STEPS_UNTIL} s: no row")
        else:
            yield from step.measure_step(path, device, dry)


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

    git = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "none",
        "commit": git.stdout.strip() or os.environ.get("PAM_COMMIT", "unknown"),
        "date_utc": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def result_files(gpu: str) -> list[Path]:
    """Where the rows of this GPU go."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".csv"
    return [HERE / "results" / name] + ([Path(os.environ["OUT"]) / name] if os.environ.get("OUT") else [])


def write(files: Iterable[Path], rows: list[dict[str, object]]) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
