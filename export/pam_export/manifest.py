"""manifest.json: all about an export folder, in one document with a hash of itself."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from fractions import Fraction
from importlib import metadata
from math import floor
from pathlib import Path as FilePath
from typing import Any

from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import InputError, IntegrityError
from pam_mobile.files import read_sealed_json, sha256, write_sealed_json
from pam_mobile.model.presets import Preset

NAME = "manifest.json"
KIND = "pam-mobile export"
SCHEMA = 2
REMEDY = "export again"
TOOLS = ("torch", "executorch", "coremltools", "onnx", "onnxruntime", "numpy")


def percent(budget: Budget, table: CostTable) -> int:
    """A budget as whole percent of the largest path, rounded down, at most 100: the `b` of a file name."""
    share = budget.amount if budget.relative else Fraction(budget.macs(table), table.largest)
    return min(100, floor(100 * share))


def method_name(budget: Budget, table: CostTable) -> str:
    """Name of a budget's network in an artifact that holds several: `b080_512x512`."""
    return f"b{percent(budget, table):03d}_{table.height}x{table.width}"


def golden_name(size: int) -> str:
    return f"golden_{size}x{size}.safetensors"


def files_under(path: FilePath) -> Iterator[FilePath]:
    """The file itself, or all files of a folder, in a fixed order."""
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            yield from files_under(child)
    else:
        yield path


def file_entries(folder: FilePath, path: FilePath) -> list[dict[str, Any]]:
    """The manifest's `files` of an artifact: relative path, SHA-256 and size of each of its files."""
    return [
        {"path": file.relative_to(folder).as_posix(), "sha256": sha256(file), "bytes": file.stat().st_size}
        for file in files_under(path)
    ]


def document(
    preset: Preset, model: Mapping[str, Any], artifacts: list[dict[str, Any]], golden: list[dict[str, Any]]
) -> dict[str, Any]:
    """The whole manifest, not yet sealed."""
    return {
        "schema_version": SCHEMA,
        "kind": KIND,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "package": {"name": "pam-mobile", "version": _version("pam-mobile"), **git_state()},
        "model": {"arch": preset.label, "units": len(preset.units), **model},
        "preprocess": "in graph",
        "artifacts": artifacts,
        "golden": golden,
        "toolchain": toolchain(),
        "license": {"code": "Apache-2.0", "weights": model.get("licence"), "data": model.get("data_licence")},
    }


def write(folder: FilePath, content: Mapping[str, Any]) -> dict[str, Any]:
    """Seal and write the manifest of a folder; returns it as it was written."""
    write_sealed_json(folder / NAME, dict(content))
    return read(folder)


def read(folder: FilePath) -> dict[str, Any]:
    """The manifest of an export folder.

    Raises InputError if it is missing, of another kind or of a newer schema, IntegrityError if it was changed.
    """
    content = read_sealed_json(folder / NAME, f"name a folder that `pam-mobile export` wrote, or {REMEDY}")
    if content.get("kind") != KIND:
        raise InputError(f"{folder / NAME} is no export manifest", "name a folder that `pam-mobile export` wrote")
    version = content.get("schema_version", 0)
    if version != SCHEMA:
        raise InputError(
            f"{folder / NAME} has schema {version}, this version reads {SCHEMA}",
            "pip install --upgrade pam-mobile" if version > SCHEMA else REMEDY,
        )
    return content


def listed_files(content: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file that a manifest lists, by relative path. Raises IntegrityError for a path that leaves the folder."""
    entries = [entry for artifact in content["artifacts"] for entry in artifact["files"]]
    listed = {entry["path"]: entry["sha256"] for entry in [*entries, *content["golden"]]}
    for name in listed:
        path = FilePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise IntegrityError(f"{NAME} lists {name}, which is outside the folder", REMEDY)
    return listed


def unlisted_files(folder: FilePath, content: Mapping[str, Any]) -> list[str]:
    """Files in the folder that its manifest does not know."""
    known = {*listed_files(content), NAME}
    return [name for name in (path.relative_to(folder).as_posix() for path in files_under(folder)) if name not in known]


def toolchain() -> dict[str, str | None]:
    """Versions of everything that has a say in an artifact's bytes."""
    return {"python": platform.python_version(), **{tool: _version(tool) for tool in TOOLS}}


def git_state() -> dict[str, Any]:
    """Commit and cleanliness of the checkout that this code runs from; None when it is installed."""
    root = FilePath(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"git": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    return {"git": commit or None, "dirty": None if status is None else bool(status)}


def _git(root: FilePath, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
