"""Colour of hair and fur: a shade per strand, through a table of one colour family, under soft light."""

from __future__ import annotations

import numpy as np

from pam_mobile.data.synthetic.noise import fractal, sample, to_bytes
from pam_mobile.data.synthetic.palette import apply_table, colour, light, shade_table
from pam_mobile.data.synthetic.raster import SHADE_SCALE, Array, area_down, draw_shades

_FAMILIES = ("earth", "grey", "any")
_SHARES = (0.62, 0.26, 0.12)


def coat(rng: np.random.Generator, strands: Array, inner: Array, size: int, width: float, pattern: float) -> Array:
    """Colour every strand: strands (N, P, 2) of the rim over inner (M, Q, 2) -> (size, size, 3) uint8.

    `pattern` in [0, 1] is the weight of patches (spots, ageing) against the shade of single strands.
    """
    patches = fractal(rng, size, size * rng.uniform(0.08, 0.4), 3, 0.5)
    plane = np.kron(to_bytes(patches, spread=10 + 30 * pattern), np.ones((SHADE_SCALE, SHADE_SCALE), np.uint8))
    spread = rng.uniform(16, 46)
    for curves in (inner, strands):
        tone = 128 + rng.normal(size=len(curves)) * spread + sample(patches, curves[:, 0]) * 35 * pattern
        draw_shades(plane, curves, np.clip(tone, 4, 251), width)
    rgb = apply_table(area_down(plane, size), _table(rng))
    return light(rgb, fractal(rng, size, size * 0.4, size * 0.1), rng.uniform(0.05, 0.22))


def _table(rng: np.random.Generator) -> Array:
    """Dark or blond, brown, grey or dyed: (256, 3) uint8."""
    value = (0.55, 1.0) if rng.random() < 0.45 else (0.05, 0.55)
    return shade_table(rng, colour(rng, _FAMILIES[int(rng.choice(3, p=_SHARES))], value))
