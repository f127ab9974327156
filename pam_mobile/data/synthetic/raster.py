"""Supersampled drawing: canvases of SCALE^2 samples per pixel, averaged by area so that alpha is true coverage."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# cv2.remap's second map, when the first holds both coordinates.
NO_MAP: Any = None
SMALLEST = 64
SCALE = 4
SHADE_SCALE = 2
_SHIFT = 4

# cv2 draws wider than `thickness` says; these are its measured widths in samples, means over all angles.
LINE_WIDTHS = {1: 1.33, 2: 2.96, 3: 5.03, 5: 7.04, 7: 9.1, 9: 11.1, 11: 13.1, 13: 15.1}
_VALUE_LEVELS = 8
_SHADE_STEP = 12


def check_size(size: int) -> None:
    """Refuse pictures too small to hold any structure."""
    if size < SMALLEST:
        raise ValueError(f"size is {size}; it must be at least {SMALLEST} pixels")


def new_canvas(size: int, scale: int = SCALE) -> Array:
    """Return an empty canvas: (size * scale, size * scale) uint8."""
    return np.zeros((size * scale, size * scale), np.uint8)


def area_down(canvas: Array, size: int) -> Array:
    """Average a canvas over the samples of each pixel: (size, size[, C]), dtype kept."""
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def fixed(points: Array, scale: int = SCALE) -> Array:
    """Turn pixel coordinates, where [0, 1] is the first pixel, into cv2's fixed-point samples: (..., 2) int32."""
    return np.round((points * scale - 0.5) * (1 << _SHIFT)).astype(np.int32)


def fill(canvas: Array, points: Array, value: Any = 255, scale: int = SCALE) -> None:
    """Fill one polygon, points (P, 2) in pixels, in place."""
    cv2.fillPoly(canvas, [fixed(points, scale)], value, cv2.LINE_8, _SHIFT)


def _line_class(samples: Array) -> tuple[Array, Array]:
    """Split widths in samples into a cv2 thickness and an opacity whose product keeps the mass of the strand."""
    thickness, drawn = (np.array(list(side)) for side in (LINE_WIDTHS.keys(), LINE_WIDTHS.values()))
    nearest = np.abs(samples[:, None] - drawn[None, :]).argmin(1)
    nearest = np.where(samples < drawn[1], (samples > drawn[0]).astype(int), nearest)
    return thickness[nearest], np.clip(samples / drawn[nearest], 0.0, 1.0)


def draw_strands(canvas: Array, points: Array, width: Array, sections: int = 2) -> None:
    """Draw opaque strands: points (N, P, 2) in pixels, width (N, P) in pixels, on a canvas of SCALE, in place.

    Strands thinner than a sample are drawn fainter instead, which is the same coverage after averaging.
    """
    cuts = np.linspace(0, points.shape[1] - 1, sections + 1).astype(int)
    curves = fixed(points)
    # A canvas of their own: what is below must not become transparent under a faint strand.
    strands = np.zeros_like(canvas)
    for a, b in reversed(list(pairwise(cuts))):
        _draw_section(strands, curves[:, a : b + 1], width[:, a : b + 1].mean(1) * SCALE)
    np.maximum(canvas, strands, out=canvas)


def _draw_section(canvas: Array, curves: Array, samples: Array) -> None:
    """Draw curves (N, P, 2) in fixed point of one width each, (N,) in samples; the faint ones first."""
    thickness, opacity = _line_class(samples)
    level = np.ceil(opacity * _VALUE_LEVELS).astype(int)
    for chosen in groups(level * 100 + thickness):
        tone = float(opacity[chosen].mean()) * 255
        line = int(thickness[chosen[0]])
        kind = cv2.LINE_AA if line == 1 else cv2.LINE_8
        cv2.polylines(canvas, list(curves[chosen]), False, tone, line, kind, _SHIFT)


def groups(keys: Array) -> list[Array]:
    """Indices of equal keys, in rising order of the key."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []


def draw_shades(plane: Array, points: Array, shade: Array, width: float, layers: int = 3) -> None:
    """Draw strands in their own grey: points (N, P, 2) and width in pixels, shade (N,) in [0, 255]; in place.

    The plane has SHADE_SCALE. Layers overlap each other, so that neither dark nor bright is always in front.
    """
    curves = fixed(points, SHADE_SCALE)
    line = int(np.clip(round(width * SHADE_SCALE * 0.6), 1, 6))
    tone = shade.astype(int) // _SHADE_STEP
    for layer in range(layers):
        for chosen in groups(tone[layer::layers])[:: 1 if layer % 2 else -1]:
            ids = chosen * layers + layer
            value = int(tone[ids[0]] * _SHADE_STEP + _SHADE_STEP // 2)
            cv2.polylines(plane, list(curves[ids]), False, value, line, cv2.LINE_8, _SHIFT)
