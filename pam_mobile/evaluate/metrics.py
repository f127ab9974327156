"""The four matting errors SAD, MSE, GRAD and CONN of Composition-1k, on the scales of the published tables.

Source: Xu et al., Deep Image Matting, CVPR 2017, and its MATLAB evaluation script; GRAD and CONN go back to
Rhemann et al., A Perceptually Motivated Online Benchmark for Image Matting, CVPR 2009.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import cv2
import numpy as np

from ..data.trimap import UNKNOWN, quantise_trimap

Normalisation = Literal["mat2gray", "none"]
Region = Literal["unknown", "whole"]

_SIGMA = 1.4
_KERNEL_CUTOFF = 1e-2
_LEVELS = (np.arange(11) * 0.1).astype(np.float32)
_CONNECTED_TOLERANCE = np.float32(0.15)


class Scores(NamedTuple):
    """SAD / 1000, MSE x 1e3, GRAD / 1000 and CONN / 1000 of one image; all are NaN if it has no pixel to score."""

    sad: float
    mse: float
    grad: float
    conn: float


def sad(prediction: np.ndarray, target: np.ndarray, region: np.ndarray) -> float:
    """Sum of absolute differences over the region, / 1000.

    prediction, target: (H, W) uint8; region: (H, W) bool. Raises ValueError for another shape or dtype.
    """
    _check(prediction, target, region)
    return float(np.abs(_difference(prediction, target, region)).sum() / 1000)


def mse(prediction: np.ndarray, target: np.ndarray, region: np.ndarray) -> float:
    """Mean squared difference over the region, x 1e3; NaN for an empty region.

    prediction, target: (H, W) uint8; region: (H, W) bool. Raises ValueError for another shape or dtype.
    """
    _check(prediction, target, region)
    if not region.any():
        return math.nan
    return float(np.square(_difference(prediction, target, region)).mean() * 1000)


def gradient_error(
    prediction: np.ndarray, target: np.ndarray, region: np.ndarray, normalisation: Normalisation = "mat2gray"
) -> float:
    """Sum over the region of the squared difference of gradient magnitudes, / 1000.

    prediction, target: (H, W) uint8; region: (H, W) bool. "mat2gray" stretches each whole image to [0, 1] as the
    published numbers do, which hides a global gain; "none" divides by 255. Pixels outside the region take part in
    the stretch and in the convolution. Raises ValueError for another shape, dtype or normalisation.
    """
    _check(prediction, target, region)
    if normalisation not in ("mat2gray", "none"):
        raise ValueError(f"normalisation must be 'mat2gray' or 'none', got {normalisation!r}")
    scale = _mat2gray if normalisation == "mat2gray" else _unit
    difference = _gradient_magnitude(scale(prediction)) - _gradient_magnitude(scale(target))
    return float(np.square(difference[region]).sum() / 1000)


def connectivity_error(prediction: np.ndarray, target: np.ndarray, region: np.ndarray) -> float:
    """Sum over the region of the difference in connectivity to the shared largest component, / 1000.

    prediction, target: (H, W) uint8; region: (H, W) bool. Components are sought in the whole image.
    Raises ValueError for another shape or dtype.
    """
    _check(prediction, target, region)
    # Single precision as in MATLAB: in double the level 0.6 is 0.6000000000000001 and 153 / 255 would miss it.
    p, t = (image.astype(np.float32) / np.float32(255) for image in (prediction, target))
    connected = _connected_level(np.minimum(p, t))
    difference = _connectivity(p, connected) - _connectivity(t, connected)
    return float(np.abs(difference[region]).sum(dtype=np.float64) / 1000)


def score(prediction: np.ndarray, target: np.ndarray, trimap: np.ndarray, region: Region = "unknown") -> Scores:
    """Score one matte after the known trimap values were pasted into it.

    prediction, target: (H, W) uint8; trimap: (H, W) uint8, any greys, see `quantise_trimap`. region: "unknown" is
    the published one, "whole" counts every pixel. An image without an unknown pixel has the unknown-region scores NaN.
    Raises ValueError for another shape, dtype or region.
    """
    if region not in ("unknown", "whole"):
        raise ValueError(f"region must be 'unknown' or 'whole', got {region!r}")
    trimap = quantise_trimap(trimap)
    unknown = trimap == UNKNOWN
    _check(prediction, target, unknown, name="trimap")
    scored = unknown if region == "unknown" else np.ones_like(unknown)
    if not scored.any():
        return Scores(math.nan, math.nan, math.nan, math.nan)
    pasted = np.where(unknown, prediction, trimap)
    return Scores(
        sad(pasted, target, scored),
        mse(pasted, target, scored),
        gradient_error(pasted, target, scored),
        connectivity_error(pasted, target, scored),
    )


def _check(prediction: np.ndarray, target: np.ndarray, region: np.ndarray, name: str = "region") -> None:
    for argument, image in (("prediction", prediction), ("target", target)):
        if image.ndim != 2 or image.size == 0 or image.dtype != np.uint8:
            raise ValueError(f"{argument} must be uint8 of shape (H, W), got {image.dtype} of shape {image.shape}")
    if target.shape != prediction.shape:
        raise ValueError(f"target must have the shape {prediction.shape} of prediction, got {target.shape}")
    if region.shape != prediction.shape:
        raise ValueError(f"{name} must have the shape {prediction.shape} of prediction, got {region.shape}")
    if region.dtype != np.bool_:
        raise ValueError(f"{name} must be bool, got {region.dtype}")


def _difference(prediction: np.ndarray, target: np.ndarray, region: np.ndarray) -> np.ndarray:
    return (prediction[region].astype(np.float64) - target[region]) / 255


def _unit(image: np.ndarray) -> np.ndarray:
    return image / 255.0


def _mat2gray(image: np.ndarray) -> np.ndarray:
    low, high = int(image.min()), int(image.max())
    return (image.astype(np.float64) - low) / max(high - low, 1)


def _gradient_kernels() -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian and its first derivative, each of L2 norm 1, so that the norm of their outer product is 1 too."""
    half = math.ceil(_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * _KERNEL_CUTOFF)))
    u = np.arange(-half, half + 1, dtype=np.float64)
    gaussian = np.exp(-np.square(u) / (2 * _SIGMA**2)) / (_SIGMA * math.sqrt(2 * math.pi))
    derivative = -u * gaussian / _SIGMA**2
    return gaussian / np.linalg.norm(gaussian), derivative / np.linalg.norm(derivative)


def _gradient_magnitude(x: np.ndarray) -> np.ndarray:
    gaussian, derivative = _gradient_kernels()
    # OpenCV correlates. The mirrored kernel only flips the sign of the odd derivative, and the magnitude drops it.
    gx = cv2.sepFilter2D(x, cv2.CV_64F, derivative, gaussian, borderType=cv2.BORDER_REPLICATE)
    gy = cv2.sepFilter2D(x, cv2.CV_64F, gaussian, derivative, borderType=cv2.BORDER_REPLICATE)
    return np.sqrt(np.square(gx) + np.square(gy))


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a (H, W) bool mask; of equals the first in column order, as in MATLAB."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    # Label 0 is the background: counting it would select it whenever the object is the smaller part.
    areas = statistics[1:, cv2.CC_STAT_AREA]
    if areas.size == 0:
        return np.zeros_like(mask)
    largest = np.flatnonzero(areas == areas.max()) + 1
    if largest.size == 1:
        return np.asarray(labels == largest[0])
    columns = labels.T.ravel()
    return np.asarray(labels == columns[np.isin(columns, largest).argmax()])


def _connected_level(smaller: np.ndarray) -> np.ndarray:
    """The level up to which each pixel belongs to the largest component that both mattes share.

    smaller: (H, W) float32, the pixelwise minimum of both mattes. Returns (H, W) float32.
    """
    level = np.ones_like(smaller)
    undecided = np.ones(smaller.shape, dtype=np.bool_)
    for below, threshold in itertools.pairwise(_LEVELS):
        inside = _largest_component(smaller >= threshold)
        level[undecided & ~inside] = below
        undecided &= inside
    return level


def _connectivity(x: np.ndarray, connected: np.ndarray) -> np.ndarray:
    distance = x - connected
    return 1 - distance * (distance >= _CONNECTED_TOLERANCE)
