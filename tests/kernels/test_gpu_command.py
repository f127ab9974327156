"""`make gpu` before a GPU is there: the whole harness at tiny sizes on the CPU, its refusal, and the page made from its rows."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
BENCH = ROOT / "kernels" / "bench"
sys.path.insert(0, str(BENCH))
import tables  # noqa: E402


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
    page = tables.page(before, file.parent)
    assert page.startswith("# Page\n")
    assert page.endswith("end\n")
    assert "old" not in page
    assert page.count("\n| connect") + page.count("\n| depthwise_conv2d") + page.count("\n| training") == len(measured)


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
