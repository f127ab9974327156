"""Training in sittings: what one leaves is enough for the next, in files of bounded size, and damage is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Reference
from forks import Forks, results

from pam_mobile.errors import InputError, IntegrityError
from pam_mobile.files import write_sealed_json
from pam_mobile.train import pieces
from pam_mobile.train.pieces import MANIFEST, main, needed, pack, sit, unpack


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (
        "config.yaml",
        "env.json",
        ".lock",
        "samples/stage1.png",
        "stage1/checkpoint.json",
        "stage1/model.safetensors",
        "stage2/checkpoint.json",
        "stage2/model.safetensors",
        "stage3/.unfinished-x",
        "last/state-3-00000002.json",
        "last/state-3-00000002.safetensors",
        "last/state-3-00000004.json",
        "last/state-3-00000004.safetensors",
        "last/damaged-state-3-00000006.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def test_the_next_sitting_gets_the_small_files_the_last_stage_and_the_newest_state(run: Path, tmp_path: Path) -> None:
    names = [file.relative_to(run).as_posix() for file in needed(run)]
    assert names == [
        "config.yaml",
        "env.json",
        "stage2/checkpoint.json",
        "stage2/model.safetensors",
        "last/state-3-00000004.json",
        "last/state-3-00000004.safetensors",
    ]
    pack(run, tmp_path / "parts")
    unpack(tmp_path / "parts", tmp_path / "again")
    back = sorted(file.relative_to(tmp_path / "again").as_posix() for file in (tmp_path / "again").rglob("*.*"))
    assert back == sorted(names)
    assert all((tmp_path / "again" / name).read_bytes() == (run / name).read_bytes() for name in names)


def test_a_run_is_unpacked_as_a_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(run, tmp_path / "parts")

    def interrupted(archive: tarfile.TarFile, path: Path, **options: Any) -> None:
        archive.extract("config.yaml", path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "parts", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    unpack(tmp_path / "parts", tmp_path / "again")
    assert (tmp_path / "again" / "last" / "state-3-00000004.safetensors").is_file()
    assert not list(tmp_path.glob(".*"))


def test_parts_are_small_and_every_changed_missing_or_added_one_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART_BYTES", 40_000)
    pack(run, tmp_path / "parts")
    parts = sorted((tmp_path / "parts").glob("run.tar.*"))
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) == 40_000
    for part in parts:
        data = part.read_bytes()
        part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=part.name):
            unpack(tmp_path / "parts", tmp_path / "again")
        part.unlink()
        with pytest.raises(InputError, match=part.name):
            unpack(tmp_path / "parts", tmp_path / "again")
        part.write_bytes(data)
    manifest = json.loads((tmp_path / "parts" / MANIFEST).read_text())
    manifest["parts"][0]["file"] = "../secret"
    write_sealed_json(tmp_path / "parts" / MANIFEST, manifest)
    with pytest.raises(InputError, match="does not list"):
        unpack(tmp_path / "parts", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_without_a_gpu_one_line_and_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["pieces", "--out", str(tmp_path / "parts")])
    assert main() == 3
    assert capsys.readouterr().err == "there is no NVIDIA GPU here\n"
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_run_that_moved_comes_to_the_same_end(forks: Forks, reference: Reference, tmp_path: Path, step: int) -> None:
    """Interrupted in each stage, packed, unpacked elsewhere, continued."""
    plant = {"what": "die", "place": "step", "rank": 0, "step": step, "signal": signal.SIGINT}
    assert forks.run(tmp_path / "here", plant=plant) == 130, forks.messages()
    pack(tmp_path / "here", tmp_path / "parts")
    unpack(tmp_path / "parts", tmp_path / "there")
    assert forks.run(tmp_path / "there", resume=True) == 0, forks.messages()
    mine = {name: digest for name, digest in results(tmp_path / "there").items() if "stage1" not in name}
    assert all(digest == reference.results[name] for name, digest in mine.items())
    assert "stage3/model.safetensors" in mine


@pytest.fixture(autouse=True)
def _hear_interrupts() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and children inherit that: undo it, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STUBBORN = """#!/bin/sh
trap 'echo interrupted > "$0.log"; exit 130' INT
echo "$@" > "$0.arguments"
while :; do sleep 0.1; done
"""
FOLDER = 'mkdir "$5" && touch "$5/config.yaml"\n'
"""As called by a sitting: -m pam_mobile train --out FOLDER."""


def test_a_sitting_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "python"
    child.write_text(STUBBORN)
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    assert sit(tmp_path / "run", 1.0, ["--preset", "phone"]) == 130
    assert (tmp_path / "python.log").exists()
    assert (tmp_path / "python.arguments").read_text().split() == [
        *("-m", "pam_mobile", "train", "--out", str(tmp_path / "run"), "--resume", "--preset", "phone")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["alone", "like-a-terminal"])
def test_an_interrupted_sitting_packs_what_was_trained(tmp_path: Path, number: int, to_all: bool) -> None:
    """Whether the signal reaches one process or, as from a terminal, all of its group."""
    child = tmp_path / "python"
    child.write_text(STUBBORN.replace("130' INT", "130' INT; trap 'exit 1' TERM").replace("while", FOLDER + "while"))
    child.chmod(0o755)
    code = f"import sys; sys.executable = {str(child)!r}; from pam_mobile.train.pieces import main; sys.exit(main())"
    arguments = ["--any-device", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "parts")]
    sitting = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "run" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(sitting.pid, number)
    error = sitting.communicate(timeout=30)[1]
    assert sitting.returncode == 130, error
    assert error.startswith("continue: python -m pam_mobile.train.pieces --from ")
    assert (tmp_path / "python.log").read_text() == "interrupted\n"
    unpack(tmp_path / "parts", tmp_path / "again")
    assert (tmp_path / "again" / "config.yaml").exists()
