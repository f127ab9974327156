"""Procedural banks: cached and seeded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pam_mobile.config import Data
from pam_mobile.data import bank as banks
from pam_mobile.reporter import Reporter, Silent
from pam_mobile.train import material


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_HOME", str(tmp_path / "home"))


def test_a_bank_is_made_once_and_read_back_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    first = banks.synthetic_bank(3, 4, 2, 64)
    monkeypatch.setattr(banks, "_render", lambda *_: pytest.fail("made again"))
    again = banks.synthetic_bank(3, 4, 2, 64)
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.backgrounds, again.backgrounds)
    assert first.patches.shape == (4, 5, 64, 64)


def test_a_damaged_cache_is_made_again() -> None:
    first = banks.synthetic_bank(3, 4, 2, 64)
    (file,) = (banks.cache_folder() / "banks").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(banks.synthetic_bank(3, 4, 2, 64).patches, first.patches)


def test_a_cache_that_cannot_be_written_is_said_and_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = banks.synthetic_bank(3, 4, 2, 64)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PAM_HOME", str(tmp_path / "file"))
    again = banks.synthetic_bank(3, 4, 2, 64, reporter=Reporter())
    assert torch.equal(first.patches, again.patches)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: cannot write {tmp_path}/file/banks/")
    assert "PAM_HOME" in said


def test_held_out_seeds_are_apart_from_training_seeds() -> None:
    ours, theirs = banks.synthetic_bank(0, 4, 2, 64), banks.synthetic_bank(banks.HELD_OUT_SEED, 4, 2, 64)
    assert not any(torch.equal(a, b) for a in ours.patches for b in theirs.patches)


def test_banks_of_other_kinds_are_kept_apart() -> None:
    solid, hair = (banks.synthetic_bank(3, 4, 2, 64, (kind,)) for kind in ("solid", "hair"))
    assert not torch.equal(solid.patches, hair.patches)
    assert torch.equal(solid.backgrounds, hair.backgrounds)


def test_banks_of_other_seeds_share_no_matte(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[range] = []

    def watched(first: int, patches: int, backgrounds: int, size: int, *_: object) -> banks.Bank:
        drawn.append(range(first, first + max(patches, backgrounds)))
        planes = torch.zeros(patches, 5, size, size, dtype=torch.uint8)
        return banks.Bank(planes, torch.zeros(backgrounds, 3, size, size, dtype=torch.uint8))

    monkeypatch.setattr(material, "synthetic_bank", watched)
    for seed in range(3):
        material.load_bank(Data(patches=9, backgrounds=5, size=64), seed, Silent())
    assert len({number for numbers in drawn for number in numbers}) == 27
    assert all(numbers.stop <= banks.HELD_OUT_SEED for numbers in drawn)
