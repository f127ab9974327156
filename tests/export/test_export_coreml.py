"""The .mlpackage: the interpreter that checks it, and where float16 is not enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_samples import SIZE
from torch import Tensor

from pam_export import RECIPES, coreml, mil
from pam_export.parity import Parity, cases, compare, reference
from pam_export.quiet import quiet
from pam_export.wrapper import network_of, wrap
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path


def program(build: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> Any:
    """A MIL program of one float32 input `x`."""
    with quiet("building"):
        from coremltools.converters.mil import Builder as mb  # noqa: N813

        @mb.program(input_specs=[mb.TensorSpec(shape=shape)])
        def prog(x: Any) -> Any:
            return build(mb, x)

    return prog


def evaluate(build: Callable[[Any, Any], Any], x: Tensor) -> Tensor:
    return mil.run(program(build, tuple(x.shape)), {"x": x})[0]


def test_padded_average_pooling() -> None:
    x = torch.rand(1, 2, 7, 9)
    for exclude in (True, False):
        got = evaluate(
            lambda mb, v, exclude=exclude: mb.avg_pool(
                x=v,
                kernel_sizes=[3, 5],
                strides=[1, 2],
                pad_type="custom",
                pad=[1, 1, 2, 2],
                exclude_padding_from_average=exclude,
            ),
            x,
        )
        wanted = F.avg_pool2d(x, (3, 5), (1, 2), (1, 2), False, not exclude)
        torch.testing.assert_close(got, wanted)


def test_convolutions_with_uneven_padding() -> None:
    x, weight = torch.rand(1, 4, 6, 5), torch.rand(4, 1, 3, 2)
    got = evaluate(lambda mb, v: mb.conv(x=v, weight=weight.numpy(), pad_type="custom", pad=[1, 0, 2, 1], groups=4), x)
    torch.testing.assert_close(got, F.conv2d(F.pad(x, (2, 1, 1, 0)), weight, groups=4))


def test_slices_pads_concatenation_and_arithmetic() -> None:
    x = torch.rand(1, 4, 6, 5) - 0.5
    got = evaluate(
        lambda mb, v: mb.slice_by_index(
            x=v,
            begin=[0, 1, 0, 0],
            end=[1, 3, 0, 4],
            begin_mask=[True, False, True, True],
            end_mask=[True, False, True, False],
        ),
        x,
    )
    assert torch.equal(got, x[:, 1:3, :, :4])
    got = evaluate(lambda mb, v: mb.pad(x=v, pad=[1, 0, 2, 3], mode="constant", constant_val=np.float32(0)), x)
    assert torch.equal(got, F.pad(x, (2, 3, 1, 0)))
    got = evaluate(
        lambda mb, v: mb.concat(values=[mb.real_div(x=v, y=np.float32(3)), mb.sub(x=v, y=np.float32(1))], axis=1), x
    )
    assert torch.equal(got, torch.cat([x / 3, x - 1], 1))
    got = evaluate(lambda mb, v: mb.clip(x=v, alpha=np.float32(-0.1), beta=np.float32(0.2)), x)
    torch.testing.assert_close(got, x.clamp(-0.1, 0.2))
    got = evaluate(
        lambda mb, v: mb.upsample_bilinear(x=v, scale_factor_height=2.0, scale_factor_width=3.0, align_corners=False), x
    )
    torch.testing.assert_close(got, F.interpolate(x, scale_factor=(2.0, 3.0), mode="bilinear"))


def test_results_are_rounded_to_half_where_the_program_says_so() -> None:
    x = torch.rand(1, 1, 4, 4)
    got = evaluate(lambda mb, v: mb.cast(x=mb.mul(x=mb.cast(x=v, dtype="fp16"), y=np.float16(3)), dtype="fp32"), x)
    assert torch.equal(got, (x.half().float() * 3).half().float())
    assert not torch.equal(got, x * 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda mb, x: mb.softmax(x=x, axis=1), "MIL operation softmax"),
        (lambda mb, x: mb.pad(x=x, pad=[1, 1, 1, 1], mode="reflect"), "with mode = reflect"),
        (lambda mb, x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"), "with pad_type = same"),
        (
            lambda mb, x: mb.avg_pool(
                x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[0] * 4, ceil_mode=True
            ),
            "ceil_mode",
        ),
        (lambda mb, x: mb.slice_by_index(x=x, begin=[0, 3, 5, 0], end=[1, 4, 0, 5], stride=[1, 1, -1, 1]), "stride"),
    ],
)
def test_what_the_interpreter_does_not_know_is_an_error(build: Callable[[Any, Any], Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        evaluate(build, torch.rand(1, 4, 6, 5))


def prior_parity(supernet: Supernet, keep_prior: bool, path: FilePath) -> tuple[Parity, Any]:
    network, inputs = network_of(supernet, Path.parse("101")), cases(SIZE)
    with quiet("converting"), torch.no_grad():
        model = coreml.convert(wrap(network), inputs[0].inputs(), keep_prior)
        model.save(str(path))
    alphas = coreml.execute(path, torch.cat([c.image for c in inputs]), torch.cat([c.trimap for c in inputs]))
    return compare(reference(network, inputs), alphas.split(1), RECIPES["coreml"].gate), model._mil_program


def test_the_colour_prior_stays_float32(prior_supernet: Supernet, tmp_path: FilePath) -> None:
    parity, prog = prior_parity(prior_supernet, True, tmp_path / "kept.mlpackage")
    assert parity.passed, str(parity)
    for op in prog.functions["main"].find_ops(op_type="conv"):
        large = max(op.inputs["weight"].shape[2:]) > 1
        behind = "fp16" in op.name
        assert behind or not large, "every larger convolution is float16"
    first = prog.functions["main"].find_ops(op_type="conv")[0]
    assert mil.type_name(first.outputs[0]) == "fp32"
    assert {mil.type_name(op.outputs[0]) for op in prog.functions["main"].find_ops(op_type="relu")} == {"fp16"}


def test_the_colour_prior_in_float16_would_fail_the_gate(prior_supernet: Supernet, tmp_path: FilePath) -> None:
    parity, _ = prior_parity(prior_supernet, False, tmp_path / "half.mlpackage")
    assert not parity.passed


def test_inputs_are_images_and_alpha_is_float32(exported: FilePath) -> None:
    with quiet("reading"):
        import coremltools as ct

        spec = ct.models.MLModel(
            str(exported / "pam-mini-v3_b100_64x64_fp16.mlpackage"), skip_model_load=True
        ).get_spec()
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
