"""The .onnx: equal to PyTorch in ONNX Runtime, made of what browsers run, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from export_samples import SIZE, alphas_of, single
from torch import Tensor, nn

from pam_export.artifact import FORWARD, Part
from pam_export.parity import Gate, Parity, cases, compare, reference
from pam_export.quiet import quiet
from pam_export.wrapper import network_of, wrap
from pam_mobile.errors import IntegrityError
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from pam_export import onnx as target  # noqa: E402

PATH = Path.parse("101")
INFO = {"path": "101", "macs": 7, "budgets": [1, 2]}
EXACT = Gate(max_abs=1e-4, mean_abs=1e-5)


@pytest.fixture(scope="session")
def part(prior_supernet: Supernet) -> Part:
    inputs = [case.inputs() for case in cases(SIZE)]
    return Part(FORWARD, wrap(network_of(prior_supernet, PATH)), inputs[0], calibration=inputs[1:4])


@pytest.fixture(scope="session")
def model(part: Part) -> Any:
    with quiet("converting"), torch.no_grad():
        return target.convert(part.module, part.inputs)


@pytest.fixture(autouse=True)
def _convert_once(part: Part, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = target.convert

    def cached(module: nn.Module, inputs: Any) -> Any:
        if module is not part.module:
            return convert(module, inputs)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy

    monkeypatch.setattr(target, "convert", cached)


def parity(path: FilePath, module: nn.Module) -> Parity:
    inputs = cases(SIZE)
    return compare(reference(module, inputs), alphas_of(target.load, path, inputs), EXACT)


def test_equal_to_pytorch(prior_supernet: Supernet, part: Part, tmp_path: FilePath) -> None:
    backend = target.build([part], tmp_path / "a.onnx", INFO)
    result = parity(tmp_path / "a.onnx", part.module)
    assert result.passed, str(result)
    assert not parity(tmp_path / "a.onnx", network_of(prior_supernet, Path.parse("010"))).passed
    assert (backend["quantised_convolutions"], backend["leftovers"]) == (0, 0)


def test_what_is_inside(part: Part, tmp_path: FilePath) -> None:
    target.build([part], tmp_path / "a.onnx", INFO)
    assert target.facts(tmp_path / "a.onnx") == {"path": "101", "macs": "7", "budgets": "1,2"}
    content = onnx.load(tmp_path / "a.onnx")
    names = [value.name for value in (*content.graph.input, *content.graph.output)]
    assert names == ["image", "trimap", "alpha"]
    shapes = [
        [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*content.graph.input, *content.graph.output)
    ]
    assert shapes == [[1, 3, SIZE, SIZE], [1, 1, SIZE, SIZE], [1, 1, SIZE, SIZE]]
    assert [(entry.domain, entry.version) for entry in content.opset_import] == [("", target.OPSET)]
    assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in content.graph.initializer)
    assert b".py" not in (tmp_path / "a.onnx").read_bytes(), "no source paths of the machine that made it"


BUILD = """
import sys, torch
from pathlib import Path
from export_samples import lively, mini, single, SIZE
from pam_export import onnx
from pam_export.artifact import Part
from pam_export.parity import cases
from pam_export.wrapper import network_of, wrap
from pam_mobile.path import Path as Route
torch.use_deterministic_algorithms(True)
net = lively(mini(prior=True), SIZE)
inputs = [case.inputs() for case in cases(SIZE)]
part = Part("forward", wrap(network_of(net, Route.parse("101"))), inputs[0], inputs[1:4])
onnx.build_int8([part], Path(sys.argv[1]), {"b": "2", "a": 1})
"""


def test_same_bytes_in_two_processes(tmp_path: FilePath) -> None:
    written = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        path = tmp_path / f"{seed}.onnx"
        subprocess.run([sys.executable, "-c", BUILD, str(path)], env=environment, check=True, capture_output=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]


class Shuffled(nn.Module):
    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return F.pixel_shuffle(image.repeat(1, 4, 1, 1) * trimap, 2)


def test_an_operation_that_browsers_may_lack_is_refused(tmp_path: FilePath) -> None:
    with pytest.raises(IntegrityError, match="not known to run in browsers: DepthToSpace"):
        target.build(single(Shuffled(), cases(32)[0].inputs()), tmp_path / "bad.onnx", {})
    assert not (tmp_path / "bad.onnx").exists()


def test_int8_in_the_middle_of_the_network(part: Part, model: Any, tmp_path: FilePath) -> None:
    target.build([part], tmp_path / "float.onnx", INFO)
    backend = target.build_int8([part], tmp_path / "a.onnx", INFO)
    assert target.facts(tmp_path / "a.onnx") == target.facts(tmp_path / "float.onnx")
    small = (tmp_path / "a.onnx").stat().st_size - (tmp_path / "float.onnx").stat().st_size
    assert small < 0
    content = onnx.load(tmp_path / "a.onnx")
    assert {node.op_type for node in content.graph.node} <= target.FLOAT | target.STORED
    wide = {t.name for t in model.graph.initializer if len(t.dims) == 4 and max(t.dims[2:]) > 1}
    large = [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in wide]
    kept = [node.name for node in content.graph.node if node.op_type == "Conv" and node.input[1] in wide]
    assert kept == [large[0], large[-1]], "first and last convolution keep float32 weights"
    middle = set(target.between_convolutions(model.graph))
    expected = [node for node in model.graph.node if node.op_type == "Conv" and node.name in middle]
    assert backend["quantised_convolutions"] == len(expected) > 10


def test_int8_pairs_of_products_fit_16_bits(part: Part, tmp_path: FilePath) -> None:
    """So x86 without VNNI, which adds two products in 16 bits, computes what the file says, as all others do."""
    target.build_int8([part], tmp_path / "a.onnx", INFO)
    content = onnx.load(tmp_path / "a.onnx")
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in content.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    ]
    assert len(weights) > 10
    for weight in weights:
        assert 2 * 255 * abs(weight.astype(int)).max() < 1 << 15
    inputs = cases(SIZE)
    options = onnxruntime.SessionOptions()
    # Unoptimised, every operation is computed in float32.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", options, providers=["CPUExecutionProvider"])
    said = [torch.from_numpy(session.run(None, target._feed(*case.inputs()))[0]) for case in inputs]
    assert compare(said, alphas_of(target.load, tmp_path / "a.onnx", inputs), EXACT).passed


def test_int8_stays_near_and_wrong_ranges_do_not(part: Part, tmp_path: FilePath) -> None:
    """A range of activations from calibration inputs that say nothing ruins the matte: calibration is used."""
    target.build_int8([part], tmp_path / "a.onnx", INFO)
    result = parity(tmp_path / "a.onnx", part.module)
    image, trimap = part.inputs
    flat = Part(FORWARD, part.module, part.inputs, [(0 * image, 0 * trimap)])
    target.build_int8([flat], tmp_path / "flat.onnx", INFO)
    ruined = parity(tmp_path / "flat.onnx", part.module)
    assert EXACT.mean_abs < result.mean_abs < 0.05
    assert ruined.max_abs > 2 * result.max_abs
    with pytest.raises(ValueError, match="needs calibration inputs"):
        target.build_int8([Part(FORWARD, part.module, part.inputs)], tmp_path / "b.onnx", INFO)
