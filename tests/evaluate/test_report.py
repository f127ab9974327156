"""Tables: means, costs, standard errors, and changes against a row on the same images."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import picture_files

from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import InputError, UsageError
from pam_mobile.evaluate.contenders import Answer, Contender, models, of_model
from pam_mobile.evaluate.images import ImageSet, Sample, images_of
from pam_mobile.evaluate.metrics import score
from pam_mobile.evaluate.report import Change, Row, evaluate, to_json, to_text
from pam_mobile.imageio import read_photo, read_trimap, to_integers
from pam_mobile.predict import Matter
from pam_mobile.reporter import Silent

SEEDS = st.integers(0, 10**6)


# A model on a folder


def test_rows_are_means_of_the_metrics_and_costs_keep_the_budget(run_folder: Path, tmp_path: Path) -> None:
    sizes = [(45, 70), (64, 64)]
    files = [picture_files(tmp_path, *size, name=f"{i}") for i, size in enumerate(sizes)]
    matter = Matter.load(run_folder, "cpu", "fixed")
    budgets = [Budget.parse("80%"), Budget.parse("100%")]
    rows = evaluate([of_model(matter, "mine", b) for b in budgets], images_of(str(tmp_path)), "mine", Silent())
    assert [(row.model, row.budget) for row in rows] == [("mine", "80%"), ("mine", "100%")]
    for row, budget in zip(rows, budgets, strict=True):
        expected, macs = [], []
        for (image, trimap, alpha), size in zip(files, sizes, strict=True):
            known = read_trimap(trimap, size)
            matte = matter.matte(read_photo(image).pixels, known, budget)
            guess, plan = to_integers(matte.alpha, 8), matte.plan
            expected.append(score(guess, cv2.imread(str(alpha), cv2.IMREAD_GRAYSCALE), known))
            macs.append(plan.macs)
            assert matter.checkpoint is not None
            assert plan.macs <= budget.macs(CostTable.of(matter.checkpoint.preset, *size))
        for index, name in enumerate(("sad", "mse", "grad", "conn")):
            assert getattr(row, name) == pytest.approx(np.mean([s[index] for s in expected]), abs=1e-4)
        first, second = (s.sad for s in expected)
        assert row.sad_standard_error == pytest.approx(abs(first - second) / 2, abs=1e-4)
        assert row.gmacs_max == pytest.approx(max(macs) / 1e9, abs=1e-4)
        assert (row.images, row.over_budget, row.defaulted, row.against) == (2, 0, 0, None)
    assert rows[0].gmacs_mean is not None
    assert rows[1].gmacs_mean is not None
    assert rows[0].gmacs_mean < rows[1].gmacs_mean


def test_an_alpha_of_another_size_is_refused(tmp_path: Path) -> None:
    _, _, alpha = picture_files(tmp_path)
    cv2.imwrite(str(alpha), np.zeros((5, 6), np.uint8))
    with pytest.raises(InputError, match=r"x\.png is 6x5, .*x\.png is 70x45"):
        evaluate(models(["prior"], [], "cpu"), images_of(str(tmp_path)), "prior", Silent())


def test_a_model_is_named_as_the_user_named_it_and_the_prior_takes_no_budget(run_folder: Path) -> None:
    budgets = [Budget.parse("80%"), Budget.parse("100%")]
    rows = models([str(run_folder), "prior", str(run_folder)], budgets, "cpu")
    assert [(row.name, row.budget) for row in rows] == [
        (str(run_folder), "80%"),
        (str(run_folder), "100%"),
        ("prior", ""),
    ]


@pytest.mark.parametrize("selection", ["planned", "stepwise"])
def test_a_network_that_chooses_its_paths_is_scored_on_them_and_pays_for_its_heads(
    run_folder: Path, tmp_path: Path, selection: str
) -> None:
    for i in range(3):
        picture_files(tmp_path, 64, 64 + 32 * i, name=f"{i}")
    budget = Budget.parse("90%")
    names = [f"{run_folder} fixed", f"{run_folder} {selection}"]
    contenders = models([str(run_folder)], [budget], "cpu", ["fixed", selection])
    assert [contender.name for contender in contenders] == names
    fixed, chosen = evaluate(contenders, images_of(str(tmp_path)), names[0], Silent())
    matter = Matter.load(run_folder, "cpu", selection)
    samples = [reader() for reader in images_of(str(tmp_path)).readers]
    plans = [matter.matte(s.photo, s.trimap, budget).plan for s in samples]
    assert chosen.gmacs_max == pytest.approx(max(plan.macs for plan in plans) / 1e9, abs=1e-4)
    assert chosen.paths == len({plan.path for plan in plans})
    assert (fixed.over_budget, chosen.over_budget) == (0, 0)
    assert fixed.against is None
    assert chosen.against is not None


# Contenders with known answers


def _images(count: int, seed: int = 0) -> ImageSet:
    """Noise of 12x10 pixels, all of it unknown."""
    rng = np.random.default_rng(seed)
    samples = [
        Sample(
            f"{i}",
            rng.random((12, 10, 3), dtype=np.float32),
            np.full((12, 10), 128, np.uint8),
            rng.integers(0, 256, (12, 10), dtype=np.uint8),
        )
        for i in range(count)
    ]
    return ImageSet("noise", {"data": "noise"}, [partial(_give, sample) for sample in samples])


def _give(sample: Sample) -> Sample:
    return sample


def _off(name: str, amount: float, budget: str = "") -> Contender:
    """Wrong by a share of the way to the opposite, exactly known."""

    def answer(sample: Sample) -> Answer:
        truth = sample.alpha / 255
        return Answer(truth + amount * (1 - 2 * truth))

    return Contender(name, budget, answer)


def _row(rows: list[Row], name: str, budget: str = "") -> Row:
    return next(row for row in rows if (row.model, row.budget) == (name, budget))


def test_a_contender_that_is_twice_as_wrong_is_one_hundred_per_cent_worse() -> None:
    rows = evaluate([_off("a", 0.2), _off("b", 0.4), _off("c", 0.2)], _images(6), "a", Silent())
    a, b, c = rows
    assert a.against is None
    assert b.against is not None
    assert c.against is not None
    assert b.sad == pytest.approx(2 * a.sad, rel=0.02)
    assert b.against.change == pytest.approx(1, abs=0.02)
    assert b.against.standard_error < 0.02
    assert (c.against.change, c.against.standard_error) == (0, 0)


def test_every_image_is_read_once_for_all_rows() -> None:
    images = _images(3)
    read: list[str] = []

    def counted(reader: partial[Sample]) -> Sample:
        read.append(reader().name)
        return reader()

    watched = ImageSet("noise", {}, [partial(counted, reader) for reader in images.readers])
    evaluate([_off("a", 0.2), _off("b", 0.4)], watched, "a", Silent())
    assert read == ["0", "1", "2"]


def test_a_row_is_compared_with_the_reference_at_its_own_budget() -> None:
    contenders = [_off("a", 0.1, "80%"), _off("a", 0.2, "100%"), _off("b", 0.2, "80%"), _off("b", 0.2, "100%")]
    rows = evaluate([*contenders, _off("c", 0.3, "50%"), _off("prior", 0.3)], _images(4), "a", Silent())
    changes = {(row.model, row.budget): row.against and round(row.against.change, 1) for row in rows}
    assert changes == {
        ("a", "80%"): None,
        ("a", "100%"): None,
        ("b", "80%"): 1.0,
        ("b", "100%"): 0.0,
        ("c", "50%"): None,
        ("prior", ""): None,
    }
    only = evaluate([*contenders, _off("prior", 0.4)], _images(4), "prior", Silent())
    assert [row.against and round(row.against.change, 2) for row in only] == [-0.75, -0.5, -0.5, -0.5, None]


def test_a_reference_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no row 'z' to compare with") as caught:
        evaluate([_off("a", 0.1), _off("b", 0.1)], _images(1), "z", Silent())
    assert caught.value.hint == "choose among a, b"


def test_against_a_perfect_reference_there_is_no_change() -> None:
    rows = evaluate([_off("a", 0.2), _off("b", 0.0)], _images(3), "b", Silent())
    assert rows[0].against is None
    with pytest.raises(ValueError, match="not defined"):
        Change.of([1.0], [0.0])


def test_a_budget_that_was_exceeded_and_an_image_without_an_answer_are_counted() -> None:
    def answer(sample: Sample) -> Answer:
        late = sample.name == "2"
        return Answer(np.full(sample.alpha.shape, 0.5), 10**9 * (1 + late), "01"[late], late, late)

    row = evaluate([Contender("a", "1G", answer)], _images(3), "a", Silent())[0]
    assert (row.over_budget, row.defaulted, row.paths) == (1, 1, 2)
    assert (row.gmacs_mean, row.gmacs_max) == (pytest.approx(4 / 3, abs=1e-4), 2)
    assert "a cannot answer 1 of the images" in to_text(_images(3), [row], "a")


# Standard errors


def _ratio(scores: np.ndarray, reference: np.ndarray) -> float:
    return float(scores.mean() / reference.mean())


@given(SEEDS, st.floats(0.2, 3), st.floats(0.02, 0.5))
def test_the_standard_error_of_a_change_is_that_of_the_jackknife(seed: int, factor: float, noise: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.gamma(4, 1, 300)
    scores = factor * reference * (1 + noise * rng.normal(size=300))
    without = [_ratio(np.delete(scores, i), np.delete(reference, i)) for i in range(300)]
    jackknife = math.sqrt(299 / 300 * np.sum((np.array(without) - np.mean(without)) ** 2))
    found = Change.of(scores.tolist(), reference.tolist())
    assert found.change == pytest.approx(_ratio(scores, reference) - 1)
    assert found.standard_error == pytest.approx(jackknife, rel=0.05)
    shuffled = Change.of(scores.tolist(), rng.permutation(reference).tolist())
    assert noise > 0.3 or shuffled.standard_error > 1.3 * found.standard_error, "pairing must matter"


@given(SEEDS, st.integers(2, 12))
def test_the_standard_error_of_sad_is_that_of_a_mean(seed: int, count: int) -> None:
    images = _images(count, seed)
    row = evaluate([_off("a", 0.3)], images, "a", Silent())[0]
    sads = [
        np.abs(to_integers(0.3 + 0.4 * s().alpha / 255, 8) - s().alpha.astype(float)).sum() / 255e3
        for s in images.readers
    ]
    assert row.sad == pytest.approx(np.mean(sads), abs=1e-4)
    spread = math.sqrt(sum((sad - np.mean(sads)) ** 2 for sad in sads) / (count - 1) / count)
    assert row.sad_standard_error == pytest.approx(spread, abs=1e-4)


def test_one_image_has_no_standard_error() -> None:
    row = evaluate([_off("a", 0.3)], _images(1), "a", Silent())[0]
    assert row.sad_standard_error is None
    assert "±" not in to_text(_images(1), [row], "a").splitlines()[-1]


# What is printed


def test_json_carries_everything_that_the_table_says() -> None:
    contenders = [_off("a", 0.2, "80%"), _off("b", 0.4, "80%")]
    rows = evaluate(contenders, _images(5), "a", Silent())
    document, text = to_json(_images(5), rows, "a"), to_text(_images(5), rows, "a")
    assert (document["data"], document["against"]) == ("noise", "a")
    lines = text.splitlines()[-2:]
    for line, row in zip(lines, document["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        change = row["against"]
        assert cells == [
            row["model"],
            row["budget"],
            f"{row['sad']:.3f} ± {row['sad_standard_error']:.3f}",
            f"{row['mse']:.3f}",
            f"{row['grad']:.3f}",
            f"{row['conn']:.3f}",
            f"{change['change']:+.1%} ± {change['standard_error']:.1%}" if change else "-",
            "-",
            "-",
            "-",
        ]
    assert "5 images" in text
    assert document["rows"][0]["images"] == 5
