"""Controls: every one within the budget, and a network that chooses well or badly is told apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch

from pam_mobile import checkpoint
from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, InputError, UsageError
from pam_mobile.evaluate import controls as module
from pam_mobile.evaluate.controls import (
    ANOTHER,
    DRAWN,
    FIXED,
    ORACLE,
    PLANNED,
    RANDOM,
    STEPWISE,
    ControlRow,
    adaptivity,
    controls,
    to_json,
    to_text,
    verdict,
)
from pam_mobile.evaluate.images import ImageSet, Sample
from pam_mobile.evaluate.report import Change
from pam_mobile.path import Path
from pam_mobile.predict import Matter
from pam_mobile.reporter import Silent
from pam_mobile.train.pathprior import stored_prior

BUDGETS = [Budget.parse(text) for text in ("75%", "80%", "85%", "90%", "95%")]


def images(count: int, *sizes: tuple[int, int]) -> ImageSet:
    def sample(number: int) -> Sample:
        size = sizes[number % len(sizes)] if sizes else (60, 70)
        rng = np.random.default_rng(number)
        photo = rng.random((*size, 3), np.float32) ** (1 + number)
        return Sample(
            str(number),
            photo,
            rng.choice(np.array([0, 128, 255], np.uint8), size),
            rng.integers(0, 256, size, np.uint8),
        )

    return ImageSet("noise", {}, [partial(sample, number) for number in range(count)])


@pytest.fixture(scope="module")
def found(run_folder: FilePath) -> checkpoint.Checkpoint:
    return checkpoint.load(run_folder / "stage3")


def test_every_control_stays_within_every_budget(run_folder: FilePath, found: checkpoint.Checkpoint) -> None:
    prior = stored_prior(run_folder / "stage3", found.preset, found.document)
    assert prior is not None
    rows = controls(found, images(4), BUDGETS, prior, 0, Silent())
    assert [(row.budget, row.control) for row in rows] == [
        (str(budget), name) for budget in BUDGETS for name in (RANDOM, ANOTHER, DRAWN, FIXED, STEPWISE, PLANNED, ORACLE)
    ]
    table = CostTable.of(found.preset, 60, 70)
    for row in rows:
        assert row.over_budget == 0
        assert row.gmacs_mean <= Budget.parse(row.budget).macs(table) / 1e9 + 1e-4
        assert len(row.run_share) == 9
        assert all(0 <= share <= 1 for share in row.run_share)
    for budget in BUDGETS:
        by = {row.control: row for row in rows if row.budget == str(budget)}
        assert by[ORACLE].sad == min(row.sad for row in by.values())
        assert by[FIXED].against_fixed is None
        assert by[FIXED].paths == 1


def test_scores_are_those_of_the_network_on_the_paths_that_it_takes(found: checkpoint.Checkpoint) -> None:
    chosen = images(3)
    rows = {row.control: row for row in controls(found, chosen, BUDGETS[2:3], None, 0, Silent())}
    assert DRAWN not in rows
    for control, selection in ((PLANNED, "planned"), (STEPWISE, "stepwise"), (FIXED, "fixed")):
        matter = Matter(found, "cpu", selection)
        expected = []
        for read in chosen.readers:
            sample = read()
            alpha = matter.matte(sample.photo, sample.trimap, BUDGETS[2]).alpha
            expected.append(np.abs(alpha - sample.alpha / np.float32(255))[sample.trimap == 128].sum() / 1000)
        assert rows[control].sad == pytest.approx(np.mean(expected), abs=1e-4)


def test_an_image_is_given_the_paths_of_all_others(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    wished = [Path.parse(text) for text in ("100000000", "010000000", "001000000")]
    answers = iter(wished)
    monkeypatch.setattr(found.supernet, "plan", lambda *_: (None, [next(answers)]))
    own = {path: number for number, path in enumerate(wished)}

    def error(image: module._Image, path: Path) -> float:
        """0 on the image's own path, 1 on the next one's, 2 on all others."""
        place = loaded.setdefault(id(image), len(loaded))
        image.known[path] = float({place: 0, (place + 1) % 3: 1}.get(own.get(path, -1), 2))
        return image.known[path]

    loaded: dict[int, int] = {}
    monkeypatch.setattr(module._Image, "sad", error)
    rows = {row.control: row for row in controls(found, images(3), BUDGETS[3:4], None, 0, Silent())}
    assert (rows[PLANNED].sad, rows[ANOTHER].sad, rows[ORACLE].sad, rows[FIXED].sad) == (0, 1.5, 0, 2)
    assert rows[PLANNED].against_fixed == adaptivity(list(rows.values())) == Change(-1.0, 0.0)
    assert (rows[PLANNED].sads, rows[ANOTHER].sads) == ([0.0] * 3, [1.5] * 3)
    assert rows[PLANNED].paths == 3
    assert rows[PLANNED].run_share[:4] == [0.333, 0.333, 0.333, 0]


def test_the_path_of_an_image_of_another_size_keeps_the_budget(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that a budget in GMACs allows on a small image may be too dear on a larger one."""
    sizes = [(320, 352), (320, 320), (320, 352)]
    budget = Budget.parse("1.2G")
    mixed = images(3, *sizes)
    small, large = (CostTable.of(found.preset, *size) for size in ((320, 320), (320, 352)))
    run, bypass = Path.all_run(len(small.run)), Path.all_bypass(len(small.run))
    assert small.cost(run) < budget.macs(small) < large.cost(run)
    monkeypatch.setattr(found.supernet, "plan", lambda image, *_: (None, [run if image.shape[3] == 320 else bypass]))
    monkeypatch.setattr(module._Image, "sad", lambda image, path: 1.0 + sum(path))
    rows = {row.control: row for row in controls(found, mixed, [budget], None, 0, Silent())}
    assert (rows[ANOTHER].over_budget, rows[ANOTHER].run_share) == (0, [0.0] * 9)
    with pytest.raises(UsageError, match=r"no other image's path fits 1\.2G at 320x352"):
        controls(found, images(2, *sizes[:2]), [budget], None, 0, Silent())


def test_one_image_cannot_be_compared_with_another(found: checkpoint.Checkpoint) -> None:
    with pytest.raises(UsageError, match="here is one"):
        controls(found, images(1), BUDGETS[:1], None, 0, Silent())


def _row(change: float, error: float, control: str = PLANNED, sads: Sequence[float] = (1.0, 2.0, 3.0)) -> ControlRow:
    return ControlRow("80%", control, 1.0, 0.1, Change(change, error), 2.0, 0, 1, [0.5], list(sads))


def test_the_verdict_needs_two_standard_errors() -> None:
    others = _row(0.0, 0.01, ANOTHER)
    assert "choice beats" in verdict([_row(-0.03, 0.01), _row(-0.03, 0.01), _row(-0.01, 0.01), others])
    assert "path is unproved" in verdict([_row(-0.03, 0.02), _row(-0.03, 0.02), others, others])
    assert "worse" in verdict([_row(-0.03, 0.01), _row(-0.03, 0.01), _row(0.03, 0.01), others])
    assert "path is unproved" in verdict([_row(-0.03, 0.02), _row(0.5, 0.01, RANDOM), others])


@pytest.mark.parametrize(
    ("own", "adapts"),
    [((0.9, 1.9, 2.8), True), ((1.0, 2.0, 3.0), False), ((1.1, 2.1, 3.1), False), ((0.1, 2.5, 3.2), False)],
)
def test_adapting_is_doing_better_than_with_the_paths_of_other_images(own: tuple[float, ...], adapts: bool) -> None:
    """Over all budgets together, whatever the best fixed path does: equal, worse and uncertain are no proof."""
    rows = [_row(-0.03, 0.01, sads=own), _row(0.0, 0.01, ANOTHER)]
    assert ("\nit adapts to the image: " in verdict(rows * 2)) == adapts
    assert ("\nthat it adapts to the image is unproved: " in verdict(rows * 2)) != adapts
    assert str(adaptivity(rows)) in verdict(rows * 2)


def test_the_same_seed_gives_the_same_table(run_folder: FilePath, found: checkpoint.Checkpoint) -> None:
    prior = stored_prior(run_folder / "stage3", found.preset, found.document)
    tables = [to_text(images(3), controls(found, images(3), BUDGETS[1:2], prior, seed, Silent())) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]
    document = to_json(images(3), controls(found, images(3), BUDGETS[1:2], prior, 0, Silent()))
    assert document["verdict"] in tables[0]


def test_a_budget_without_a_choice_is_refused(found: checkpoint.Checkpoint) -> None:
    table = CostTable.of(found.preset, 60, 70)
    with pytest.raises(BudgetError):
        controls(found, images(2), [Budget.parse(f"{table.smallest / 1e6}M")], None, 0, Silent())


def test_a_prior_of_another_judge_is_refused(run_folder: FilePath, found: checkpoint.Checkpoint) -> None:
    other = found.document | {"path_prior_judge": "0" * 64}
    with pytest.raises(InputError, match="another network"):
        stored_prior(run_folder / "stage3", found.preset, other)
    none = {key: value for key, value in found.document.items() if key != "path_prior_judge"}
    assert stored_prior(run_folder / "stage3", found.preset, none) is None


def test_the_network_is_left_as_it_was(found: checkpoint.Checkpoint) -> None:
    before = {name: value.clone() for name, value in found.supernet.state_dict().items()}
    controls(found, images(2), BUDGETS[1:2], None, 0, Silent())
    assert all(torch.equal(value, before[name]) for name, value in found.supernet.state_dict().items())
