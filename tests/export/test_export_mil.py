"""The interpreter of MIL programs against torch, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pam_export import mil
from pam_export.quiet import quiet


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


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_palettes_of_every_width(bits: int) -> None:
    """Against the whole stream as one number, whose lowest bits are the first index."""
    generator = np.random.default_rng(bits)
    shape, palette = (3, 5, 1, 1), generator.normal(size=2**bits).astype(np.float32)
    indices = generator.integers(0, 2**bits, size=15)
    stream = sum(int(index) << (bits * i) for i, index in enumerate(indices))
    packed = np.frombuffer(stream.to_bytes(-(-15 * bits // 8), "little"), np.uint8)

    def build(mb: Any, x: Any) -> Any:
        weight = mb.constexpr_lut_to_dense(indices=packed, lut=palette, shape=np.array(shape, np.uint32))
        return mb.conv(x=x, weight=weight)

    x = torch.rand(1, 5, 4, 4)
    torch.testing.assert_close(evaluate(build, x), F.conv2d(x, torch.as_tensor(palette[indices].reshape(shape))))


def test_eight_bit_weights_with_a_scale_per_channel() -> None:
    generator = np.random.default_rng(0)
    data = generator.integers(-128, 128, size=(3, 5, 1, 1)).astype(np.int8)
    scale, zero = np.array([0.5, 2, 0.01], np.float32), np.array([3, -7, 0], np.int8)

    def build(mb: Any, x: Any) -> Any:
        weight = mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=np.int32(0))
        return mb.conv(x=x, weight=weight)

    x = torch.rand(1, 5, 4, 4)
    weight = torch.stack([torch.as_tensor((data[i].astype(np.float32) - zero[i]) * scale[i]) for i in range(3)])
    torch.testing.assert_close(evaluate(build, x), F.conv2d(x, weight))


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no function b080_64x64, it has main"):
        mil.run(program(lambda mb, x: mb.relu(x=x), (1, 1, 2, 2)), {}, "b080_64x64")
