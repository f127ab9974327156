"""Blur-fusion on composites whose foreground is known, against doing nothing and the numbers of pymatting."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pam_mobile.predict.foreground import composite, estimate_foreground

unit = st.floats(0, 1, width=32)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


class _Scene(NamedTuple):
    foreground: np.ndarray
    alpha: np.ndarray
    image: np.ndarray
    other_background: np.ndarray


def _texture(rng: np.random.Generator, size: tuple[int, int], base: tuple[float, float, float]) -> np.ndarray:
    coarse = rng.random((6, 6, 3), dtype=np.float32) - np.float32(0.5)
    fine = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(np.array(base, dtype=np.float32) + fine / 2, 0, 1)


def _scene(size: tuple[int, int], seed: int = 0) -> _Scene:
    """A wavy disc with a wide soft edge: warm over blue, to be put over near white."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    y, x = y / size[0] - 0.5, x / size[1] - 0.5
    radius = 0.3 + 0.03 * np.sin(12 * np.arctan2(y, x))
    alpha = np.clip((radius - np.hypot(y, x)) / 0.12 + 0.5, 0, 1).astype(np.float32)
    foreground = _texture(rng, size, (0.8, 0.5, 0.2))
    image = composite(foreground, alpha, _texture(rng, size, (0.2, 0.5, 0.7)))
    return _Scene(foreground, alpha, image, _texture(rng, size, (0.9, 0.9, 0.9)))


def _recomposite_error(scene: _Scene, foreground: np.ndarray) -> float:
    """Mean absolute error over the new background, in the soft band."""
    soft = (scene.alpha > 0) & (scene.alpha < 1)
    truth = composite(scene.foreground, scene.alpha, scene.other_background)
    return float(np.abs(composite(foreground, scene.alpha, scene.other_background) - truth)[soft].mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(40, 60), (97, 120), (240, 320)])
def test_halo_of_the_old_background_is_gone(size: tuple[int, int], seed: int) -> None:
    scene = _scene(size, seed)
    untreated = _recomposite_error(scene, scene.image)
    assert untreated > 0.05
    assert _recomposite_error(scene, estimate_foreground(scene.image, scene.alpha)) < untreated / 2


def test_wide_pass_is_needed() -> None:
    scene = _scene((240, 320))
    estimated = estimate_foreground(scene.image, scene.alpha)
    weight = scene.alpha[..., None]
    narrow = cv2.blur(scene.image * weight, (7, 7)) / np.maximum(cv2.blur(scene.alpha, (7, 7)), 1e-6)[..., None]
    assert _recomposite_error(scene, estimated) < _recomposite_error(scene, np.clip(narrow, 0, 1)) * 0.7


def test_error_is_near_that_of_pymatting() -> None:
    # The number of pymatting 1.1.16, estimate_foreground_ml, on this scene; its import compiles for a minute.
    pymatting_error = 0.0107
    scene = _scene((60, 80))
    assert _recomposite_error(scene, estimate_foreground(scene.image, scene.alpha)) < 2 * pymatting_error


def _literal_fuse(
    image: np.ndarray, foreground: np.ndarray, background: np.ndarray, alpha: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """One pass as sums over windows, for pixels whose window lies inside; float64."""
    height, width = alpha.shape
    new_foreground, new_background = foreground.copy(), background.copy()
    for r in range(reach, height - reach):
        for c in range(reach, width - reach):
            window = np.s_[r - reach : r + reach + 1, c - reach : c + reach + 1]
            weight = alpha[window][..., None]
            f = (foreground[window] * weight).sum((0, 1)) / weight.sum()
            b = (background[window] * (1 - weight)).sum((0, 1)) / (1 - weight).sum()
            a = alpha[r, c]
            new_foreground[r, c] = np.clip(f + a * (image[r, c] - a * f - (1 - a) * b), 0, 1)
            new_background[r, c] = b
    return new_foreground, new_background


def test_both_passes_equal_the_literal_sums() -> None:
    rng = np.random.default_rng(0)
    size, wide, narrow = (29, 29), 14, 3
    image = rng.random((*size, 3), dtype=np.float32)
    alpha = (0.1 + 0.8 * rng.random(size)).astype(np.float32)
    # A border that mirrors makes every window of the first pass lie inside a larger picture.
    pad = [(wide, wide), (wide, wide)]
    wide_image = np.pad(image.astype(np.float64), [*pad, (0, 0)], mode="reflect")
    wide_alpha = np.pad(alpha.astype(np.float64), pad, mode="reflect")
    inside = np.s_[wide:-wide, wide:-wide]
    first, background = _literal_fuse(wide_image, wide_image, wide_image, wide_alpha, wide)
    second, _ = _literal_fuse(image.astype(np.float64), first[inside], background[inside], wide_alpha[inside], narrow)
    ours = estimate_foreground(image, alpha)
    core = np.s_[narrow:-narrow, narrow:-narrow]
    np.testing.assert_allclose(ours[core], second[core], atol=2e-6)


@given(sizes, st.tuples(unit, unit, unit), st.integers(0, 2**32 - 1))
def test_one_colour_stays_that_colour(size: tuple[int, int], colour: tuple[float, float, float], seed: int) -> None:
    image = np.broadcast_to(np.array(colour, dtype=np.float32), (*size, 3)).copy()
    alpha = np.random.default_rng(seed).random(size, dtype=np.float32)
    np.testing.assert_allclose(estimate_foreground(image, alpha), image, atol=3e-6)


@given(sizes, st.integers(0, 2**32 - 1))
def test_opaque_and_empty_alpha_give_the_image(size: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).random((*size, 3), dtype=np.float32)
    for value in (0, 1):
        np.testing.assert_array_equal(estimate_foreground(image, np.full(size, value, dtype=np.float32)), image)


@given(st.data(), sizes)
def test_result_is_a_picture_for_any_alpha(data: st.DataObject, size: tuple[int, int]) -> None:
    image = data.draw(arrays(np.float32, (*size, 3), elements=unit))
    alpha = data.draw(arrays(np.float32, size, elements=st.one_of(st.sampled_from([0.0, 1.0]), unit)))
    before = image.copy(), alpha.copy()
    foreground = estimate_foreground(image, alpha)
    assert foreground.shape == image.shape
    assert foreground.dtype == np.float32
    assert ((foreground >= 0) & (foreground <= 1)).all()
    np.testing.assert_array_equal(foreground[alpha == 1], image[alpha == 1])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(alpha, before[1])


def test_hard_edge_far_from_any_foreground_is_finite() -> None:
    image = np.random.default_rng(0).random((300, 300, 3), dtype=np.float32)
    alpha = np.zeros((300, 300), dtype=np.float32)
    alpha[140:160, 140:160] = 1
    foreground = estimate_foreground(image, alpha)
    assert np.isfinite(foreground).all()
    np.testing.assert_array_equal(foreground[alpha == 1], image[alpha == 1])
    np.testing.assert_array_equal(foreground[:80, :80], image[:80, :80])


def test_composite_of_one_pixel() -> None:
    foreground = np.array([[[1.0, 0.5, 0.0]]], dtype=np.float32)
    alpha = np.array([[0.25]], dtype=np.float32)
    over_colour = composite(foreground, alpha, np.array([0.0, 1.0, 1.0], dtype=np.float32))
    assert over_colour.tolist() == [[[0.25, 0.875, 0.75]]]
    assert composite(foreground, alpha, over_colour).dtype == np.float32


def test_wrong_arrays_are_named() -> None:
    image, alpha = np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"image must be float32 of shape \(H, W, 3\), got uint8 of shape \(4, 5, 3\)"):
        estimate_foreground(image.astype(np.uint8), alpha)
    with pytest.raises(ValueError, match=r"image must be float32 .*, got float32 of shape \(4, 5\)"):
        estimate_foreground(alpha, alpha)
    with pytest.raises(ValueError, match=r"alpha must be float32 of shape \(4, 5\), got float32 of shape \(5, 4\)"):
        estimate_foreground(image, alpha.T)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\] without NaN, got \[0.0, 2.0\]"):
        estimate_foreground(image, np.where(np.eye(4, 5) > 0, 2, 0).astype(np.float32))
    with pytest.raises(ValueError, match=r"foreground must lie in \[0, 1\] without NaN, got \[nan, nan\]"):
        composite(image * np.nan, alpha, image)
    with pytest.raises(ValueError, match=r"background must have the shape \(4, 5, 3\) or \(3,\), got \(4, 5\)"):
        composite(image, alpha, alpha)
