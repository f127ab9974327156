"""Controls over training seeds: means and errors over networks, against a calculation by hand."""

from __future__ import annotations

import math

import pytest

from pam_mobile.evaluate.controls import ANOTHER, FIXED, PLANNED, RANDOM, ControlRow
from pam_mobile.evaluate.images import ImageSet
from pam_mobile.evaluate.report import Change
from pam_mobile.evaluate.seeds import adaptivity, over_seeds, to_json, to_text

SET = ImageSet("noise", {"images": 2}, [])


def _table(planned: float, sads: tuple[float, float], *further: ControlRow) -> list[ControlRow]:
    return [
        _row(ANOTHER, 0.01, (2.0, 2.0)),
        _row(FIXED, None, (2.0, 2.0)),
        _row(PLANNED, planned, sads),
        *further,
    ]


def _row(control: str, change: float | None, sads: tuple[float, float]) -> ControlRow:
    against = None if change is None else Change(change, 0.5)
    return ControlRow("80%", control, 2.0, 0.1, against, 2.0, 0, 1, [0.5], list(sads))


TABLES = [
    _table(-0.01, (1.0, 2.0)),
    _table(-0.03, (2.0, 2.0)),
    _table(-0.08, (1.0, 1.0), _row(RANDOM, 0.2, (3.0, 3.0))),
]


def test_mean_and_standard_error_are_over_networks() -> None:
    rows = {row.control: row.against_fixed for row in over_seeds(TABLES)}
    assert set(rows) == {ANOTHER, PLANNED}, "neither the reference nor what one network lacks"
    assert rows[ANOTHER].change == pytest.approx(0.01)
    assert rows[ANOTHER].standard_error == pytest.approx(0)
    assert rows[PLANNED].change == pytest.approx(-0.04)
    assert rows[PLANNED].standard_error == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2) / math.sqrt(3))


def test_adaptivity_is_the_mean_of_the_networks_own() -> None:
    found = adaptivity(TABLES)  # -25 %, 0 %, -50 %
    assert found.change == pytest.approx(-0.25)
    assert found.standard_error == pytest.approx(0.25 / math.sqrt(3))


def test_every_network_keeps_its_own_table() -> None:
    text = to_text(SET, ["a", "b", "c"], TABLES)
    assert [text.count(f"{name}\n\nnoise: ") for name in "abc"] == [1, 1, 1]
    assert "mean over 3 networks" in text
    assert str(adaptivity(TABLES)) in text
    document = to_json(SET, ["a", "b", "c"], TABLES)
    assert [row["sad"] for row in document["networks"]["b"]["rows"]] == [2.0] * 3
    assert document["adaptivity"]["change"] == pytest.approx(-0.25)
