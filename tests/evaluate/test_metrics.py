"""Metrics against hand-computed cases, a slow literal reference, mmeval where installed, and golden numbers.

`python tests/evaluate/test_metrics.py` writes golden_metrics.json again; the sum of the inputs in it tells a changed
generator from a changed metric.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pam_mobile.data.trimap import quantise_trimap
from pam_mobile.evaluate.metrics import (
    Scores,
    connectivity_error,
    gradient_error,
    mse,
    sad,
    score,
)
from pam_mobile.imageio import to_integers

GOLDEN = Path(__file__).parent / "golden_metrics.json"
METRICS = (sad, mse, gradient_error, connectivity_error)
small_images = arrays(np.uint8, (7, 9), elements=st.integers(0, 255))
smooth_levels = arrays(np.uint8, (7, 9), elements=st.integers(0, 51))
regions = arrays(np.bool_, (7, 9))


def _full(value: int, shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full(shape, value, dtype=np.uint8)


def _everywhere(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, dtype=np.bool_)


def _disc(shape: tuple[int, int], centre: tuple[float, float], radius: float, softness: float) -> np.ndarray:
    """Alpha of a disc with a linear edge, float64; only correctly rounded operations, so the same everywhere."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.sqrt((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2)
    return np.clip((radius - distance) / softness + 0.5, 0, 1)


def _random_matte(seed: int, shape: tuple[int, int] = (24, 31)) -> np.ndarray:
    """Blobs with soft edges and a little noise, uint8."""
    rng = np.random.default_rng(seed)
    discs = [_disc(shape, tuple(rng.random(2) * shape), 2 + 6 * rng.random(), 1 + 6 * rng.random()) for _ in range(4)]
    noise = rng.integers(-12, 13, shape)
    return np.clip(np.rint(np.max(discs, axis=0) * 255) + noise, 0, 255).astype(np.uint8)


# --- hand-computed cases ---------------------------------------------------------------------------------------------


def test_sad_and_mse_of_four_pixels() -> None:
    prediction = np.array([[0, 51], [255, 102]], dtype=np.uint8)
    target = np.array([[0, 102], [0, 0]], dtype=np.uint8)
    region = np.array([[True, True], [True, False]])
    assert sad(prediction, target, region) == pytest.approx((0.2 + 1.0) / 1000, rel=1e-12)
    assert mse(prediction, target, region) == pytest.approx((0.04 + 1.0) / 3 * 1000, rel=1e-12)
    assert sad(prediction, target, _everywhere(target)) == pytest.approx(1.6 / 1000, rel=1e-12)


def test_uint8_differences_do_not_wrap_around() -> None:
    assert sad(_full(0), _full(255), _everywhere(_full(0))) == pytest.approx(0.064, rel=1e-12)


def _step_profile() -> list[float]:
    """Gradient magnitude per column of an 8x8 image that steps from 0 to 1 behind column 3."""
    gaussian = [math.exp(-(u**2) / (2 * 1.96)) for u in range(-4, 5)]
    derivative = [-u * weight for u, weight in zip(range(-4, 5), gaussian, strict=True)]
    norm = math.sqrt(sum(g**2 for g in gaussian) * sum(d**2 for d in derivative))
    reach = [sum(derivative[u + 4] for u in range(-4, 5) if column - u > 3) for column in range(8)]
    return [abs(tail) * sum(gaussian) / norm for tail in reach]


def test_gradient_error_of_a_step_edge() -> None:
    step = _full(0)
    step[:, 4:] = 255
    expected = 8 * sum(value**2 for value in _step_profile()) / 1000
    assert expected == pytest.approx(0.156726, abs=1e-6)
    assert gradient_error(step, _full(0), _everywhere(step)) == pytest.approx(expected, rel=1e-12)
    assert gradient_error(_full(255), step, _everywhere(step)) == pytest.approx(expected, rel=1e-12)
    assert gradient_error(step, _full(0), _everywhere(step), "none") == pytest.approx(expected, rel=1e-12)


def test_gradient_kernel_is_the_published_one() -> None:
    gaussian = np.array([math.exp(-(u**2) / 3.92) / (1.4 * math.sqrt(2 * math.pi)) for u in range(-4, 5)])
    kernel = np.outer(gaussian, -np.arange(-4, 5) * gaussian / 1.96)
    assert np.linalg.norm(kernel) == pytest.approx(0.10177, abs=1e-5)
    impulse = _full(0, (19, 19))
    impulse[9, 9] = 255
    # The energy of the response to one pixel is that of both unit kernels, 1 + 1.
    assert gradient_error(impulse, _full(0, (19, 19)), _everywhere(impulse)) == pytest.approx(0.002, rel=1e-12)


def _big_and_small_block(small_value: int) -> np.ndarray:
    image = _full(0)
    image[0:4, 0:4] = 255
    image[6:8, 6:8] = small_value
    return image


def test_connectivity_error_of_a_detached_block() -> None:
    # Detached, so connected up to level 0: phi is 1 - 128/255 in one and 0 in the other, on 4 pixels.
    prediction, target = _big_and_small_block(128), _big_and_small_block(255)
    expected = 4 * (128 / 255) - 4
    assert connectivity_error(prediction, target, _everywhere(target)) == pytest.approx(abs(expected) / 1000, rel=1e-6)


def test_connectivity_error_of_an_attached_pixel() -> None:
    # Connected up to 0.5: the excess 0.002 of one is tolerated, phi is 1; the excess 0.5 of the other is not.
    prediction, target = _full(255), _full(255)
    prediction[3, 3] = 128
    assert connectivity_error(prediction, target, _everywhere(target)) == pytest.approx(0.5 / 1000, rel=1e-6)


def test_diagonal_neighbours_are_not_connected() -> None:
    target = np.array([[255, 255, 0], [255, 255, 0], [0, 0, 255]], dtype=np.uint8)
    prediction = target.copy()
    prediction[2, 2] = 128
    assert connectivity_error(prediction, target, _everywhere(target)) == pytest.approx(127 / 255 / 1000, rel=1e-6)


def test_of_equal_components_the_first_in_column_order_counts() -> None:
    # All connected up to 0.5; at 0.6 the corners (2, 0) and (0, 2) are left alone, and (2, 0) comes first.
    # So (0, 2) stays at 0.5, where target 1 exceeds it by 0.5; had it been chosen, the error would be 0.4.
    target, prediction = _full(128, (3, 3)), _full(128, (3, 3))
    target[2, 0] = prediction[2, 0] = prediction[0, 2] = 153
    target[0, 2] = 255
    assert connectivity_error(prediction, target, _everywhere(target)) == pytest.approx(0.5 / 1000, rel=1e-6)
    assert connectivity_error(prediction.T, target.T, _everywhere(target)) == pytest.approx(0.4 / 1000, rel=1e-6)


# --- pitfalls --------------------------------------------------------------------------------------------------------


def _gain_case() -> tuple[np.ndarray, np.ndarray]:
    """A soft disc as target, and a larger one in steps of 5, of which 0.8 is exact in uint8."""
    target = np.rint(_disc((64, 64), (32, 32), 20, 10) * 255).astype(np.uint8)
    prediction = (np.rint(_disc((64, 64), (32, 32), 22, 6) * 51) * 5).astype(np.uint8)
    return prediction, target


def test_stretched_gradient_is_blind_to_a_gain_and_the_plain_one_is_not() -> None:
    prediction, target = _gain_case()
    weaker = (prediction.astype(np.int64) * 4 // 5).astype(np.uint8)
    everywhere = _everywhere(target)
    stretched = [gradient_error(image, target, everywhere) for image in (prediction, weaker)]
    plain = [gradient_error(image, target, everywhere, "none") for image in (prediction, weaker)]
    assert stretched == pytest.approx([0.386888, 0.386888], abs=1e-6)
    assert plain == pytest.approx([0.386888, 0.252664], abs=1e-6)


def test_constant_image_has_no_gradient_whatever_its_level() -> None:
    for level in (0, 1, 100, 255):
        assert gradient_error(_full(level), _full(0), _everywhere(_full(0))) == 0


def _literal_connectivity(
    prediction: np.ndarray,
    target: np.ndarray,
    region: np.ndarray,
    count_background: bool = False,
    skip_empty: bool = False,
    dtype: type = np.float32,
) -> float:
    """METRICS.md section 3 with scipy's labels. The flags plant the faults of public evaluators."""
    p, t = prediction.astype(dtype) / dtype(255), target.astype(dtype) / dtype(255)
    levels = [dtype(step * 0.1) for step in range(11)]
    level = -np.ones(p.shape, dtype=dtype)
    for j in range(1, 11):
        shared = (p >= levels[j]) & (t >= levels[j])
        if skip_empty and not shared.any():
            continue
        labels, count = ndimage.label(shared.T)
        sizes = [(labels == label).sum() for label in range(0 if count_background else 1, count + 1)]
        best = int(np.argmax(sizes)) + (0 if count_background else 1) if sizes else -1
        level[(level == -1) & (best != labels.T)] = levels[j - 1]
    level[level == -1] = 1
    phi_p = np.where(p - level >= dtype(0.15), 1 - (p - level), 1)
    phi_t = np.where(t - level >= dtype(0.15), 1 - (t - level), 1)
    return float(np.abs(phi_p - phi_t)[region].sum(dtype=np.float64) / 1000)


def test_background_is_no_component() -> None:
    target = np.rint(_disc((64, 64), (30, 30), 15, 8) * 255).astype(np.uint8)
    prediction = np.rint(_disc((64, 64), (32, 33), 14, 12) * 200).astype(np.uint8)
    everywhere = _everywhere(target)
    right = connectivity_error(prediction, target, everywhere)
    faulty = _literal_connectivity(prediction, target, everywhere, count_background=True)
    assert right == pytest.approx(_literal_connectivity(prediction, target, everywhere), rel=1e-6)
    assert right == pytest.approx(0.326863, abs=1e-6)
    assert faulty == pytest.approx(0.251749, abs=1e-6)


@pytest.mark.parametrize("level", [51, 102, 153, 204])
def test_grid_level_reaches_its_own_threshold(level: int) -> None:
    prediction, target = _full(level, (3, 3)), _full(255, (3, 3))
    expected = 9 * (1 - level / 255) / 1000
    assert connectivity_error(prediction, target, _everywhere(target)) == pytest.approx(expected, rel=1e-6)


def test_double_precision_would_miss_the_level_153() -> None:
    prediction, target = _full(153, (3, 3)), _full(255, (3, 3))
    missed = _literal_connectivity(prediction, target, _everywhere(target), dtype=np.float64)
    assert missed == pytest.approx(9 * 0.5 / 1000, rel=1e-6)


def test_empty_intersection_counts_as_not_connected() -> None:
    everywhere = _everywhere(_full(0))
    assert connectivity_error(_full(0), _full(255), everywhere) == pytest.approx(0.064, rel=1e-6)
    assert _literal_connectivity(_full(0), _full(255), everywhere, skip_empty=True) == 0


def test_rounding_not_truncation() -> None:
    alpha = np.full((8, 8), 0.7 / 255, dtype=np.float32)
    assert (to_integers(alpha, 8) == 1).all()
    target = to_integers(np.linspace(0, 1, 64, dtype=np.float64).reshape(8, 8), 8)
    truncated = (np.linspace(0, 1, 64).reshape(8, 8) * 255).astype(np.uint8)
    assert sad(truncated, target, _everywhere(target)) > 0


@given(small_images)
def test_every_level_survives_the_way_through_floats(image: np.ndarray) -> None:
    np.testing.assert_array_equal(to_integers(image.astype(np.float32) / 255, 8), image)


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, 255.0])
def test_rounding_refuses_values_that_are_no_alpha(bad: float) -> None:
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\] without NaN, got \["):
        to_integers(np.array([[0.5, bad]]), 8)


def test_trimap_greys_are_binned() -> None:
    trimap = np.array([[0, 84, 85, 127, 128, 129, 169, 170, 255]], dtype=np.uint8)
    assert quantise_trimap(trimap).tolist() == [[0, 0, 128, 128, 128, 128, 128, 255, 255]]


@pytest.mark.parametrize("trimap", [_full(0).astype(np.float32), np.zeros((2, 2, 3), dtype=np.uint8)])
def test_trimap_must_be_grey_bytes(trimap: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"trimap must be uint8 of shape \(H, W\), got"):
        quantise_trimap(trimap)


@given(small_images, small_images, small_images, st.sampled_from(["unknown", "whole"]))
def test_score_does_not_see_how_clean_the_trimap_is(
    prediction: np.ndarray, target: np.ndarray, trimap: np.ndarray, region: Any
) -> None:
    dirty = score(prediction, target, trimap, region)
    clean = score(prediction, target, quantise_trimap(trimap), region)
    np.testing.assert_array_equal(dirty, clean)


def test_known_values_are_pasted_before_scoring() -> None:
    trimap = np.array([[0, 128, 255]], dtype=np.uint8)
    prediction = np.array([[200, 102, 30]], dtype=np.uint8)
    target = np.array([[0, 51, 204]], dtype=np.uint8)
    assert score(prediction, target, trimap).sad == pytest.approx(0.2 / 1000, rel=1e-12)
    assert score(prediction, target, trimap, "whole").sad == pytest.approx(0.4 / 1000, rel=1e-12)
    assert score(prediction, target, trimap).mse == pytest.approx(40, rel=1e-12)
    assert score(prediction, target, trimap, "whole").mse == pytest.approx(80 / 3, rel=1e-12)


def test_image_without_unknown_pixel_is_not_a_number() -> None:
    known = _full(255)
    assert all(math.isnan(value) for value in score(_full(7), _full(255), known))
    assert score(_full(7), _full(255), known, "whole") == Scores(0, 0, 0, 0)
    nothing = np.zeros((8, 8), dtype=np.bool_)
    assert math.isnan(mse(known, known, nothing))
    assert sad(known, known, nothing) == 0


# --- invariances -----------------------------------------------------------------------------------------------------


@given(small_images, regions)
def test_equal_mattes_have_no_error(image: np.ndarray, region: np.ndarray) -> None:
    region[0, 0] = True
    assert [metric(image, image, region) for metric in METRICS] == [0, 0, 0, 0]


@given(small_images, small_images, regions)
def test_errors_are_symmetric_and_not_negative(a: np.ndarray, b: np.ndarray, region: np.ndarray) -> None:
    region[0, 0] = True
    for metric in METRICS:
        value = metric(a, b, region)
        assert value >= 0
        assert metric(b, a, region) == pytest.approx(value, rel=1e-12)


@given(smooth_levels, small_images)
def test_gain_is_invisible_to_the_stretched_gradient(levels: np.ndarray, target: np.ndarray) -> None:
    everywhere = _everywhere(target)
    levels[0, 0] = 0
    full, weaker = levels * np.uint8(5), levels * np.uint8(4)
    assert gradient_error(weaker, target, everywhere) == pytest.approx(
        gradient_error(full, target, everywhere), rel=1e-9
    )


@given(small_images, small_images, small_images, regions)
def test_sad_and_mse_do_not_see_the_outside(
    prediction: np.ndarray, other: np.ndarray, target: np.ndarray, region: np.ndarray
) -> None:
    region[0, 0] = True
    changed = np.where(region, prediction, other)
    assert sad(changed, target, region) == sad(prediction, target, region)
    assert mse(changed, target, region) == mse(prediction, target, region)


def test_gradient_and_connectivity_see_the_outside() -> None:
    prediction, target = _big_and_small_block(128), _big_and_small_block(255)
    region = np.zeros((8, 8), dtype=np.bool_)
    region[6:8, 6:8] = True
    bridged = prediction.copy()
    bridged[3:6, 3:7] = 255
    bridged_target = target.copy()
    bridged_target[3:6, 3:7] = 255
    for metric in (gradient_error, connectivity_error):
        assert metric(bridged, bridged_target, region) != pytest.approx(metric(prediction, target, region), rel=1e-3)


@given(small_images, small_images)
def test_transposing_changes_nothing_but_ties(prediction: np.ndarray, target: np.ndarray) -> None:
    everywhere = _everywhere(target)
    for metric in (sad, mse, gradient_error):
        turned = metric(prediction.T.copy(), target.T.copy(), everywhere.T)
        assert turned == pytest.approx(metric(prediction, target, everywhere), rel=1e-9)


def test_views_score_as_their_copies() -> None:
    prediction, target = _random_matte(1), _random_matte(2)
    region = _everywhere(target)
    for metric in METRICS:
        copied = metric(prediction.T.copy(), target.T.copy(), region.T.copy())
        assert metric(prediction.T, target.T, region.T) == copied


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("prediction", "target", "region", "message"),
    [
        (
            np.zeros((4, 4)),
            _full(0, (4, 4)),
            np.ones((4, 4), bool),
            r"prediction must be uint8 .* got float64 of shape",
        ),
        (
            _full(0, (4, 4)),
            np.zeros((4, 4, 1), np.uint8),
            np.ones((4, 4), bool),
            r"target must be uint8 .* \(4, 4, 1\)",
        ),
        (_full(0, (4, 4)), _full(0, (4, 5)), np.ones((4, 4), bool), r"target must have the shape \(4, 4\) .* \(4, 5\)"),
        (_full(0, (4, 4)), _full(0, (4, 4)), np.ones((2, 4), bool), r"region must have the shape \(4, 4\) .* \(2, 4\)"),
        (_full(0, (4, 4)), _full(0, (4, 4)), np.ones((4, 4), np.uint8), r"region must be bool, got uint8"),
        (_full(0, (0, 4)), _full(0, (0, 4)), np.ones((0, 4), bool), r"prediction must be uint8 .* got .* \(0, 4\)"),
    ],
)
def test_wrong_inputs_are_named(
    metric: Any, prediction: np.ndarray, target: np.ndarray, region: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(prediction, target, region)


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ValueError, match=r"region must be 'unknown' or 'whole', got 'all'"):
        score(_full(0), _full(0), _full(128), "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"normalisation must be 'mat2gray' or 'none', got 'max'"):
        gradient_error(_full(0), _full(0), _everywhere(_full(0)), "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trimap must have the shape \(8, 8\) of prediction, got \(4, 4\)"):
        score(_full(0), _full(0), _full(128, (4, 4)))


# --- oracles ---------------------------------------------------------------------------------------------------------


def _literal_gradient(image: np.ndarray) -> np.ndarray:
    """METRICS.md section 2 as loops over pixels and the 9x9 kernel."""
    height, width = image.shape
    low, high = float(image.min()), float(image.max())
    x = (image - low) / (high - low) if high > low else np.zeros(image.shape)
    g = [math.exp(-(u**2) / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi)) for u in range(-4, 5)]
    kernel = np.array([[g[u + 4] * -v * g[v + 4] / 1.4**2 for v in range(-4, 5)] for u in range(-4, 5)])
    kernel /= math.sqrt((kernel**2).sum())
    magnitude = np.zeros(image.shape)
    for r in range(height):
        for c in range(width):
            gx = gy = 0.0
            for u in range(-4, 5):
                for v in range(-4, 5):
                    value = x[min(max(r - u, 0), height - 1), min(max(c - v, 0), width - 1)]
                    gx += value * kernel[u + 4, v + 4]
                    gy += value * kernel[v + 4, u + 4]
            magnitude[r, c] = math.sqrt(gx**2 + gy**2)
    return magnitude


@pytest.mark.parametrize("seed", range(3))
def test_gradient_error_equals_the_literal_loops(seed: int) -> None:
    prediction, target = _random_matte(2 * seed, (13, 17)), _random_matte(2 * seed + 1, (13, 17))
    region = np.random.default_rng(seed).random(target.shape) < 0.6
    difference = _literal_gradient(prediction) - _literal_gradient(target)
    expected = float((difference**2)[region].sum() / 1000)
    assert expected > 0
    assert gradient_error(prediction, target, region) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_sums_equal_the_literal_loops(seed: int) -> None:
    prediction, target = _random_matte(seed), _random_matte(seed + 100)
    region = np.random.default_rng(seed).random(target.shape) < 0.5
    differences = [
        int(prediction[r, c]) / 255 - int(target[r, c]) / 255 for r, c in zip(*np.nonzero(region), strict=True)
    ]
    assert sad(prediction, target, region) == pytest.approx(sum(map(abs, differences)) / 1000, rel=1e-9)
    expected = sum(value**2 for value in differences) / len(differences) * 1000
    assert mse(prediction, target, region) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_connectivity_error_equals_the_literal_labels(seed: int) -> None:
    prediction, target = _random_matte(seed), _random_matte(seed // 2)
    region = np.random.default_rng(seed).random(target.shape) < 0.7
    expected = _literal_connectivity(prediction, target, region)
    assert connectivity_error(prediction, target, region) == pytest.approx(expected, rel=1e-9)


@given(small_images, small_images)
def test_connectivity_error_of_noise_equals_the_literal_labels(prediction: np.ndarray, target: np.ndarray) -> None:
    everywhere = _everywhere(target)
    expected = _literal_connectivity(prediction, target, everywhere)
    assert connectivity_error(prediction, target, everywhere) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_equal_those_of_mmeval() -> None:
    mmeval = pytest.importorskip("mmeval")
    for prediction, target, trimap in map(_golden_inputs, GOLDEN_SEEDS):
        trimap = quantise_trimap(trimap)
        pasted = np.where(trimap == 128, prediction, trimap)
        # mmeval masks neither SAD nor MSE, so the error outside the unknown region is taken away for it.
        target = np.where(trimap == 128, target, trimap)
        # It wants [0, 1] in spite of its documentation, and single precision for the level 153.
        p, t = (image.astype(np.float32) / np.float32(255) for image in (pasted, target))
        theirs = Scores(
            mmeval.SumAbsoluteDifferences()([p], [t])["sad"],
            mmeval.MattingMeanSquaredError()([p], [t], [trimap])["matting_mse"] * 1000,
            mmeval.GradientError()([p], [t], [trimap])["gradient_error"],
            mmeval.ConnectivityError()([p], [t], [trimap])["connectivity_error"],
        )
        assert score(prediction, target, trimap) == pytest.approx(theirs, rel=1e-4)


# --- golden numbers --------------------------------------------------------------------------------------------------

GOLDEN_SEEDS = range(6)


def _golden_inputs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, target, trimap: discs and holes in noise; seed 0 to 5 goes from hard to soft and semi-transparent."""
    rng = np.random.default_rng(seed)
    shape = (48 + 5 * seed, 64 - 3 * seed)
    centre = (shape[0] / 2 + seed, shape[1] / 2 - seed)
    opacity = 1 - 0.1 * seed
    alpha = _disc(shape, centre, 14, 1 + 4 * seed) * opacity
    hole = _disc(shape, (centre[0], centre[1] + 3), 4, 3)
    spot = _disc(shape, (6, 6), 3, 2)
    target = np.rint(np.maximum(alpha * (1 - hole), spot) * 255).astype(np.uint8)
    shifted = np.maximum(_disc(shape, (centre[0] + 1, centre[1]), 14.5, 3 + 4 * seed) * opacity * (1 - hole / 2), spot)
    prediction = np.clip(np.rint(shifted * 240) + rng.integers(-6, 7, shape), 0, 255).astype(np.uint8)
    distance = _disc(shape, centre, 14, 18)
    trimap = np.where(distance <= 0.05, 0, np.where((distance >= 0.9) & (hole == 0) & (seed < 3), 255, 128))
    trimap[:12, :12] = 128
    return prediction, target, np.clip(trimap + rng.integers(-9, 10, shape), 0, 255).astype(np.uint8)


def _golden_row(seed: int) -> dict[str, Any]:
    inputs = _golden_inputs(seed)
    digest = hashlib.sha256(b"".join(image.tobytes() for image in inputs)).hexdigest()
    rows = {region: score(*inputs, region)._asdict() for region in ("unknown", "whole")}
    return {"seed": seed, "size": list(inputs[0].shape), "inputs_sha256": digest, **rows}


@pytest.mark.parametrize("seed", GOLDEN_SEEDS)
def test_golden_numbers(seed: int) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))["pairs"][seed]
    row = _golden_row(seed)
    assert row["inputs_sha256"] == expected["inputs_sha256"], "the generator gives other pairs, not the metric"
    for region in ("unknown", "whole"):
        assert row[region] == pytest.approx(expected[region], rel=1e-6)
        assert all(value > 0 for value in row[region].values())


if __name__ == "__main__":
    document = {
        "scales": "SAD / 1000, MSE x 1e3, GRAD / 1000, CONN / 1000",
        "pairs": list(map(_golden_row, GOLDEN_SEEDS)),
    }
    GOLDEN.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
