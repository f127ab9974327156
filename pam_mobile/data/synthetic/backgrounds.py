"""Backgrounds: what lies behind an object in photographs, from plain walls to clutter in and out of focus."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pam_mobile.data.synthetic.noise import fractal, ramp, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, light, shade_table
from pam_mobile.data.synthetic.raster import Array, check_size
from pam_mobile.data.synthetic.shapes import fourier_loop
from pam_mobile.data.synthetic.textures import texture

_SHIFT = 4
_GLYPHS = "abcdefghiklmnoprstuvwxyzABCDEFGHKLMNPRSTW0123456789 "


def make_background(seed: int, size: int = 320) -> Array:
    """Draw one background, (size, size, 3) uint8 sRGB; the same seed and size give the same bytes."""
    check_size(size)
    # A stream of its own: a matte and a background of one seed must not share their draws.
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    names = list(_SCENES)
    shares = np.array([_SCENES[name][0] for name in names])
    scene = _SCENES[names[int(rng.choice(len(names), p=shares / shares.sum()))]][1]
    return _photograph(rng, scene(rng, size))


def _photograph(rng: np.random.Generator, rgb: Array) -> Array:
    """Light falling off, focus and grain of a camera: (H, W, 3) uint8."""
    size = rgb.shape[0]
    rgb = light(rgb, ramp(rng, size) + 0.5 * fractal(rng, size, size * 0.5, size * 0.2), rng.uniform(0.0, 0.2))
    if rng.random() < 0.45:
        rgb = cv2.GaussianBlur(rgb, (0, 0), np.exp(rng.uniform(np.log(0.5), np.log(7.0))) * size / 320)
    if rng.random() < 0.6:
        tile = rng.integers(0, 256, (size // 2 + 1, size, 1), dtype=np.uint8).astype(np.float32) - 127.5
        grain = np.concatenate([tile, tile[:, ::-1]])[:size] * (rng.uniform(1, 9) / 74)
        rgb = np.clip(rgb + grain, 0, 255).astype(np.uint8)
    return rgb


def _polygon(rgb: Array, points: Array, tone: Array) -> None:
    """Fill an anti-aliased polygon, points (P, 2) px, in place."""
    fixed = np.round((points - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(rgb, [fixed], np.clip(tone, 0, 255).tolist(), cv2.LINE_AA, _SHIFT)


def _scheme(rng: np.random.Generator, count: int) -> Array:
    """Colours that occur together: a few of any kind, jittered in brightness: (count, 3) float."""
    anchors = np.stack([colour(rng) for _ in range(int(rng.integers(2, 6)))])
    gain = np.exp(rng.normal(size=(count, 1)) * rng.uniform(0.1, 0.5))
    return np.clip(anchors[rng.integers(0, len(anchors), count)] * gain + rng.normal(size=(count, 3)) * 6, 0, 255)


def dead_leaves(rng: np.random.Generator, size: int) -> Array:
    """Overlapping shapes of every size, the classic model of image statistics."""
    rgb = texture(rng, size)
    count = int(rng.integers(60, 260))
    radii = np.sort(size * 0.02 / rng.uniform(0.02, 1.0, count) ** 0.8)[::-1]
    corners = int(rng.choice([3, 4, 4, 24]))
    shape = [fourier_loop(rng, corners, rng.uniform(0, 0.3)) for _ in range(8)]
    centres, tones = rng.uniform(-0.05, 1.05, (count, 2)) * size, _scheme(rng, count)
    stretch = np.exp(rng.normal(size=(count, 2)) * 0.35)
    for i in range(count):
        _polygon(rgb, centres[i] + radii[i] * shape[i % 8] * stretch[i], tones[i])
    return light(rgb, fractal(rng, size, size * 0.1, 1, 0.7), rng.uniform(0.02, 0.15))


def bokeh(rng: np.random.Generator, size: int) -> Array:
    """Discs of light over a dark blur."""
    rgb = cv2.GaussianBlur(dead_leaves(rng, size), (0, 0), size * 0.03).astype(np.float32) * rng.uniform(0.3, 0.8)
    radius = rng.uniform(0.015, 0.07) * size
    disc = np.zeros((size, size, 3), np.float32)
    for tone in _scheme(rng, int(rng.integers(15, 60))):
        at = (rng.uniform(0, 1, 2) * size * 16).astype(int).tolist()
        reach = int(radius * rng.uniform(0.6, 1.3) * 16)
        cv2.circle(disc, at, reach, (tone * rng.uniform(0.3, 1.0)).tolist(), -1, cv2.LINE_8, _SHIFT)
    return np.clip(rgb + cv2.GaussianBlur(disc, (0, 0), max(0.5, radius * 0.08)), 0, 255).astype(np.uint8)


def foliage(rng: np.random.Generator, size: int) -> Array:
    """Leaves and blades in layers, the far ones out of focus."""
    rgb = texture(rng, size)
    family = str(rng.choice(["green", "green", "earth", "any"]))
    slim = rng.uniform(0.05, 0.5)
    leaf = np.array([[0, 0], [0.3, 0.8], [0.7, 0.7], [1, 0], [0.7, -0.7], [0.3, -0.8]]) * np.array([1, slim])
    for layer in range(3):
        tones = shade_table(rng, colour(rng, family, (0.1, 0.8)), 0.8).astype(float)
        reach = size * rng.uniform(0.04, 0.16)
        for _ in range(int(rng.integers(25, 90))):
            a = rng.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            at = rng.uniform(-0.05, 1.05, 2) * size
            _polygon(rgb, at + reach * rng.uniform(0.5, 1.4) * leaf @ turn, tones[rng.integers(20, 236)])
        if layer < 2:
            rgb = cv2.blur(rgb, (int(rng.integers(1, 9)),) * 2)
    return light(rgb, fractal(rng, size, size * 0.15, 2), rng.uniform(0.05, 0.2))


def blades(rng: np.random.Generator, size: int) -> Array:
    """Grass, straw or hair-like lines: the hardest thing behind hair."""
    rgb = texture(rng, size)
    lean = rng.uniform(0, np.pi)
    for tone in _scheme(rng, int(rng.integers(6, 14))):
        count = int(rng.integers(10, 40))
        roots = rng.uniform(-0.2, 1.2, (count, 1, 2)) * size
        angle = lean + rng.normal(size=(count, 1)) * 0.35 + np.linspace(0, 1, 7) * rng.normal(size=(count, 1)) * 0.5
        step = np.stack([np.cos(angle), np.sin(angle)], -1) * size * rng.uniform(0.02, 0.08)
        lines = np.round((roots + np.cumsum(step, 1)) * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(rgb, list(lines), False, tone.tolist(), int(rng.integers(1, 4)), cv2.LINE_AA, _SHIFT)
    return rgb


def writing(rng: np.random.Generator, size: int) -> Array:
    """Signs, pages, screens: text, rules and boxes."""
    rgb = texture(rng, size)
    for tone in _scheme(rng, int(rng.integers(3, 9))):
        corner = rng.uniform(-0.1, 0.8, 2) * size
        extent = rng.uniform(0.05, 0.5, 2) * size
        cv2.rectangle(rgb, corner.astype(int).tolist(), (corner + extent).astype(int).tolist(), tone.tolist(), -1)
    for tone in _scheme(rng, int(rng.integers(6, 26))):
        word = "".join(rng.choice(list(_GLYPHS), int(rng.integers(3, 16))))
        at = (rng.uniform([-0.1, 0.0], [0.7, 1.0]) * size).astype(int).tolist()
        scale, thick = size / 320 * rng.uniform(0.3, 2.0), int(rng.integers(1, 4))
        cv2.putText(rgb, word, at, cv2.FONT_HERSHEY_SIMPLEX, scale, tone.tolist(), thick, cv2.LINE_AA)
    return rgb


def room(rng: np.random.Generator, size: int) -> Array:
    """Straight planes under one light: wall, floor, boards, windows, furniture."""
    rgb = texture(rng, size)
    horizon = rng.uniform(0.3, 0.9) * size
    rgb[int(horizon) :] = texture(rng, size)[int(horizon) :]
    slant = rng.normal() * 0.15
    for tone in _scheme(rng, int(rng.integers(4, 16))):
        x, y = rng.uniform(-0.1, 1.0, 2) * size
        w, h = rng.uniform(0.02, 0.4, 2) * size
        corners = np.array([[x, y], [x + w, y + slant * w], [x + w, y + h + slant * w], [x, y + h]])
        _polygon(rgb, corners + 0.02 * size, tone * 0.4)
        _polygon(rgb, corners, tone)
        _polygon(rgb, corners * [1, 0.97] + [0, 0.015 * size], tone * rng.uniform(0.75, 1.3))
    return light(rgb, fractal(rng, size, size * 0.6, 1, 0.45), rng.uniform(0.05, 0.25))


def landscape(rng: np.random.Generator, size: int) -> Array:
    """Sky, ridges one behind another, ground."""
    sky = colour(rng, "blue" if rng.random() < 0.6 else None, (0.5, 1.0))
    shade = ramp(rng, size) + rng.uniform(0, 1.0) * fractal(rng, size, size * 0.5, 2, 0.5)
    rgb = apply_table(to_bytes(shade, spread=30), shade_table(rng, sky, 0.5))
    across = np.linspace(0, 1, size)
    y = np.arange(size)[:, None]
    level = rng.uniform(0.2, 0.6)
    for _ in range(int(rng.integers(1, 4))):
        rough = fractal(rng, size, size * 0.4, 2, rng.uniform(0.4, 0.6))[0] * rng.uniform(0.01, 0.06)
        ridge = (level + rough + rng.normal() * 0.1 * across) * size
        share = np.clip(y - ridge + 0.5, 0, 1).astype(np.float32)[..., None]
        rgb = (texture(rng, size) * share + rgb * (1 - share)).astype(np.uint8)
        level += rng.uniform(0.08, 0.3)
    return rgb


_SCENES: dict[str, tuple[float, Callable[[np.random.Generator, int], Array]]] = {
    "surface": (0.2, texture),
    "dead_leaves": (0.2, dead_leaves),
    "bokeh": (0.1, bokeh),
    "foliage": (0.15, foliage),
    "blades": (0.08, blades),
    "writing": (0.07, writing),
    "room": (0.1, room),
    "landscape": (0.1, landscape),
}
