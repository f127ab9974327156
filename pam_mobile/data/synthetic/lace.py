"""Lace, mesh and wire: a periodic tile warped by folds, cut to a silhouette, with hems and solid parts."""

from __future__ import annotations

import cv2
import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.layers import Layer, known_shares, over
from pam_mobile.data.synthetic.noise import fractal, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, light, shade_table
from pam_mobile.data.synthetic.props import prop
from pam_mobile.data.synthetic.raster import NO_MAP, SCALE, Array, area_down
from pam_mobile.data.synthetic.textures import texture

_CELL = 48
_CELLS = 4
_TILE = _CELL * _CELLS


def lace(rng: np.random.Generator, size: int) -> Layer:
    """A mesh matte: net, eyelet, lace or wire over a body or alone."""
    period = np.exp(rng.uniform(np.log(3.5), np.log(32))) * size / 320
    cloth = _warped(rng, size, _tile(rng), period)
    silhouette = shapes.body(rng, size)
    solid = _solid_parts(rng, size, silhouette)
    canvas = np.minimum(np.maximum(cloth, solid), silhouette)
    alpha = area_down(canvas, size)
    if rng.random() < 0.15:
        sheer = np.uint8(rng.integers(15, 110)) * (area_down(silhouette, size) > 127).astype(np.uint8)
        alpha = np.maximum(alpha, cv2.blur(sheer, (3, 3)))
    return _backed(rng, size, (_thread_colour(rng, size, canvas), alpha))


def _tile(rng: np.random.Generator) -> Array:
    """One repeatable tile of _CELLS x _CELLS cells: (_TILE, _TILE) uint8 in {0, 255}."""
    draw = (_net, _eyelets, _threads, _motifs)[int(rng.choice(4, p=(0.35, 0.25, 0.2, 0.2)))]
    return draw(rng)


def _net(rng: np.random.Generator) -> Array:
    """Straight threads in two or three directions."""
    tile = np.zeros((_TILE, _TILE), np.uint8)
    width = max(2, round(_CELL * rng.uniform(0.05, 0.32)))
    slopes: tuple[tuple[int, int], ...] = ((1, 0), (0, 1)) if rng.random() < 0.5 else ((1, 1), (1, -1))
    slopes = (*slopes, (1, 0)) if rng.random() < 0.25 else slopes
    for dx, dy in slopes:
        for k in range(-_CELLS, 2 * _CELLS + 1):
            at = np.array([0, k * _CELL]) if dx else np.array([k * _CELL, 0])
            far = at + np.array([dx, dy]) * _TILE
            cv2.line(tile, at.tolist(), far.tolist(), 255, width, cv2.LINE_8)
    return tile


def _eyelets(rng: np.random.Generator) -> Array:
    """Cloth with round holes of random sizes, some missing."""
    tile = np.full((_TILE, _TILE), 255, np.uint8)
    largest, shift = rng.uniform(0.2, 0.48), rng.random() < 0.5
    for row in range(_CELLS):
        for column in range(-1, _CELLS + 1):
            radius = round(_CELL * largest * rng.uniform(0.5, 1.0))
            x = round((column + 0.5 + 0.5 * shift * (row % 2)) * _CELL)
            if 0 <= column < _CELLS or shift:
                cv2.circle(tile, (x % _TILE, round((row + 0.5) * _CELL)), radius, 0, -1)
    return tile


def _threads(rng: np.random.Generator) -> Array:
    """Uneven threads: a loose weave whose gaps vary."""
    tile = np.zeros((_TILE, _TILE), np.uint8)
    for axis in (0, 1):
        for k in range(_CELLS):
            at = round((k + 0.5 + rng.uniform(-0.25, 0.25)) * _CELL)
            half = max(1, round(_CELL * rng.uniform(0.05, 0.3)))
            index = np.arange(at - half, at + half) % _TILE
            tile[(index, slice(None)) if axis else (slice(None), index)] = 255
    return tile


def _motifs(rng: np.random.Generator) -> Array:
    """A fine net with rosettes of petals."""
    tile = _net(rng)
    petals = int(rng.integers(4, 8))
    for centre in ((0.25, 0.25), (0.75, 0.75)):
        middle = np.array(centre) * _TILE
        for k in range(petals):
            angle = 2 * np.pi * k / petals
            at = middle + 0.11 * _TILE * np.array([np.cos(angle), np.sin(angle)])
            axes = (round(0.09 * _TILE), round(0.045 * _TILE))
            solid = -1 if rng.random() < 0.6 else 6
            cv2.ellipse(tile, np.round(at).astype(int).tolist(), axes, float(np.degrees(angle)), 0, 360, 255, solid)
    return tile


def _warped(rng: np.random.Generator, size: int, tile: Array, period: float) -> Array:
    """Repeat a tile with cells of `period` px under a turn, a perspective and folds: canvas of SCALE."""
    coarse = 41
    at = np.linspace(-1, 1, coarse, dtype=np.float32) * size / 2
    xy = np.stack(np.meshgrid(at, at), -1)
    angle, lean = rng.uniform(0, np.pi), rng.normal(size=2) * 0.25 / size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [1, rng.uniform(0.6, 1)]
    )
    xy = xy @ turn.astype(np.float32) * (1 + xy @ lean)[..., None]
    xy += fractal(rng, coarse, 14, 5, 0.5, 2) * period * rng.uniform(0.0, 1.6)
    grid = np.ascontiguousarray(xy * (_CELL / period), dtype=np.float32)
    index = cv2.resize(grid, (size * SCALE, size * SCALE), interpolation=cv2.INTER_LINEAR)
    return cv2.remap(tile, index, NO_MAP, cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)


def _solid_parts(rng: np.random.Generator, size: int, silhouette: Array) -> Array:
    """A hem along the rim and embroidered patches: canvas of SCALE."""
    field = fractal(rng, size, size * rng.uniform(0.15, 0.5), size * 0.04, 0.4)
    parts: Array = np.full((size, size), -1.0, np.float32)
    if rng.random() < 0.6:
        parts = field - rng.uniform(0.5, 1.4)
    if rng.random() < 0.7:
        inside = np.pad(cv2.resize(silhouette, (size, size), interpolation=cv2.INTER_NEAREST), 1, mode="edge")
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
        parts = np.maximum(parts, size * rng.uniform(0.006, 0.03) - depth)
    return (shapes.upsample(parts, size) > 0).astype(np.uint8) * 255


def _thread_colour(rng: np.random.Generator, size: int, canvas: Array) -> Array:
    """Thread colour, brighter in the middle of a thread: (size, size, 3) uint8."""
    if rng.random() < 0.25:
        return texture(rng, size)
    relief = cv2.GaussianBlur(area_down(canvas, size), (0, 0), 1.2).astype(np.float32) / 255 - 0.6
    shade = fractal(rng, size, size * 0.3, 1, 0.55) * rng.uniform(0.2, 0.8) + relief * rng.uniform(-1.5, 2.5)
    rgb = apply_table(to_bytes(shade, spread=38), shade_table(rng, colour(rng)))
    return light(rgb, fractal(rng, size, size * 0.4, size * 0.1), rng.uniform(0.05, 0.2))


def _backed(rng: np.random.Generator, size: int, cloth: Layer) -> Layer:
    """Mostly put something solid of its own colour behind or before the cloth."""
    choice = rng.random()
    if choice < 0.4 or known_shares(cloth[1])[0] < 0.03:
        return over(cloth, (texture(rng, size), area_down(shapes.body(rng, size), size)))
    if choice < 0.8:
        return over(prop(rng, size, rng.uniform(0.2, 0.8, 2) * size, 2.0), cloth)
    return cloth
