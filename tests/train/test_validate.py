"""Scores on the paths that a network chooses."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
import torch

from pam_mobile import checkpoint
from pam_mobile.budget import Budget
from pam_mobile.config import HeldOut
from pam_mobile.cost import CostTable
from pam_mobile.path import Path
from pam_mobile.train.validate import REPORT, chosen_sads, held_out_composites, sad_per_image, sads


@pytest.mark.parametrize("budget", ["75%", "90%"])
def test_chosen_paths_keep_the_budget_and_their_scores_are_those_of_the_network(
    run_folder: FilePath, budget: str
) -> None:
    supernet = checkpoint.load(run_folder / "stage3").supernet
    batches = held_out_composites(HeldOut(9, 64), ("solid", "hair"), REPORT, torch.device("cpu"))
    scores, paths = chosen_sads(supernet, batches, Budget.parse(budget))
    assert len(scores) == len(paths) == 9
    table = CostTable.of(supernet.preset, 64, 64)
    assert all(table.cost(path) + table.planning <= Budget.parse(budget).macs(table) for path in paths)
    one_by_one = []
    with torch.no_grad():
        for batch in batches:
            for i in range(len(batch.image)):
                one = batch._replace(**{name: value[i : i + 1] for name, value in batch._asdict().items()})
                one_by_one.append(sad_per_image(supernet(one.image, one.trimap, path=paths[len(one_by_one)]), one))
    torch.testing.assert_close(scores, torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


def test_a_budget_for_everything_runs_everything(run_folder: FilePath) -> None:
    supernet = checkpoint.load(run_folder / "stage3").supernet.train()
    batches = held_out_composites(HeldOut(2, 64), ("solid",), REPORT, torch.device("cpu"))
    scores, paths = chosen_sads(supernet, batches, Budget.parse("100%"))
    assert paths == [Path.all_run(9)] * 2
    torch.testing.assert_close(scores, sads(supernet, batches, Path.all_run(9)))
    assert supernet.training
