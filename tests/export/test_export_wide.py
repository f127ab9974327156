"""A tail of dense units is exported like the rest: whole inside the delegate, and equal, whether its units run or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath

import pytest
from export_samples import PTE, SIZE, alphas_of, lively, mini, single

from pam_export import RECIPES, executorch
from pam_export.parity import cases, compare, reference
from pam_export.wrapper import network_of, wrap
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path


@pytest.fixture(scope="module")
def wide() -> Supernet:
    """`mini` with the tail of `phone-wide`."""
    numbers = preset("phone-wide")
    tail = {"tail_kernel": numbers.tail_kernel, "tail_units": numbers.tail_units}
    return lively(replace(mini(), encoder_units=(0, 0, 1), decoder_units=(0, 0, 0), **tail), SIZE)


@pytest.mark.parametrize("path", ["010", "101"])
def test_a_tail_of_dense_units_is_inside_the_delegate_and_equal(wide: Supernet, path: str, tmp_path: FilePath) -> None:
    pytest.importorskip("executorch")
    network, inputs = network_of(wide, Path.parse(path)), cases(SIZE)
    backend = executorch.build(single(wrap(network), inputs[0].inputs()), tmp_path / "wide.pte", {"path": path})
    assert (backend["leftovers"], backend["delegates"]) == (0, 1)
    alphas = alphas_of(executorch.load, tmp_path / "wide.pte", inputs)
    parity = compare(reference(network, inputs), alphas, RECIPES[PTE].gate)
    assert parity.passed, str(parity)
    for unit in (1, 2):
        other = reference(network_of(wide, Path.parse(path).flip(unit)), inputs)
        assert not compare(other, alphas, RECIPES[PTE].gate).passed, unit
