"""Several processes train what one trains: the same bits for two shards, one voice, and an end when one of them is lost."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import Forks, results
from safetensors.torch import load_file

TWO = {"shards": 2}


@pytest.fixture(scope="module")
def alone(zygote: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of one process that computes both shards of every step."""
    run = tmp_path_factory.mktemp("alone") / "run"
    zygote.forget()
    assert zygote.run(run, config=TWO) == 0, zygote.messages()
    return results(run)


def equal(run: Path, alone: dict[str, str]) -> bool:
    mine = results(run)
    return {k: v for k, v in mine.items() if k != "env.json"} == {k: v for k, v in alone.items() if k != "env.json"}


def test_two_processes_give_the_bits_of_one_in_every_stage(forks: Forks, alone: dict[str, str], tmp_path: Path) -> None:
    assert forks.ranks(tmp_path / "run", 2, config=TWO) == [0, 0], forks.messages()
    assert {f"stage{i}/model.safetensors" for i in (1, 2, 3)} < alone.keys()
    assert equal(tmp_path / "run", alone)
    assert forks.messages() == ""


def test_more_shards_than_two_differ_by_rounding_only(forks: Forks, tmp_path: Path) -> None:
    four = {"shards": 4, "stages": [1]}
    assert forks.run(tmp_path / "one", config=four) == 0, forks.messages()
    assert forks.ranks(tmp_path / "two", 2, config=four) == [0, 0], forks.messages()
    one, two = (load_file(tmp_path / name / "stage1" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_comparison_notices_processes_that_do_not_share(
    forks: Forks, alone: dict[str, str], tmp_path: Path
) -> None:
    assert forks.ranks(tmp_path / "run", 2, config={**TWO, "stages": [1]}, plant={"what": "deaf"}) == [0, 0]
    assert results(tmp_path / "run")["stage1/model.safetensors"] != alone["stage1/model.safetensors"]


def test_a_lost_process_ends_the_others_and_the_run_resumes_to_the_same_bits(
    forks: Forks, alone: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for rank, place, step in (
        (0, "forward", 1),
        (1, "forward", 2),
        (0, "all-reduce", 1),
        (1, "all-reduce", 3),
        (0, "save", 1),
        (1, "wait", 3),
    ):
        start = time.monotonic()
        plant = {"what": "die", "place": place, "rank": rank, "step": step}
        codes = forks.ranks(run, 2, config=TWO, resume=True, plant=plant)
        assert codes[rank] == -signal.SIGKILL, (place, forks.messages())
        assert codes[1 - rank] == 7, (place, forks.messages())
        assert time.monotonic() - start < 60
        assert "another process of this run ended" in forks.messages()
        assert "Traceback" not in forks.messages()
        forks.forget()
    assert forks.ranks(run, 2, config=TWO, resume=True) == [0, 0], forks.messages()
    assert equal(run, alone)


def test_a_process_that_hangs_counts_as_lost(forks: Forks, tmp_path: Path) -> None:
    hang = {"what": "die", "place": "all-reduce", "rank": 1, "step": 2, "signal": 0, "sleep": 40}
    start = time.monotonic()
    jobs = [{}, {"signals": [(1.0, signal.SIGKILL)]}]
    codes = forks.ranks(tmp_path / "run", 2, jobs, config=TWO, plant=hang, step_seconds=3)
    assert codes == [7, -signal.SIGKILL], forks.messages()
    assert "does not answer" in forks.messages()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    forks: Forks, alone: dict[str, str], tmp_path: Path, asked: int
) -> None:
    run = tmp_path / "run"
    plant = {"what": "die", "place": "step", "rank": asked, "step": 2, "signal": signal.SIGINT}
    assert forks.ranks(run, 2, config=TWO, plant=plant) == [130, 130], forks.messages()
    assert re.findall(r"after step (\d) of stage 1", forks.messages()) == ["3", "3"]
    forks.forget()
    assert forks.ranks(run, 2, config=TWO, resume=True) == [0, 0], forks.messages()
    assert equal(run, alone)


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(forks: Forks, tmp_path: Path) -> None:
    plant = {"what": "not finite", "calls": [2], "kind": "loss", "rank": 1}
    run = tmp_path / "run"
    assert forks.ranks(run, 2, config={**TWO, "stages": [1]}, plant=plant) == [0, 0], forks.messages()
    assert json.loads((run / "summary.json").read_text())["stage1"]["skipped"] == 1


def test_what_cannot_be_shared_or_continued_is_refused_in_every_process(forks: Forks, tmp_path: Path) -> None:
    assert forks.ranks(tmp_path / "three", 2, config={"shards": 3}) == [2, 2]
    assert "2 processes cannot share 3 shards of a step equally / --set shards=2" in forks.messages()
    forks.forget()
    plant = {"what": "die", "place": "step", "rank": 0, "step": 1}
    assert forks.run(tmp_path / "run", config=TWO, plant=plant) == -signal.SIGKILL
    assert forks.ranks(tmp_path / "run", 2, config=TWO, resume=True) == [2, 2]
    lines = forks.messages().splitlines()
    assert len(set(lines)) == 1
    assert "started by 1 processes, now there are 2 / " in lines[0]
