"""Fur: layers of short strokes along an orientation field around a body."""

from __future__ import annotations

import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.coat import coat
from pam_mobile.data.synthetic.layers import Layer, over
from pam_mobile.data.synthetic.noise import fractal, sample
from pam_mobile.data.synthetic.props import prop
from pam_mobile.data.synthetic.raster import Array, area_down, draw_strands
from pam_mobile.data.synthetic.strands import flow, grow, taper, toward, unit


def fur(rng: np.random.Generator, size: int) -> Layer:
    """A fur matte: an animal or a pelt, often with whiskers or an object."""
    px = size / 320
    canvas = shapes.body(rng, size)
    pixels = area_down(canvas, size)
    length = np.exp(rng.uniform(np.log(5), np.log(34))) * px
    blow = rng.uniform(0, 2 * np.pi)
    angle = blow + rng.uniform(0.2, 0.9) * fractal(rng, size, size * 0.5, size * 0.15)
    width = np.exp(rng.uniform(np.log(0.3), np.log(1.1))) * px
    under = _strokes(rng, pixels, angle, 1500, length * 0.6)
    guard = _strokes(rng, pixels, angle, int(rng.integers(250, 900)), length)
    draw_strands(canvas, under, taper(rng, under, width * 1.2))
    draw_strands(canvas, guard, taper(rng, guard, width))
    inner = flow(rng, angle, 1300, max(length, 9 * px) * 1.3, points=4)
    rgb = coat(rng, np.concatenate([under, guard]), inner, size, px, rng.uniform(0, 1) ** 2)
    return _extras(rng, size, (rgb, area_down(canvas, size)), pixels)


def _strokes(rng: np.random.Generator, mask: Array, angle: Array, count: int, length: float) -> Array:
    """Strokes from the rim, between its normal and the field: (count, 6, 2) px."""
    roots, normals = shapes.rim(mask, count, rng)
    roots = roots - normals * rng.uniform(0, 0.5, (count, 1)) * length
    along = toward(sample(angle, roots))
    tuft = sample(fractal(rng, mask.shape[0], length * 2 + 6, length), roots)
    heading = unit(normals * rng.uniform(0.5, 1.1) + along * rng.uniform(0.3, 1.0) + 0.25 * rng.normal(size=(count, 2)))
    reach = length * rng.uniform(0.5, 1.2, count) * np.clip(1 + 0.45 * tuft, 0.25, 2)
    return grow(rng, roots, heading, reach, points=6, pull=along.mean(0) * 0.8, wander=rng.uniform(0.02, 0.15))


def _extras(rng: np.random.Generator, size: int, coat_layer: Layer, mask: Array) -> Layer:
    """Whiskers and a collar-like object, each sometimes."""
    px = size / 320
    if rng.random() < 0.3:
        roots, normals = shapes.rim(mask, 3, rng)
        roots, normals = (np.repeat(side, 4, 0) for side in (roots, normals))
        heading = unit(normals + rng.normal(size=normals.shape) * 0.3)
        whiskers = grow(rng, roots, heading, rng.uniform(0.08, 0.3, 12) * size, pull=(0, 0.4), wander=0.02)
        alpha = np.zeros((coat_layer[1].shape[0] * 4,) * 2, np.uint8)
        draw_strands(alpha, whiskers, taper(rng, whiskers, rng.uniform(0.5, 1.2) * px))
        tone = np.full((size, size, 3), rng.choice([20, 235]), np.uint8)
        coat_layer = over((tone, area_down(alpha, size)), coat_layer)
    if rng.random() < 0.3:
        coat_layer = over(prop(rng, size, shapes.rim(mask, 1, rng)[0][0]), coat_layer)
    return coat_layer
