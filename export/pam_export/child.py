"""Artifacts are executed in a child process: a file that crashes its runtime takes nothing else down.

One child runs many jobs in a row. When it dies, the job at hand has failed and another child goes on with the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pam_mobile.errors import PamError

from .quiet import last_lines, one_line
from .recipe import recipe

SECONDS_PER_JOB = 900
INPUTS, ALPHA = "inputs.safetensors", "alpha"


@dataclass(frozen=True)
class Job:
    """An artifact and the inputs to run it on. images: (n, 3, H, W) uint8; trimaps: (n, 1, H, W) uint8."""

    target: str
    path: FilePath
    images: Tensor
    trimaps: Tensor


@dataclass(frozen=True)
class Outcome:
    """alphas: n tensors (1, 1, H, W), and the facts inside the artifact; or an error in words."""

    alphas: tuple[Tensor, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    error: str = ""


def run_isolated(jobs: Sequence[Job]) -> list[Outcome]:
    """Run every job outside this process, in order. All jobs must have the same target."""
    with tempfile.TemporaryDirectory(prefix="pam-export-") as name:
        folders = [_prepare(FilePath(name) / str(i), job) for i, job in enumerate(jobs)]
        outcomes: list[Outcome] = []
        while len(outcomes) < len(jobs):
            rest = slice(len(outcomes), None)
            failure = _start(jobs[rest], folders[rest])
            finished = [outcome for outcome in map(_read, folders[rest]) if outcome is not None]
            outcomes += finished
            if len(outcomes) < len(jobs):
                outcomes.append(Outcome(error=failure))
        return outcomes


def _prepare(folder: FilePath, job: Job) -> FilePath:
    folder.mkdir()
    save_file({"image": job.images.contiguous(), "trimap": job.trimaps.contiguous()}, folder / INPUTS)
    return folder


def _start(jobs: Sequence[Job], folders: Sequence[FilePath]) -> str:
    """Run one child for the jobs; returns what to say of the first job without a result."""
    arguments = [str(word) for job, folder in zip(jobs, folders, strict=True) for word in (job.path, folder)]
    command = [sys.executable, "-m", "pam_export.child", jobs[0].target, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryFile("w+b") as log:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                timeout=SECONDS_PER_JOB * len(jobs),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"did not finish within {SECONDS_PER_JOB * len(jobs)} s"
        log.seek(0)
        tail = last_lines(log.read().decode(errors="replace"))
    return f"crashed its process ({f'signal {-code}' if code < 0 else f'exit code {code}'}); {tail}".rstrip("; ")


def _read(folder: FilePath) -> Outcome | None:
    result, error = folder / "alpha.safetensors", folder / "error.txt"
    if error.exists():
        return Outcome(error=error.read_text(encoding="utf-8"))
    if not result.exists():
        return None
    with safe_open(result, framework="pt") as file:
        alphas = file.get_tensor(ALPHA)
        return Outcome(alphas.split(1), tuple(sorted((file.metadata() or {}).items())))


def main(arguments: Sequence[str]) -> None:
    """The child: target, then pairs of artifact and job folder."""
    row = recipe(arguments[0])
    for path, name in zip(arguments[1::2], arguments[2::2], strict=True):
        artifact, folder = FilePath(path), FilePath(name)
        try:
            inputs = load_file(folder / INPUTS)
            alphas = row.execute(artifact, inputs["image"], inputs["trimap"])
            save_file({ALPHA: alphas.contiguous()}, folder / "part", metadata=row.facts(artifact))
            (folder / "part").rename(folder / "alpha.safetensors")
        except PamError as error:
            (folder / "error.txt").write_text(error.message, encoding="utf-8")
        except Exception as error:
            (folder / "error.txt").write_text(one_line(error), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
