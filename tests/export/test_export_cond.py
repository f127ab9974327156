"""A .pte whose only method chooses its path inside: the same promises, by conditions around delegates."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
from adaptive_samples import IMAGES, INFO, check_facts, check_promises, check_refusals, mixed, parts

from pam_export import executorch, executorch_cond
from pam_export.artifact import STEPWISE
from pam_export.controller import Costs
from pam_mobile.model.supernet import Supernet

pytest.importorskip("executorch")


@pytest.fixture(scope="module")
def pte(chooser: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    path = tmp_path_factory.mktemp("cond") / "cond.pte"
    backend = executorch_cond.build(parts(chooser), path, INFO)
    units = len(chooser.units)
    assert backend["delegates"] == 3 * units + (units + 1), "a head and two branches per unit, and what lies between"
    assert 0 < backend["leftovers"] < 15 * units
    return path


def test_it_takes_the_path_of_pytorch_within_every_budget(pte: FilePath, chooser: Supernet) -> None:
    run = executorch_cond.load(pte)
    assert mixed(check_promises(run, chooser, STEPWISE, IMAGES, 1e-4))
    check_refusals(run, chooser, executorch_cond.WAYS, IMAGES[0])


def test_it_says_what_a_host_must_know(pte: FilePath, chooser: Supernet) -> None:
    facts = executorch.facts(pte)
    check_facts(facts, chooser, executorch_cond.WAYS)


def test_a_host_that_allows_too_much_would_be_caught(
    pte: FilePath, chooser: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Costs, "spare", lambda costs, macs: sum(costs.steps))
    with pytest.raises(AssertionError, match="breaks the budget"):
        check_promises(executorch_cond.load(pte), chooser, STEPWISE, IMAGES, 1e-4)
