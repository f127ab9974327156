"""Foreground colours without the halo of the old background: blur-fusion, and compositing over a new background.

Source: Forte, Approximate Fast Foreground Colour Estimation, ICIP 2021.
"""

from __future__ import annotations

import cv2
import numpy as np

_WIDE_KERNEL = 91
_NARROW_KERNEL = 7
_NO_WEIGHT = 1e-6


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the colours of the foreground, also where it is only partly visible.

    image: (H, W, 3) float32 in [0, 1]; alpha: (H, W) float32 in [0, 1]. Returns (H, W, 3) float32 in [0, 1], equal to
    the image where alpha is 1. Raises ValueError for another shape, dtype, range or NaN.
    """
    _check_colours("image", image)
    _check_alpha(alpha, image)
    foreground, background = _fuse(image, image, image, alpha, _wide_kernel(alpha.shape))
    foreground, _ = _fuse(image, foreground, background, alpha, _NARROW_KERNEL)
    np.copyto(foreground, image, where=(alpha >= 1)[..., None])
    return foreground


def composite(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Put a foreground over a background: alpha F + (1 - alpha) B.

    foreground: (H, W, 3) float32 in [0, 1]; alpha: (H, W) float32 in [0, 1]; background: (H, W, 3) or one colour (3,),
    float32 in [0, 1]. Returns (H, W, 3) float32. Raises ValueError for another shape, dtype, range or NaN.
    """
    _check_colours("foreground", foreground)
    _check_alpha(alpha, foreground)
    if background.shape not in ((3,), foreground.shape):
        raise ValueError(f"background must have the shape {foreground.shape} or (3,), got {background.shape}")
    weight = alpha[..., None]
    return np.asarray(weight * foreground + (1 - weight) * background.astype(np.float32, copy=False))


def _check_colours(name: str, colours: np.ndarray) -> None:
    if colours.ndim != 3 or colours.shape[2] != 3 or colours.size == 0 or colours.dtype != np.float32:
        raise ValueError(f"{name} must be float32 of shape (H, W, 3), got {colours.dtype} of shape {colours.shape}")
    _check_range(name, colours)


def _check_alpha(alpha: np.ndarray, colours: np.ndarray) -> None:
    if alpha.shape != colours.shape[:2] or alpha.dtype != np.float32:
        raise ValueError(
            f"alpha must be float32 of shape {colours.shape[:2]}, got {alpha.dtype} of shape {alpha.shape}"
        )
    _check_range("alpha", alpha)


def _check_range(name: str, values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} must lie in [0, 1] without NaN, got [{low}, {high}]")


def _wide_kernel(size: tuple[int, ...]) -> int:
    """Odd kernel of the first pass: the published one, or the shorter side of an image that is smaller than it."""
    return max(_NARROW_KERNEL, min(_WIDE_KERNEL, min(size) | 1))


def _fuse(
    image: np.ndarray, foreground: np.ndarray, background: np.ndarray, alpha: np.ndarray, kernel: int
) -> tuple[np.ndarray, np.ndarray]:
    """One pass: smooth both layers by their own weight, then give the foreground the rest that they leave unexplained.

    Returns the new foreground and the smoothed background, both (H, W, 3) float32.
    """
    weight = alpha[..., None]
    smooth_foreground = _weighted_blur(foreground, alpha, kernel)
    smooth_background = _weighted_blur(background, 1 - alpha, kernel)
    rest = image - weight * smooth_foreground - (1 - weight) * smooth_background
    return np.clip(smooth_foreground + weight * rest, 0, 1), smooth_background


def _weighted_blur(colours: np.ndarray, weight: np.ndarray, kernel: int) -> np.ndarray:
    """Box mean of the colours with the given weight; the colours themselves where no weight is near."""
    total = cv2.blur(weight, (kernel, kernel))[..., None]
    blurred = cv2.blur(colours * weight[..., None], (kernel, kernel))
    return np.where(total > _NO_WEIGHT, blurred / np.maximum(total, _NO_WEIGHT), colours)
