"""Trimaps: 0 is known background, 128 is unknown, 255 is known foreground."""

from __future__ import annotations

import numpy as np

BACKGROUND = 0
UNKNOWN = 128
FOREGROUND = 255


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
