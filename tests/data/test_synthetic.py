"""Synthetic mattes and backgrounds: determinism, true coverage, known regions, colours defined everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_mobile.data.synthetic import KINDS, PARTIAL_SHARE, WEIGHTS, known_shares, make_background, make_matte
from pam_mobile.data.synthetic.layers import extend, over
from pam_mobile.data.synthetic.matte import Matte
from pam_mobile.data.synthetic.noise import fractal
from pam_mobile.data.synthetic.raster import SCALE, area_down, draw_strands, fill, new_canvas

OPAQUE_KINDS = tuple(kind for kind in KINDS if kind not in ("smoke", "glass"))

FINGERPRINT = """
import hashlib, cv2
from pam_mobile.data.synthetic import KINDS, make_background, make_matte
cv2.setNumThreads(1)
digest = hashlib.sha256()
for kind in KINDS:
    matte = make_matte(11, 96, kind)
    digest.update(matte.foreground.tobytes() + matte.alpha.tobytes())
for seed in range(12):
    digest.update(make_background(seed, 96).tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def mattes() -> dict[str, list[Matte]]:
    return {kind: [make_matte(seed, 320, kind) for seed in range(16)] for kind in KINDS}


def strand(angle: float, length: float, width: float, size: int = 128) -> np.ndarray:
    """Alpha of one straight strand: (size, size) uint8."""
    canvas = new_canvas(size)
    way = np.array([np.cos(angle), np.sin(angle)])
    points = size / 2 + (np.linspace(-0.5, 0.5, 9)[:, None] * length * way)[None]
    draw_strands(canvas, points, np.full((1, 9), width))
    return area_down(canvas, size)


def half_plane_coverage(size: int, normal: tuple[float, float], offset: float) -> np.ndarray:
    """Exact area of {p : normal . p < offset} in each pixel, for a normal with positive parts."""
    a, b = normal
    corner = a * np.arange(size)[None, :] + b * np.arange(size)[:, None]
    t = np.clip(offset - corner, 0, a + b)
    return (t**2 - np.maximum(t - a, 0) ** 2 - np.maximum(t - b, 0) ** 2) / (2 * a * b)


def test_same_seed_same_bytes_in_a_fresh_single_threaded_process() -> None:
    digest = hashlib.sha256()
    for kind in KINDS:
        matte = make_matte(11, 96, kind)
        digest.update(matte.foreground.tobytes() + matte.alpha.tobytes())
    for seed in range(12):
        digest.update(make_background(seed, 96).tobytes())
    fresh = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_differ(kind: str) -> None:
    alphas = {make_matte(seed, 64, kind).alpha.tobytes() for seed in range(6)}
    assert len(alphas) == 6


def test_background_seeds_differ_and_have_content() -> None:
    pictures = [make_background(seed, 64) for seed in range(40)]
    assert len({picture.tobytes() for picture in pictures}) == 40
    deviations = [float(picture.std()) for picture in pictures]
    assert min(deviations) > 1
    assert 20 < np.mean(deviations) < 90


def test_backgrounds_fall_off_like_photographs() -> None:
    """The amplitude spectrum of photographs falls roughly as 1 / frequency."""
    power = np.zeros((256, 256))
    for seed in range(40):
        grey = make_background(seed, 256).mean(2)
        window = np.hanning(256)[:, None] * np.hanning(256)[None, :]
        power += np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(256) * 256, np.fft.fftfreq(256) * 256))
    bands = [(4, 8), (8, 16), (16, 32), (32, 64)]
    amplitude = [np.sqrt(power[(radius >= low) & (radius < high)].mean()) for low, high in bands]
    slope = np.polyfit(np.arange(4), np.log2(amplitude), 1)[0]
    assert -1.7 < slope < -0.6


@pytest.mark.parametrize("size", [64, 97, 320, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_types(kind: str, size: int) -> None:
    matte = make_matte(3, size, kind)
    assert matte.foreground.shape == (size, size, 3)
    assert matte.alpha.shape == (size, size)
    assert matte.foreground.dtype == matte.alpha.dtype == np.uint8
    assert matte.foreground.flags.c_contiguous
    assert matte.alpha.flags.c_contiguous
    assert matte.kind == kind


@settings(max_examples=25)
@given(seed=st.integers(0, 2**40), size=st.integers(64, 130), kind=st.sampled_from([None, *KINDS]))
def test_any_seed_and_size(seed: int, size: int, kind: str | None) -> None:
    first, second = make_matte(seed, size, kind), make_matte(seed, size, kind)
    assert first.kind == second.kind
    assert np.array_equal(first.alpha, second.alpha)
    assert np.array_equal(first.foreground, second.foreground)
    assert first.alpha.max() > 0
    background = make_background(seed, size)
    assert background.shape == (size, size, 3)
    assert background.dtype == np.uint8


def test_kinds_are_drawn_by_weight() -> None:
    drawn = [make_matte(seed, 64).kind for seed in range(150)]
    assert set(drawn) == set(KINDS) == set(WEIGHTS) == set(PARTIAL_SHARE)
    for kind in KINDS:
        assert drawn.count(kind) / 150 == pytest.approx(WEIGHTS[kind], abs=0.1)


def test_unknown_kind_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"kind is 'cloud'.*hair, fur, leaves, lace, smoke, solid, glass"):
        make_matte(0, 64, "cloud")


@pytest.mark.parametrize("make", [make_matte, make_background])
def test_too_small_a_size_is_refused(make: Callable[[int, int], object]) -> None:
    with pytest.raises(ValueError, match="size is 63; it must be at least 64"):
        make(0, 63)


@pytest.mark.parametrize("kind", KINDS)
def test_share_of_partial_pixels(kind: str, mattes: dict[str, list[Matte]]) -> None:
    shares = [np.mean((matte.alpha > 0) & (matte.alpha < 255)) for matte in mattes[kind]]
    low, high = PARTIAL_SHARE[kind]
    assert low < np.mean(shares) < high


@pytest.mark.parametrize("kind", OPAQUE_KINDS)
def test_known_foreground_and_background_exist(kind: str, mattes: dict[str, list[Matte]]) -> None:
    assert min(min(known_shares(matte.alpha)) for matte in mattes[kind]) >= 0.01


def test_known_shares_of_a_plain_split() -> None:
    alpha = np.zeros((128, 128), np.uint8)
    alpha[:, 32:] = 255
    alpha[:, 31] = 128
    assert known_shares(alpha) == pytest.approx(((96 - 2) / 128, (31 - 2) / 128))


@pytest.mark.parametrize("kind", ["smoke", "glass"])
def test_see_through_kinds_are_mostly_partial(kind: str, mattes: dict[str, list[Matte]]) -> None:
    inside = [np.mean(matte.alpha[matte.alpha > 0] < 255) for matte in mattes[kind]]
    assert np.median(inside) > 0.9


@pytest.mark.parametrize("kind", ["hair", "fur", "leaves", "lace"])
def test_fine_structure(kind: str, mattes: dict[str, list[Matte]]) -> None:
    """A good part of the object, on average, is so thin or so near a hole that a 5 px opening removes it."""
    window = np.ones((5, 5), np.uint8)
    lost = []
    for matte in mattes[kind]:
        band = cv2.dilate(((matte.alpha > 0) & (matte.alpha < 255)).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        mass = matte.alpha[band].astype(float).sum()
        lost.append(1 - cv2.morphologyEx(matte.alpha, cv2.MORPH_OPEN, window)[band].astype(float).sum() / mass)
    assert np.mean(lost) > 0.04


@pytest.mark.parametrize("kind", KINDS)
def test_colour_continues_beyond_alpha(kind: str, mattes: dict[str, list[Matte]]) -> None:
    for matte in mattes[kind][:8]:
        outside = matte.alpha == 0
        weight = (~outside).astype(np.float32)
        near = cv2.boxFilter(weight, -1, (5, 5), normalize=False)
        total = cv2.boxFilter(matte.foreground.astype(np.float32) * weight[..., None], -1, (5, 5), normalize=False)
        ring = outside & (near > 4)
        inside = total[ring] / near[ring][:, None]
        assert np.abs(matte.foreground[ring] - inside).mean() < 25
        assert len(np.unique(matte.foreground[outside].reshape(-1, 3), axis=0)) > 10


def test_extend_replaces_only_what_has_no_alpha() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, :20], rgb[:, 44:] = (200, 40, 10), (10, 60, 220)
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, :20] = alpha[:, 44:] = 255
    filled = extend(rgb, alpha).astype(int)
    assert np.array_equal(filled[alpha > 0], rgb[alpha > 0])
    assert np.abs(filled[:, 22] - (200, 40, 10)).max() < 40
    assert np.abs(filled[:, 41] - (10, 60, 220)).max() < 40


@given(
    front=st.tuples(st.integers(0, 255), st.integers(0, 255)), back=st.tuples(st.integers(0, 255), st.integers(0, 255))
)
def test_over_reproduces_both_layers(front: tuple[int, int], back: tuple[int, int]) -> None:
    """Compositing the merged layer equals compositing the two in turn."""
    layers = [(np.full((1, 1, 3), tone, np.uint8), np.full((1, 1), alpha, np.uint8)) for tone, alpha in (front, back)]
    rgb, alpha = over(*layers)
    expected = 90.0
    for tone, a in (back, front):
        expected += (tone - expected) * a / 255
    merged = 90.0 + (float(rgb[0, 0, 0]) - 90.0) * float(alpha[0, 0]) / 255
    assert merged == pytest.approx(expected, abs=1.1)


@pytest.mark.parametrize("degrees", [12, 33, 52, 71])
def test_area_averaging_is_coverage(degrees: int) -> None:
    size, angle = 48, np.radians(degrees)
    normal = (float(np.cos(angle)), float(np.sin(angle)))
    at = (np.arange(size * SCALE) + 0.5) / SCALE
    canvas = ((normal[0] * at[None, :] + normal[1] * at[:, None]) < 31.7).astype(np.uint8) * 255
    error = area_down(canvas, size) / 255 - half_plane_coverage(size, normal, 31.7)
    assert np.abs(error).max() < 0.5 / SCALE
    assert abs(error.sum()) < 0.02 * size


def test_fill_puts_a_polygon_where_it_belongs() -> None:
    canvas = new_canvas(64)
    fill(canvas, np.array([[10.125, 20.625], [30.625, 20.625], [30.625, 50.125], [10.125, 50.125]]))
    alpha = area_down(canvas, 64) / 255
    # cv2 also sets the samples on the outline: half a sample on each side.
    assert alpha.sum() == pytest.approx(20.5 * 29.5, abs=(20.5 + 29.5) * 2 * 0.55 / SCALE)
    y, x = (np.average(np.arange(64) + 0.5, weights=alpha.sum(axis)) for axis in (1, 0))
    assert (x, y) == pytest.approx((20.375, 35.375), abs=0.03)


@pytest.mark.parametrize("width", [0.05, 0.12, 0.25, 0.33, 0.5, 0.75, 1.0, 1.25, 1.7, 2.2])
def test_thin_strand_mass(width: float) -> None:
    masses = [strand(angle, 90, width).sum() / 255 for angle in np.linspace(0.03, 3.1, 24)]
    assert np.mean(masses) == pytest.approx(90 * width, rel=0.16)
    assert max(masses) / min(masses) < 1.35


def test_thin_strand_has_fractional_alpha() -> None:
    assert strand(0.4, 90, 0.3).max() < 200
    assert strand(0.4, 90, 4.0).max() == 255


def test_strands_never_lower_what_is_there() -> None:
    canvas = new_canvas(64)
    fill(canvas, np.array([[10, 10], [50, 10], [50, 50], [10, 50]]))
    before = canvas.copy()
    draw_strands(canvas, np.array([[[0.0, 0.0], [64.0, 64.0]]]), np.full((1, 2), 0.1))
    assert (canvas >= before).all()
    assert (canvas > before).any()


@given(seed=st.integers(0, 1000), size=st.integers(30, 90), channels=st.sampled_from([1, 2, 3]))
def test_noise_is_centred_and_scaled(seed: int, size: int, channels: int) -> None:
    field = fractal(np.random.Generator(np.random.PCG64(seed)), size, size / 3, 2, 0.6, channels)
    assert field.shape == ((size, size, channels) if channels > 1 else (size, size))
    assert field.dtype == np.float32
    assert np.abs(field.mean((0, 1))).max() < 1e-2
    assert np.abs(field.std((0, 1)) - 1).max() < 1e-2
