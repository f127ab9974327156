"""The colour prior as XNNPACK computes it fastest: its maps with every channel for itself in memory.

XNNPACK's delegate pools and upsamples maps whose channels lie side by side, and keeps that layout as long as it can. With three
channels it is slow: an operation between maps takes up to 40 instructions per pixel, on planes about one per number. A reshape
makes the delegate return to planes. There slices and concatenations are copies, so the algebra is between single channels, which
are taken apart once, and one colour model is made after the other, because its maps then stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pam_mobile.model.layers import upsample
from pam_mobile.model.prior import (
    EPS_COVARIANCE,
    EPS_DISTANCE,
    GAIN,
    MAX_LEVELS,
    ColourPrior,
    fill_in,
    global_mean,
    halve,
    pool,
    saturate,
)

ENTRIES = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))
"""Rows and columns of the entries of a symmetric matrix, in the order of `ColourPrior._square`."""


class PlanarColourPrior(ColourPrior):
    """`ColourPrior` in another order of memory; the same numbers but for rounding. H and W: multiples of 32.

    The finest level of the push-pull pyramid is on planes, too; the coarser ones, a third of its size, are not worth the copies.
    """

    def _cells(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return parts(planes(pool(torch.cat(maps, 1), self.stride)), maps)

    def _pixels(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return parts(planes(upsample(torch.cat(maps, 1), self.stride)), maps)

    def _colour_line(self, moments: Tensor, w_fg: Tensor, w_bg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fg, bg = self._moments(moments, w_fg), self._moments(moments, w_bg)
        gap = [fg[i] - bg[i] for i in range(3)]
        covariance = [(fg[3 + k] + bg[3 + k] - fg[i] * fg[j] - bg[i] * bg[j]) * 0.5 for k, (i, j) in enumerate(ENTRIES)]
        rr, gg, bb = (entry.clamp(min=0.0) + EPS_COVARIANCE for entry in covariance[:3])
        rg, gb, br = covariance[3:]
        # Everything is multiplied by the determinant, which saves dividing the direction by it.
        c_rr, c_gg, c_bb = gg * bb - gb * gb, bb * rr - br * br, rr * gg - rg * rg
        c_rg, c_gb, c_br = br * gb - rg * bb, rg * br - gb * rr, rg * gb - br * gg
        determinant = dot((rr, rg, br), (c_rr, c_rg, c_br)).clamp(min=EPS_COVARIANCE**3)
        cofactors = (c_rr, c_rg, c_br), (c_rg, c_gg, c_gb), (c_br, c_gb, c_bb)
        direction = [dot(row, gap) for row in cofactors]
        distance = dot(gap, direction)
        scale = (distance + determinant * EPS_DISTANCE) * (1 / GAIN)
        slope = [entry / scale for entry in direction]
        intercept = dot([mean * (1 / GAIN) + 0.5 for mean in bg[:3]], slope)
        return torch.cat(slope, 1), intercept, distance / (distance + determinant * 4)

    def _moments(self, moments: Tensor, weight: Tensor) -> list[Tensor]:
        """The filled-in moments of one colour model, nine times (N, 1, h, w): means, then entries of the second moments."""
        weight = weight * saturate(weight)
        filled = self._fill(moments * weight, weight)
        return [filled[:, i : i + 1] for i in range(9)]

    def _fill(self, values: Tensor, weight: Tensor) -> Tensor:
        coarse = fill_in(*halve(values, weight), global_mean(values, weight), MAX_LEVELS - 1)
        return values + (1 - weight) * planes(upsample(coarse))

    def _total(self, x: Tensor) -> Tensor:
        return x[:, 0:1] + x[:, 1:2] + x[:, 2:3]

    def _next(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:3], x[:, 0:1]], 1)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The sum of the products of three pairs of maps."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def planes(x: Tensor) -> Tensor:
    """x (N, C, H, W) unchanged; the delegate puts its channels apart."""
    return x.flatten(2).unflatten(2, x.shape[2:])


def parts(x: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """x split into channels as `torch.cat(like, 1)` had joined them."""
    ends = accumulate(m.shape[1] for m in like)
    return tuple(x[:, end - m.shape[1] : end] for end, m in zip(ends, like, strict=True))
