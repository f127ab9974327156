"""Small objects with a colour of their own that sit on a body: ribbon, hat, flag, label."""

from __future__ import annotations

import numpy as np

from pam_mobile.data.synthetic.layers import Layer
from pam_mobile.data.synthetic.raster import Array, area_down, fill, new_canvas
from pam_mobile.data.synthetic.shapes import fourier_loop, placed
from pam_mobile.data.synthetic.textures import texture


def prop(rng: np.random.Generator, size: int, centre: Array, scale: float = 1.0) -> Layer:
    """One object around `centre` (2,) in pixels, larger by `scale`: Layer."""
    canvas = new_canvas(size)
    loop = fourier_loop(rng, points=int(rng.choice([4, 5, 8, 60])), rough=rng.uniform(0.05, 0.35))
    fill(canvas, placed(rng, loop, centre, rng.uniform(0.04, 0.14) * size * scale, 4.0))
    return texture(rng, size), area_down(canvas, size)
