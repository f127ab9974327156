"""Held-out composites as images to score on: the same that training reports on, and never those that it learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pam_mobile.config import HeldOut
from pam_mobile.data.bank import HELD_OUT_SEED
from pam_mobile.data.synthetic import KINDS
from pam_mobile.errors import UsageError
from pam_mobile.evaluate import heldout
from pam_mobile.evaluate.baselines import baselines
from pam_mobile.evaluate.heldout import composites, held_out_images
from pam_mobile.evaluate.report import Change, evaluate
from pam_mobile.reporter import Silent
from pam_mobile.train import validate
from pam_mobile.train.validate import REPORT, SPLIT_SEEDS, half_sads, held_out_composites, prior_sads

COUNT, SIZE = 5, 64


def test_they_are_the_composites_of_the_report_split() -> None:
    have = composites(COUNT, SIZE)
    want = held_out_composites(HeldOut(COUNT, SIZE), KINDS, REPORT, torch.device("cpu"))
    other = held_out_composites(HeldOut(COUNT, SIZE), KINDS, validate.SELECTION, torch.device("cpu"))
    assert all(torch.equal(a, b) for h, w in zip(have, want, strict=True) for a, b in zip(h, w, strict=True))
    assert not torch.equal(have[0].alpha, other[0].alpha)


def test_samples_hold_what_the_batches_hold() -> None:
    images = held_out_images(COUNT, SIZE)
    batch = composites(COUNT, SIZE)[0]
    assert len(images.readers) == COUNT
    for row, read in enumerate(images.readers):
        sample = read()
        assert sample.photo.shape == (SIZE, SIZE, 3)
        assert np.array_equal(sample.photo, batch.image[row].permute(1, 2, 0).numpy())
        assert set(np.unique(sample.trimap)) <= {0, 128, 255}
        assert np.allclose(sample.trimap / 255, batch.trimap[row, 0].numpy(), atol=0.002)
        assert np.allclose(sample.alpha / 255, batch.alpha[row, 0].numpy(), atol=1e-6), "the alphas are of 8 bits"


def test_the_table_says_what_training_says() -> None:
    """Up to the rounding to 8 bits that the published metrics ask for."""
    rows = evaluate(baselines(["half", "prior"], "cpu"), held_out_images(COUNT, SIZE), "prior", Silent())
    batches = composites(COUNT, SIZE)
    halves, priors = half_sads(batches), prior_sads(batches)
    assert rows[0].sad == pytest.approx(float(halves.mean()), rel=0.005)
    assert rows[1].sad == pytest.approx(float(priors.mean()), rel=0.02)
    change = Change.of(halves.tolist(), priors.tolist())
    assert rows[0].against is not None
    assert rows[0].against.change == pytest.approx(change.change, rel=0.03)
    assert rows[0].against.standard_error == pytest.approx(change.standard_error, rel=0.05)


def test_sets_of_other_seeds_and_splits_share_no_matte(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[range] = []
    original = validate.synthetic_bank

    def watched(seed: int, patches: int, *rest: object) -> object:
        drawn.append(range(seed, seed + patches))
        return original(seed, patches, *rest)

    monkeypatch.setattr(validate, "synthetic_bank", watched)
    for seed in range(3):
        composites(COUNT, SIZE, seed=seed)
    splits = (validate.SELECTION, validate.REPORT, validate.VOTES)
    trained = [
        range(HELD_OUT_SEED + split * SPLIT_SEEDS, HELD_OUT_SEED + (split + 1) * SPLIT_SEEDS) for split in splits
    ]
    assert all(seeds.start >= HELD_OUT_SEED for seeds in drawn)
    assert [sum(seeds.start in part for part in trained) for seeds in drawn] == [1, 0, 0]
    assert len({seed for seeds in drawn for seed in seeds}) == 3 * COUNT
    assert not torch.equal(composites(COUNT, SIZE)[0].alpha, composites(COUNT, SIZE, seed=1)[0].alpha)


def test_kinds_are_chosen_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def record(held_out: HeldOut, kinds: list[str], *rest: object) -> list:
        asked.append(kinds)
        return []

    monkeypatch.setattr(heldout, "held_out_composites", record)
    composites(COUNT, SIZE, ("fur", "hair"))
    composites(COUNT, SIZE, ("hair", "fur", "fur"))
    assert asked == [["hair", "fur"]] * 2


def test_a_set_says_what_it_is() -> None:
    images = held_out_images(COUNT, SIZE, ("hair", "fur"), seed=4)
    assert images.facts == {"data": "held-out", "count": COUNT, "size": SIZE, "kinds": ["hair", "fur"], "seed": 4}
    assert images.label == "5 held-out procedural composites of 64x64 pixels (hair, fur; seed 4)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kinds": ("hair", "moss", "lint")}, "lint, moss is no kind of matte"),
        ({"kinds": ()}, "nothing is no kind of matte"),
        ({"count": 0}, "0 held-out composites of 384 pixels"),
        ({"size": 63}, "64 held-out composites of 63 pixels"),
        ({"seed": -1}, "with seed -1 cannot be made"),
    ],
)
def test_sets_that_make_no_sense_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        composites(**arguments)
