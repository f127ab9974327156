"""Silence, and what is said when something fails in it; the benchmark's quick mode."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path as FilePath

import pytest
from export_samples import mini

from pam_export.quiet import quiet
from pam_mobile.errors import PamError, UsageError

ROOT = FilePath(__file__).resolve().parents[2]


def test_nothing_gets_out(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet("working"):
        sys.stdout.write("python\n")
        sys.stderr.write("python error\n")
        os.write(1, b"descriptor\n")
        os.write(2, b"descriptor error\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
        warnings.warn("heard by nobody", stacklevel=1)
    sys.stdout.write("after\n")
    os.write(2, b"after error\n")
    assert capfd.readouterr() == ("after\n", "after error\n")


def fail_loudly() -> None:
    for i in range(50):
        sys.stdout.write(f"line {i}\n")
    sys.stdout.flush()
    os.write(2, b"C++ says no\n")
    raise KeyError("what")


def test_a_failure_carries_the_end_of_the_output(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PamError, match="working failed: KeyError: 'what'") as caught, quiet("working"):
        fail_loudly()
    assert caught.value.hint.endswith("C++ says no")
    assert "line 49" in caught.value.hint
    assert "line 3\n" not in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_errors_for_users_and_interrupts_pass() -> None:
    with pytest.raises(UsageError, match="plain"), quiet("working"):
        raise UsageError("plain")
    with pytest.raises(KeyboardInterrupt), quiet("working"):
        raise KeyboardInterrupt


def test_a_logger_made_inside_still_has_a_stream_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet("working"), quiet("nested"):
        handler = logging.StreamHandler()
    handler.emit(logging.LogRecord("x", logging.INFO, "x", 1, "late", None, None))
    assert capfd.readouterr().err == "late\n"


def test_the_benchmark_runs(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "export" / "bench" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_run", run)
    spec.loader.exec_module(run)
    monkeypatch.setattr(run, "preset", lambda name, prior: mini(prior))
    monkeypatch.setattr(run, "QUICK", (run.Case("mini", "mini", False, "97%"),))
    out = tmp_path / "bench.csv"
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--out", str(out)])
    run.main()
    assert "random weights" in capsys.readouterr().out
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert ",".join(row) == (
        "case,preset,prior,path,macs,size,threads,eager_ms,pte_ms,ratio,runs,torch,executorch,cpu,commit,date_utc"
    )
    assert row["path"] != "111"
    assert float(row["eager_ms"]) > 0
    assert float(row["pte_ms"]) > 0
