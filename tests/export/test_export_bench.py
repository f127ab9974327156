"""Bench: rows and ratios from known costs, refusals, children that never stay behind; and estimates against published figures."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest

from pam_export import bench, device, manifest
from pam_mobile.errors import InputError, IntegrityError

ROOT = FilePath(__file__).parents[2]
COUNTS = "sha256,method,cpu,m_total\n"


# Estimates


@pytest.mark.parametrize(
    ("phone", "factor", "errors", "least", "most"),
    [("Pixel 2", 0.471, (7, 3, 0, -9), 0.3372, 0.4927), ("Pixel 3a", 0.460, (8, 2, -3, -7), 0.3572, 0.5116)],
)
def test_calibration_gives_the_published_factors(
    phone: str, factor: float, errors: tuple[int, ...], least: float, most: float
) -> None:
    """Worked out apart from this code, from counts of another counter."""
    (known,) = (p for p in device.PHONES if p.name == phone)
    assert known.factor == pytest.approx(factor, abs=5e-4)
    assert [100 * error for error in known.errors] == pytest.approx(errors, abs=0.7)
    assert known.calibrated == pytest.approx((least, most), abs=5e-4)
    assert known.band == 0.25


def test_the_calibration_is_what_was_counted() -> None:
    """The committed rows of export/arm64/anchors.py; their multiply-adds are those of the papers."""
    with open(ROOT / "export" / "results" / "anchors.csv", newline="") as file:
        counted = {(row["file"], row["cpu"]): row for row in csv.DictReader(file)}
    for phone in device.PHONES:
        mine = [counted[name, phone.cpu] for name in device.NETWORKS]
        assert tuple(float(row["m_total"]) for row in mine) == phone.instructions
        assert tuple(float(row["m_macs"]) for row in mine) == device.MACS
        assert all(float(row["relative_difference"]) < 1e-4 for row in mine)


def test_the_band_is_never_narrower_than_the_worst_anchor() -> None:
    sound = device.Phone("sound", "cpu", (1.0, 2.0, 3.0, 4.0), (2.0, 4.0, 6.0, 8.0))
    assert sound.factor == pytest.approx(2)
    assert sound.errors == pytest.approx((0, 0, 0, 0))
    assert sound.band == 0.25
    odd = device.Phone("odd", "cpu", (1.0, 2.0, 3.0, 4.0), (4.0, 4.0, 6.0, 8.0))
    assert odd.errors[0] == pytest.approx(-0.5)
    assert odd.band == pytest.approx(0.5)


def test_an_estimate_says_its_band_or_that_it_has_none() -> None:
    phone = device.PHONES[0]
    inside = device.estimate(phone, 100, 250_000_000, "fp32")
    assert (inside.low, inside.high) == pytest.approx((0.75 * inside.ms, 1.25 * inside.ms))
    assert str(inside) == "47 (35 to 59)"
    for macs in (100_000_000, 400_000_000):
        assert str(device.estimate(phone, 100, macs, "fp32")) == "47, outside calibration"
    assert str(device.estimate(phone, 100, 250_000_000, "int8")) == "47, outside calibration"
    assert "not measured" in device.LABEL


# Rows and ratios


def subject(
    name: str, macs: int, share: int, form: str = "single", precision: str = "fp32", target: str = "executorch"
) -> bench.Subject:
    artifact = {
        "name": name,
        "target": target,
        "form": form,
        "precision": precision,
        "files": [{"path": name, "sha256": name, "bytes": 2_500_000}],
    }
    path = None if form == "adaptive" else f"{macs:b}"
    method = {"name": "forward", "height": 64, "path": path, "macs": macs, "budget": {"text": f"{share}%"}}
    return bench.Subject(FilePath("folder"), artifact, method)


def rows(*costs: tuple[bench.Subject, bench.Cost | None], known: list[dict[str, Any]] | None = None) -> list[bench.Row]:
    return bench.with_ratios([bench.row_of(subject, cost, known or []) for subject, cost in costs])


def cost(*ms: float, path: str = "", peak: int | None = 5_000_000) -> bench.Cost:
    return bench.Cost(ms, path, peak)


def test_a_row_holds_median_ninetieth_percentile_size_and_peak() -> None:
    times = [float(n) for n in range(1, 21)]
    (row,) = rows((subject("a", 4, 80), cost(*reversed(times))))
    assert (row["ms_p50"], row["ms_p90"], row["file_mb"], row["peak_mb"], row["note"]) == (10.5, 18, 2.5, 5.0, "")
    (unknown,) = rows((subject("a", 4, 80), cost(1.0, peak=None)))
    assert unknown["peak_mb"] == ""


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (2, 2), (9, 9), (10, 9), (11, 10), (20, 18), (100, 90)])
def test_a_percentile_is_a_value_that_occurred(count: int, rank: int) -> None:
    assert bench.percentile([float(n) for n in range(count, 0, -1)], 90) == rank


def test_ratios_are_against_the_largest_budget_and_float32_of_the_same_kind() -> None:
    small, large, int8, web = rows(
        (subject("a", 6, 60), cost(3.0)),
        (subject("b", 10, 100), cost(4.0)),
        (subject("c", 6, 60, precision="int8"), cost(1.0)),
        (subject("d", 6, 60, target="onnx"), cost(9.0)),
    )
    assert (small["macs_vs_largest"], small["ms_vs_largest"]) == (0.6, 0.75)
    assert (large["macs_vs_largest"], large["ms_vs_largest"]) == (1, 1)
    assert (int8["ms_vs_fp32"], int8["macs_vs_largest"]) == (0.333, 1)
    assert (web["macs_vs_largest"], web["ms_vs_fp32"]) == (1, "")


def test_a_chosen_path_stands_beside_the_artifact_of_that_path() -> None:
    fixed, adaptive, other = rows(
        (subject("fixed", 6, 60), cost(4.0)),
        (subject("adaptive", 7, 60, form="adaptive"), cost(5.0, path="110")),
        (subject("other", 9, 90, form="adaptive"), cost(6.0, path="111")),
    )
    assert (adaptive["path"], adaptive["ms_vs_single"]) == ("110", 1.25)
    assert other["ms_vs_single"] == fixed["ms_vs_single"] == ""
    assert {row["fixed_path"] for row in (fixed, adaptive, other)} == {""}


def test_a_host_that_was_told_the_fixed_path_is_compared_on_that_path() -> None:
    told = bench.Cost((7.0,), "111", None, fixed_ms=(4.0, 4.4, 9.0), fixed_path="110")
    _, wrong, adaptive = rows(
        (subject("fixed", 6, 60), cost(4.0)),
        (subject("wrong", 7, 90), cost(6.0)),
        (subject("adaptive", 7, 60, form="adaptive"), told),
    )
    assert (adaptive["path"], adaptive["ms_p50"]) == ("111", 7.0)
    assert (adaptive["fixed_path"], adaptive["fixed_path_ms"], adaptive["ms_vs_single"]) == ("110", 4.4, 1.1)
    assert wrong["ms_vs_single"] == ""


def test_only_a_host_is_told_the_path_of_the_fixed_artifact_of_its_budget() -> None:
    fixed, adaptive = subject("fixed", 6, 60), subject("adaptive", 7, 60, form="adaptive")
    told = bench.told_fixed_path(adaptive, [adaptive, subject("other", 5, 50), fixed])
    assert told is not None
    assert (told.told, told.name) == ("110", adaptive.name)
    assert bench.told_fixed_path(adaptive, [adaptive, subject("other", 5, 50)]) is None
    assert bench.told_fixed_path(fixed, [fixed, adaptive]) is None
    script = [
        subject(name, 6, 60, form=form, target="torchscript") for name, form in (("a", "adaptive"), ("f", "single"))
    ]
    assert bench.told_fixed_path(script[0], script) is None


def test_what_only_converts_has_no_times() -> None:
    (row,) = rows((subject("a", 6, 60, target="coreml"), None))
    assert row["note"] == "converted, not executed"
    assert {row[key] for key in ("ms_p50", "ms_p90", "peak_mb", "ms_vs_largest")} == {""}


def test_counts_belong_to_exactly_one_file_and_method() -> None:
    known = [
        {"sha256": "a", "method": "forward", "cpu": "cortex-a73", "m_total": "100.0"},
        {"sha256": "a", "method": "b100_64x64", "cpu": "cortex-a75", "m_total": "200.0"},
        {"sha256": "other", "method": "forward", "cpu": "cortex-a75", "m_total": "300.0"},
    ]
    (row,) = rows((subject("a", 250_000_000, 100), cost(1.0)), known=known)
    assert row["m_instructions_cortex-a73"] == 100
    assert (row["Pixel 2 ms"], row["Pixel 2 low"], row["Pixel 2 high"]) == (47.1, 35.3, 58.8)
    assert row["Pixel 2"] == device.LABEL
    assert {row["m_instructions_cortex-a75"], row["Pixel 3a ms"], row["Pixel 3a"]} == {""}
    (row,) = rows((subject("a", 100_000_000, 100), cost(1.0)), known=known)
    assert (row["Pixel 2 ms"], row["Pixel 2 low"]) == (47.1, "")
    assert row["Pixel 2"].endswith("not measured; outside calibration")


def test_counts_are_optional_but_not_anything(tmp_path: FilePath) -> None:
    assert bench.read_counts(tmp_path / "none.csv") == []
    file = tmp_path / "counts.csv"
    file.write_text(COUNTS + "ab,forward,cortex-a75,1.5\n")
    assert bench.read_counts(file)[0]["m_total"] == "1.5"
    file.write_text("image,sad\na,1\n")
    with pytest.raises(InputError, match=r"was not written by export/arm64/run\.py"):
        bench.read_counts(file)


# Real artifacts


@pytest.fixture(scope="module")
def measured(exported: FilePath, tmp_path_factory: pytest.TempPathFactory) -> list[bench.Row]:
    """The shared export, with a count for its first artifact."""
    counts = tmp_path_factory.mktemp("counts") / "counts.csv"
    first = manifest.read(exported)["artifacts"][0]["files"][0]["sha256"]
    counts.write_text(COUNTS + f"{first},forward,cortex-a75,1.5\n")
    return bench.bench_folder(exported, runs=2, counts=counts)


def test_every_artifact_has_a_row_and_what_runs_has_times(exported: FilePath, measured: list[bench.Row]) -> None:
    artifacts = manifest.read(exported)["artifacts"]
    assert [row["file"] for row in measured] == [artifact["name"] for artifact in artifacts]
    ran = [row for row in measured if row["target"] == "executorch"]
    converted = [row for row in measured if row["target"] == "coreml"]
    assert len(ran) == len(converted) == 3
    for row in ran:
        assert 0 < row["ms_p50"] <= row["ms_p90"]
        assert row["ms_vs_largest"] > 0
        assert (row["threads"], row["runs"]) == (1, 2)
    assert {row["note"] for row in converted} == {"converted, not executed"}
    assert next(row["macs_vs_largest"] for row in ran) == 1
    assert sum(row["m_instructions_cortex-a75"] == 1.5 for row in measured) == 1


@pytest.mark.skipif(not FilePath("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak of memory")
def test_memory_is_that_of_the_artifact(measured: list[bench.Row]) -> None:
    """The runtime alone takes hundreds of megabytes; this network and its arena a few."""
    for row in measured:
        if row["target"] == "executorch":
            assert 0.1 < row["peak_mb"] < 100


def test_the_command_prints_a_table_and_writes_the_rows(
    exported: FilePath,
    tmp_path: FilePath,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: list[bench.Row],
) -> None:
    monkeypatch.setattr(bench, "bench_folder", lambda *arguments, **options: measured)
    out = tmp_path / "rows.csv"
    code, printed, _ = command(monkeypatch, capsys, exported, "--out", out)
    assert code == 0
    assert "converted, not executed" in printed
    assert device.LABEL in printed
    with open(out, newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["file"] for row in written] == [row["file"] for row in measured]
    code, printed, _ = command(monkeypatch, capsys, exported, "--json")
    assert [row["ms_p50"] for row in json.loads(printed)["rows"]] == [row["ms_p50"] for row in measured]


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    from pam_mobile import cli

    monkeypatch.setattr(sys, "argv", ["pam-mobile", "bench", *map(str, words)])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        cli.main()
    signal.signal(signal.SIGTERM, handler)
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_refusals_are_one_line_and_come_before_any_work(
    copied: Callable[[], FilePath], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_child", lambda *arguments: pytest.fail("something was started"))
    folder = copied()
    code, _, said = command(monkeypatch, capsys, folder / "nowhere")
    assert (code, said.splitlines()[0]) == (3, f"error: {folder}/nowhere/manifest.json does not exist")
    code, _, said = command(monkeypatch, capsys, folder, "--out", folder / "rows.csv")
    assert code == 2
    assert "is inside the export folder" in said
    file = folder / manifest.read(folder)["artifacts"][0]["name"]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    code, _, said = command(monkeypatch, capsys, folder)
    assert code == 5
    assert "is damaged" in said.splitlines()[0]


def test_an_artifact_that_gives_another_alpha_is_not_timed(copied: Callable[[], FilePath]) -> None:
    """The 100 % artifact under the golden output of 96 %, hashes and all."""
    folder = copied()
    content = manifest.read(folder)
    first, *_, last = (a for a in content["artifacts"] if a["target"] == "executorch")
    first["methods"][0]["golden"] = last["methods"][0]["golden"]
    manifest.write(folder, content)
    with pytest.raises(IntegrityError, match="differs from its golden alpha"):
        bench.bench_folder(folder, runs=1)


def test_a_child_that_dies_is_an_error_in_words(exported: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = manifest.read(exported)["artifacts"][0]
    item = bench.Subject(exported, artifact, artifact["methods"][0])
    with bench._child("executorch", 1) as ask:
        ask.process.kill()
        ask.process.wait()
        with pytest.raises(IntegrityError, match=r"crashed its process \(exit code -9\)"):
            ask(item)


def test_an_interrupt_leaves_no_child_behind(exported: FilePath) -> None:
    """Ctrl-C reaches the whole group of processes; the command ends with 130 and so do its children."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    call = [sys.executable, "-m", "pam_mobile.cli", "bench", str(exported), "--runs", "100000"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # What a shell starts in the background ignores SIGINT, and children inherit that.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(call, env=environment, start_new_session=True, **pipes) as process:
        assert process.stderr is not None
        assert any("time, in turns" in said for said in process.stderr)
        time.sleep(0.5)
        assert children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130, rest
    assert "interrupted" in rest
    assert not children(process.pid)


def children(group: int) -> list[int]:
    """The living processes of a group but its leader."""
    found = []
    for folder in FilePath("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and int(folder.name) != group and fields[0] != "Z":
            found.append(int(folder.name))
    return found
