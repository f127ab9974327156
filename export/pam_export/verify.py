"""Verify: an export folder is what its manifest says. Hashes come before any file is parsed, execution comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pam_mobile.errors import IntegrityError
from pam_mobile.files import sha256
from pam_mobile.reporter import Reporter, Silent

from . import manifest
from .artifact import request_of
from .child import Job, Outcome, Question, run_isolated
from .parity import Gate, compare, worst
from .recipe import recipe_of


@dataclass(frozen=True)
class Check:
    """What was found out about one artifact; max_abs is infinite if it did not run, 0 if nothing here can tell what it computes."""

    file: str
    passed: bool
    max_abs: float
    message: str


def verify_folder(folder: FilePath, reporter: Reporter | None = None) -> list[Check]:
    """Check an export folder: manifest, hashes, nothing unlisted, then every artifact against its golden output.

    Each artifact runs in a child process. Returns one Check per artifact; a difference is a Check that did not pass.
    Raises InputError if there is no readable manifest, IntegrityError at the first file that is missing, unlisted or changed,
    SetupError if the package that runs an artifact is not installed.
    """
    reporter = reporter or Silent()
    content = manifest.read(folder)
    check_files(folder, content)
    reporter.say(f"{folder}: all hashes fit, running the artifacts")
    artifacts = content["artifacts"]
    checks: dict[str, Check] = {}
    for target in sorted({artifact["target"] for artifact in artifacts}):
        group = [artifact for artifact in artifacts if artifact["target"] == target]
        for artifact in group:
            recipe_of(artifact).require()
        checks |= {check.file: check for check in _run(folder, group)}
    ordered = [checks[artifact["name"]] for artifact in artifacts]
    for check in ordered:
        reporter.say(f"{check.file}: {'ok' if check.passed else 'FAILED'}, {check.message}")
    return ordered


def check_files(folder: FilePath, content: Mapping[str, Any]) -> None:
    """Raise IntegrityError at the first file that is missing, changed or unlisted. Reads bytes, parses nothing."""
    for name, expected in manifest.listed_files(content).items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(f"{path} is missing", manifest.REMEDY)
        if sha256(path) != expected:
            raise IntegrityError(f"{path} is damaged: its SHA-256 is not the recorded one", manifest.REMEDY)
    unlisted = manifest.unlisted_files(folder, content)
    if unlisted:
        raise IntegrityError(f"{folder / unlisted[0]} is not listed in {manifest.NAME}", "remove it, or export again")


def _run(folder: FilePath, artifacts: Sequence[Mapping[str, Any]]) -> list[Check]:
    golden = cache(lambda file: load_file(folder / file))
    jobs, expected = [], []
    for artifact in artifacts:
        tensors = [golden(method["golden"]["file"]) for method in artifact["methods"]]
        row = recipe_of(artifact)
        asked = [
            Question(request_of(method), t["image"], t["trimap"])
            for method, t in zip(artifact["methods"], tensors, strict=True)
            if row.compared
        ]
        jobs.append(Job(row.key, folder / artifact["name"], asked))
        expected.append([t[m["golden"]["alpha"]] for m, t in zip(artifact["methods"], tensors, strict=True)])
    return [judge(*triple) for triple in zip(artifacts, expected, run_isolated(jobs), strict=True)]


def judge(artifact: Mapping[str, Any], expected: Sequence[Tensor], outcome: Outcome) -> Check:
    """Compare what an artifact answered, and what it says about itself, with the manifest and the golden alphas."""
    name = artifact["name"]

    def failed(message: str) -> Check:
        return Check(name, False, float("inf"), message)

    if outcome.error:
        return failed(outcome.error)
    inside = dict(outcome.facts)
    for key, value in artifact["info"].items():
        if inside.get(key) != value:
            return failed(f"it holds {key} {inside.get(key)}, the manifest says {value}")
    if not outcome.answers:
        return Check(name, True, 0.0, artifact["parity"]["how"])
    parities = []
    for method, alpha, (answer,) in zip(artifact["methods"], expected, outcome.answers, strict=True):
        path = str(answer.path) if answer.path else None
        if path != method["golden"]["path"]:
            return failed(f"{method['name']} takes path {path}, the manifest says {method['golden']['path']}")
        parities.append(compare([alpha], [answer.alpha], Gate(**method["golden"]["tolerance"])))
    parity = worst(parities)
    return Check(name, parity.passed, parity.max_abs, str(parity))
