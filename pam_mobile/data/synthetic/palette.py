"""Colours as photographs have them: mostly muted, earthy or grey, sometimes vivid."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from pam_mobile.data.synthetic.raster import Array

# name: share, hue range, saturation range (hue and saturation in [0, 1])
_FAMILIES = {
    "grey": (0.24, (0.0, 1.0), (0.0, 0.12)),
    "earth": (0.34, (0.03, 0.13), (0.15, 0.65)),
    "green": (0.12, (0.18, 0.40), (0.15, 0.60)),
    "blue": (0.14, (0.52, 0.66), (0.10, 0.60)),
    "any": (0.16, (0.0, 1.0), (0.40, 0.95)),
}


def colour(rng: np.random.Generator, family: str | None = None, value: tuple[float, float] = (0.06, 1.0)) -> Array:
    """One colour: (3,) float32 RGB in [0, 255]."""
    if family is None:
        shares = np.array([share for share, _, _ in _FAMILIES.values()])
        family = list(_FAMILIES)[int(rng.choice(len(shares), p=shares / shares.sum()))]
    _, hues, saturations = _FAMILIES[family]
    hsv = rng.uniform(*hues), rng.uniform(*saturations), rng.uniform(*value)
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32) * 255


def shade_table(rng: np.random.Generator, base: Array, contrast: float | None = None) -> Array:
    """A table from shadow over the base colour to highlight: (256, 3) uint8, indexed by shade."""
    contrast = rng.uniform(0.35, 1.0) if contrast is None else contrast
    dark = base * (1 - 0.75 * contrast) * rng.uniform(0.9, 1.1, 3)
    light = base + (rng.uniform(190, 255) - base) * 0.6 * contrast * rng.uniform(0.8, 1.15, 3)
    return blend_table(np.stack([dark, base, light]))


def blend_table(stops: Array) -> Array:
    """Linear table through colours spread evenly: stops (S, 3) -> (256, 3) uint8."""
    at = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), at, stops[:, c]) for c in range(3)]
    return np.clip(np.stack(channels, 1), 0, 255).astype(np.uint8)


def apply_table(shade: Array, table: Array) -> Array:
    """Colour a shade plane (H, W) uint8 by a table (256, 3): (H, W, 3) uint8."""
    return cv2.LUT(cv2.merge([shade, shade, shade]), table.reshape(1, 256, 3))


def light(rgb: Array, field: Array, strength: float) -> Array:
    """Multiply by a smooth light field of unit deviation: (H, W, 3) uint8."""
    gain = np.clip(1.0 + strength * field, 0.25, 1.8).astype(np.float32)
    return cv2.multiply(rgb, cv2.merge([gain, gain, gain]), dtype=cv2.CV_8U)
