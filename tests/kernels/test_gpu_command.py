"""`make gpu` before a GPU is there: the whole harness at tiny sizes on the CPU, its refusal, and the page made from its rows."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
BENCH = ROOT / "kernels" / "bench"
sys.path.insert(0, str(BENCH))
import check  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402

from pam_kernels.depthwise.configs import INTERPRETER  # noqa: E402


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(BENCH / "run.py"), *arguments]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    file = tmp_path_factory.mktemp("dry") / "none.csv"
    done = _run("--dry", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    with file.open(newline="") as stream:
        return file, list(csv.DictReader(stream))


def test_every_pass_of_both_operators_and_the_training_step_give_a_row(rows: tuple[Path, list[dict[str, str]]]) -> None:
    passes = {(row["op"], row["pass"]) for row in rows[1]}
    assert passes == {
        *(("depthwise_conv2d", name) for name in ("forward", "input_grad", "weight_grad")),
        *(("connect", name) for name in ("forward", "forward_for_training", "training")),
        ("training_step_dry", "every_second_unit"),
    }
    for row in rows[1]:
        assert row["gpu"] == "none"
        assert row["torch"] == torch.__version__
        assert float(row["ms"]) > 0
        assert row["vs_aten" if row["op"] != "training_step_dry" else "vs_torch_compile"]


def test_the_page_shows_every_row(rows: tuple[Path, list[dict[str, str]]]) -> None:
    file, measured = rows
    before = f"# Page\n{tables.BEGIN}old\n{tables.END}end\n"
    page = tables.page(before, file.parent, file.parent)
    assert page.startswith("# Page\n")
    assert page.endswith("end\n")
    assert "old" not in page
    assert page.count("\n| connect") + page.count("\n| depthwise_conv2d") + page.count("\n| training") == len(measured)


def test_the_page_shows_every_case_of_the_dispatch(tmp_path: Path) -> None:
    row = {"op": "connect", "size": 64, "stride": 1, "dtype": "bfloat16", "scale": "small", "shape": [1, 64, 8, 8]}
    row |= {"ms": {"triton contiguous": 1.0, "triton channels_last": 4.0, "aten": 2.0}, "best": "aten"}
    row |= {"gpu": "a card", "torch": "2", "triton": "3", "date": "today"}
    both = [row | {"layout": "contiguous", "ratio": 2.0}, row | {"layout": "channels_last", "ratio": 0.5}]
    (tmp_path / "sm_90.json").write_text(json.dumps({"rows": both}))
    shown = tables.dispatch_tables([tmp_path / "sm_90.json"])
    assert "a card, torch 2, triton 3, today" in shown
    assert "| connect | bfloat16 | 64 | 1 | 1x64x8x8 | 1.000 | 4.000 |  | 2.000 |  |  | 2.00 / 0.50 |" in shown


def test_the_page_of_the_repository_is_the_one_made_from_the_rows_of_the_repository(tmp_path: Path) -> None:
    text = tables.PAGE.read_text()
    assert text == tables.page(text, tables.RESULTS)
    assert ("No row exists yet" in text) == (not list(tables.RESULTS.glob("*.csv")))
    assert "No row exists yet" in tables.page(text, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = _run()
    assert done.returncode == 3
    assert done.stdout == "make gpu needs an NVIDIA GPU that PyTorch can use; nothing was run\n"
    assert done.stderr == ""


# What goes wrong on a machine that nobody has seen


@pytest.fixture
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")
    monkeypatch.setattr(run.cases, "BACKEND", "eager")


@pytest.mark.usefixtures("_triton")
def test_one_case_that_fails_loses_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: Any, device: str) -> Any:
        if case.pass_ == "weight_grad":
            raise torch.OutOfMemoryError("no room for it")
        return measured(case, device)

    measured = run.measure_case
    monkeypatch.setattr(run, "measure_case", measure)
    monkeypatch.setattr(run.step, "PATHS", ())
    results = list(run.measure_all("cpu", True, time.perf_counter(), math.inf, set()))
    assert [result and result.pass_ for result in results] == [
        *("forward", "input_grad", None),
        *("forward", "forward_for_training", "training"),
    ]
    assert "weight_grad" in (said := capsys.readouterr().out)
    assert "OutOfMemoryError: no room for it" in said


@pytest.mark.usefixtures("_triton")
def test_an_implementation_that_fails_loses_its_column_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("no room for it")

    monkeypatch.setattr(run.cases, "connect_reference", refuse)
    case = run.cases.Connect((1, 4, 5, 6), torch.float32, "training", compiled=False)
    assert run.measure_case(case, "cpu").costs.keys() == {run.cases.OURS}
    monkeypatch.setattr(run.cases, "connect", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        run.measure_case(case, "cpu")


@pytest.mark.usefixtures("_triton")
def test_a_training_step_that_fails_loses_no_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room for it")

    monkeypatch.setattr(run.step, "measure_step", fail)
    results = list(run.measure_all("cpu", True, time.perf_counter(), math.inf, set()))
    assert len(results) == 7
    assert results[0] is None
    assert "no row of the training step every_second_unit: OutOfMemoryError" in capsys.readouterr().out


@pytest.mark.usefixtures("_triton")
def test_an_operator_that_is_wrong_has_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    results = list(run.measure_all("cpu", True, time.perf_counter(), math.inf, {"depthwise_conv2d"}))
    assert [result.op for result in results] == ["connect"] * 3
    assert "no training step every_second_unit: a check failed" in capsys.readouterr().out


def test_when_the_time_is_up_nothing_is_begun(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(run.measure_all("cpu", False, time.perf_counter() - 600, 9, {"connect"})) == []
    depthwise = sum(case.op != "connect" for case in run.cases.cases())
    assert f"{depthwise} cases have no rows: they did not fit into 9 minutes" in (said := capsys.readouterr().out)
    assert said.count("no training step") == 2


def test_training_steps_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_case", lambda case, device: "case")
    monkeypatch.setattr(run.step, "measure_step", lambda *_: iter(["step"]))
    results = list(run.measure_all("cpu", False, time.perf_counter(), 9, set()))
    assert results[:3] == ["step", "step", "case"]
    assert len(results) == 2 + len(list(run.cases.cases()))


def test_less_time_moves_every_deadline() -> None:
    whole, half = run.Deadlines().seconds(9), run.Deadlines().seconds(4.5)
    assert list(whole) == sorted(whole)
    assert whole.steps_end < 9 * 60
    assert [2 * seconds for seconds in half] == pytest.approx(list(whole))


BOTH = {"depthwise_conv2d", "connect"}


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("pass", set()),
        ("print('WRONG connect Case(): 1 is not 2'); raise SystemExit(1)", {"connect"}),
        ("print('WRONG connect Case(): 1 is not 2'); import os; os.abort()", BOTH),
        ("import no_such_module", BOTH),
        ("import time; time.sleep(60)", BOTH),
        ("import subprocess; subprocess.run(['sleep', '60'])", BOTH),
    ],
)
def test_what_a_process_of_checks_says_is_heard(
    code: str, wrong: set[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_start", _speaker(code))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    deadlines = run.Deadlines(checks=0, checks_end=10 if "sleep" not in code else 0)
    assert run.wrong_operators(False, deadlines) == wrong
    assert "compute-sanitizer is not installed: skipped" in capfd.readouterr().out


@pytest.mark.parametrize(("code", "wrong"), [(0, set()), (9, BOTH), (255, set())])
def test_only_errors_that_the_sanitizer_finds_are_errors(
    code: int, wrong: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot run on every machine where it is installed."""
    monkeypatch.setattr(
        run,
        "_start",
        lambda program, arguments, before=None: _speaker(f"raise SystemExit({code if before else 0})")(arguments),
    )
    monkeypatch.setattr(shutil, "which", lambda name: "/somewhere/compute-sanitizer")
    assert run.wrong_operators(False, run.Deadlines(checks=0, checks_end=10)) == wrong
    assert ("could not run" in capsys.readouterr().out) == (code == 255)


def _speaker(code: str) -> Callable[..., subprocess.Popen[str]]:
    """Starts a process that runs this in the place of the checks."""
    command = [sys.executable, "-S", "-c", code]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda *_: subprocess.Popen(command, start_new_session=True, **pipes)


def test_a_wrong_operator_fails_its_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PAM_KERNELS", "auto")
    monkeypatch.setattr(sys, "argv", ["check.py", "--size", "dry"])
    assert check.main() == 0
    connect = check.connect
    monkeypatch.setattr(check, "connect", lambda x, *rest: connect(x, *rest) + 0.5 * x)
    assert check.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("WRONG connect ") for line in lines)


def test_a_machine_without_git_still_has_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PAM_COMMIT", "abc")
    assert run.environment("cpu")["commit"] == "abc"


def test_other_block_sizes_are_tried(tmp_path: Path) -> None:
    """In a process of its own: the interpreter is chosen before Triton is imported."""
    out = tmp_path / "blocks.txt"
    command = [sys.executable, str(run.HERE / "blocks.py"), "--dry", "--out", str(out), "--only", "depthwise"]
    subprocess.run(command, check=True, capture_output=True)
    lines = out.read_text().splitlines()
    used = [line for line in lines if " * " in line]
    assert [line.split(" * ")[1] for line in used] == [repr(INTERPRETER[1]), repr(INTERPRETER[2])]
    assert len(set(lines)) == len(lines) > 10
