"""A batch is a pure function of (seed, stage, step, shard), and a run walks through its order without gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import TINY_RUN, picture_files

from pam_mobile import checkpoint
from pam_mobile.config import TrainConfig
from pam_mobile.data.bank import Bank
from pam_mobile.data.compose import Composer
from pam_mobile.data.order import NONE, STYLES, Order
from pam_mobile.errors import InputError
from pam_mobile.reporter import Silent
from pam_mobile.train.batches import Batches
from pam_mobile.train.engine import Trainer
from pam_mobile.train.material import load_bank


def styled(style: str, shards: int = 1) -> TrainConfig:
    return replace(TINY_RUN, shards=shards, data=replace(TINY_RUN.data, style=style))


@pytest.fixture(scope="module")
def bank() -> Bank:
    return load_bank(TINY_RUN.data, 0, Silent())


def rows_of(config: TrainConfig, bank: Bank, steps: range, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The rows of the order that the steps ask for, rendering left out."""
    asked = []
    monkeypatch.setattr(Composer, "ordered", lambda self, bank, rows, crop, rng: asked.append(rows.numpy()))
    batches = Batches(config, bank)
    for step in steps:
        for shard in range(config.shards):
            batches(1, step, shard)
    return np.concatenate(asked)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_run_walks_through_the_order(style: str, shards: int, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    config = styled(style, shards)
    rows = rows_of(config, bank, range(4), monkeypatch)
    assert np.array_equal(rows, Order(style, 6, 4, (config.seed, 1)).take(0, len(rows)))
    later = rows_of(config, bank, range(2, 4), monkeypatch)
    assert np.array_equal(later, rows[-len(later) :])


def test_the_counts_of_a_run_are_exact(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of its batches: over whole epochs, two sources to one combination."""
    config = replace(styled("triplet"), stage1=replace(TINY_RUN.stage1, steps=40))
    rows = rows_of(config, bank, range(40), monkeypatch)
    whole = rows[: len(rows) // 9 * 9]
    assert len(whole) >= 72
    assert (whole[:, 1] == NONE).sum() == 2 * (whole[:, 1] != NONE).sum()


def test_batches_of_a_style_repeat_and_differ_between_steps_and_stages(bank: Bank) -> None:
    config = styled("quadruplet", 2)
    first, again = (Batches(config, bank)(1, 3, 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [Batches(config, bank)(*place) for place in ((2, 3, 1), (1, 2, 1), (1, 3, 0))]
    assert not any(o.image.shape == first.image.shape and torch.equal(o.image, first.image) for o in others)


def interrupted(config: TrainConfig, out: Path, at: int) -> None:
    """A run that ends before a step."""
    trainer = Trainer(config, out, Silent())
    step = trainer._step

    def stop(*args: Any) -> Any:
        if args[4] == at:
            raise KeyboardInterrupt
        return step(*args)

    trainer._step = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


def same_weights(one: Path, other: Path) -> bool:
    a, b = (checkpoint.load(folder).supernet.state_dict() for folder in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_styled_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = replace(styled("triplet"), stages=(1,))
    whole = Trainer(config, tmp_path / "whole", Silent()).run()
    interrupted(config, tmp_path / "cut", 3)
    assert same_weights(whole, Trainer(config, tmp_path / "cut", Silent()).run(resume=True))


def test_a_run_resumes_to_the_same_weights_after_an_unusable_file_was_removed(tmp_path: Path) -> None:
    """And refuses to resume on other images."""
    for index in range(50):
        picture_files(tmp_path / "set", 70, 80, f"{index:02}")
    bad, good = (tmp_path / "set" / "image" / f"{name}.png" for name in ("20", "31"))
    bad.write_bytes(bad.read_bytes()[:2000])
    data = replace(TINY_RUN.data, patches=60, sets=(str(tmp_path / "set"),))
    config = replace(TINY_RUN, stages=(1,), data=data)
    whole = Trainer(config, tmp_path / "whole", Silent()).run()
    interrupted(config, tmp_path / "cut", 3)
    bad.unlink()
    (tmp_path / "set" / "alpha" / "20.png").unlink()
    kept = good.read_bytes()
    good.write_bytes((tmp_path / "set" / "trimap" / "31.png").read_bytes())
    with pytest.raises(InputError, match="not those that the run began with"):
        Trainer(config, tmp_path / "cut", Silent()).run(resume=True)
    good.write_bytes(kept)
    assert same_weights(whole, Trainer(config, tmp_path / "cut", Silent()).run(resume=True))
