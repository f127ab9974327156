"""Artifacts are executed in a child process: a file that crashes its runtime takes nothing else down.

One child runs many jobs in a row. When it dies, the job at hand has failed and another child goes on with the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path as FilePath

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pam_mobile.errors import PamError
from pam_mobile.path import Path

from .artifact import Answer, Request
from .quiet import last_lines, one_line, quiet
from .recipe import recipe

SECONDS_PER_JOB = 1800
LOOK_EVERY = 0.2
INPUTS, QUESTIONS, ANSWERS, ERROR = "inputs.safetensors", "questions.json", "answers.safetensors", "error.txt"


@dataclass(frozen=True)
class Question:
    """A request and the inputs to answer it on. images: (n, 3, H, W) uint8; trimaps: (n, 1, H, W) uint8."""

    request: Request
    images: Tensor
    trimaps: Tensor


@dataclass(frozen=True)
class Job:
    """An artifact, the key of its recipe, and what to ask it; nothing is asked of what cannot be executed here."""

    key: str
    path: FilePath
    questions: Sequence[Question]


@dataclass(frozen=True)
class Outcome:
    """Per question one answer per image, and the facts inside the artifact; or an error in words."""

    answers: tuple[tuple[Answer, ...], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    error: str = ""


def run_isolated(jobs: Sequence[Job], advance: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Run every job outside this process, in order. All jobs must have the same target: toolchains do not mix well.

    advance: called once a job has ended.
    """
    with tempfile.TemporaryDirectory(prefix="pam-export-") as name:
        folders = [_prepare(FilePath(name) / str(i), job) for i, job in enumerate(jobs)]
        outcomes: list[Outcome] = []
        while len(outcomes) < len(jobs):
            rest = slice(len(outcomes), None)
            failure = _start(jobs[rest], folders[rest], advance)
            for folder in folders[rest]:
                outcome = _read(folder)
                if outcome is None:
                    break
                outcomes.append(outcome)
            if len(outcomes) < len(jobs):
                outcomes.append(Outcome(error=failure))
                advance()
        return outcomes


def _prepare(folder: FilePath, job: Job) -> FilePath:
    folder.mkdir()
    # Methods of one size are asked about the same images: each set is written once.
    sets = {id(q.images): (q.images, q.trimaps) for q in job.questions}
    places = {key: str(i) for i, key in enumerate(sets)}
    tensors = {f"image{places[key]}": images.contiguous() for key, (images, _) in sets.items()}
    tensors |= {f"trimap{places[key]}": trimaps.contiguous() for key, (_, trimaps) in sets.items()}
    save_file(tensors, folder / INPUTS)
    asked = [{"request": asdict(q.request), "inputs": places[id(q.images)]} for q in job.questions]
    (folder / QUESTIONS).write_text(json.dumps(asked), encoding="utf-8")
    return folder


def _start(jobs: Sequence[Job], folders: Sequence[FilePath], advance: Callable[[], None]) -> str:
    """Run one child for the jobs; returns what to say of the first job without a result."""
    arguments = [str(word) for job, folder in zip(jobs, folders, strict=True) for word in (job.key, job.path, folder)]
    command = [sys.executable, "-m", "pam_export.child", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            code = _watch(process, folders, advance)
        finally:
            process.kill()
            process.wait()
        if code is None:
            return f"did not finish within {SECONDS_PER_JOB * len(jobs)} s"
        log.seek(0)
        tail = last_lines(log.read().decode(errors="replace"))
    return f"crashed its process ({f'signal {-code}' if code < 0 else f'exit code {code}'}); {tail}".rstrip("; ")


def _watch(process: subprocess.Popen[bytes], folders: Sequence[FilePath], advance: Callable[[], None]) -> int | None:
    """The exit code of a child, or None if it takes too long; calls `advance` for every job that it ends."""
    deadline, ended = time.monotonic() + SECONDS_PER_JOB * len(folders), 0
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_EVERY)
        before = ended
        ended += sum(1 for _ in takewhile(_ended, folders[ended:]))
        for _ in range(ended - before):
            advance()
        if process.returncode is not None:
            return process.returncode
    return None


def _ended(folder: FilePath) -> bool:
    return (folder / ANSWERS).exists() or (folder / ERROR).exists()


def _read(folder: FilePath) -> Outcome | None:
    result, error = folder / ANSWERS, folder / ERROR
    if error.exists():
        return Outcome(error=error.read_text(encoding="utf-8"))
    if not result.exists():
        return None
    with safe_open(result, framework="pt") as file:
        said = file.metadata() or {}
        paths, facts = json.loads(said["paths"]), json.loads(said["facts"])
        answers = tuple(
            tuple(
                Answer(alpha, Path.parse(path) if path else None)
                for alpha, path in zip(file.get_tensor(str(i)).split(1), row, strict=True)
            )
            for i, row in enumerate(paths)
        )
    return Outcome(answers, tuple(sorted(facts.items())))


def main(arguments: Sequence[str]) -> None:
    """The child: triples of recipe key, artifact and job folder."""
    for key, path, name in zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True):
        folder = FilePath(name)
        try:
            with quiet(f"running {key.split('/')[0]}"):
                _answer(key, FilePath(path), folder)
        except PamError as error:
            (folder / ERROR).write_text(error.message, encoding="utf-8")
        except Exception as error:
            (folder / ERROR).write_text(one_line(error), encoding="utf-8")


def _answer(key: str, artifact: FilePath, folder: FilePath) -> None:
    row = recipe(key)
    inputs = load_file(folder / INPUTS)
    asked = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
    runner = row.load(artifact) if row.load and asked else None
    tensors: dict[str, Tensor] = {}
    paths: list[list[str]] = []
    for i, question in enumerate(asked):
        assert runner is not None, f"{key} cannot be executed here"
        request = Request(**question["request"])
        images, trimaps = inputs[f"image{question['inputs']}"], inputs[f"trimap{question['inputs']}"]
        pairs = zip(images.split(1), trimaps.split(1), strict=True)
        answers = [runner(image, trimap, request) for image, trimap in pairs]
        tensors[str(i)] = torch.cat([answer.alpha for answer in answers])
        paths.append([str(answer.path or "") for answer in answers])
    said = {"paths": json.dumps(paths), "facts": json.dumps(row.facts(artifact))}
    save_file(tensors, folder / "part", metadata=said)
    (folder / "part").rename(folder / ANSWERS)


if __name__ == "__main__":
    main(sys.argv[1:])
