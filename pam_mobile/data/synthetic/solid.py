"""Solids: bodies, polygons, flags and letters whose edge is sharp or blurred by focus or motion."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.layers import Layer, extend, over
from pam_mobile.data.synthetic.props import prop
from pam_mobile.data.synthetic.raster import SCALE, Array, area_down, fill, new_canvas
from pam_mobile.data.synthetic.textures import texture

_LETTERS = "ABCDEFGHKMNPRSTUVXYZabdefghkmnprstuyz0123456789&?#"


def solid(rng: np.random.Generator, size: int) -> Layer:
    """One to three opaque parts with surfaces of their own under one blur."""
    whole = _part(rng, size)
    for _ in range(int(rng.integers(0, 3))):
        whole = over(_part(rng, size), whole)
    if rng.random() < 0.3:
        whole = over(prop(rng, size, rng.uniform(0.1, 0.9, 2) * size), whole)
    rgb, alpha = whole
    return extend(rgb, alpha), _blurred(rng, size, alpha)


def _part(rng: np.random.Generator, size: int) -> Layer:
    """A body, a polygon, a flag or letters: Layer."""
    draw = (shapes.body, _polygon, _flag, _letters)[int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))]
    return texture(rng, size), area_down(draw(rng, size), size)


def _polygon(rng: np.random.Generator, size: int) -> Array:
    """A polygon of 3 to 12 corners, convex or star-like: canvas of SCALE."""
    corners = int(rng.integers(3, 13))
    loop = shapes.fourier_loop(rng, corners, 0.1)
    loop[::2] *= rng.uniform(0.4, 1.0)
    canvas = new_canvas(size)
    fill(canvas, shapes.placed(rng, loop, rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.15, 0.45) * size, 2.5))
    return canvas


def _flag(rng: np.random.Generator, size: int) -> Array:
    """A strip with waving long sides, as a flag, a scarf or a cable: canvas of SCALE."""
    t = np.linspace(-0.7, 0.7, 40)
    wave = rng.uniform(0.01, 0.1) * np.sin(t * rng.uniform(3, 14) + rng.uniform(0, 6))
    half = rng.uniform(0.01, 0.2) * (1 + rng.uniform(-0.5, 0.5) * t)
    strip = np.concatenate([np.stack([t, wave - half], 1), np.stack([t, wave + half], 1)[::-1]])
    canvas = new_canvas(size)
    fill(canvas, shapes.placed(rng, strip, rng.uniform(0.2, 0.8, 2) * size, size * rng.uniform(0.5, 1.0), 1.0))
    return canvas


def _letters(rng: np.random.Generator, size: int) -> Array:
    """A few big letters, turned: canvas of SCALE."""
    canvas = new_canvas(size)
    word = "".join(rng.choice(list(_LETTERS), int(rng.integers(1, 5))))
    height = rng.uniform(0.25, 0.6) * size * SCALE
    at = (rng.uniform(0.0, 0.3) * size * SCALE, rng.uniform(0.5, 0.9) * size * SCALE)
    thick = max(2, int(height * rng.uniform(0.04, 0.25)))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX]))
    cv2.putText(canvas, word, (int(at[0]), int(at[1])), font, height / 22, 255, thick, cv2.LINE_8)
    turn = cv2.getRotationMatrix2D((size * SCALE / 2, size * SCALE / 2), rng.uniform(-40, 40), 1.0)
    return cv2.warpAffine(canvas, turn, canvas.shape[::-1], flags=cv2.INTER_NEAREST)


def _blurred(rng: np.random.Generator, size: int, alpha: Array) -> Array:
    """Alpha under a sharp, defocus or motion kernel, or one that changes over the frame: (H, W) uint8."""
    kernel = _kernel(rng, size)
    if kernel is None:
        return alpha
    soft = cv2.filter2D(alpha, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    if rng.random() < 0.6:
        return soft
    share = np.clip(np.linspace(-0.5, 1.5, size), 0, 1)[:: int(rng.choice([-1, 1]))]
    share = share[:, None] if rng.random() < 0.5 else share[None, :]
    return np.round(soft * share + alpha * (1 - share)).astype(np.uint8)


def _kernel(rng: np.random.Generator, size: int) -> Array | None:
    """None, a disc or a line, of unit sum: (k, k) float32."""
    choice = rng.random()
    if choice < 0.3:
        return None
    radius = np.exp(rng.uniform(np.log(1.0), np.log(9.0))) * size / 320
    k = 2 * int(np.ceil(radius)) + 1
    kernel: Array = np.zeros((k * 4, k * 4), np.float32)
    middle, reach = np.array([k * 2, k * 2]), radius * 4
    if choice < 0.65:
        cv2.circle(kernel, middle.tolist(), max(1, round(reach)), 1.0, -1)
    else:
        angle = rng.uniform(0, np.pi)
        arm = np.round(reach * np.array([np.cos(angle), np.sin(angle)])).astype(int)
        cv2.line(kernel, (middle - arm).tolist(), (middle + arm).tolist(), 1.0, 4)
    kernel = cv2.resize(kernel, (k, k), interpolation=cv2.INTER_AREA)
    return kernel / kernel.sum()
