"""The connect layer against literal sums in float64, and what it is at the start of training."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pam_kernels import Connect, connect

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda h: np.maximum(h, 0),
    "gelu": lambda h: h * np.vectorize(lambda v: (1 + erf(v / sqrt(2))) / 2, otypes=[float])(h),
    "silu": lambda h: h / (1 + np.exp(-h)),
    "identity": lambda h: h,
}


def _literal(x: Tensor, weights: list[Tensor], activation: str) -> np.ndarray:
    """y = x + W2 act(W1 x + b1) + b2, pixel by pixel."""
    images = x.detach().double().numpy()
    w1, b1, w2, b2 = (w.detach().double().numpy() for w in weights)
    y = np.empty(images.shape)
    for n, _, i, j in np.ndindex(images.shape[0], 1, *images.shape[2:]):
        pixel = images[n, :, i, j]
        y[n, :, i, j] = pixel + w2 @ ACTIVATIONS[activation](w1 @ pixel + b1) + b2
    return y


def _weights(channels: int, hidden: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(hidden, channels), (hidden,), (channels, hidden), (channels,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(list(ACTIVATIONS)),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.integers(0, 2**31),
)
def test_every_pixel_is_the_literal_sum(
    n: int, channels: int, hidden: int, h: int, w: int, activation: str, layout: torch.memory_format, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(n, channels, h, w).contiguous(memory_format=layout)
    weights = _weights(channels, hidden)
    y = connect(x, *weights, activation)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.detach().double().numpy(), _literal(x, weights, activation), rtol=1e-4, atol=1e-4)


def test_a_non_contiguous_input_is_read_by_its_values() -> None:
    x = torch.randn(2, 7, 6, 8)[:, ::2, 1::2, ::3]
    weights = _weights(4, 2)
    assert not x.is_contiguous()
    np.testing.assert_allclose(connect(x, *weights).detach(), _literal(x, weights, "relu"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradients_are_those_of_the_sum(activation: str) -> None:
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    args = (x, *_weights(4, 3, torch.float64))
    assert torch.autograd.gradcheck(lambda *values: connect(*values, activation), args)


def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients() -> None:
    weights = _weights(4, 2)
    y = connect(torch.empty(0, 4, 3, 5), *weights)
    assert y.shape == (0, 4, 3, 5)
    y.sum().backward()
    for weight in weights:
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("channels", [32, 96, 312])
def test_at_the_start_it_is_near_the_identity_and_not_the_identity(channels: int) -> None:
    x = torch.randn(2, channels, 16, 16)
    change = (Connect(channels)(x) - x).std() / x.std()
    assert 0.05 < change < 0.25


def test_the_module_has_a_hidden_width_of_half_the_channels() -> None:
    module = Connect(10)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {"w1": (5, 10), "b1": (5,), "w2": (10, 5), "b2": (10,)}
    x = torch.randn(1, 10, 3, 3)
    assert torch.equal(module(x), connect(x, module.w1, module.b1, module.w2, module.b2))
    module.activation = "gelu"
    assert torch.equal(module(x), connect(x, module.w1, module.b1, module.w2, module.b2, "gelu"))


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="relu, gelu, silu, identity, activation = 'tanh'"):
        connect(torch.rand(1, 4, 2, 2), *_weights(4, 2), "tanh")


@pytest.mark.parametrize("shape", [(1, 5, 2, 2), (4, 2, 2), (1, 4, 2)])
def test_inputs_that_do_not_fit_are_refused_and_shown(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 4, H, W\)") as caught:
        connect(torch.rand(shape), *_weights(4, 2))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_weights_that_do_not_fit_each_other_are_refused(wrong: int) -> None:
    weights = [*_weights(4, 2)]
    weights[wrong] = torch.rand([size + 1 for size in weights[wrong].shape])
    with pytest.raises(ValueError, match="do not fit"):
        connect(torch.rand(1, 4, 2, 2), *weights)
