"""Glass and clear plastic: low alpha inside, a denser rim, bright streaks. No refraction is modelled."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.layers import Layer, over
from pam_mobile.data.synthetic.noise import fractal, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, shade_table
from pam_mobile.data.synthetic.raster import Array, area_down, fill, new_canvas
from pam_mobile.data.synthetic.textures import texture


def glass(rng: np.random.Generator, size: int) -> Layer:
    """A vessel, a bubble or a bag, often with a cap, a label or a liquid."""
    canvas = new_canvas(size)
    profile = _profile(rng, size)
    vessel = rng.random() < 0.65
    if vessel:
        fill(canvas, profile)
    else:
        canvas = shapes.blob(rng, size)
    cover = area_down(canvas, size)
    depth = cv2.distanceTransform((np.pad(cover, 1, mode="edge") > 127).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    whole = over(_shine(rng, size, cover, depth), _wall(rng, size, cover, depth))
    return over(_solid_part(rng, size, cover, profile), whole) if vessel and rng.random() < 0.6 else whole


def _profile(rng: np.random.Generator, size: int) -> Array:
    """Outline of a turned vessel: (P, 2) px."""
    knots = np.array(
        [rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.6), *rng.uniform(0.45, 1.0, 3), rng.uniform(0.4, 0.9)]
    )
    along = np.linspace(0, 1, 40)
    half = np.interp(along, np.linspace(0, 1, 6), knots)
    half = np.convolve(np.pad(half, 3, mode="edge"), np.ones(7) / 7, mode="valid") * size * rng.uniform(0.12, 0.34)
    top, height = rng.uniform(-0.3, 0.25) * size, rng.uniform(0.6, 1.1) * size
    x, y = rng.uniform(0.3, 0.7) * size, top + along * height
    lean = rng.normal() * 0.06 * (y - top)
    return np.concatenate([np.stack([x + half + lean, y], 1), np.stack([x - half + lean, y], 1)[::-1]])


def _wall(rng: np.random.Generator, size: int, cover: Array, depth: Array) -> Layer:
    """Tinted wall: interior alpha .05 to .4, rising to the rim."""
    tint = colour(rng, str(rng.choice(["grey", "green", "blue", "any"], p=[0.4, 0.25, 0.15, 0.2])), (0.1, 0.9))
    wrinkle = fractal(rng, size, size * rng.uniform(0.1, 0.5), 4, 0.5)
    rim = rng.uniform(0.2, 0.65) * np.exp(-depth / (size * rng.uniform(0.006, 0.03)))
    inner = rng.uniform(0.05, 0.4) * np.clip(1 + rng.uniform(0, 0.3) * wrinkle, 0.3, 1.8)
    alpha = cover / 255 * np.clip(inner + rim, 0, 0.97)
    rgb = apply_table(to_bytes(0.5 * wrinkle + 0.5 * rim), shade_table(rng, tint, rng.uniform(0.2, 0.6)))
    return rgb, to_bytes(alpha.astype(np.float32), 0, 255)


def _shine(rng: np.random.Generator, size: int, cover: Array, depth: Array) -> Layer:
    """Specular streaks that follow the outline, and small glints: bright, high alpha."""
    streaks = np.zeros((size, size), np.float32)
    side = np.clip(fractal(rng, size, size * 0.45, size * 0.2) * 1.5 - rng.uniform(0, 0.8), 0, 1)
    for _ in range(int(rng.integers(1, 4))):
        at, width = rng.uniform(0.01, 0.16) * size, rng.uniform(0.003, 0.014) * size
        streaks = np.maximum(streaks, rng.uniform(0.3, 1.0) * np.exp(-(((depth - at) / width) ** 2)) * side)
    glints: Array = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(0, 6))):
        centre = rng.integers(0, size, 2).tolist()
        axes = (rng.uniform(0.004, 0.03, 2) * size + 1).astype(int).tolist()
        cv2.ellipse(glints, centre, axes, rng.uniform(0, 180), 0, 360, rng.uniform(0.5, 1.0), -1, cv2.LINE_AA)
    glints = cv2.GaussianBlur(glints, (0, 0), rng.uniform(0.5, 0.008 * size + 0.6))
    alpha = np.maximum(streaks, glints) * (cover / 255).astype(np.float32)
    rgb = np.empty((size, size, 3), np.uint8)
    rgb[:] = colour(rng, "grey", (0.85, 1.0)).astype(np.uint8)
    return rgb, to_bytes(alpha, 0, 255)


def _solid_part(rng: np.random.Generator, size: int, cover: Array, profile: Array) -> Layer:
    """A band across the vessel, opaque (cap, label) or nearly so (liquid): Layer."""
    top, bottom = profile[:, 1].min(), profile[:, 1].max()
    first, last = np.sort(rng.uniform(0, 1, 2)) if rng.random() < 0.6 else (0.0, rng.uniform(0.1, 0.3))
    band = new_canvas(size)
    sag = rng.normal() * 0.02 * size
    x = np.linspace(-0.1, 1.1, 12) * size
    bow = sag * np.cos(np.linspace(-np.pi / 2, np.pi / 2, 12))
    edges = [np.stack([x, top + (bottom - top) * at + bow], 1) for at in (first, last)]
    fill(band, np.concatenate([edges[0], edges[1][::-1]]))
    strength = 1.0 if rng.random() < 0.6 else rng.uniform(0.4, 0.95)
    alpha = np.minimum(area_down(band, size), cover) * strength
    return texture(rng, size), np.round(alpha).astype(np.uint8)
