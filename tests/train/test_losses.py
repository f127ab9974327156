"""The matting loss against literal re-implementations, and what it must not depend on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.data.compose import Batch
from pam_mobile.train.losses import (
    LossWeights,
    composition_loss,
    l1_loss,
    laplacian_loss,
    matting_loss,
    unknown_mask,
)


def batch(n: int = 2, size: int = 32, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    alpha = torch.rand(n, 1, size, size, generator=rng)
    fg, bg = (torch.rand(n, 3, size, size, generator=rng) for _ in range(2))
    trimap = (torch.rand(n, 1, size, size, generator=rng) * 3).floor() / 2
    return Batch(alpha * fg + (1 - alpha) * bg, trimap, alpha, fg, bg)


@pytest.mark.parametrize("smooth", [0.1, 0.001])
def test_l1_is_the_mean_over_unknown_pixels_with_a_round_corner(smooth: float) -> None:
    b = batch()
    mask = unknown_mask(b.trimap)
    guess = torch.rand_like(b.alpha)
    errors = [(guess[i] - b.alpha[i]).abs()[b.trimap[i] == 0.5].numpy() for i in range(2)]
    expected = np.mean([np.where(e < smooth, e**2 / (2 * smooth), e - smooth / 2).mean() for e in errors])
    assert l1_loss(guess - b.alpha, mask, smooth).item() == pytest.approx(expected, rel=1e-5)


def test_composition_sums_three_channels() -> None:
    b = batch()
    guess = torch.rand_like(b.alpha)
    error = ((guess - b.alpha).abs() * (b.foreground - b.background).abs()).sum(1, keepdim=True)
    expected = l1_loss(error, unknown_mask(b.trimap), 0.1)
    assert composition_loss(guess, b, unknown_mask(b.trimap), 0.1).item() == pytest.approx(expected.item(), rel=1e-4)


def literal_laplacian(difference: np.ndarray) -> float:
    taps = np.array([1, 4, 6, 4, 1], np.float64) / 16
    total, x = 0.0, difference.astype(np.float64)
    for level in range(5):
        if min(x.shape) < 4:
            break
        small = cv2.sepFilter2D(x, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REFLECT_101)[::2, ::2]
        zeros = np.zeros_like(x)
        zeros[::2, ::2] = small
        back = cv2.sepFilter2D(zeros, cv2.CV_64F, 2 * taps, 2 * taps, borderType=cv2.BORDER_REFLECT_101)
        total += 2**level * np.abs(x - back).mean()
        x = small
    return total


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 100))
def test_laplacian_equals_a_literal_pyramid(height: int, width: int, seed: int) -> None:
    difference = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5
    assert laplacian_loss(difference).item() == pytest.approx(literal_laplacian(difference[0, 0].numpy()), rel=1e-4)


def test_loss_is_zero_at_the_truth_and_blind_to_known_pixels() -> None:
    b = batch()
    assert matting_loss(b.alpha, b, LossWeights())["loss"].item() == pytest.approx(0, abs=1e-6)
    known = torch.where(b.trimap == 0.5, b.alpha, torch.full_like(b.alpha, 7.0))
    assert matting_loss(known, b, LossWeights())["loss"].item() == pytest.approx(0, abs=1e-6)


def test_weights_weigh() -> None:
    b = batch()
    guess = torch.rand_like(b.alpha)
    parts = matting_loss(guess, b, LossWeights(2, 3, 5))
    expected = 2 * parts["l1"] + 3 * parts["composition"] + 5 * parts["laplacian"]
    torch.testing.assert_close(parts["loss"], expected)


def test_both_pixel_losses_are_rounded_as_asked() -> None:
    b = batch()
    guess = b.alpha + 0.005
    sharp, round_ = matting_loss(guess, b, smooth=1e-4), matting_loss(guess, b, smooth=0.1)
    assert round_["l1"] < 0.1 * sharp["l1"]
    assert round_["composition"] < 0.3 * sharp["composition"]
    torch.testing.assert_close(round_["laplacian"], sharp["laplacian"])


def test_an_image_without_unknown_pixels_gives_a_finite_loss() -> None:
    b = batch()._replace(trimap=torch.ones(2, 1, 32, 32))
    assert matting_loss(torch.rand(2, 1, 32, 32), b, LossWeights())["loss"].item() == 0
