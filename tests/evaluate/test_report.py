"""Evaluation of a model on a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from strategies import picture_files

from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import InputError
from pam_mobile.evaluate.metrics import score
from pam_mobile.evaluate.report import evaluate
from pam_mobile.imageio import read_photo, read_trimap, to_integers
from pam_mobile.predict import Matter
from pam_mobile.reporter import Silent


def test_rows_are_means_of_the_metrics_and_costs_keep_the_budget(run_folder: Path, tmp_path: Path) -> None:
    sizes = [(45, 70), (64, 64)]
    files = [picture_files(tmp_path, *size, name=f"{i}") for i, size in enumerate(sizes)]
    matter = Matter.load(run_folder, "cpu")
    budgets = [Budget.parse("80%"), Budget.parse("100%")]
    rows = evaluate(matter, tmp_path, budgets, Silent())
    assert [row.budget for row in rows] == ["80%", "100%"]
    for row, budget in zip(rows, budgets, strict=True):
        expected, macs = [], []
        for (image, trimap, alpha), size in zip(files, sizes, strict=True):
            known = read_trimap(trimap, size)
            plan = matter.plan(*size, budget)
            guess = to_integers(matter.run(read_photo(image).pixels, known, plan), 8)
            expected.append(score(guess, cv2.imread(str(alpha), cv2.IMREAD_GRAYSCALE), known))
            macs.append(plan.macs)
            assert matter.checkpoint is not None
            assert plan.macs <= budget.macs(CostTable.of(matter.checkpoint.preset, *size))
        for index, name in enumerate(("sad", "mse", "grad", "conn")):
            assert getattr(row, name) == pytest.approx(np.mean([s[index] for s in expected]), abs=1e-4)
        assert row.gmacs_max == pytest.approx(max(macs) / 1e9, abs=1e-4)
        assert (row.images, row.over_budget) == (2, 0)
    assert rows[0].gmacs_mean < rows[1].gmacs_mean


def test_an_alpha_of_another_size_is_refused(tmp_path: Path) -> None:
    _, _, alpha = picture_files(tmp_path)
    cv2.imwrite(str(alpha), np.zeros((5, 6), np.uint8))
    with pytest.raises(InputError, match=r"x\.png is 6x5, .*x\.png is 70x45"):
        evaluate(Matter.load("prior"), tmp_path, [Budget.parse("100%")], Silent())
