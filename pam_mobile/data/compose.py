"""Composition of training batches from a bank: warp, colour, compose, degrade, trimap. All on the training device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .augment import colour_jitter, degrade, gaussian_blur, random_affine, uniform, warp
from .bank import Bank
from .patch import DISTANCE_ZERO

CANDIDATES = 24
"""Random points tried per patch when looking for one inside the matte's soft region."""
SPARE = 0.25
"""Share of foregrounds that are drawn in excess, to take the place of those that are passed over."""
TRIES = 2
"""Crops that are drawn for each composite of an order; the first usable one is kept."""


class Layer(NamedTuple):
    """A foreground to be put over something. N x H x W, float."""

    foreground: Tensor
    """(N, 3, H, W) in [0, 1]."""
    alpha: Tensor
    """(N, 1, H, W) in [0, 1]."""
    depth: Tensor
    """(N, 1, H, W) signed distance to what is soft, in output pixels."""


class Batch(NamedTuple):
    """Composites and what they were made of. Images (N, 3, H, W) sRGB in [0, 1]."""

    image: Tensor
    trimap: Tensor
    """(N, 1, H, W) with 0, 0.5 and 1; every pixel with 0 < alpha < 1 is 0.5."""
    alpha: Tensor
    """(N, 1, H, W) in [0, 1]."""
    foreground: Tensor
    background: Tensor


@dataclass(frozen=True)
class Composer:
    """How batches are composed."""

    scale: tuple[float, float] = (0.6, 1.4)
    """Source pixels per output pixel."""
    sharp: float = 0.4
    """Share of foregrounds that are shifted and mirrored only: what is resampled lacks the finest detail that photos have."""
    trimap_radius: tuple[float, float] = (1.0, 0.07)
    """Smallest width of the unknown band beyond the soft pixels in pixels, and largest as a share of the crop."""
    second: float = 0.1
    """Share of composites with two foregrounds."""
    contrast: float = 90 / 255
    """Mean distance of foreground and background colour in the unknown region below which another background is tried."""
    hard: float = 0.05
    """Share of low-contrast composites that stay as they are."""
    foreground_jitter: float = 0.7
    background_jitter: float = 0.5
    out_of_focus: float = 0.6
    """Share of backgrounds that are blurred, as a lens does it."""
    known: float = 0.01
    """Crops with a smaller share of known foreground, known background or unknown pixels are passed over: no user draws
    such a trimap. 0 keeps them."""
    naive: bool = False
    """Ordered composites of two foregrounds mix their colours in the naive way."""

    def __call__(self, bank: Bank, batch: int, crop: int, rng: Generator) -> Batch:
        """A batch of `batch` composites of `crop` x `crop` pixels, determined by the generator's state."""
        drawn = batch + (math.ceil(batch * SPARE) if self.known else 0)
        index = torch.randint(len(bank.patches), (drawn,), generator=rng)
        return self._compose(self._crops(bank, index, crop, rng), bank, batch, rng)

    def ordered(self, bank: Bank, rows: Tensor, crop: int, rng: Generator) -> Batch:
        """Composites of an order, none left out.  rows: (N, 3) int64 on the CPU, those of `Order.take`."""
        tries = rows.repeat(TRIES, 1)
        layer = self._crops(bank, tries[:, 0], crop, rng)
        two = (tries[:, 1] >= 0).nonzero()[:, 0]
        if len(two):
            layer = _put_some_over(layer, two, self._crops(bank, tries[two, 1], crop, rng), self.naive)
        trimap = self._trimap(layer.alpha, layer.depth, rng)
        best = self._usable(trimap).reshape(TRIES, len(rows)).argmax(0)
        best = best * len(rows) + torch.arange(len(rows), device=best.device)
        return self._over_background(layer.foreground[best], layer.alpha[best], trimap[best], bank, rows[:, 2], rng)

    def whole(self, bank: Bank, first: int, batch: int, rng: Generator) -> Batch:
        """Composites of the bank's patches from `first` on as they are, as a photo shows its object whole."""
        planes = bank.patches[first : first + batch].float()
        return self._compose(self._layer(planes, torch.ones(len(planes)), rng), bank, len(planes), rng)

    def _crops(self, bank: Bank, index: Tensor, crop: int, rng: Generator) -> Layer:
        """Random crops of the patches (N,), around a soft pixel each."""
        patches = bank.patches[index.to(bank.patches.device)].float()
        matrix, centre = random_affine(len(index), self.scale, rng), soft_point(patches[:, 4], rng)
        sharp = torch.rand(len(index), generator=rng) < self.sharp
        matrix[sharp] = torch.eye(2) * matrix[sharp].diagonal(dim1=1, dim2=2).sign()[:, None]
        centre[sharp.to(centre.device)] += 0.5 * (1 - crop % 2)
        planes = warp(patches, matrix, centre, crop)
        return self._layer(planes, matrix.det().abs().sqrt(), rng)

    def _compose(self, layer: Layer, bank: Bank, batch: int, rng: Generator) -> Batch:
        """The `batch` most usable of N layers over random backgrounds, some of them over their neighbour first."""
        two = (torch.rand(len(layer.alpha), generator=rng) < self.second).nonzero()[:, 0]
        layer = _put_some_over(layer, two, Layer(*(x[two.to(x.device) - 1] for x in layer)))
        trimap = self._trimap(layer.alpha, layer.depth, rng)
        best = self._usable(trimap).argsort(descending=True, stable=True)[:batch]
        index = torch.randint(len(bank.backgrounds), (batch,), generator=rng)
        return self._over_background(layer.foreground[best], layer.alpha[best], trimap[best], bank, index, rng)

    def _over_background(
        self, foreground: Tensor, alpha: Tensor, trimap: Tensor, bank: Bank, index: Tensor, rng: Generator
    ) -> Batch:
        """The composites over views of the backgrounds `index` (N,)."""
        background = self._backgrounds(bank.backgrounds, index, alpha.shape[-1], rng)
        background = self._raise_contrast(foreground, background, trimap, rng)
        image = degrade(background.lerp(foreground, alpha), rng)
        return Batch(image, trimap, alpha, foreground, background)

    def _usable(self, trimap: Tensor) -> Tensor:
        """(N,) uint8: 1 where a trimap has enough of each of its values."""
        shares = torch.stack([(trimap == value).float().mean((1, 2, 3)) for value in (0, 0.5, 1)])
        return (shares.amin(0) >= self.known).to(torch.uint8)

    def _layer(self, planes: Tensor, scale: Tensor, rng: Generator) -> Layer:
        """planes: (N, 5, H, W) of `make_patch`; scale: (N,) their pixels per output pixel."""
        foreground = colour_jitter(planes[:, 0:3], self.foreground_jitter, rng)
        alpha = (planes[:, 3:4] / 255).clamp(0, 1)
        return Layer(foreground, alpha, (planes[:, 4:5] - DISTANCE_ZERO) / scale.to(planes)[:, None, None, None])

    def _backgrounds(self, backgrounds: Tensor, index: Tensor, crop: int, rng: Generator) -> Tensor:
        batch = len(index)
        source = backgrounds[index.to(backgrounds.device)].float()
        centre = uniform((batch, 2), 0, source.shape[-1], rng)
        background = colour_jitter(
            warp(source, random_affine(batch, self.scale, rng), centre, crop), self.background_jitter, rng
        )
        sigma = uniform((batch,), 0.5, 4, rng) * (torch.rand(batch, generator=rng) < self.out_of_focus)
        return gaussian_blur(background, sigma, 8)

    def _trimap(self, alpha: Tensor, depth: Tensor, rng: Generator) -> Tensor:
        low, high = self.trimap_radius
        width = low + (high * alpha.shape[-1] - low) * uniform((2, alpha.shape[0], 1, 1, 1), 0, 1, rng).to(alpha) ** 2
        foreground = (depth > width[0]) & (alpha > 254.5 / 255)
        background = (depth < -width[1]) & (alpha < 0.5 / 255)
        return 0.5 + 0.5 * foreground.to(alpha) - 0.5 * background.to(alpha)

    def _raise_contrast(self, foreground: Tensor, background: Tensor, trimap: Tensor, rng: Generator) -> Tensor:
        """Invert, in place, backgrounds that look like their foreground inside the unknown region, but for a few hard ones."""
        unknown = (trimap == 0.5).to(foreground)
        distance = (foreground - background).abs_().mul_(unknown / 3).sum((1, 2, 3))
        contrast = distance / unknown.sum((1, 2, 3)).clamp(min=1)
        easy = (torch.rand(len(contrast), generator=rng) >= self.hard).to(contrast.device)
        like = ((contrast < self.contrast) & easy).nonzero()[:, 0]
        return background.index_copy_(0, like, 1 - background[like])


def soft_point(depth: Tensor, rng: Generator) -> Tensor:
    """A random pixel (x, y) per patch, as near to the soft region as the best of a few random candidates.

    depth: (N, S, S) with 128 inside the soft region. Returns (N, 2).
    """
    n, size = depth.shape[0], depth.shape[-1]
    at = torch.randint(size * size, (n, CANDIDATES), generator=rng).to(depth.device)
    distance = (depth.flatten(1).gather(1, at) - DISTANCE_ZERO).abs()
    best = at.gather(1, distance.argmin(1, keepdim=True))[:, 0]
    return torch.stack([best % size, best // size], 1).float()


def _put_some_over(layers: Layer, rows: Tensor, backs: Layer, naive: bool = False) -> Layer:
    """The layers, those of `rows` (M,) put over `backs` (M layers)."""
    where = rows.to(layers.alpha.device)
    both = put_over(Layer(*(x[where] for x in layers)), backs, naive)
    return Layer(*(x.index_copy(0, where, y) for x, y in zip(layers, both, strict=True)))


def put_over(front: Layer, back: Layer, naive: bool = False) -> Layer:
    """One layer that looks like `front` over `back`, whatever is behind them (RCF): its colour is the mean of what is seen.

    naive: the colour a1 F1 + (1 - a1) F2 of other code, which shows the hidden colour of `back` where its alpha is not 1; its
    composite is not what a camera would see.
    """
    seen = back.alpha * (1 - front.alpha)
    alpha = front.alpha + seen
    share = (front.alpha / alpha.clamp(min=1e-4)).where(alpha > 1e-4, torch.ones_like(alpha))
    if naive:
        share = front.alpha
    foreground = front.foreground * share + back.foreground * (1 - share)
    return Layer(foreground, alpha, torch.maximum(front.depth, back.depth))
