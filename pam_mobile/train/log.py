"""Logs of a run: one row per validation, as JSONL and CSV, and a picture of loss and SAD."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path as FilePath
from typing import Any

from ..files import atomic_path, write_bytes
from ..reporter import Reporter


class RunLog:
    """metrics.jsonl, metrics.csv and curves.png in the run folder."""

    def __init__(self, folder: FilePath) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.csv = folder / "metrics.csv"
        self.picture = folder / "curves.png"

    def rows(self) -> list[dict[str, Any]]:
        if not self.jsonl.exists():
            return []
        return [json.loads(line) for line in self.jsonl.read_text().splitlines()]

    def append(self, row: dict[str, Any]) -> None:
        self._write([*self.rows(), row])

    def truncate(self, stage: int, step: int) -> None:
        """Forget rows after (stage, step): a resumed run writes them again."""
        self._write([row for row in self.rows() if (row["stage"], row["step"]) <= (stage, step)])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_bytes(self.jsonl, "".join(json.dumps(row) + "\n" for row in rows).encode())
        table = io.StringIO()
        if rows:
            columns = dict.fromkeys(name for row in rows for name in row)  # stages have losses of their own
            writer = csv.DictWriter(table, columns)
            writer.writeheader()
            writer.writerows(rows)
        write_bytes(self.csv, table.getvalue().encode())

    def plot(self, reporter: Reporter) -> None:
        """Draw the curves; without matplotlib say so and go on."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            reporter.say("no curves.png: matplotlib is missing (pip install 'pam-mobile[train]')")
            return
        rows = self.rows()
        offsets, seen = {}, 0
        for stage in sorted({row["stage"] for row in rows}):
            offsets[stage] = seen
            seen += max(row["step"] for row in rows if row["stage"] == stage)
        steps = [offsets[row["stage"]] + row["step"] for row in rows]
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(steps, [row["loss"] for row in rows], marker=".")
        left.set(xlabel="step", ylabel="loss", yscale="log")
        for name, label in (("sad_largest", "largest path"), ("sad_smallest", "smallest path")):
            right.plot(steps, [row[name] for row in rows], marker=".", label=label)
        right.set(xlabel="step", ylabel="SAD / 1000, unknown pixels, held-out composites")
        right.legend()
        with atomic_path(self.picture) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
