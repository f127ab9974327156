"""A patch: the unit in which foregrounds are stored, ready to be warped and composed on the training device."""

from __future__ import annotations

import cv2
import numpy as np

PLANES = 5
"""Red, green, blue, alpha, signed distance."""
DISTANCE_ZERO = 128


def signed_distance(alpha: np.ndarray) -> np.ndarray:
    """How deep each pixel lies in what a trimap may call known, as uint8 with 128 for zero.

    alpha: (H, W) uint8. Above 128: pixels to the nearest one with alpha < 255. Below: pixels to the nearest with alpha > 0.
    A trimap of any width is then one threshold, also after a rotation or a change of scale.
    """
    inside = cv2.distanceTransform((alpha == 255).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    outside = cv2.distanceTransform((alpha == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.clip(np.rint(inside - outside) + DISTANCE_ZERO, 0, 255).astype(np.uint8)


def make_patch(foreground: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(5, H, W) uint8 planes of a foreground (H, W, 3) uint8 and its alpha (H, W) uint8."""
    return np.concatenate([foreground.transpose(2, 0, 1), alpha[None], signed_distance(alpha)[None]])
