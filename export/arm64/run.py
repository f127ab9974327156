"""Run exported .pte files on emulated AArch64 processors: the same numbers as on this machine, and instructions counted.

    python export/arm64/run.py DIR                    every .pte of an export folder, each method of it
    python export/arm64/run.py DIR/one.pte ...        some of them

Emulation says nothing about time. Counts are exact: they repeat to 1e-5 and have to grow with the budget. Rows go to
export/results/arm64.csv; those of the same file, method and processor are replaced. The tools are set up once (Debian packages and
about 450 MB of wheels) in a cache folder. Takes minutes per method at 512x512.

Exit codes: 0 done, 1 a check failed, 3 the tools cannot be set up here (nothing was run).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Any

import platformdirs
from cpu import CPUS
from emulate import REPEATABLE, Emulated, emulate
from safetensors.torch import load_file
from toolchain import EMULATOR, Toolchain, set_up
from torch import Tensor

from pam_export import manifest
from pam_export.artifact import floats, request_of
from pam_export.quiet import quiet
from pam_export.recipe import ADAPTIVE, recipe_of
from pam_export.rows import Row, origin, read, write
from pam_export.verify import check_files
from pam_mobile.errors import InputError, PamError, SetupError

CANNOT_SET_UP = 3
RESULTS = FilePath(__file__).resolve().parents[1] / "results" / "arm64.csv"
BOUNDS = {"fp32": 1e-5, "int8": 2e-3}
"""Largest difference of an alpha to this machine's ExecuTorch, by precision; of int8 half a level of an 8-bit matte, because a value
in the middle of two levels may be rounded either way (measured: less than 1e-6)."""
MILLION = 1e6


@dataclass(frozen=True)
class Work:
    """A method of an artifact; both as the manifest of `folder` has them. network: the manifest's `arch`."""

    folder: FilePath
    network: str
    artifact: Mapping[str, Any]
    method: Mapping[str, Any]

    @property
    def file(self) -> FilePath:
        return FilePath(self.folder / self.artifact["name"])


def main() -> int:
    parser = parser_of("Run .pte files on emulated AArch64 processors, compare and count instructions.", RESULTS)
    parser.add_argument("paths", type=FilePath, nargs="+", help="export folders, or .pte files in them")
    options = parser.parse_args()

    def count() -> list[str]:
        work = [item for path in options.paths for item in methods_of(path)]
        if not work:
            raise InputError("there is no .pte with fixed paths to run", "export with --to executorch")
        wrong = run_all(set_up(options.cache, say), work, options.cpu, options.out)
        if options.out == RESULTS:
            say("python export/arm64/page.py brings docs/arm64.md up to date")
        return wrong

    return ended(count, "all outputs agree, all counts repeat and grow with the budget")


def parser_of(description: str, results: FilePath) -> argparse.ArgumentParser:
    """The options of everything that counts instructions."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"exit codes: 0 done, 1 a check failed, {CANNOT_SET_UP} the tools cannot be set up here",
    )
    known = f"of {', '.join(CPUS)}; default %(default)s"
    parser.add_argument("--cpu", type=_cpus, default="cortex-a73,cortex-a75", help=known)
    parser.add_argument("--out", type=FilePath, default=results, help="CSV file, default %(default)s")
    parser.add_argument("--cache", type=FilePath, default=platformdirs.user_cache_path("pam-mobile") / "arm64")
    return parser


def _cpus(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CPUS:
            raise argparse.ArgumentTypeError(f"unknown processor {name!r}, choose among {', '.join(CPUS)}")
    return names


def ended(count: Callable[[], list[str]], good: str) -> int:
    """The exit code of a count, which returns what is wrong, in words. good: what to say if nothing is."""
    try:
        wrong = count()
    except SetupError as error:
        say(f"cannot run here: {error.message}", error.hint)
        return CANNOT_SET_UP
    except PamError as error:
        say(f"error: {error.message}", error.hint)
        return 1
    except KeyboardInterrupt:
        say("interrupted; the rows so far are written")
        return 130
    say(*wrong or [good])
    return 1 if wrong else 0


def methods_of(path: FilePath) -> Iterator[Work]:
    """The methods with a fixed path in a .pte of an export folder, or in all of them. Hashes are checked first."""
    folder = path.parent if path.suffix == ".pte" else path
    content = manifest.read(folder)
    check_files(folder, content)
    artifacts = [
        a for a in content["artifacts"] if a["target"] == "executorch" and path in (folder, folder / a["name"])
    ]
    if not artifacts:
        raise InputError(f"{path} is not in the manifest, or nothing there is for ExecuTorch", "see manifest.json")
    for artifact in artifacts:
        if artifact["form"] == ADAPTIVE:
            say(f"{artifact['name']}: skipped, it is not one method but pieces that an app drives")
        else:
            yield from (Work(folder, content["model"]["arch"], artifact, method) for method in artifact["methods"])


def run_all(toolchain: Toolchain, works: Sequence[Work], cpus: Sequence[str], out: FilePath) -> list[str]:
    """Write a row per method and processor as soon as it is known; returns what is wrong, in words."""
    facts = environment()
    rows: list[Row] = []
    wrong = []
    for work in works:
        expected, inputs = reference(work)
        bound = BOUNDS[work.artifact["precision"]]
        for cpu in cpus:
            emulated = emulate(toolchain, cpu, work.file, work.method["name"], inputs)
            difference = float((emulated.output.view_as(expected) - expected).abs().max())
            rows.append(row_of(work, cpu, emulated, difference) | facts)
            merge(out, rows)
            what = f"{work.file.name} {work.method['name']} on {cpu}"
            say(f"{what}: {rows[-1]['m_total']} M instructions, difference {difference:.1e}")
            if not difference <= bound:
                wrong.append(f"{what} differs by {difference:.1e}, above {bound:.0e}")
    return wrong + not_growing(rows)


def reference(work: Work) -> tuple[Tensor, list[Tensor]]:
    """What this machine's ExecuTorch makes of the golden input, and that input as the method takes it."""
    golden = load_file(work.folder / work.method["golden"]["file"])
    load = recipe_of(work.artifact).load
    assert load is not None
    with quiet("running ExecuTorch"):
        answer = load(work.file)(golden["image"], golden["trimap"], request_of(work.method))
    return answer.alpha, list(floats(golden["image"], golden["trimap"]))


def row_of(work: Work, cpu: str, emulated: Emulated, difference: float) -> Row:
    """The row of one method on one processor; instructions in millions per inference."""
    artifact, method, (file,) = work.artifact, work.method, work.artifact["files"]
    million = {f"m_{key}": f"{value / MILLION:.3f}" for key, value in emulated.instructions.items()}
    return {
        "file": artifact["name"],
        "sha256": file["sha256"],
        "method": method["name"],
        "network": work.network,
        "form": artifact["form"],
        "precision": artifact["precision"],
        "size": method["height"],
        "budget": method["budget"]["text"],
        "path": method["path"],
        "macs": method["macs"],
        "cpu": cpu,
        **million,
        "instructions_per_mac": f"{emulated.instructions['total'] / method['macs']:.4f}",
        "planned_bytes": emulated.planned_bytes,
        "max_difference": f"{difference:.1e}",
    }


def not_growing(rows: Sequence[Row]) -> list[str]:
    """Where a path of more MACs does not take more instructions, or the same path another number, in words."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["cpu"], row["network"], row["precision"], row["form"], row["size"]].append(row)
    wrong = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: int(row["macs"]))
        for less, more in itertools.pairwise(ordered):
            low, high = float(less["m_total"]), float(more["m_total"])
            grown = high > low if int(more["macs"]) > int(less["macs"]) else abs(high - low) <= REPEATABLE * low
            if not grown or not low > 0:
                names = [f"{row['file']} {row['method']}" for row in (less, more)]
                wrong.append(f"{less['cpu']}: {names[1]} takes {high} M instructions, {names[0]} {low}")
    return wrong


def merge(path: FilePath, rows: Sequence[Row]) -> None:
    """Write `rows` and keep those of other files, methods and processors that are in the file."""
    mine = {key_of(row) for row in rows}
    kept = [row for row in read(path) if key_of(row) not in mine] if path.exists() else []
    write(path, sorted([*rows, *kept], key=key_of))


def key_of(row: Row) -> tuple[str, ...]:
    return row["file"], row["method"], row["cpu"]


def environment() -> Row:
    """The facts that every row carries."""
    emulator = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return {
        "executorch": version("executorch"),
        "qemu": emulator,
        **origin(),
    }


def say(*lines: str) -> None:
    print(*(line for line in lines if line), sep="\n", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
