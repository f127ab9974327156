"""Geometry of strands: growth from roots, clumping around guides, tapering."""

from __future__ import annotations

import numpy as np

from pam_mobile.data.synthetic.noise import sample
from pam_mobile.data.synthetic.raster import Array


def grow(
    rng: np.random.Generator,
    roots: Array,
    heading: Array,
    length: Array,
    *,
    points: int = 14,
    pull: Array | tuple[float, float] = (0.0, 0.0),
    wave: float = 0.0,
    turns: float = 2.0,
    wander: float = 0.1,
) -> Array:
    """Grow strands: roots (N, 2) px, heading (N, 2) unit, length (N,) px -> (N, points, 2) px.

    `pull` bends them towards a direction, `wave` (radians) and `turns` curl them, `wander` is a random walk.
    """
    n = len(roots)
    t = np.linspace(0, 1, points - 1)[None, :]
    way = heading[:, None, :] + t[..., None] * np.asarray(pull)[None, None, :]
    angle = np.arctan2(way[..., 1], way[..., 0])
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    angle += (
        wave * rng.uniform(0.6, 1.4, (n, 1)) * np.sin(2 * np.pi * turns * rng.uniform(0.7, 1.3, (n, 1)) * t + phase)
    )
    angle += np.cumsum(rng.normal(size=angle.shape), 1) * wander
    step = np.stack([np.cos(angle), np.sin(angle)], -1) * (length / (points - 1))[:, None, None]
    path = np.concatenate([np.zeros((n, 1, 2)), np.cumsum(step, 1)], 1)
    return roots[:, None, :] + path


def clump(rng: np.random.Generator, guides: Array, per_guide: int, spread: float, gather: float, frizz: float) -> Array:
    """Strands around guides: guides (M, P, 2) -> (M * per_guide, P, 2).

    They start within `spread` px of the guide, `gather` in [-1, 1] narrows or widens them to the tip, `frizz` (px) is
    a private wave.
    """
    many = np.repeat(guides, per_guide, 0)
    n, points = many.shape[:2]
    t = np.linspace(0, 1, points)[None, :, None]
    offset = rng.normal(size=(n, 1, 2)) * spread * (1 - gather * t)
    turns, phase = rng.uniform(0.2, 1.6, (n, 1, 2)), rng.uniform(0, 2 * np.pi, (n, 1, 2))
    walk = frizz * rng.normal(size=(n, 1, 2)) * np.sin(2 * np.pi * turns * t + phase) * t
    scale = rng.uniform(0.55, 1.1, (n, 1, 1))
    return many[:, :1] + (many - many[:, :1]) * scale + offset + walk


def taper(rng: np.random.Generator, strands: Array, root: float, tip: float = 0.15) -> Array:
    """Widths from `root` px to a share `tip` of it, jittered per strand: (N, P, 2) -> (N, P) float."""
    count, points = strands.shape[:2]
    t = np.linspace(0, 1, points)[None, :]
    return root * rng.uniform(0.5, 1.4, (count, 1)) * (1 - (1 - tip) * t**1.5)


def toward(angle: Array | float) -> Array:
    """Unit vectors of angles: (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def unit(vectors: Array) -> Array:
    """Vectors scaled to length 1: (..., 2)."""
    scaled: Array = vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-6)
    return scaled


def flow(rng: np.random.Generator, angle: Array, count: int, length: float, points: int = 5) -> Array:
    """Strands all over the frame along a field of angles (H, W): (count, points, 2) px."""
    size = angle.shape[0]
    at = rng.uniform(-0.05, 1.05, (count, 2)) * size
    step = length / (points - 1) * rng.uniform(0.5, 1.3, (count, 1))
    path = [at]
    for _ in range(points - 1):
        at = at + step * toward(sample(angle, at) + rng.normal(size=count) * 0.12)
        path.append(at)
    return np.stack(path, 1)
