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
LOOK = 4
"""Whether a crop is usable is judged on every so many rows and columns of it, before it is rendered."""


class Views(NamedTuple):
    """Crops of a bank's patches that were drawn and not rendered yet, on the bank's device."""

    patch: Tensor
    """(N,) int64."""
    matrix: Tensor
    """(N, 2, 2) of `random_affine`."""
    centre: Tensor
    """(N, 2) pixels (x, y) of the patch."""
    radius: Tensor
    """(N, 2) width of the unknown band towards foreground and background, in pixels of the crop."""

    def rows(self, index: Tensor) -> Views:
        return Views(*(x[index] for x in self))

    @property
    def scale(self) -> Tensor:
        """(N,) pixels of the patch per pixel of the crop."""
        (a, b), (c, d) = self.matrix.permute(1, 2, 0)
        return (a * d - b * c).abs().sqrt()


class Layer(NamedTuple):
    """A foreground to be put over something. N x H x W, float."""

    foreground: Tensor
    """(N, 3, H, W) in [0, 1]; (N, 0, H, W) where only the shape is asked for."""
    alpha: Tensor
    """(N, 1, H, W) in [0, 1]."""
    depth: Tensor
    """(N, 1, H, W) signed distance to what is soft, in output pixels."""

    def rows(self, index: Tensor) -> Layer:
        return Layer(*(x[index] for x in self))


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
        views = self._views(bank, torch.randint(len(bank.patches), (drawn,), generator=rng), crop, rng)
        usable = self._usable(self._trimap(self._shapes(bank, views, crop), views.radius))
        views = views.rows(usable.argsort(descending=True, stable=True)[:batch])
        layer = self._over_neighbours(self._crops(bank, views, crop, rng), views.radius, rng)
        index = torch.randint(len(bank.backgrounds), (batch,), generator=rng)
        return self._over_background(layer, self._trimap(layer, views.radius), bank, index, rng)

    def ordered(self, bank: Bank, rows: Tensor, crop: int, rng: Generator) -> Batch:
        """Composites of an order, none left out.  rows: (N, 3) int64 on the CPU, those of `Order.take`."""
        n, two = len(rows), (rows[:, 1] >= 0).nonzero()[:, 0]
        fronts = self._views(bank, rows[:, 0].repeat(TRIES), crop, rng)
        backs = self._views(bank, rows[two, 1].repeat(TRIES), crop, rng)
        shapes = self._shapes(bank, fronts, crop)
        if len(two):
            tries = (two + n * torch.arange(TRIES)[:, None]).flatten()
            shapes = _put_some_over(shapes, tries, self._shapes(bank, backs, crop))
        best = self._usable(self._trimap(shapes, fronts.radius)).view(TRIES, n).argmax(0)
        at = torch.arange(n, device=best.device)
        fronts = fronts.rows(best * n + at)
        layer = self._crops(bank, fronts, crop, rng)
        if len(two):
            behind = backs.rows(best[two.to(best.device)] * len(two) + at[: len(two)])
            layer = _put_some_over(layer, two, self._crops(bank, behind, crop, rng), self.naive)
        return self._over_background(layer, self._trimap(layer, fronts.radius), bank, rows[:, 2], rng)

    def whole(self, bank: Bank, first: int, batch: int, rng: Generator) -> Batch:
        """Composites of the bank's patches from `first` on as they are, as a photo shows its object whole.

        Those that are usable come first, and none is left out: published figures are of these composites.
        """
        planes = bank.patches[first : first + batch].float()
        n = len(planes)
        layer = self._layer(planes, torch.ones(n), rng)
        two = (torch.rand(n, generator=rng) < self.second).nonzero()[:, 0]
        layer = _put_some_over(layer, two, layer.rows(two - 1))
        trimap = self._trimap(layer, self._radius(n, planes.shape[-1], rng))
        best = self._usable(trimap).argsort(descending=True, stable=True)
        index = torch.randint(len(bank.backgrounds), (n,), generator=rng)
        return self._over_background(layer.rows(best), trimap[best], bank, index, rng)

    def _views(self, bank: Bank, index: Tensor, crop: int, rng: Generator) -> Views:
        """Random crops of the patches (N,), around a soft pixel each."""
        device, n = bank.patches.device, len(index)
        patch, matrix = index.to(device), random_affine(n, self.scale, rng)
        centre = soft_point(bank.patches[patch, 4], rng)
        sharp = torch.rand(n, generator=rng) < self.sharp
        matrix[sharp] = torch.eye(2) * matrix[sharp].diagonal(dim1=1, dim2=2).sign()[:, None]
        centre[sharp.to(device)] += 0.5 * (1 - crop % 2)
        return Views(patch, matrix.to(device), centre, self._radius(n, crop, rng).to(device))

    def _radius(self, n: int, crop: int, rng: Generator) -> Tensor:
        low, high = self.trimap_radius
        return low + (high * crop - low) * uniform((2, n), 0, 1, rng).T ** 2

    def _shapes(self, bank: Bank, views: Views, crop: int) -> Layer:
        """What the crops look like without colours, `LOOK` times as small."""
        planes = bank.patches[views.patch, 3:].float()
        planes = warp(planes, views.matrix * LOOK, views.centre, crop // LOOK)
        return Layer(planes[:, :0], *_shape(planes, views.scale))

    def _crops(self, bank: Bank, views: Views, crop: int, rng: Generator) -> Layer:
        planes = warp(bank.patches[views.patch].float(), views.matrix, views.centre, crop)
        return self._layer(planes, views.scale, rng)

    def _over_neighbours(self, layer: Layer, radius: Tensor, rng: Generator) -> Layer:
        """The layers, some of them put over the one before where that leaves a usable trimap."""
        two = (torch.rand(len(layer.alpha), generator=rng) < self.second).nonzero()[:, 0].to(layer.alpha.device)
        front = layer.rows(two)
        both = put_over(front, layer.rows(two - 1))
        usable = self._usable(self._trimap(both, radius[two])).bool()[:, None, None, None]
        return Layer(*(x.index_copy(0, two, y.where(usable, z)) for x, y, z in zip(layer, both, front, strict=True)))

    def _over_background(self, layer: Layer, trimap: Tensor, bank: Bank, index: Tensor, rng: Generator) -> Batch:
        """The composites over views of the backgrounds `index` (N,)."""
        foreground, alpha, _ = layer
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
        return Layer(colour_jitter(planes[:, :3], self.foreground_jitter, rng), *_shape(planes[:, 3:], scale))

    def _backgrounds(self, backgrounds: Tensor, index: Tensor, crop: int, rng: Generator) -> Tensor:
        batch = len(index)
        source = backgrounds[index.to(backgrounds.device)].float()
        centre = uniform((batch, 2), 0, source.shape[-1], rng)
        background = colour_jitter(
            warp(source, random_affine(batch, self.scale, rng), centre, crop), self.background_jitter, rng
        )
        sigma = uniform((batch,), 0.5, 4, rng) * (torch.rand(batch, generator=rng) < self.out_of_focus)
        return gaussian_blur(background, sigma, 8)

    @staticmethod
    def _trimap(layer: Layer, radius: Tensor) -> Tensor:
        inner, outer = radius.to(layer.depth).T[:, :, None, None, None]
        foreground = (layer.depth > inner) & (layer.alpha > 254.5 / 255)
        background = (layer.depth < -outer) & (layer.alpha < 0.5 / 255)
        return 0.5 + 0.5 * foreground.to(layer.alpha) - 0.5 * background.to(layer.alpha)

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

    depth: (N, S, S) uint8 with 128 inside the soft region. Returns (N, 2).
    """
    n, size = depth.shape[0], depth.shape[-1]
    at = torch.randint(size * size, (n, CANDIDATES), generator=rng).to(depth.device)
    distance = (depth.flatten(1).gather(1, at).float() - DISTANCE_ZERO).abs()
    best = at.gather(1, distance.argmin(1, keepdim=True))[:, 0]
    return torch.stack([best % size, best // size], 1).float()


def _shape(planes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and depth of `Layer`.  planes: (N, 2, H, W), the last two of `make_patch`; scale: (N,) their pixels per output pixel."""
    depth = (planes[:, 1:] - DISTANCE_ZERO) / scale.to(planes)[:, None, None, None]
    return (planes[:, :1] / 255).clamp(0, 1), depth


def _put_some_over(layers: Layer, rows: Tensor, backs: Layer, naive: bool = False) -> Layer:
    """The layers, those of `rows` (M,) put over `backs` (M layers)."""
    where = rows.to(layers.alpha.device)
    both = put_over(layers.rows(where), backs, naive)
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
