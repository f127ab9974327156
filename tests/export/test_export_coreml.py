"""The .mlpackage: where float16 is not enough, smaller weights, and several functions in one package."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from export_samples import SIZE, alphas_of, single

from pam_export import coreml, mil
from pam_export.artifact import Part, Request
from pam_export.parity import Gate, Parity, cases, compare, reference
from pam_export.quiet import quiet
from pam_export.wrapper import network_of, wrap
from pam_mobile.errors import PamError
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

HALF = Gate(max_abs=2e-3, mean_abs=1e-3)
PATHS = {"b100": Path.parse("111"), "b090": Path.parse("010")}
ODD = 96
"""At this size the colour prior pads odd sizes."""
METHODS = [("b100_64x64", "b100", SIZE), ("b090_96x96", "b090", ODD)]
BLOB = "Data/com.apple.CoreML/weights/weight.bin"
INFO = {"path": "111,010", "macs": [7, 5], "weights": "x" * 64}


@pytest.fixture(scope="session")
def parts(prior_supernet: Supernet) -> list[Part]:
    return [
        Part(name, wrap(network_of(prior_supernet, PATHS[budget])), cases(size)[0].inputs())
        for name, budget, size in METHODS
    ]


@pytest.fixture(scope="session")
def converted(parts: list[Part]) -> dict[int, Any]:
    with quiet("converting"), torch.no_grad():
        return {id(part.module): coreml.convert(part.module, part.inputs) for part in parts}


@pytest.fixture(autouse=True)
def _convert_once(converted: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    convert = coreml.convert

    def cached(module: Any, inputs: Any, half: Any = None) -> Any:
        return converted[id(module)] if half is None else convert(module, inputs, half)

    monkeypatch.setattr(coreml, "convert", cached)


@pytest.fixture
def forward(parts: list[Part]) -> list[Part]:
    return single(parts[0].module, parts[0].inputs)


def parity(path: FilePath, part: Part, request: Request | None = None) -> Parity:
    inputs = cases(part.inputs[0].shape[-1])
    return compare(reference(part.module, inputs), alphas_of(coreml.load, path, inputs, request), HALF)


def files(path: FilePath) -> dict[str, bytes]:
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def test_prior_and_the_convolutions_at_both_ends_stay_float32(forward: list[Part], tmp_path: FilePath) -> None:
    backend = coreml.build(forward, tmp_path / "a.mlpackage", INFO)
    result = parity(tmp_path / "a.mlpackage", forward[0])
    assert result.passed, str(result)
    convolutions = mil.load(tmp_path / "a.mlpackage").functions["main"].find_ops(op_type="conv")
    large = [mil.type_name(op.outputs[0]) for op in convolutions if max(op.inputs["weight"].shape[2:]) > 1]
    assert {*large[:1], *large[-2:]} == {"fp32"}
    assert set(large[1:-2]) == {"fp16"}
    assert mil.type_name(convolutions[0].outputs[0]) == "fp32"
    assert backend["float32_ops"] + backend["float16_ops"] == backend["total_ops"]
    assert (backend["compressed_weights"], backend["min_os"]) == (0, "iOS 16")


def test_what_works_on_means_over_all_pixels_stays_float32(forward: list[Part], tmp_path: FilePath) -> None:
    coreml.build(forward, tmp_path / "a.mlpackage", {})
    found = [
        mil.type_name(op.outputs[0])
        for op in coreml.operations(mil.load(tmp_path / "a.mlpackage"))
        if op.op_type in ("conv", "sigmoid", "relu") and tuple(op.outputs[0].shape[2:]) == (1, 1)
    ]
    assert len(found) > 6
    assert set(found) == {"fp32"}


def test_all_in_float16_would_fail_the_gate(forward: list[Part], tmp_path: FilePath) -> None:
    with quiet("converting"), torch.no_grad():
        model = coreml.convert(forward[0].module, forward[0].inputs, lambda op: True)
        model.save(str(tmp_path / "half.mlpackage"))
    assert not parity(tmp_path / "half.mlpackage", forward[0]).passed


def test_inputs_are_images_and_alpha_is_float32(forward: list[Part], tmp_path: FilePath) -> None:
    coreml.build(forward, tmp_path / "a.mlpackage", INFO)
    with quiet("reading"):
        import coremltools as ct

        spec = ct.models.MLModel(str(tmp_path / "a.mlpackage"), skip_model_load=True).get_spec()
    image, trimap = spec.description.input
    types = ct.proto.FeatureTypes_pb2.ImageFeatureType
    assert (image.name, image.type.imageType.colorSpace) == ("image", types.RGB)
    assert (trimap.name, trimap.type.imageType.colorSpace) == ("trimap", types.GRAYSCALE)
    assert (image.type.imageType.height, image.type.imageType.width) == (SIZE, SIZE)
    (alpha,) = spec.description.output
    assert alpha.name == "alpha"
    assert list(alpha.type.multiArrayType.shape) == [1, 1, SIZE, SIZE]
    assert alpha.type.multiArrayType.dataType == ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert spec.specificationVersion == 7, "iOS 16"


@pytest.mark.parametrize(
    ("build", "operation", "most"),
    [
        (coreml.build_linear8, "constexpr_affine_dequantize", 0.02),
        (coreml.build_palette6, "constexpr_lut_to_dense", 0.08),
    ],
)
def test_smaller_weights(build: Any, operation: str, most: float, forward: list[Part], tmp_path: FilePath) -> None:
    backend = build(forward, tmp_path / "a.mlpackage", INFO)
    build(forward, tmp_path / "b.mlpackage", INFO)
    assert files(tmp_path / "a.mlpackage") == files(tmp_path / "b.mlpackage")
    coreml.build(forward, tmp_path / "half.mlpackage", INFO)
    weights = mil.load(tmp_path / "a.mlpackage").functions["main"].find_ops(op_type=operation)
    assert backend["compressed_weights"] == len(weights) > 0
    assert all(mil.type_name(op.outputs[0]) == "fp16" for op in weights), (
        "the prior and the first convolution are whole"
    )
    assert len(files(tmp_path / "a.mlpackage")[BLOB]) < len(files(tmp_path / "half.mlpackage")[BLOB])
    assert HALF.max_abs is not None
    worst = parity(tmp_path / "a.mlpackage", forward[0]).max_abs
    assert HALF.max_abs < worst < most, "compressed, but the same network"


def test_functions_share_their_weights(parts: list[Part], tmp_path: FilePath) -> None:
    backend = coreml.build_linear8(parts, tmp_path / "shared.mlpackage", INFO)
    assert backend["min_os"] == "iOS 18"
    alone = [tmp_path / f"{part.name}.mlpackage" for part in parts]
    for part, path in zip(parts, alone, strict=True):
        coreml.build_linear8(single(part.module, part.inputs), path, INFO)
        inputs = cases(part.inputs[0].shape[-1])
        expected = alphas_of(coreml.load, path, inputs)
        got = alphas_of(coreml.load, tmp_path / "shared.mlpackage", inputs, Request(part.name))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    together, *apart = (len(files(path)[BLOB]) for path in (tmp_path / "shared.mlpackage", *alone))
    assert together < 0.75 * sum(apart), "the second function adds its connect layers only"


def test_each_function_is_a_path_of_its_own(prior_supernet: Supernet, parts: list[Part], tmp_path: FilePath) -> None:
    coreml.build(parts, tmp_path / "shared.mlpackage", INFO)
    for part in parts:
        assert parity(tmp_path / "shared.mlpackage", part, Request(part.name)).passed
    other = Part("other", wrap(network_of(prior_supernet, PATHS["b090"])), parts[0].inputs)
    assert not parity(tmp_path / "shared.mlpackage", other, Request(parts[0].name)).passed
    with pytest.raises(PamError, match="no function main, it has b090_96x96, b100_64x64"):
        parity(tmp_path / "shared.mlpackage", parts[0], Request())


@pytest.mark.parametrize("shared", [False, True])
def test_a_package_says_what_it_is(shared: bool, parts: list[Part], forward: list[Part], tmp_path: FilePath) -> None:
    coreml.build(parts if shared else forward, tmp_path / "a.mlpackage", INFO)
    with quiet("reading"):
        assert coreml.facts(tmp_path / "a.mlpackage") == {"path": "111,010", "macs": "7,5", "weights": "x" * 64}
    assert set(files(tmp_path / "a.mlpackage")) == {coreml.SPEC, coreml.ITEMS, BLOB}
