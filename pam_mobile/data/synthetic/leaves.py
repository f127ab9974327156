"""Leaves and twigs: recursive branching with serrated leaves, grass, flowers."""

from __future__ import annotations

import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.layers import Layer, known_shares, over
from pam_mobile.data.synthetic.noise import fractal, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, light, shade_table
from pam_mobile.data.synthetic.props import prop
from pam_mobile.data.synthetic.raster import SHADE_SCALE, Array, area_down, draw_strands, fill, new_canvas
from pam_mobile.data.synthetic.strands import grow, toward
from pam_mobile.data.synthetic.textures import texture

_MOST_LEAVES = 240


def leaves(rng: np.random.Generator, size: int) -> Layer:
    """A plant matte: twigs with leaves, sometimes before a trunk, a pot or a hedge."""
    twigs, width = _twigs(rng, size)
    canvas = new_canvas(size)
    draw_strands(canvas, twigs, width)
    rgb = _wood(rng, size, twigs, width)
    shape = _leaf(rng)
    places = _places(rng, size, twigs)
    _draw_leaves(rng, canvas, rgb, shape, places, size * rng.uniform(0.025, 0.1))
    rgb = light(area_down(rgb, size), fractal(rng, size, size * 0.3, 2, 0.6), rng.uniform(0.06, 0.2))
    plant = (rgb, area_down(canvas, size))
    return _grounded(rng, size, plant, twigs)


def _twigs(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Branches of three orders: points (N, 8, 2) px and widths (N, 8) px."""
    stems = int(rng.integers(1, 5))
    side = rng.uniform(0, 2 * np.pi)
    roots = size * (0.5 - 0.62 * toward(side) + rng.normal(size=(stems, 2)) * 0.2)
    heading = toward(side + rng.normal(size=stems) * 0.3)
    points = grow(rng, roots, heading, size * rng.uniform(0.6, 1.2, stems), points=8, wander=rng.uniform(0.05, 0.2))
    thick = rng.uniform(0.006, 0.025) * size
    orders, widths = [points], [thick * np.linspace(1, 0.4, 8) * np.ones((stems, 1))]
    for shrink, children in ((0.5, int(rng.integers(4, 9))), (0.22, int(rng.integers(2, 4)))):
        points = _branch(rng, points, children, size * shrink)
        orders.append(points)
        widths.append(thick * shrink * np.linspace(0.9, 0.25, 8) * np.ones((len(points), 1)))
    return np.concatenate(orders), np.concatenate(widths)


def _branch(rng: np.random.Generator, parents: Array, children: int, length: float) -> Array:
    """Side branches of every parent: (len(parents) * children, 8, 2) px."""
    many = np.repeat(parents, children, 0)
    at = rng.integers(1, 7, len(many))
    roots = many[np.arange(len(many)), at]
    along = roots - many[np.arange(len(many)), at - 1]
    angle = np.arctan2(along[:, 1], along[:, 0]) + rng.choice([-1, 1], len(many)) * rng.uniform(0.3, 1.2, len(many))
    reach = length * rng.uniform(0.3, 0.9, len(many))
    return grow(rng, roots, toward(angle), reach, points=8, wander=rng.uniform(0.05, 0.2))


def _places(rng: np.random.Generator, size: int, twigs: Array) -> Array:
    """Where leaves sit and where they point: (L, 2, 2) px, base and a unit direction."""
    count = int(rng.integers(30, _MOST_LEAVES))
    twig = twigs[rng.integers(0, len(twigs), count)]
    at = rng.integers(2, 8, count)
    base = twig[np.arange(count), at]
    along = base - twig[np.arange(count), at - 1]
    angle = np.arctan2(along[:, 1], along[:, 0]) + rng.choice([-1, 1], count) * rng.uniform(0.1, 1.3, count)
    return np.stack([base, toward(angle)], 1)


def _leaf(rng: np.random.Generator) -> Array:
    """Outline of one leaf from (0, 0) to (1, 0): (P, 2); smooth, serrated, lobed or a blade."""
    t = np.linspace(0, 1, 22)
    broad = rng.choice([0.06, 0.2, 0.3, 0.42])
    half = broad * np.sin(np.pi * t ** rng.uniform(0.6, 1.1)) ** rng.uniform(0.6, 1.3)
    if rng.random() < 0.4:
        half *= 1 + rng.uniform(0.1, 0.3) * np.where(np.arange(22) % 2, 1, -1)
    if rng.random() < 0.25:
        half *= 0.6 + 0.6 * np.abs(np.cos(np.pi * t * rng.integers(2, 4)))
    return np.concatenate([np.stack([t, half], 1), np.stack([t, -half], 1)[::-1]])


def _draw_leaves(
    rng: np.random.Generator, canvas: Array, rgb: Array, shape: Array, places: Array, length: float
) -> None:
    """Draw a leaf of varied size, fold and colour at each place, in place; rgb has SHADE_SCALE."""
    flowers = colour(rng, "any", (0.5, 1.0)) if rng.random() < 0.25 else None
    base = colour(rng, str(rng.choice(["green", "green", "earth", "any"])), (0.15, 0.85))
    table = shade_table(rng, base, rng.uniform(0.6, 1.0)).astype(float)
    for (x, y), (dx, dy) in places:
        reach, fold = length * rng.uniform(0.5, 1.5), rng.uniform(0.35, 1.0)
        turn = np.array([[dx, dy], [-dy * fold, dx * fold]])
        bent = shape + np.stack([np.zeros(len(shape)), rng.normal() * 0.25 * shape[:, 0] ** 2], 1)
        outline = np.array([x, y]) + reach * bent @ turn
        tone = table[int(np.clip(rng.normal(128, 55), 0, 255))]
        if flowers is not None and rng.random() < 0.3:
            tone = flowers * rng.uniform(0.7, 1.1)
        fill(canvas, outline)
        fill(rgb, outline, np.clip(tone, 0, 255).tolist(), SHADE_SCALE)
        # One half lies in the light: a leaf is not flat.
        fill(rgb, outline[: len(outline) // 2], np.clip(tone * 1.18 + 6, 0, 255).tolist(), SHADE_SCALE)


def _wood(rng: np.random.Generator, size: int, twigs: Array, width: Array) -> Array:
    """A plane of bark and shadow colours under the leaves: (size * SHADE_SCALE)^2 x 3 uint8."""
    field = to_bytes(fractal(rng, size * SHADE_SCALE, size * 0.1, 6))
    bark: Array = apply_table(field, shade_table(rng, colour(rng, "earth", (0.1, 0.6)), 0.5))
    return bark


def _grounded(rng: np.random.Generator, size: int, plant: Layer, twigs: Array) -> Layer:
    """Put a solid thing behind or before the plant, mostly near its root."""
    choice = rng.random()
    if choice < 0.35 or known_shares(plant[1])[0] < 0.03:
        mass = (texture(rng, size), area_down(shapes.terrain(rng, size), size))
        return over(plant, mass)
    if choice < 0.6:
        return over(prop(rng, size, twigs[0, 1]), plant)
    return plant
