"""One seeded matte of a kind: draw, check that it can be trained on, soften, extend its colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from pam_mobile.data.synthetic.fur import fur
from pam_mobile.data.synthetic.glass import glass
from pam_mobile.data.synthetic.hair import hair
from pam_mobile.data.synthetic.lace import lace
from pam_mobile.data.synthetic.layers import Layer, extend, known_shares
from pam_mobile.data.synthetic.leaves import leaves
from pam_mobile.data.synthetic.raster import Array, check_size
from pam_mobile.data.synthetic.smoke import smoke
from pam_mobile.data.synthetic.solid import solid


class Matte(NamedTuple):
    """An object cut out: foreground (H, W, 3) uint8 sRGB, defined everywhere; alpha (H, W) uint8; its kind."""

    foreground: Array
    alpha: Array
    kind: str


_PAINTERS: dict[str, Callable[[np.random.Generator, int], Layer]] = {
    "hair": hair,
    "fur": fur,
    "leaves": leaves,
    "lace": lace,
    "smoke": smoke,
    "solid": solid,
    "glass": glass,
}
KINDS: tuple[str, ...] = tuple(_PAINTERS)
WEIGHTS: dict[str, float] = {
    "hair": 0.3,
    "fur": 0.24,
    "leaves": 0.14,
    "lace": 0.1,
    "smoke": 0.03,
    "solid": 0.16,
    "glass": 0.03,
}
# Mean share of pixels with 0 < alpha < 255 over many seeds at 320 px, measured and widened by about a half.
PARTIAL_SHARE: dict[str, tuple[float, float]] = {
    "hair": (0.14, 0.36),
    "fur": (0.035, 0.11),
    "leaves": (0.035, 0.13),
    "lace": (0.05, 0.2),
    "smoke": (0.3, 0.7),
    "solid": (0.02, 0.08),
    "glass": (0.14, 0.4),
}
_SEE_THROUGH = frozenset({"smoke", "glass"})
_LEAST_KNOWN = 0.01
_ATTEMPTS = 8


def make_matte(seed: int, size: int = 320, kind: str | None = None) -> Matte:
    """Draw one matte; the same seed, size and kind give the same bytes. kind None: drawn from WEIGHTS."""
    if kind is not None and kind not in _PAINTERS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}, or None to draw one")
    check_size(size)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = str(rng.choice(KINDS, p=[WEIGHTS[name] for name in KINDS]))
    kind = drawn if kind is None else kind
    rgb, alpha = _trainable(rng, size, kind)
    if rng.random() < 0.5:
        rgb, alpha = (np.ascontiguousarray(plane[:, ::-1]) for plane in (rgb, alpha))
    return Matte(rgb, alpha, kind)


def _trainable(rng: np.random.Generator, size: int, kind: str) -> Layer:
    """Draw until there is something to learn from: enough known and enough object."""
    for _ in range(_ATTEMPTS):
        rgb, sharp = _PAINTERS[kind](rng, size)
        alpha = _defocus(rng, size, sharp) if rng.random() < 0.25 else sharp
        if _usable(alpha, kind):
            break
    # By the sharp alpha: what a soft edge reaches has no colour of its own.
    return extend(rgb, sharp), alpha


def _defocus(rng: np.random.Generator, size: int, alpha: Array) -> Array:
    """The slight softness of a lens: (H, W) uint8."""
    return cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.35, 1.3) * size / 320 + 0.1)


def _usable(alpha: Array, kind: str) -> bool:
    """Whether the matte has the regions that a trimap made from it needs."""
    if kind in _SEE_THROUGH:
        return float((alpha > 0).mean()) > 0.15 and int(alpha.max()) > 60
    return min(known_shares(alpha)) >= _LEAST_KNOWN
