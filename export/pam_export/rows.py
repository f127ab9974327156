"""Rows of measurements: the facts of this machine that they carry, and the CSV files that keep them."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

from pam_mobile.files import atomic_path

from .manifest import git_state

Row = dict[str, Any]


def machine() -> str:
    """The processor and how many cores it has."""
    try:
        lines = FilePath("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def origin() -> Row:
    """The commit that was measured, and when."""
    state = git_state()
    return {
        "commit": f"{state['git'] or ''}{'-dirty' if state['dirty'] else ''}",
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read(path: FilePath) -> list[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: FilePath, rows: Sequence[Row]) -> None:
    """Write rows, all of them with the columns of the first. Raises SetupError if that is impossible."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
