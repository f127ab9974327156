"""The .pt: a fixed path with its own weights only, and one that keeps the budget inside its graph."""

from __future__ import annotations

import zipfile
from pathlib import Path as FilePath

import pytest
from adaptive_samples import IMAGES, INFO, check_facts, check_promises, check_refusals, mixed, parts
from export_samples import SIZE, alphas_of, single

from pam_export import scripted, torchscript
from pam_export.adaptive import branch
from pam_export.artifact import STEPWISE
from pam_export.controller import Costs
from pam_export.parity import Gate, cases, compare, reference
from pam_export.wrapper import network_of, wrap
from pam_mobile.model.subnet import parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

EXACT = Gate(1e-4, 1e-5)


@pytest.fixture(scope="module")
def adaptive(prior_chooser: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    path = tmp_path_factory.mktemp("adaptive") / "adaptive.pt"
    torchscript.build_adaptive(parts(prior_chooser), path, INFO)
    return path


def write(supernet: Supernet, path: str, file: FilePath) -> FilePath:
    network = wrap(network_of(supernet, Path.parse(path)))
    backend = torchscript.build(single(network, IMAGES[0].inputs()), file, {"path": path, "macs": 5})
    assert backend["total_ops"] == backend["delegated_ops"] > 50
    return file


def test_a_fixed_path_is_equal_and_another_is_not(prior_supernet: Supernet, tmp_path: FilePath) -> None:
    file, inputs = write(prior_supernet, "010", tmp_path / "fixed.pt"), cases(SIZE)
    alphas = alphas_of(torchscript.load, file, inputs)
    parity = compare(reference(network_of(prior_supernet, Path.parse("010")), inputs), alphas, EXACT)
    assert parity.passed, str(parity)
    other = reference(network_of(prior_supernet, Path.parse("110")), inputs)
    assert not compare(other, alphas, EXACT).passed
    assert torchscript.facts(file) == {"path": "010", "macs": "5"}


def test_a_fixed_path_holds_its_own_weights_only(prior_supernet: Supernet, tmp_path: FilePath) -> None:
    network = network_of(prior_supernet, Path.parse("010"))
    with zipfile.ZipFile(write(prior_supernet, "010", tmp_path / "fixed.pt")) as file:
        stored = sum(info.file_size for info in file.infolist() if "/constants/" in info.filename)
    own = 4 * parameter_count(network)
    assert 0.9 * own < stored < own + 8000, "batch norm is folded, constants of the prior are added"
    assert 4 * parameter_count(prior_supernet) > 2 * stored


def test_the_same_network_gives_the_same_bytes_whatever_was_scripted_before(
    prior_chooser: Supernet, adaptive: FilePath, tmp_path: FilePath
) -> None:
    write(prior_chooser, "111", tmp_path / "first.pt")
    torchscript.build_adaptive(parts(prior_chooser), tmp_path / "again.pt", INFO)
    assert (tmp_path / "again.pt").read_bytes() == adaptive.read_bytes()
    assert write(prior_chooser, "111", tmp_path / "second.pt").read_bytes() == (tmp_path / "first.pt").read_bytes()


def test_nothing_inside_tells_of_the_machine_that_made_it(adaptive: FilePath) -> None:
    content = adaptive.read_bytes()
    root = FilePath(torchscript.__file__).parents[1]
    assert str(root).encode() not in content
    assert b"adaptive.py" not in content
    with zipfile.ZipFile(adaptive) as file:
        assert not file.testzip()
        assert {info.date_time for info in file.infolist()} == {torchscript.EPOCH}


def test_it_takes_the_path_of_pytorch_within_every_budget(adaptive: FilePath, prior_chooser: Supernet) -> None:
    run = torchscript.load_adaptive(adaptive)
    assert mixed(check_promises(run, prior_chooser, STEPWISE, IMAGES, 1e-4))
    check_refusals(run, prior_chooser, torchscript.WAYS, IMAGES[0])
    facts = torchscript.facts(adaptive)
    check_facts(facts, prior_chooser, torchscript.WAYS)


def test_exchanged_branches_would_be_caught(
    prior_chooser: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "branch", lambda piece, run: branch(piece, not run))
    torchscript.build_adaptive(parts(prior_chooser), tmp_path / "exchanged.pt", {})
    with pytest.raises(AssertionError, match="not close"):
        check_promises(torchscript.load_adaptive(tmp_path / "exchanged.pt"), prior_chooser, STEPWISE, IMAGES, 1e-4)


def test_a_wrong_cost_inside_would_be_caught(
    prior_chooser: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = property(lambda costs: (0,) * len(costs.deltas))
    with monkeypatch.context() as patch:
        patch.setattr(Costs, "steps", free)
        torchscript.build_adaptive(parts(prior_chooser), tmp_path / "free.pt", {})
    with pytest.raises(AssertionError, match="breaks the budget"):
        check_promises(torchscript.load_adaptive(tmp_path / "free.pt"), prior_chooser, STEPWISE, IMAGES, 1e-4)


def test_only_the_branch_that_is_taken_is_computed(adaptive: FilePath) -> None:
    """Every unit is a condition with blocks, and no more is left outside than what every path runs."""
    module = torchscript.open_module(adaptive)
    conditions = module.graph.findAllNodes("prim::If", recurse=False)
    assert len(conditions) == 3
    for node in conditions:
        run, bypass = (block.findAllNodes("aten::_convolution") for block in node.blocks())
        assert len(run) > 2
        assert len(bypass) > 2
        assert len(run) != len(bypass)
