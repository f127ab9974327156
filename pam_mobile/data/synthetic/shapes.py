"""Silhouettes of solid bodies as canvases of SCALE: (size * SCALE)^2 uint8 in {0, 255}."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic.noise import fractal, ramp
from pam_mobile.data.synthetic.raster import SCALE, Array, fill, new_canvas


def fourier_loop(rng: np.random.Generator, points: int = 96, rough: float = 0.25, terms: int = 6) -> Array:
    """A closed wavy loop around the origin with mean radius about 1: (points, 2) float."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = np.ones(points)
    for k in range(1, terms + 1):
        radius += rough * rng.normal() / k * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    return np.maximum(radius, 0.2)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)


def placed(rng: np.random.Generator, loop: Array, centre: Array, radius: float, stretch: float = 1.5) -> Array:
    """Stretch, turn and move a loop: (P, 2) in pixels."""
    angle, aspect = rng.uniform(0, np.pi), np.exp(rng.uniform(-1, 1) * np.log(stretch) / 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return centre + (loop * radius * np.array([aspect, 1 / aspect])) @ turn.T


def blob(rng: np.random.Generator, size: int) -> Array:
    """One or more overlapping wavy loops, usually leaving the frame."""
    canvas = new_canvas(size)
    centre = rng.uniform(0.1, 0.9, 2) * size
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(0.14, 0.38) * size
        fill(canvas, placed(rng, fourier_loop(rng, rough=rng.uniform(0.05, 0.35)), centre, radius, 2.5))
        centre = centre + rng.normal(size=2) * radius * 0.8
    return canvas


def terrain(rng: np.random.Generator, size: int) -> Array:
    """A body entering from one side with an irregular contour: thresholded noise plus ramp."""
    rough = rng.uniform(0.05, 0.5)
    field = ramp(rng, size) + rough * fractal(rng, size, size * rng.uniform(0.25, 0.7), size * 0.03, 0.4)
    field = field - np.quantile(field[::8, ::8], rng.uniform(0.35, 0.75))
    return (upsample(field, size) > 0).astype(np.uint8) * 255


def upsample(field: Array, size: int) -> Array:
    """Bring a pixel field to the samples of a canvas: (size * SCALE)^2."""
    return cv2.resize(field, (size * SCALE, size * SCALE), interpolation=cv2.INTER_LINEAR)


def bust(rng: np.random.Generator, size: int) -> Array:
    """Head, neck and shoulders entering from the bottom."""
    canvas = new_canvas(size)
    radius = rng.uniform(0.12, 0.26) * size
    head = np.array([rng.uniform(0.25, 0.75), rng.uniform(0.15, 0.5)]) * size
    fill(canvas, head + fourier_loop(rng, rough=0.05) * radius * np.array([0.8, 1.05]))
    fill(canvas, shoulders(rng, head, radius, size))
    return canvas


def shoulders(rng: np.random.Generator, head: Array, radius: float, size: int) -> Array:
    """Outline of neck and shoulders below a head: (P, 2) in pixels."""
    half = np.array([0.4, 0.45, 0.6, 1.5, 2.0, 2.3]) * radius * rng.uniform(0.85, 1.15, 6)
    drop = np.array([0.5, 1.15, 1.4, 1.75, 2.3, 9.0]) * radius
    lean = rng.normal() * 0.15 * drop
    right = np.stack([head[0] + half + lean, head[1] + drop], 1)
    left = np.stack([head[0] - half * rng.uniform(0.85, 1.15) + lean, head[1] + drop], 1)
    return rounded(np.concatenate([right, left[::-1]]))


def rounded(loop: Array, rounds: int = 2) -> Array:
    """Cut the corners of a closed loop (Chaikin): (P, 2) -> (P * 2^rounds, 2)."""
    for _ in range(rounds):
        after = np.roll(loop, -1, 0)
        loop = np.stack([0.75 * loop + 0.25 * after, 0.25 * loop + 0.75 * after], 1).reshape(-1, 2)
    return loop


def creature(rng: np.random.Generator, size: int) -> Array:
    """A head with ears on a body that leaves the frame at the bottom."""
    canvas = new_canvas(size)
    radius = rng.uniform(0.12, 0.24) * size
    head = np.array([rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.5)]) * size
    fill(canvas, placed(rng, fourier_loop(rng, rough=0.08), head, radius, 1.3))
    spread, reach = rng.uniform(0.4, 0.9), rng.uniform(1.3, 2.1)
    for side in (-1.0, 1.0):
        angle = -np.pi / 2 + side * spread + rng.normal() * 0.1
        fill(canvas, _ear(head, radius, angle, reach))
    body = head + np.array([rng.normal() * radius, 2.2 * radius])
    fill(canvas, body + fourier_loop(rng, rough=0.1) * radius * np.array([rng.uniform(1.1, 2.2), 1.9]))
    fill(canvas, shoulders(rng, body - np.array([0, radius]), radius, size))
    return canvas


def _ear(head: Array, radius: float, angle: float, reach: float) -> Array:
    """A pointed ear on a round head: (P, 2) in pixels."""
    around = angle + np.array([-0.45, -0.2, 0.0, 0.2, 0.45])
    far = radius * np.array([0.8, 0.5 * (0.9 + reach), reach, 0.5 * (0.9 + reach), 0.8])
    return head + far[:, None] * np.stack([np.cos(around), np.sin(around)], 1)


def body(rng: np.random.Generator, size: int) -> Array:
    """A random silhouette of any of the above."""
    return (terrain, blob, bust, creature)[int(rng.choice(4, p=(0.42, 0.33, 0.08, 0.17)))](rng, size)


def rim(mask: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Random points on the contour of a pixel mask with outward normals: two (count, 2) float arrays."""
    contours, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    long = [c[:, 0].astype(np.float32) for c in contours if len(c) > 12]
    inner = np.concatenate([_inside(c, mask.shape[0]) for c in long]) if long else np.zeros(0, bool)
    if not inner.any():
        middle = np.full((1, 2), mask.shape[0] / 2, np.float32)
        return np.repeat(middle, count, 0), np.repeat(np.array([[0, -1]], np.float32), count, 0)
    points = np.concatenate(long)
    tangents = np.concatenate([np.roll(c, -4, 0) - np.roll(c, 4, 0) for c in long])
    chosen = rng.choice(np.flatnonzero(inner), count)
    normals = np.stack([tangents[chosen, 1], -tangents[chosen, 0]], 1)
    # Contours turn either way (holes, image axes), so the side is read from the mask.
    outside = points[chosen] + 4 * normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-6)
    y, x = (np.clip(outside[:, i], 0, mask.shape[0] - 1).astype(int) for i in (1, 0))
    normals[mask[y, x] > 127] *= -1
    return points[chosen] + 0.5, normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-6)


def _inside(contour: Array, size: int) -> Array:
    """Which points of a contour are a real rim, not the frame: (P,) bool."""
    inside: Array = np.all((contour > 1) & (contour < size - 2), axis=1)
    return inside
