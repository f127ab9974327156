"""What a run writes down: rows, sample mattes, what a stage took, and scalars for TensorBoard where it is installed."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pam_mobile.data.compose import Batch
from pam_mobile.errors import IntegrityError
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path as NetworkPath
from pam_mobile.train.log import SAMPLES, RunLog

ROW = {"stage": 1, "step": 5, "loss": 0.5, "skipped": 0, "sad_largest": 1.0, "sad_smallest": 2.0}


def test_rows_are_kept_cut_back_and_written_as_a_table(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    rows = [ROW, {**ROW, "step": 10, "loss": None}, {**ROW, "stage": 2, "step": 5, "more": 1}]
    for row in rows:
        log.append(row)
    assert log.rows() == rows
    log.truncate(1, 10)
    assert log.rows() == rows[:2]
    table = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["loss"] for row in table] == ["0.5", ""]


def test_samples_show_image_trimap_and_a_matte_per_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Supernet(preset("tiny", prior=True)).eval()
    n, size = SAMPLES + 1, 64
    image = torch.rand(n, 3, size, size)
    trimap = torch.randint(0, 3, (n, 1, size, size)) / 2
    alpha = torch.rand(n, 1, size, size)
    paths = (NetworkPath.all_bypass(9), NetworkPath.all_run(9))
    RunLog(tmp_path).draw(1, network, Batch(image, trimap, alpha, image, image), paths)
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "samples" / "stage1.png")), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (SAMPLES * size, 4 * size, 3)
    row = sheet[size : 2 * size].astype(int)
    assert np.abs(row[:, :size] - 255 * image[1].permute(1, 2, 0).numpy()).max() <= 0.5001
    assert np.abs(row[:, size : 2 * size, 0] - 255 * trimap[1, 0].numpy()).max() <= 0.5001
    with torch.no_grad():
        for column, path in enumerate(paths, 2):
            want = 255 * network(image[:SAMPLES], trimap[:SAMPLES], path=path)[1, 0].clamp(0, 1).numpy()
            assert np.abs(row[:, column * size : (column + 1) * size, 2] - want).max() <= 0.51


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(ROW)
    log.summarise(1, {"seconds": 1.5})
    for file, use in ((log.jsonl, log.rows), (log.summary, lambda: log.summarise(1, {}))):
        file.write_text(file.read_text()[:-4])
        with pytest.raises(IntegrityError, match=f"{file.name} is damaged"):
            use()


def test_the_summary_adds_up_over_stages(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.summarise(1, {"seconds": 1.5})
    log.summarise(2, {"seconds": 2.5})
    log.summarise(2, {"seconds": 3.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "stage1": {"seconds": 1.5},
        "stage2": {"seconds": 3.5},
    }


def test_scalars_go_to_tensorboard_if_it_is_there_and_stages_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, Any, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")
            written.append(("opened", None, 0))

        def flush(self) -> None:
            written.append(("flushed", None, 0))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    log = RunLog(tmp_path)
    log.append(ROW)
    assert written[1] == ("loss", 0.5, 5)
    log.append({**ROW, "stage": 2, "step": 3, "loss": None})
    assert ("skipped", 0, 8) in written
    assert ("loss", None, 8) not in written
    assert written[-1][0] == "flushed", "a killed run loses no row"
    assert sum(name == "opened" for name, *_ in written) == 1
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log.append({**ROW, "stage": 2, "step": 6})
    assert len(log.rows()) == 3
