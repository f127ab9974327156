"""What a run computes in, and what it must find again when it continues."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from strategies import Ear

from pam_mobile.errors import UsageError
from pam_mobile.files import write_sealed_json
from pam_mobile.reporter import Silent
from pam_mobile.train import machine
from pam_mobile.train.processes import Processes


@pytest.mark.parametrize("name", ["pam_mobile", "torch", "device", "precision"])
def test_what_changes_the_bits_is_warned_of_and_nothing_else_is(tmp_path: Path, name: str) -> None:
    now, ear = machine.environment(Processes(), "fp32"), Ear()
    write_sealed_json(tmp_path / "env.json", {**now, "python": "3.99"})
    machine.require_same(tmp_path / "env.json", now, ear)
    assert ear.heard == []
    write_sealed_json(tmp_path / "env.json", {**now, name: "older"})
    machine.require_same(tmp_path / "env.json", now, ear)
    (heard,) = ear.heard
    assert f"started with {name} older, now it is {now[name]}" in heard


def test_threads_count_on_the_cpu_only(tmp_path: Path) -> None:
    now = machine.environment(Processes(), "fp32")
    write_sealed_json(tmp_path / "env.json", {**now, "device": "cuda", "threads": 99})
    machine.require_same(tmp_path / "env.json", {**now, "device": "cuda"}, Silent())
    with pytest.raises(UsageError, match="started with 99 threads"):
        machine.require_same(tmp_path / "env.json", {**now, "device": "cpu"}, Silent())


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    emulated = lambda including_emulation=True: native or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    assert machine.precision("auto") == chosen
    assert [machine.precision(wish) for wish in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="process 1 of this machine finds 1 GPUs"):
        Processes()


def test_peak_memory_is_in_bytes() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("there is no /proc here")
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(statm.read_text().split()[1]) * page
    assert resident / 2 < machine.peak_memory(torch.device("cpu")) < os.sysconf("SC_PHYS_PAGES") * page
