"""The last two states: what is kept, what is passed over loudly, and what is refused."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from strategies import Ear

from pam_mobile.errors import InputError, IntegrityError, PartialFailureError
from pam_mobile.tensorfile import Layout
from pam_mobile.train.runstate import RunState


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((2, 2), value), "ema.weight": torch.full((3,), value)}


def same(have: Layout) -> Layout:
    return have


@pytest.fixture
def states(tmp_path: Path) -> RunState:
    """Two states: stage 1, steps 2 and 4."""
    found = RunState(tmp_path / "last")
    for step in (2, 4):
        found.save(1, step, tensors(step), {"skipped": 0})
    return found


def step_of(states: RunState, ear: Ear) -> int | None:
    facts = states.newest(same, ear)
    if facts is None:
        return None
    assert torch.equal(states.tensors(facts)["model.weight"], torch.full((2, 2), float(facts["step"])))
    return int(facts["step"])


def files(states: RunState) -> list[str]:
    return sorted(path.name for path in states.folder.iterdir())


def test_the_newest_is_used_and_two_are_kept(states: RunState) -> None:
    ear = Ear()
    for stage, step in ((1, 6), (1, 10), (2, 2)):
        states.save(stage, step, tensors(step), {"skipped": 3})
    assert files(states) == [
        f"state-{place}.{end}" for place in ("1-00000010", "2-00000002") for end in ("json", "safetensors")
    ]
    facts = states.newest(same, ear)
    assert facts is not None
    assert (facts["stage"], facts["step"], facts["skipped"]) == (2, 2, 3)
    assert ear.heard == []


def test_no_state_is_none(tmp_path: Path) -> None:
    assert RunState(tmp_path / "none").newest(same, Ear()) is None
    (tmp_path / "last").mkdir()
    assert RunState(tmp_path / "last").newest(same, Ear()) is None


@pytest.mark.parametrize("end", ["json", "safetensors"])
def test_every_flipped_byte_of_the_newest_falls_back_to_the_one_before_and_says_so(
    states: RunState, tmp_path: Path, end: str
) -> None:
    rng = random.Random(0)
    good = shutil.copytree(states.folder, tmp_path / "good")
    data = (good / f"state-1-00000004.{end}").read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        (states.folder / f"state-1-00000004.{end}").write_bytes(flipped)
        ear = Ear()
        assert step_of(states, ear) == 2, place
        assert len(ear.heard) == 1
        assert f"state-1-00000004.{end} is damaged" in ear.heard[0]
        assert (states.folder / f"damaged-state-1-00000004.{end}").exists()
        for file in good.glob("state-1-00000004.*"):
            shutil.copy(file, states.folder)


def test_truncated_missing_and_swapped_files_fall_back(states: RunState, tmp_path: Path) -> None:
    good = shutil.copytree(states.folder, tmp_path / "good")
    old, new = ({end: f"state-1-0000000{step}.{end}" for end in ("json", "safetensors")} for step in (2, 4))

    def damage_and_look(act: object) -> tuple[int | None, int]:
        shutil.rmtree(states.folder)
        shutil.copytree(good, states.folder)
        act()  # type: ignore[operator]
        ear = Ear()
        return step_of(states, ear), len(ear.heard)

    tensor_file, document = states.folder / new["safetensors"], states.folder / new["json"]
    assert damage_and_look(lambda: tensor_file.write_bytes(b"")) == (2, 1)
    assert damage_and_look(lambda: tensor_file.write_bytes(tensor_file.read_bytes()[:-1])) == (2, 1)
    assert damage_and_look(lambda: document.write_bytes(b"")) == (2, 1)
    assert damage_and_look(tensor_file.unlink) == (2, 1)
    assert damage_and_look(lambda: shutil.copy(good / old["safetensors"], tensor_file)) == (2, 1)
    assert damage_and_look(lambda: shutil.copy(good / old["json"], document)) == (2, 1)
    assert damage_and_look(document.unlink) == (2, 0), "a document comes last: without it there never was a state"


def test_a_damaged_state_is_not_counted_among_the_two(states: RunState) -> None:
    (states.folder / "state-1-00000004.safetensors").write_bytes(b"x")
    assert step_of(states, Ear()) == 2
    states.save(1, 3, tensors(3), {})
    assert [name for name in files(states) if name.startswith("state-") and name.endswith(".json")] == [
        "state-1-00000002.json",
        "state-1-00000003.json",
    ]


def test_two_damaged_states_are_an_integrity_error_with_the_way_out(states: RunState) -> None:
    for file in states.folder.glob("*.safetensors"):
        file.write_bytes(b"x")
    ear = Ear()
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        states.newest(same, ear)
    assert caught.value.code == 5
    assert caught.value.hint == f"delete {states.folder} to repeat the stage from its start"
    assert len(ear.heard) == 2


def test_a_state_of_another_network_is_refused_and_not_passed_over(states: RunState) -> None:
    with pytest.raises(InputError, match=r"does not hold the state of this run: model\.more is missing"):
        states.newest(lambda have: {**have, "model.more": (torch.float32, ())}, Ear())


def test_a_state_that_is_not_finite_is_not_saved(states: RunState) -> None:
    with pytest.raises(PartialFailureError, match="became infinite or NaN"):
        states.save(1, 6, tensors(float("nan")), {})
    assert step_of(states, Ear()) == 4


def test_what_a_killed_process_left_is_removed(states: RunState) -> None:
    (states.folder / ".unfinished-abc.safetensors").write_bytes(b"half")
    (states.folder / "state-1-00000006.safetensors").write_bytes(b"without its document")
    assert step_of(states, Ear()) == 4
    assert ".unfinished-abc.safetensors" not in files(states)
    states.save(1, 8, tensors(8), {})
    assert "state-1-00000006.safetensors" not in files(states)


class Kill(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("survived", range(4))
@pytest.mark.parametrize("deed", ["clear", "save"])
def test_a_kill_while_states_are_forgotten_leaves_no_damage(
    states: RunState, deed: str, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of deletions, in whatever order a folder lists its files."""
    real, done = Path.unlink, 0

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal done
        if done == survived:
            raise Kill
        done += 1
        real(path, missing_ok)

    def remove(folder: Path, ignore_errors: bool) -> None:
        for path in sorted(folder.iterdir(), reverse=True):
            path.unlink()

    listed = Path.glob
    with monkeypatch.context() as patch, suppress(Kill):
        patch.setattr(Path, "unlink", unlink)
        patch.setattr(Path, "glob", lambda folder, pattern: sorted(listed(folder, pattern), reverse=True))
        patch.setattr(shutil, "rmtree", remove)
        if deed == "clear":
            states.clear()
        else:
            states.save(1, 6, tensors(6), {"skipped": 0})
    assert all(document.with_suffix(".safetensors").is_file() for document in states.folder.glob("state-*.json"))
    step_of(states, Ear())
