"""Verify: an export folder is what its manifest says. Hashes come before any file is parsed, execution comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pam_mobile.errors import IntegrityError
from pam_mobile.files import sha256
from pam_mobile.reporter import Reporter, Silent

from . import manifest
from .child import Job, Outcome, run_isolated
from .parity import Gate, compare
from .recipe import recipe

EMBEDDED = ("path", "macs")
"""Facts that an artifact carries inside and that must be those of the manifest."""


@dataclass(frozen=True)
class Check:
    """What was found out about one artifact; max_abs is infinite if it did not run."""

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
        recipe(target).require()
        group = [artifact for artifact in artifacts if artifact["target"] == target]
        checks |= {check.file: check for check in _run(folder, target, group)}
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


def _run(folder: FilePath, target: str, artifacts: Sequence[Mapping[str, Any]]) -> list[Check]:
    goldens = [load_file(folder / artifact["golden"]["file"]) for artifact in artifacts]
    jobs = [
        Job(target, folder / artifact["name"], golden["image"], golden["trimap"])
        for artifact, golden in zip(artifacts, goldens, strict=True)
    ]
    outcomes = run_isolated(jobs)
    return [
        judge(artifact, golden[artifact["golden"]["alpha"]], outcome)
        for artifact, golden, outcome in zip(artifacts, goldens, outcomes, strict=True)
    ]


def judge(artifact: Mapping[str, Any], expected: Tensor, outcome: Outcome) -> Check:
    """Compare what an artifact gave, and what it says about itself, with the manifest and the golden alpha."""
    name = artifact["name"]
    if outcome.error:
        return Check(name, False, float("inf"), outcome.error)
    inside = dict(outcome.facts)
    for key in EMBEDDED:
        if inside.get(key) != str(artifact[key]):
            return Check(
                name, False, float("inf"), f"it holds {key} {inside.get(key)}, the manifest says {artifact[key]}"
            )
    parity = compare([expected], outcome.alphas, Gate(**artifact["golden"]["tolerance"]))
    return Check(name, parity.passed, parity.max_abs, str(parity))
