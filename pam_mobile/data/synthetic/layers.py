"""Putting parts together: a part over the others, and colours extended to where nothing is."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic.raster import Array

Layer = tuple[Array, Array]
"""Foreground (H, W, 3) uint8 and alpha (H, W) uint8."""

_LEAK = 0.02


def over(front: Layer, back: Layer) -> Layer:
    """Composite two layers into one, with the colour that reproduces both: Layer."""
    a, b = (layer[1].astype(np.float32) / 255 for layer in (front, back))
    total = a + (1 - a) * b
    share = np.where(total > 0, a / np.maximum(total, 1e-6), a)[..., None]
    rgb = front[0] * share + back[0] * (1 - share)
    return np.round(rgb).astype(np.uint8), np.round(total * 255).astype(np.uint8)


def extend(rgb: Array, alpha: Array) -> Array:
    """Keep colours where alpha > 0 and continue them smoothly elsewhere: (H, W, 3) uint8."""
    weight = alpha.astype(np.float32) / 255
    filled = _push_pull(rgb * weight[..., None], weight)
    return np.where((alpha > 0)[..., None], rgb, np.clip(np.round(filled), 0, 255).astype(np.uint8))


def _push_pull(mass: Array, weight: Array) -> Array:
    """Weighted mean of the finest scale that has any weight: mass (H, W, 3), weight (H, W) -> (H, W, 3) float32."""
    if min(weight.shape) <= 4:
        return np.broadcast_to(mass.sum((0, 1)) / (weight.sum() + 1e-6), mass.shape).astype(np.float32)
    half = ((weight.shape[1] + 1) // 2, (weight.shape[0] + 1) // 2)
    coarse = _push_pull(*(cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (mass, weight)))
    up = cv2.resize(coarse, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
    filled: Array = (mass + _LEAK * up) / (weight + _LEAK)[..., None]
    return filled


def known_shares(alpha: Array) -> tuple[float, float]:
    """Shares of pixels far (size / 64) from any other value than 255, and than 0: (foreground, background)."""
    k = 2 * (alpha.shape[0] // 64) + 1
    window = np.ones((k, k), np.uint8)
    foreground, background = (cv2.erode((alpha == value).astype(np.uint8), window).mean() for value in (255, 0))
    return float(foreground), float(background)
