"""Smoke and veils: large areas that are nowhere quite opaque."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.layers import Layer
from pam_mobile.data.synthetic.noise import fractal, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, light, shade_table
from pam_mobile.data.synthetic.raster import NO_MAP, Array, area_down


def smoke(rng: np.random.Generator, size: int) -> Layer:
    """Turbulent smoke, cloud or steam, or a folded sheer cloth."""
    return _plume(rng, size) if rng.random() < 0.65 else _veil(rng, size)


def _plume(rng: np.random.Generator, size: int) -> Layer:
    """Warped noise under an envelope, softly thresholded; peak alpha .3 to .95."""
    field = _turbulent(rng, size, rng.uniform(0.02, 0.12))
    envelope = _envelope(rng, size)
    density = np.clip(field * rng.uniform(0.15, 0.45) + envelope * 1.5 - rng.uniform(0.3, 0.7), 0, None)
    density = density ** rng.uniform(0.8, 1.6)
    alpha = 1 - np.exp(-density * rng.uniform(1.0, 3.5))
    alpha *= rng.uniform(0.3, 0.95) / max(float(alpha.max()), 1e-3)
    base = colour(rng, "grey", (0.05, 1.0)) if rng.random() < 0.8 else colour(rng)
    rgb = apply_table(to_bytes(0.7 * field, spread=35), shade_table(rng, base, rng.uniform(0.1, 0.6)))
    return rgb, to_bytes(alpha, 0, 255)


def _turbulent(rng: np.random.Generator, size: int, strength: float) -> Array:
    """Noise sampled through two rounds of warp: (size, size) float32 of about unit deviation."""
    field = fractal(rng, size, size * rng.uniform(0.25, 0.6), 1.5, rng.uniform(0.5, 0.68))
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2), -1)
    for coarse in (0.4, 0.12):
        warp = fractal(rng, size, size * coarse, size * 0.04, 0.5, 2) * (strength * size * coarse / 0.25)
        field = cv2.remap(
            field, (grid + warp).astype(np.float32), NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
    return field


def _envelope(rng: np.random.Generator, size: int) -> Array:
    """Where smoke can be: some soft puffs along a path: (size, size) float32 in [0, 1]."""
    y, x = np.mgrid[0:48, 0:48].astype(np.float32) / 48
    at, drift = rng.uniform(0.1, 0.9, 2), rng.normal(size=2) * 0.2
    total = np.zeros((48, 48), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        radius = rng.uniform(0.12, 0.35)
        total = np.maximum(total, np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * radius**2)))
        at = at + drift + rng.normal(size=2) * 0.08
    return cv2.resize(total.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _veil(rng: np.random.Generator, size: int) -> Layer:
    """Sheer cloth: alpha grows where folds turn the cloth away, and doubles at the hem."""
    silhouette = area_down(shapes.terrain(rng, size) if rng.random() < 0.6 else shapes.blob(rng, size), size)
    cover = silhouette.astype(np.float32) / 255
    folds = _folds(rng, size)
    sheer = rng.uniform(0.1, 0.5) + rng.uniform(0.1, 0.4) * folds**2 + 0.02 * fractal(rng, size, 3, 1)
    hem = cv2.GaussianBlur(cover, (0, 0), size * 0.008)
    sheer += rng.uniform(0.0, 0.4) * ((hem > 0.5) & (hem < 0.93))
    alpha = cover * np.clip(sheer, 0.03, 0.95)
    table = shade_table(rng, colour(rng, value=(0.3, 1.0)), rng.uniform(0.3, 0.8))
    rgb = apply_table(to_bytes(folds - 0.5, spread=130), table)
    return light(rgb, fractal(rng, size, size * 0.3, 2), 0.06), to_bytes(alpha, 0, 255)


def _folds(rng: np.random.Generator, size: int) -> Array:
    """Ridges along one direction with slow changes across: (size, size) float32 in [0, 1]."""
    long, short = int(rng.integers(3, 6)), int(rng.integers(8, 28))
    grid = rng.random((long, short) if rng.random() < 0.5 else (short, long), dtype=np.float32)
    field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    warp = fractal(rng, size, size * 0.5, size * 0.2, 0.5, 2) * size * 0.05
    field = cv2.remap(field, x + warp[..., 0], y + warp[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.clip(1 - np.abs(2 * field - 1), 0, 1)
