"""Training stops well: at signals, on full disks, on non-finite losses, beside a second run in the same folder."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from conftest import Reference, same_states
from forks import Forks, results
from safetensors.torch import load_file

from pam_mobile.files import locked


def finish(forks: Forks, run: Path, reference: Reference) -> None:
    assert forks.run(run, resume=True) == 0, forks.messages()
    same_states(forks, reference)
    assert results(run) == reference.results


ONLY_SIGNALS_SAVE = {"save_every": 1000}


def test_signals_finish_the_step_and_save_it(forks: Forks, reference: Reference, tmp_path: Path) -> None:
    """Each sitting is ended in its nth step, in the beginning, middle and end of stages; the next one goes on from there."""
    run = tmp_path / "run"
    sittings = (
        (signal.SIGINT, 1, (1, 2)),
        (signal.SIGTERM, 0, (1, 3)),
        (signal.SIGINT, 3, (2, 3)),
        (signal.SIGTERM, 2, (3, 2)),
    )
    for number, step, (stage, saved) in sittings:
        plant = {"what": "die", "place": "step", "rank": 0, "step": step, "signal": number}
        assert forks.run(run, resume=True, plant=plant, config=ONLY_SIGNALS_SAVE) == 128 + number, forks.messages()
        assert f"interrupted after step {saved} of stage {stage}, which is saved" in forks.messages()
        assert len(forks.messages().splitlines()) == 1
        assert (stage, saved) in forks.record("saved")
        forks.forget()
    assert forks.run(run, resume=True, config=ONLY_SIGNALS_SAVE) == 0
    assert list(forks.record("loaded")) == [(3, 2)]
    assert compare_final(run, reference)


def test_signals_at_any_time_leave_no_traceback_and_cost_nothing(
    forks: Forks, reference: Reference, tmp_path: Path
) -> None:
    """Whether they come before, within or after the steps is a matter of the machine's speed, so nothing is asked of that."""
    rng, run = random.Random(1), tmp_path / "run"
    for number in (signal.SIGINT, signal.SIGTERM) * 3:
        at = rng.uniform(0.05, reference.seconds)
        code = forks.run(run, resume=True, signals=[(at, number)], config=ONLY_SIGNALS_SAVE)
        assert code in (0, 128 + number), forks.messages()
        assert "Traceback" not in forks.messages()
        forks.forget()
    assert forks.run(run, resume=True, config=ONLY_SIGNALS_SAVE) == 0
    assert compare_final(run, reference)


def compare_final(run: Path, reference: Reference) -> bool:
    """The results but config.yaml and what repeats it, since the settings differ in how often is saved."""
    mine, theirs = results(run), reference.results
    return all(mine[name] == theirs[name] for name in theirs if name.endswith((".safetensors", ".jsonl", ".png")))


def test_a_second_signal_quits_at_once(forks: Forks, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        plant = {"what": "die", "place": "step", "rank": 0, "step": 2, "signal": number, "times": 2, "sleep": 300}
        assert forks.run(tmp_path / f"run{number}", plant=plant) == 128 + number, forks.messages()
        assert "interrupted after" not in forks.messages()


def test_a_signal_during_the_last_save_of_a_stage_takes_effect_at_once(
    forks: Forks, reference: Reference, tmp_path: Path
) -> None:
    plant = {"what": "die", "place": "save", "rank": 0, "step": 1, "signal": signal.SIGTERM}
    assert forks.run(tmp_path / "run", plant=plant) == 143
    assert not (tmp_path / "run" / "stage1").exists()
    finish(forks, tmp_path / "run", reference)


def test_a_disk_that_fills_up_stops_the_run_and_costs_no_state(
    forks: Forks, reference: Reference, tmp_path: Path
) -> None:
    rng = random.Random(2)
    run = tmp_path / "run"
    for _ in range(4):
        code = forks.run(run, resume=True, full_from_call=rng.randrange(20, reference.calls // 2))
        assert code in (0, 4), forks.messages()
        assert "Traceback" not in forks.messages()
        assert not list(run.rglob(".unfinished-*"))
        same_states(forks, reference)
    finish(forks, run, reference)


def test_steps_without_a_finite_gradient_are_skipped_counted_and_resumed(forks: Forks, tmp_path: Path) -> None:
    """Step 0, the middle and the last of stage 1 and one of stage 2, one of them by its gradient only."""
    for kind in ("loss", "gradient"):
        plant = {"what": "not finite", "calls": [1, 3, 4, 6], "kind": kind}
        run = tmp_path / kind
        assert forks.run(run, plant=plant) == 0, forks.messages()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["skipped"] for row in rows] == [1, 3, 1, 1, 0, 0]
        assert [row["loss"] is None for row in rows] == [False, kind == "loss", kind == "loss", False, False, False]
        summary = json.loads((run / "summary.json").read_text())
        assert [summary[stage]["skipped"] for stage in ("stage1", "stage2", "stage3")] == [3, 1, 0]
        for stage in ("stage1", "stage2", "stage3"):
            weights = load_file(run / stage / "model.safetensors")
            assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_ten_steps_without_a_finite_gradient_in_a_row_end_with_exit_code_7(forks: Forks, tmp_path: Path) -> None:
    long = {"stage1": {"steps": 40, "learning_rate": 1e-3}, "stages": [1]}
    run = tmp_path / "run"
    plant = {"what": "not finite", "calls": [2, *range(12, 100)], "kind": "loss"}
    assert forks.run(run, plant=plant, config=long) == 7
    assert "10 steps in a row up to step 20 of stage 1" in forks.messages()
    assert "learning_rate" in forks.messages()
    assert len(forks.messages().splitlines()) == 1
    assert sorted(path.name for path in (run / "last").glob("*.json")) == [
        "state-1-00000018.json",
        "state-1-00000020.json",
    ]
    forks.forget()
    again = {"what": "not finite", "calls": list(range(1, 100)), "kind": "loss"}
    assert forks.run(run, resume=True, plant=again, config=long) == 7
    assert "up to step 20 of stage 1" in forks.messages(), "the count must be part of the state"


def test_a_second_run_in_the_folder_is_refused_and_the_lock_dies_with_its_process(
    forks: Forks, reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    slow = {"what": "die", "place": "step", "rank": 0, "step": 3, "signal": 0, "sleep": 60}
    for resume in (False, True):
        first = {"out": str(run), "plant": slow, "resume": resume, "signals": [(6.0, signal.SIGKILL)]}
        second = {"out": str(run), "resume": True, "delay": 2.0}
        start = time.monotonic()
        assert forks.together([first, second]) == [-signal.SIGKILL, 2], forks.messages()
        assert re.search(r"run is in use by process \d+ / wait", forks.messages())
        assert time.monotonic() - start < 15
        forks.forget()
    finish(forks, run, reference)


def test_the_command_refuses_a_locked_folder_before_it_loads_anything_slow(tmp_path: Path) -> None:
    code = "import sys; from pam_mobile.cli import app; c = app(standalone_mode=False); assert 'torch' not in sys.modules; sys.exit(c)"
    with locked(tmp_path):
        command = [sys.executable, "-c", code, "train", "--out", str(tmp_path), "--resume"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2, answer.stderr
    assert f"in use by process {os.getpid()}" in answer.stderr
    assert len(answer.stderr.splitlines()) == 2


def test_another_number_of_threads_is_refused_with_the_way_out(forks: Forks, tmp_path: Path) -> None:
    plant = {"what": "die", "place": "step", "rank": 0, "step": 3}
    forks.run(tmp_path / "run", plant=plant)
    assert forks.run(tmp_path / "run", resume=True, threads=2) == 2
    (line,) = forks.messages().splitlines()
    assert "started with 1 threads, now there are 2" in line
    assert "OMP_NUM_THREADS=1" in line
