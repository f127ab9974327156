"""A supernet cut up: its pieces add up to it on every path, and a .pte of them keeps the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from adaptive_samples import IMAGES, INFO, check_facts, check_promises, check_refusals, choosy, mixed, parts
from export_samples import SIZE, lively, mini
from torch import Tensor

from pam_export import executorch, executorch_adaptive
from pam_export.adaptive import Adaptive, branch
from pam_export.artifact import PLANNED, STEPWISE, Request, text
from pam_export.controller import Costs
from pam_mobile.cost import CostTable
from pam_mobile.model.presets import Preset, preset
from pam_mobile.model.supernet import Supernet, margin
from pam_mobile.path import Path, PathSpace


def wide() -> Preset:
    """`mini` with the tail of `phone-wide`: dense units at strides 2 and 1."""
    numbers = preset("phone-wide")
    return replace(mini(), tail_kernel=numbers.tail_kernel, tail_units=numbers.tail_units)


@pytest.mark.parametrize("numbers", [mini(), mini(prior=True), wide(), replace(mini(), connect=False)])
@torch.no_grad()
def test_the_pieces_are_the_network_on_every_path(numbers: Preset) -> None:
    supernet = lively(numbers, SIZE)
    first, *units = Adaptive(supernet, SIZE).pieces()
    assert len(units) == len(supernet.units)
    for path in PathSpace(CostTable.of(numbers, SIZE, SIZE)):
        values: list[Tensor] = [*IMAGES[1].inputs()]
        for module, piece in [
            (first.module, first),
            *((branch(p.module, run), p) for p, run in zip(units, path, strict=True)),
        ]:
            results = module(*(values[number] for number in piece.inputs))
            values += results if isinstance(results, tuple) else (results,)
        torch.testing.assert_close(values[-1], supernet(*IMAGES[1].inputs(), path=path), rtol=0, atol=1e-5)


@torch.no_grad()
def test_heads_score_as_the_supernet_does_at_every_budget() -> None:
    chooser = choosy()
    for semantics in (chooser.planning.semantics, *(unit.head.semantics for unit in chooser.units)):
        semantics.mean.uniform_(0, 1)
        semantics.deviation.uniform_(0.1, 1)
    adaptive, table = Adaptive(chooser, SIZE), CostTable.of(chooser.preset, SIZE, SIZE)
    span = table.largest - table.smallest
    for macs in range(table.smallest - span, table.largest + span, span // 7):
        position = torch.full((1, 1, 1, 1), adaptive.costs.position(macs))
        wish = chooser.embedding(macs, table)
        for unit, head in zip(chooser.units, adaptive.heads, strict=True):
            x = torch.rand(1, unit.attention.squeeze.in_channels, 5, 7)
            torch.testing.assert_close(head(x, position).flatten(), margin(unit.head(x, wish)), rtol=0, atol=1e-5)
        x = torch.rand(1, chooser.preset.units[0].channels, 4, 4)
        wanted = margin(chooser.planning(x, wish))
        torch.testing.assert_close(adaptive.planning(x, position).flatten(1), wanted, rtol=0, atol=1e-5)


def test_costs_pass_through_an_artifact_as_text(chooser: Supernet) -> None:
    costs = Costs.of(chooser, SIZE)
    info = costs.info((PLANNED, STEPWISE))
    assert Costs.of_facts({key: text(value) for key, value in info.items()}) == costs
    table = CostTable.of(chooser.preset, SIZE, SIZE)
    for path in PathSpace(table):
        assert costs.table.cost(path) == table.cost(path)


def test_what_is_spare_is_counted_exactly(chooser: Supernet) -> None:
    costs = Costs.of(chooser, SIZE)
    least = costs.smallest + costs.selection
    for path in PathSpace(costs.table):
        needed = sum(step for step, run in zip(costs.steps, path, strict=True) if run)
        cost = costs.table.cost(path) + costs.selection
        assert costs.spare(cost) == needed
        assert cost == least or costs.spare(cost - 1) < needed
    assert costs.spare(10**15) == sum(costs.steps)
    with pytest.raises(ValueError, match="cannot be counted in float32"):
        _ = replace(costs, deltas=(1, 2**24)).steps


@pytest.fixture(scope="module")
def pte(chooser: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    pytest.importorskip("executorch")
    path = tmp_path_factory.mktemp("adaptive") / "adaptive.pte"
    backend = executorch_adaptive.build(parts(chooser), path, INFO)
    assert (backend["leftovers"], backend["delegates"]) == (0, 2 + 3 * len(chooser.units)), "one delegate per method"
    return path


@pytest.mark.parametrize("way", [PLANNED, STEPWISE])
def test_a_pte_takes_the_path_of_pytorch_within_every_budget(way: str, pte: FilePath, chooser: Supernet) -> None:
    run = executorch_adaptive.load(pte)
    assert mixed(check_promises(run, chooser, way, IMAGES, 1e-4))
    check_refusals(run, chooser, executorch_adaptive.WAYS, IMAGES[0])


def test_a_pte_says_what_a_host_must_know(pte: FilePath, chooser: Supernet) -> None:
    facts = executorch.facts(pte)
    check_facts(facts, chooser, executorch_adaptive.WAYS)
    wiring = [facts[f"wiring_{i}"] for i in range(4)]
    assert wiring == [text(piece.inputs) for piece in Adaptive(chooser, SIZE).pieces()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that programs opened from now on are asked to load."""
    names: list[str] = []
    opened = executorch.open_program

    class Spy:
        def __init__(self, path: FilePath) -> None:
            self.program = opened(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.program, name)

        def load_method(self, name: str) -> Any:
            names.append(name)
            return self.program.load_method(name)

    monkeypatch.setattr(executorch, "open_program", Spy)
    return names


@pytest.mark.parametrize(("way", "calls"), [(PLANNED, 1 + 1 + 3), (STEPWISE, 1 + 3 + 3)])
def test_only_what_runs_is_loaded(way: str, calls: int, pte: FilePath, chooser: Supernet, asked: list[str]) -> None:
    run, costs = executorch_adaptive.load(pte), Costs.of(chooser, SIZE)
    asked.clear()
    answer = run(IMAGES[0].image, IMAGES[0].trimap, Request(way, costs.smallest + max(costs.planning, costs.selection)))
    assert answer.path == Path.all_bypass(3)
    assert len(asked) == calls
    assert not any(name.startswith("run") for name in asked)


@pytest.mark.parametrize(("way", "heads"), [(PLANNED, ["plan"]), (STEPWISE, ["select_0", "select_1", "select_2"])])
def test_a_host_told_a_path_asks_the_heads_and_runs_that_path(
    way: str, heads: list[str], pte: FilePath, chooser: Supernet, asked: list[str]
) -> None:
    run, (image, trimap) = executorch_adaptive.load(pte), (IMAGES[0].image, IMAGES[0].trimap)
    chosen = run(image, trimap, Request(way, 10**9)).path
    assert chosen is not None
    for path in (chosen.flip(0), chosen.flip(2), Path.all_bypass(3)):
        asked.clear()
        told = run(image, trimap, Request(way, 10**9, str(path)))
        assert told.path == path
        assert [name for name in asked if name in heads] == heads
        torch.testing.assert_close(told.alpha, chooser(*IMAGES[0].inputs(), path=path), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="a path of 3 units"):
        run(image, trimap, Request(way, 10**9, "01"))


def test_an_image_in_another_memory_format_is_read_right(pte: FilePath) -> None:
    run, (image, trimap) = executorch_adaptive.load(pte), (IMAGES[0].image, IMAGES[0].trimap)
    plain = run(image, trimap, Request(PLANNED, 10**9)).alpha
    pixels = run(image.contiguous(memory_format=torch.channels_last), trimap, Request(PLANNED, 10**9)).alpha
    assert torch.equal(plain, pixels)


def test_a_host_that_does_not_copy_results_would_be_caught(
    pte: FilePath, chooser: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executorch.runtime import Method

    monkeypatch.setattr(Method, "execute", lambda self, inputs: self._method(inputs, clone_outputs=False))
    with pytest.raises(AssertionError):
        check_promises(executorch_adaptive.load(pte), chooser, STEPWISE, IMAGES, 1e-4)


@pytest.mark.parametrize("way", [PLANNED, STEPWISE])
def test_a_wrong_cost_of_a_unit_would_be_caught(
    way: str, pte: FilePath, chooser: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = Costs.of(chooser, SIZE)
    cheap = replace(costs, deltas=(costs.deltas[0] - 1, *costs.deltas[1:]))
    monkeypatch.setattr(Costs, "of_facts", classmethod(lambda cls, facts: cheap))
    with pytest.raises(AssertionError, match=r"breaks the budget|is not PyTorch's path"):
        check_promises(executorch_adaptive.load(pte), chooser, way, IMAGES, 1e-4)


def test_exchanged_branches_would_be_caught(pte: FilePath, chooser: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"run_0": "bypass_0", "bypass_0": "run_0"}
    opened = executorch.open_program

    class Exchanged:
        def __init__(self, path: FilePath) -> None:
            self.program = opened(path)
            self.method_names, self.metadata = self.program.method_names, self.program.metadata

        def load_method(self, name: str) -> Any:
            return self.program.load_method(names.get(name, name))

    monkeypatch.setattr(executorch, "open_program", Exchanged)
    with pytest.raises(AssertionError):
        check_promises(executorch_adaptive.load(pte), chooser, PLANNED, IMAGES, 1e-4)
