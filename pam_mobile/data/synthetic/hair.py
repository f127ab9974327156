"""Hair: clumps of long strands from a scalp or a rim, opaque at the core, with fly-aways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pam_mobile.data.synthetic import shapes
from pam_mobile.data.synthetic.coat import coat
from pam_mobile.data.synthetic.layers import Layer, over
from pam_mobile.data.synthetic.noise import fractal, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, shade_table
from pam_mobile.data.synthetic.props import prop
from pam_mobile.data.synthetic.raster import Array, area_down, draw_strands, fill, new_canvas
from pam_mobile.data.synthetic.strands import clump, flow, grow, taper, toward, unit
from pam_mobile.data.synthetic.textures import texture


class _Style(NamedTuple):
    """What the locks of one head share: points of a strand, curl in radians and turns, random walk per step."""

    points: int
    wave: float
    turns: float
    wander: float


def hair(rng: np.random.Generator, size: int) -> Layer:
    """A hair matte: a head with shoulders, or a mass of hair entering the frame."""
    return _portrait(rng, size) if rng.random() < 0.5 else _mass(rng, size)


def _style(rng: np.random.Generator) -> _Style:
    """Straight, wavy or curly."""
    if rng.random() < 0.3:
        return _Style(34, rng.uniform(0.9, 1.9), rng.uniform(1.5, 4.0), rng.uniform(0.02, 0.06))
    return _Style(14, rng.uniform(0.0, 0.45), rng.uniform(0.4, 1.4), rng.uniform(0.005, 0.06))


def _portrait(rng: np.random.Generator, size: int) -> Layer:
    """Head and shoulders with hair falling from the scalp."""
    radius = rng.uniform(0.15, 0.34) * size
    head = np.array([rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.6)]) * size
    around = rng.uniform(-np.pi * 1.1, np.pi * 0.1, int(rng.integers(60, 120)))
    roots = head + toward(around) * radius * rng.uniform(0.55, 1.0, (len(around), 1)) * np.array([0.85, 1.05])
    gravity = np.array([rng.normal() * 0.4, rng.uniform(0.3, 4.0)])
    heading = unit(toward(around) + gravity * rng.uniform(0.0, 0.4))
    length = radius * rng.uniform(0.4, 3.0) * rng.uniform(0.6, 1.3, len(around))
    guides = grow(rng, roots, heading, length, pull=gravity, **_style(rng)._asdict())
    core = new_canvas(size)
    fill(core, head + shapes.fourier_loop(rng, rough=0.04) * radius * np.array([0.85, 1.05]))
    locks = _locks(rng, size, guides, core, radius * 0.12, _falling(size, head, gravity))
    return _dress(rng, size, locks, head, radius)


def _falling(size: int, head: Array, gravity: Array) -> Array:
    """Angles away from the crown and down: (size, size) float."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    dx, dy = x - head[0], y - head[1] + 0.2 * size
    far = np.hypot(dx, dy) + 1
    return np.arctan2(dy / far + 0.5 * gravity[1], dx / far + 0.5 * gravity[0])


def _mass(rng: np.random.Generator, size: int) -> Layer:
    """A body of hair with an irregular contour; strands leave it along a common wind."""
    core = shapes.body(rng, size)
    roots, normals = shapes.rim(area_down(core, size), int(rng.integers(60, 140)), rng)
    blow = rng.uniform(0, 2 * np.pi)
    wind = toward(blow)
    heading = unit(normals + wind * rng.uniform(0.2, 1.6) + rng.normal(size=normals.shape) * 0.15)
    length = size * rng.uniform(0.06, 0.45) * rng.uniform(0.5, 1.4, len(roots))
    pull = wind * rng.uniform(0, 2.0)
    guides = grow(rng, roots - normals * size * 0.03, heading, length, pull=pull, **_style(rng)._asdict())
    angle = blow + rng.uniform(0.2, 0.7) * fractal(rng, size, size * 0.5, size * 0.2)
    locks = _locks(rng, size, guides, core, size * rng.uniform(0.008, 0.03), angle)
    return over(prop(rng, size, roots[0]), locks) if rng.random() < 0.35 else locks


def _locks(rng: np.random.Generator, size: int, guides: Array, core: Array, thick: float, angle: Array) -> Layer:
    """Strands around guides over an opaque core: draws on `core`, returns the layer of all hair."""
    px = size / 320
    spread, frizz = thick * rng.uniform(0.5, 1.3), rng.uniform(0.5, 5.0) * px
    strands = clump(
        rng,
        guides,
        int(rng.integers(8, 18) * (1 if guides.shape[1] < 20 else 0.7)),
        spread,
        rng.uniform(-0.6, 0.9),
        frizz,
    )
    loose = clump(rng, guides[:: max(1, len(guides) // 40)], 2, spread * 2.5, -0.8, frizz * 4)
    width = np.exp(rng.uniform(np.log(0.3), np.log(1.6))) * px
    # The first half of each lock is dense enough to be opaque.
    half = guides[:, : guides.shape[1] // 2 + 1]
    draw_strands(core, half, np.minimum(taper(rng, half, thick * 0.6, 0.05), 3.8 * px), sections=5)
    draw_strands(core, strands, taper(rng, strands, width))
    draw_strands(core, loose, taper(rng, loose, rng.uniform(0.2, 0.5) * px))
    inner = flow(rng, angle, 1100, size * rng.uniform(0.08, 0.25), points=6)
    return coat(rng, strands, inner, size, px, rng.uniform(0, 0.5)), area_down(core, size)


def _dress(rng: np.random.Generator, size: int, locks: Layer, head: Array, radius: float) -> Layer:
    """Shoulders behind or before the hair, sometimes a face and an ornament."""
    torso = new_canvas(size)
    fill(torso, shapes.shoulders(rng, head, radius, size))
    clothes = (texture(rng, size), area_down(torso, size))
    whole = over(locks, clothes) if rng.random() < 0.7 else over(clothes, locks)
    if rng.random() < 0.5:
        whole = over(_face(rng, size, head, radius), whole)
    return over(prop(rng, size, head + rng.normal(size=2) * radius), whole) if rng.random() < 0.35 else whole


def _face(rng: np.random.Generator, size: int, head: Array, radius: float) -> Layer:
    """A skin-like oval inside the head."""
    canvas = new_canvas(size)
    centre = head + np.array([rng.normal() * 0.2, 0.25]) * radius
    fill(canvas, centre + shapes.fourier_loop(rng, rough=0.12) * radius * np.array([0.6, 0.75]))
    skin = shade_table(rng, colour(rng, "earth", (0.35, 0.95)), 0.4)
    return apply_table(to_bytes(fractal(rng, size, size * 0.3, 2, 0.4)), skin), area_down(canvas, size)
