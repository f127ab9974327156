"""Surface textures for objects and parts of backgrounds: each (H, W, 3) uint8 sRGB."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pam_mobile.data.synthetic.noise import fractal, ramp, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, blend_table, colour, light, shade_table
from pam_mobile.data.synthetic.raster import Array


def cloudy(rng: np.random.Generator, size: int) -> Array:
    """Fractal noise through a table of one to three colours."""
    base = colour(rng)
    mixed = rng.random() < 0.4
    table = blend_table(np.stack([base, colour(rng), colour(rng)])) if mixed else shade_table(rng, base)
    field = fractal(rng, size, rng.uniform(0.2, 0.8) * size, rng.choice([1.0, 1.0, 2.0, 4.0]), rng.uniform(0.45, 0.8))
    return apply_table(to_bytes(field, spread=rng.uniform(20, 60)), table)


def plain(rng: np.random.Generator, size: int) -> Array:
    """A nearly flat surface with a light gradient and fine grain."""
    shade = 0.7 * ramp(rng, size) * rng.uniform(0, 1) + rng.uniform(0.02, 0.2) * fractal(rng, size, 4, 1)
    return apply_table(to_bytes(shade), shade_table(rng, colour(rng)))


def _bands(rng: np.random.Generator, size: int, warp: Array) -> Array:
    """Soft-edged periodic bands along a random direction: (size, size) float32 in [0, 1]."""
    period = size * np.exp(rng.uniform(np.log(0.02), np.log(0.3)))
    phase = (ramp(rng, size) * size / 2 + warp) / period
    wave = np.abs(phase - np.floor(phase) - 0.5) * 4 - 1
    return np.clip((wave + rng.uniform(-0.5, 0.5)) * period * 0.35 + 0.5, 0, 1).astype(np.float32)


def stripes(rng: np.random.Generator, size: int) -> Array:
    """Stripes or plaid on cloth bent by a smooth warp."""
    warp = fractal(rng, size, size * 0.5, size * 0.2) * rng.uniform(0, 0.04) * size
    bands = _bands(rng, size, warp)
    if rng.random() < 0.45:
        bands = (bands + _bands(rng, size, warp)) / 2
    table = blend_table(np.stack([colour(rng), colour(rng)]))
    rgb = apply_table((bands * 255).astype(np.uint8), table)
    return light(rgb, fractal(rng, size, size * 0.4, 2, 0.5), rng.uniform(0.05, 0.2))


def spots(rng: np.random.Generator, size: int) -> Array:
    """Thresholded noise: spots, camouflage, marble veins."""
    field = fractal(rng, size, size * rng.uniform(0.04, 0.3), 2, 0.4)
    if rng.random() < 0.4:
        field = 1.0 - 4 * np.abs(field)
    table = blend_table(np.stack([colour(rng), colour(rng)]))
    rgb = apply_table(to_bytes(field, spread=rng.uniform(80, 400)), table)
    return light(rgb, fractal(rng, size, size * 0.3, 1, 0.6), rng.uniform(0.04, 0.15))


def woven(rng: np.random.Generator, size: int) -> Array:
    """Knit or weave: a small tile repeated under a fold shading."""
    period = int(rng.integers(3, 9))
    tile = cv2.GaussianBlur(rng.random((period * 2, period * 2), dtype=np.float32), (0, 0), 0.8)
    repeats = size // (period * 2) + 1
    cloth = np.tile((tile - tile.mean()) / (tile.std() + 1e-6), (repeats, repeats))[:size, :size]
    folds = fractal(rng, size, size * 0.4, size * 0.05)
    return apply_table(to_bytes(0.5 * folds + rng.uniform(0.2, 0.6) * cloth), shade_table(rng, colour(rng)))


_TEXTURES: tuple[Callable[[np.random.Generator, int], Array], ...] = (cloudy, plain, stripes, spots, woven)
_SHARES = (0.36, 0.24, 0.16, 0.12, 0.12)


def texture(rng: np.random.Generator, size: int) -> Array:
    """A random surface: (size, size, 3) uint8."""
    return _TEXTURES[int(rng.choice(len(_TEXTURES), p=_SHARES))](rng, size)
