"""Fractal noise and smooth fields from resized random grids."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic.raster import Array


def fractal(
    rng: np.random.Generator, size: int, coarse: float, fine: float = 2.0, gain: float = 0.6, channels: int = 1
) -> Array:
    """Noise with cells from `coarse` down to `fine` px, each octave weaker by `gain`.

    (size, size[, C]) float32, mean 0, deviation 1.
    """
    cells = max(2, round(size / coarse))
    most = max(cells, int(size / fine))
    shape = (channels,) if channels > 1 else ()
    field: Array = rng.random((cells, cells, *shape), dtype=np.float32) - 0.5
    amplitude = 1.0
    while cells < most:
        cells, amplitude = min(cells * 2, most), amplitude * gain
        finer = amplitude * (rng.random((cells, cells, *shape), dtype=np.float32) - 0.5)
        field = cv2.add(cv2.resize(field, (cells, cells), interpolation=cv2.INTER_CUBIC), finer)
    field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC if cells * 2 < size else cv2.INTER_LINEAR)
    mean, deviation = cv2.meanStdDev(field)
    centred: Array = (field - mean.ravel().astype(np.float32)) / (deviation.ravel().astype(np.float32) + 1e-6)
    return centred


def ramp(rng: np.random.Generator, size: int) -> Array:
    """A linear ramp in a random direction: (size, size) float32 in about [-1, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    at = np.linspace(-1, 1, size, dtype=np.float32)
    return at[None, :] * np.float32(np.cos(angle)) + at[:, None] * np.float32(np.sin(angle))


def to_bytes(field: Array, middle: float = 128.0, spread: float = 45.0) -> Array:
    """Map a unit-deviation field to uint8 around `middle`."""
    return np.clip(field * spread + middle, 0, 255).astype(np.uint8)


def sample(field: Array, points: Array) -> Array:
    """Values of a (H, W, ...) field at points (..., 2) in pixels, clamped to the frame."""
    x = np.clip(points[..., 0], 0, field.shape[1] - 1).astype(int)
    y = np.clip(points[..., 1], 0, field.shape[0] - 1).astype(int)
    return field[y, x]
