"""The .mlpackage that chooses its path: conditions in the saved program, and float32 where float16 would break the promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_samples import IMAGES, INFO, check_facts, check_promises, check_refusals, mixed, parts
from torch import Tensor

from pam_export import coreml, coreml_adaptive, manifest, mil
from pam_export.artifact import STEPWISE
from pam_export.controller import Costs
from pam_export.quiet import quiet
from pam_mobile.files import sha256
from pam_mobile.model.supernet import Supernet

pytest.importorskip("coremltools")

GATE = 2e-2


@pytest.fixture(scope="module")
def package(prior_chooser: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    path = tmp_path_factory.mktemp("adaptive") / "adaptive.mlpackage"
    backend = coreml_adaptive.build(parts(prior_chooser), path, INFO)
    assert backend["conditions"] == len(prior_chooser.units)
    assert backend["float16_ops"] > 50
    return path


def test_it_takes_the_path_of_pytorch_within_every_budget(package: FilePath, prior_chooser: Supernet) -> None:
    run = coreml_adaptive.load(package)
    assert mixed(check_promises(run, prior_chooser, STEPWISE, IMAGES, GATE))
    check_refusals(run, prior_chooser, coreml_adaptive.WAYS, IMAGES[0])
    facts = coreml.facts(package)
    check_facts(facts, prior_chooser, coreml_adaptive.WAYS)


def operations(block: Any, inside: bool = False) -> Iterator[tuple[Any, bool]]:
    """Every operation that is not a constant, and whether it lies in a branch."""
    for op in block.operations:
        if op.op_type != "const":
            yield op, inside
        for branch in op.blocks:
            yield from operations(branch, True)


def test_choosing_and_the_prior_are_float32_and_the_branches_float16(package: FilePath) -> None:
    found = list(operations(mil.load(package).functions[mil.MAIN]))
    results = [op.outputs[0] for op, inside in found if inside and op.op_type in ("conv", "relu")]
    for one_pixel, kind in ((False, "fp16"), (True, "fp32")):
        assert {mil.type_name(y) for y in results if (tuple(y.shape[2:]) == (1, 1)) == one_pixel} == {kind}
    for op, _ in found:
        if op.op_type in ("greater", "greater_equal"):
            assert {mil.type_name(op.inputs[name]) for name in ("x", "y")} == {"fp32"}
        if op.op_type in ("abs", "real_div"):
            assert mil.type_name(op.outputs[0]) == "fp32"
    large = [op for op, _ in found if op.op_type == "conv" and max(op.inputs["weight"].shape[2:]) > 1]
    assert [mil.type_name(op.outputs[0]) for op in large] == ["fp32"] * 2 + ["fp16"] * (len(large) - 5) + ["fp32"] * 3


def test_counting_the_budget_in_float16_would_break_the_promise(
    prior_chooser: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers above 2048 are not exact in float16: a grain of one MAC shows it at this size, too."""
    monkeypatch.setattr(Costs, "grain", 1)
    monkeypatch.setattr(coreml_adaptive, "_chooses", lambda op: False)
    monkeypatch.setattr(coreml, "_has_one_pixel", lambda op: False)
    coreml_adaptive.build(parts(prior_chooser), tmp_path / "half.mlpackage", {})
    with pytest.raises(AssertionError, match=r"breaks the budget|is not PyTorch's path"):
        check_promises(coreml_adaptive.load(tmp_path / "half.mlpackage"), prior_chooser, STEPWISE, IMAGES, GATE)


def digests(package: FilePath) -> dict[str, str]:
    return {file.relative_to(package).as_posix(): sha256(file) for file in manifest.files_under(package)}


def test_another_process_writes_the_same_bytes_whatever_it_converted_before(
    package: FilePath, tmp_path: FilePath
) -> None:
    code = (
        "import sys, pathlib, torch, adaptive_samples as samples\n"
        "from pam_export import coreml_adaptive\n"
        "torch.set_num_threads(1)\n"
        "for name in sys.argv[1:]:\n"
        "    parts = samples.parts(samples.choosy(prior=True))\n"
        "    coreml_adaptive.build(parts, pathlib.Path(name), samples.INFO)\n"
    )
    packages = [tmp_path / f"{name}.mlpackage" for name in ("first", "second")]
    paths = os.pathsep.join([str(FilePath(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "17", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *packages], env=environment, check=True)
    assert digests(packages[0]) == digests(packages[1]) == digests(package)


def test_names_and_equal_constants_are_what_would_swell(
    package: FilePath, prior_chooser: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreml, "_shorten", lambda block, names, numbers: None)
    coreml_adaptive.build(parts(prior_chooser), tmp_path / "long.mlpackage", INFO)
    long, short = ((folder / coreml.SPEC).stat().st_size for folder in (tmp_path / "long.mlpackage", package))
    assert long > 2 * short


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
