"""Depthwise convolution against literal sums in float64, and as a drop-in for nn.Conv2d."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pam_kernels import DepthwiseConv2d, depthwise_conv2d

odd_kernels = st.sampled_from([3, 5, 7, 9, 13, 31])
sizes = st.integers(1, 12)


def _literal(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> np.ndarray:
    """y[n, c, i, j] = bias[c] + sum_uv weight[c, u, v] x[n, c, i s + u - k // 2, j s + v - k // 2], zeros outside."""
    images, kernels = x.detach().double().numpy(), weight.detach().double().numpy()[:, 0]
    n, c, h, w = images.shape
    half = kernels.shape[-1] // 2
    y = np.zeros((n, c, -(-h // stride), -(-w // stride)))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            top, left = i * stride - half, j * stride - half
            rows, columns = (
                range(max(top, 0), min(top + 2 * half + 1, h)),
                range(max(left, 0), min(left + 2 * half + 1, w)),
            )
            patch = images[:, :, rows.start : rows.stop, columns.start : columns.stop]
            taps = kernels[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            y[:, :, i, j] = (patch * taps).sum((2, 3))
    return y if bias is None else y + bias.detach().double().numpy()[:, None, None]


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.full((x.shape[0], x.shape[1], 2 * x.shape[2], x.shape[3] + 3), float("nan"), dtype=x.dtype)
        wide[:, :, ::2, 1:-2] = x
        return wide[:, :, ::2, 1:-2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


@settings(max_examples=80)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    sizes,
    sizes,
    odd_kernels,
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(["contiguous", "channels_last", "strided", "transposed"]),
    st.integers(0, 2**31),
)
def test_the_sum_is_the_literal_one(
    n: int, c: int, h: int, w: int, k: int, stride: int, with_bias: bool, layout: str, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = _laid_out(torch.randn(n, c, h, w, generator=random), layout)
    weight = torch.randn(c, 1, k, k, generator=random)
    bias = torch.randn(c, generator=random) if with_bias else None
    y = depthwise_conv2d(x, weight, bias, stride)
    expected = _literal(x, weight, bias, stride)
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_float64_is_computed_in_float64() -> None:
    x, weight = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(3, 1, 7, 7, dtype=torch.float64)
    np.testing.assert_allclose(depthwise_conv2d(x, weight).numpy(), _literal(x, weight, None, 1), rtol=1e-12)


def test_bfloat16_stays_bfloat16() -> None:
    x, weight = torch.randn(2, 3, 6, 5).bfloat16(), torch.randn(3, 1, 5, 5).bfloat16()
    y = depthwise_conv2d(x, weight)
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(y.double().numpy(), _literal(x, weight, None, 1), rtol=2e-2, atol=5e-2)


def test_an_off_centre_kernel_is_caught() -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(2, 1, 3, 3)
    shifted = depthwise_conv2d(x, weight).roll(1, 3)
    assert np.abs(shifted.double().numpy() - _literal(x, weight, None, 1)).max() > 0.1


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_the_sum(stride: int) -> None:
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: depthwise_conv2d(*args, stride), (x, weight, bias))


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (0, 3, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients(shape: tuple[int, ...], stride: int) -> None:
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    y = depthwise_conv2d(torch.empty(shape), weight, None, stride)
    assert y.shape == (0, 3, -(-shape[2] // stride), -(-shape[3] // stride))
    y.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_module_is_a_drop_in_for_conv2d(bias: bool, stride: int) -> None:
    ours = DepthwiseConv2d(4, 5, stride, bias)
    theirs = nn.Conv2d(4, 4, 5, stride, padding=2, groups=4, bias=bias)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 7, 9)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.load_state_dict(nn.Conv2d(4, 4, 5, stride, padding=2, groups=4, bias=bias).state_dict())
    assert not torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 1, 1, 1), (3, 1, 33, 33), (3, 1, 3, 5), (3, 3, 3, 3)])
def test_other_kernels_are_refused_and_shown(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"odd k in 3\.\.31") as caught:
        depthwise_conv2d(torch.rand(1, 3, 8, 8), torch.rand(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8), (1, 1, 8, 8)])
def test_inputs_that_do_not_fit_are_refused_and_shown(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)") as caught:
        depthwise_conv2d(torch.rand(shape), torch.rand(3, 1, 3, 3))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("stride", [0, 3, -1])
def test_other_strides_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride = {stride}"):
        depthwise_conv2d(torch.rand(1, 3, 8, 8), torch.rand(3, 1, 3, 3), None, stride)


def test_the_package_needs_torch_only() -> None:
    code = """
import sys
import torch
before = set(sys.modules)
import pam_kernels
new = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(" ".join(sorted(new)))
print([name for name in sys.modules if name.startswith(("pam_mobile", "pam_export"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["pam_kernels", "[]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_on_a_cpu_gives_its_dtype_from_float32_products(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 3, 9, 8).to(dtype), torch.randn(3, 1, 5, 5, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight)
        as_autocast_does = torch.nn.functional.conv2d(x, weight, None, 1, 2, groups=3)
    assert y.dtype == as_autocast_does.dtype
    wide = torch.promote_types(dtype, torch.float32)
    exact = depthwise_conv2d(x.to(wide), weight.to(wide))
    assert torch.equal(y, exact.to(y.dtype))
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
