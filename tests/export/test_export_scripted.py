"""The .mlpackage that chooses its path: conditions in the saved program, and float32 where float16 would break the promise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_samples import check_promises, check_refusals, choosy, mixed, parts
from export_samples import SIZE
from torch import Tensor

from pam_export import coreml, coreml_adaptive, mil
from pam_export.artifact import STEPWISE
from pam_export.controller import Costs
from pam_export.parity import cases
from pam_export.quiet import quiet
from pam_mobile.model.supernet import Supernet

pytest.importorskip("coremltools")

IMAGES = cases(SIZE)[:3]
GATE = 2e-2


@pytest.fixture(scope="module")
def chooser() -> Supernet:
    return choosy(prior=True)


@pytest.fixture(scope="module")
def package(chooser: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    path = tmp_path_factory.mktemp("adaptive") / "adaptive.mlpackage"
    backend = coreml_adaptive.build(parts(chooser), path, {"arch": "mini", "size": SIZE})
    assert backend["conditions"] == len(chooser.units)
    assert backend["float16_ops"] > 50
    return path


def test_it_takes_the_path_of_pytorch_within_every_budget(package: FilePath, chooser: Supernet) -> None:
    run = coreml_adaptive.load(package)
    assert mixed(check_promises(run, chooser, STEPWISE, IMAGES, GATE))
    check_refusals(run, chooser, coreml_adaptive.WAYS, IMAGES[0])
    facts = coreml.facts(package)
    assert Costs.of_facts(facts) == Costs.of(chooser, SIZE)
    assert (facts["arch"], facts["selection"]) == ("mini", STEPWISE)


def operations(block: Any, inside: bool = False) -> Iterator[tuple[Any, bool]]:
    """Every operation that is not a constant, and whether it lies in a branch."""
    for op in block.operations:
        if op.op_type != "const":
            yield op, inside
        for branch in op.blocks:
            yield from operations(branch, True)


def test_choosing_and_the_prior_are_float32_and_the_branches_float16(package: FilePath) -> None:
    found = list(operations(mil.load(package).functions[mil.MAIN]))
    branches = [op for op, inside in found if inside]
    assert {mil.type_name(op.outputs[0]) for op in branches if op.op_type in ("conv", "relu")} == {"fp16"}
    for op, _ in found:
        if op.op_type in ("greater", "greater_equal"):
            assert {mil.type_name(op.inputs[name]) for name in ("x", "y")} == {"fp32"}
        if op.op_type in ("abs", "real_div"):
            assert mil.type_name(op.outputs[0]) == "fp32"
    large = [op for op, _ in found if op.op_type == "conv" and max(op.inputs["weight"].shape[2:]) > 1]
    assert [mil.type_name(op.outputs[0]) for op in large] == ["fp32", *["fp16"] * (len(large) - 1)]


def test_counting_the_budget_in_float16_would_break_the_promise(
    chooser: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers above 2048 are not exact in float16: a grain of one MAC shows it at this size, too."""
    monkeypatch.setattr(Costs, "grain", 1)
    monkeypatch.setattr(coreml_adaptive, "_chooses", lambda op: False)
    coreml_adaptive.build(parts(chooser), tmp_path / "half.mlpackage", {})
    with pytest.raises(AssertionError, match=r"breaks the budget|is not PyTorch's path"):
        check_promises(coreml_adaptive.load(tmp_path / "half.mlpackage"), chooser, STEPWISE, IMAGES, GATE)


def program_and_weights(package: FilePath) -> tuple[list[str], bytes]:
    """The specification as lines, without the numbers that the converter gives constants process by process, and the weights."""
    import coremltools as ct

    content = package / "Data" / "com.apple.CoreML"
    spec = ct.proto.Model_pb2.Model.FromString((content / "model.mlmodel").read_bytes())
    return re.sub(r"const_\d+", "const", str(spec)).splitlines(), (content / "weights" / "weight.bin").read_bytes()


def test_the_same_network_gives_the_same_program_and_weights(
    package: FilePath, chooser: Supernet, tmp_path: FilePath
) -> None:
    coreml_adaptive.build(parts(chooser), tmp_path / "again.mlpackage", {"arch": "mini", "size": SIZE})
    (lines, weights), (wanted, same) = program_and_weights(tmp_path / "again.mlpackage"), program_and_weights(package)
    assert [pair for pair in zip(lines, wanted, strict=True) if pair[0] != pair[1]] == []
    assert weights == same


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interpreter_runs_the_branch_that_is_taken_and_no_other(sign: int) -> None:
    """Softmax is unknown to the interpreter: it is an error where it is reached, and only there."""
    with quiet("building"):
        from coremltools.converters.mil import Builder as mb  # noqa: N813

        @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3))])
        def program(x: Any) -> Any:
            chosen = mb.greater(x=mb.squeeze(x=mb.reduce_mean(x=x, axes=[1], keep_dims=True)), y=np.float32(0))
            doubled = mb.mul(x=x, y=np.float32(2))
            result = mb.cond(
                pred=chosen,
                _true_fn=lambda: mb.add(x=mb.abs(x=doubled), y=x),
                _false_fn=lambda: mb.softmax(x=doubled, axis=1),
            )
            return mb.add(x=result, y=doubled)

    x: Tensor = sign * torch.tensor([[1.0, 2.0, 0.5]])
    if sign > 0:
        assert torch.equal(mil.run(program, {"x": x})[0], 5 * x)
    else:
        with pytest.raises(NotImplementedError, match="MIL operation softmax"):
            mil.run(program, {"x": x})
