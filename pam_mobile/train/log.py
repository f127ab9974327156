"""Logs of a run: one row per validation as JSONL, CSV and for TensorBoard, sample mattes, curves, and what each stage took."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import cv2
import torch

from ..data.compose import Batch
from ..errors import IntegrityError
from ..files import atomic_path, write_bytes
from ..model.supernet import Supernet
from ..path import Path
from ..reporter import Reporter

SAMPLES = 4
"""Images in a picture of sample mattes."""


class RunLog:
    """metrics.jsonl, metrics.csv, samples/, curves.png, summary.json and, where TensorBoard is installed, tensorboard/."""

    def __init__(self, folder: FilePath) -> None:
        self.folder = folder
        self.jsonl = folder / "metrics.jsonl"
        self.csv = folder / "metrics.csv"
        self.picture = folder / "curves.png"
        self.samples = folder / "samples"
        self.summary = folder / "summary.json"
        self._writer: Any = None
        """TensorBoard's; one file per sitting."""

    def rows(self) -> list[dict[str, Any]]:
        if not self.jsonl.exists():
            return []
        try:
            return [json.loads(line) for line in self.jsonl.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise IntegrityError(f"{self.jsonl} is damaged", "delete it: the curves begin anew") from error

    def append(self, row: dict[str, Any]) -> None:
        rows = [*self.rows(), row]
        self._write(rows)
        self._to_tensorboard(row, _offsets(rows)[row["stage"]] + row["step"])

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

    @torch.inference_mode()
    def draw(self, stage: int, network: Supernet, batch: Batch, paths: Sequence[Path]) -> None:
        """samples/stageN.png, the newest: a row per image of the batch with image | trimap | a matte per path."""
        batch = Batch(*(part[:SAMPLES] for part in batch))
        mattes = [network(batch.image, batch.trimap, path=path) for path in paths]
        columns = [batch.image, *(plane.expand(-1, 3, -1, -1) for plane in (batch.trimap, *mattes))]
        sheet = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
        pixels = (sheet.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
        write_bytes(self.samples / f"stage{stage}.png", png.tobytes())

    def summarise(self, stage: int, facts: dict[str, Any]) -> None:
        """Set what a stage took in summary.json: steps, skipped ones, seconds over all sittings, peak memory in bytes."""
        try:
            stages = json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.exists() else {}
        except ValueError as error:
            raise IntegrityError(f"{self.summary} is damaged", "delete it: what stages took is forgotten") from error
        stages[f"stage{stage}"] = facts
        write_bytes(self.summary, (json.dumps(stages, indent=2) + "\n").encode())

    def _to_tensorboard(self, row: dict[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in row.items():
            if value is not None and name not in ("stage", "step"):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def plot(self, reporter: Reporter) -> None:
        """Draw the curves; without matplotlib say so and go on."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            reporter.say("no curves.png: matplotlib is missing (pip install 'pam-mobile[train]')")
            return
        rows = self.rows()
        offsets = _offsets(rows)
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


def _offsets(rows: list[dict[str, Any]]) -> dict[int, int]:
    """Steps before each stage, so that curves go on from stage to stage."""
    offsets, seen = {}, 0
    for stage in sorted({row["stage"] for row in rows}):
        offsets[stage] = seen
        seen += max(row["step"] for row in rows if row["stage"] == stage)
    return offsets
