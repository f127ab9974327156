"""Trimaps: 0 is known background, 128 is unknown, 255 is known foreground."""

from __future__ import annotations

import cv2
import numpy as np

BACKGROUND = 0
UNKNOWN = 128
FOREGROUND = 255
TRIMAP_RADIUS = 10
"""Width in pixels of the unknown band of trimaps that are made from alphas for evaluation."""


def quantise_trimap(trimap: np.ndarray) -> np.ndarray:
    """Bring the greys of a compressed or resized trimap back to the three values.

    trimap: (H, W) uint8, any greys; below 85 is background, 85 to 169 unknown, from 170 on foreground.
    Returns (H, W) uint8 with values 0, 128, 255. Raises ValueError for another shape or dtype.
    """
    if trimap.ndim != 2 or trimap.dtype != np.uint8:
        raise ValueError(f"trimap must be uint8 of shape (H, W), got {trimap.dtype} of shape {trimap.shape}")
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[:85] = BACKGROUND
    table[170:] = FOREGROUND
    return table[trimap]


def trimap_from_alpha(alpha: np.ndarray) -> np.ndarray:
    """A trimap for an evaluation image that has none. One fixed recipe, because scores depend on it.

    Known is where all pixels within TRIMAP_RADIUS (a disc) have alpha 255, or all have alpha 0.
    alpha: (H, W) uint8. Returns (H, W) uint8 with values 0, 128, 255.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TRIMAP_RADIUS + 1, 2 * TRIMAP_RADIUS + 1))
    foreground, background = (cv2.erode((alpha == value).astype(np.uint8), disc) for value in (255, 0))
    return np.select([foreground == 1, background == 1], [FOREGROUND, BACKGROUND], UNKNOWN).astype(np.uint8)
