"""The colour prior as XNNPACK computes it fastest: its maps with every channel for itself in memory.

XNNPACK's delegate pools and upsamples maps whose channels lie side by side, and keeps that layout as long as it can. With three
channels it is slow: an operation between maps takes up to 40 instructions per pixel, on planes about one per number. A reshape
makes the delegate return to planes, and there slices and concatenations are plain copies.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from pam_mobile.model.layers import upsample
from pam_mobile.model.prior import MAX_LEVELS, ColourPrior, fill_in, global_mean, halve, pool


class PlanarColourPrior(ColourPrior):
    """`ColourPrior` in another order of memory; the same numbers but for rounding. H and W: multiples of 32.

    The finest level of the push-pull pyramid is on planes, too; the coarser ones, a third of its size, are not worth the copies.
    """

    def _cells(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return parts(planes(pool(torch.cat(maps, 1), self.stride)), maps)

    def _pixels(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return parts(planes(upsample(torch.cat(maps, 1), self.stride)), maps)

    def _fill(self, values: Tensor, weight: Tensor) -> Tensor:
        coarse = fill_in(*halve(values, weight), global_mean(values, weight), MAX_LEVELS - 1)
        return values + (1 - weight) * planes(upsample(coarse))

    def _total(self, x: Tensor) -> Tensor:
        return x[:, 0:1] + x[:, 1:2] + x[:, 2:3]

    def _next(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:3], x[:, 0:1]], 1)

    def _previous(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 2:3], x[:, 0:2]], 1)


def planes(x: Tensor) -> Tensor:
    """x (N, C, H, W) unchanged; the delegate puts its channels apart."""
    return x.flatten(2).unflatten(2, x.shape[2:])


def parts(x: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """x split into channels as `torch.cat(like, 1)` had joined them."""
    ends = accumulate(m.shape[1] for m in like)
    return tuple(x[:, end - m.shape[1] : end] for end, m in zip(ends, like, strict=True))
