"""The local-Gaussian colour prior: a matte from colour statistics alone, without learning.

Foreground and background colours near a cell of a few pixels are modelled as Gaussians whose moments are filled in from the known
cells by a push-pull pyramid; alpha is the projection on the line between their means (linear discriminant analysis). Cells that
come out confident join the known ones, and the line is found again. A line is smooth, so only its application happens at full
resolution, as in the fast guided filter.

Written for exporters: fixed-weight pointwise convolutions, average pooling, bilinear upsampling and arithmetic only. Single
channels are never sliced, which copies pixel by pixel where channels lie side by side. A symmetric 3x3 matrix is its diagonal
(rr, gg, bb) and its other entries (rg, gb, br): entry i of the second is that of row i and column i + 1, counted round. So all
algebra is between maps of three channels and the same maps turned by one channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import upsample
from .presets import PRIOR_STRIDE

GAIN = 4.0
"""Colours are centred and scaled by it before moments are taken."""
EPS_WEIGHT = 1e-4
EPS_COVARIANCE = 0.004
EPS_DISTANCE = 0.1
CONFIDENT = 0.85
MAX_LEVELS = 9


class ColourPrior(nn.Module):
    """alpha of pass 1 (of the cells, upsampled), alpha of pass 2, and how well the two colour models separate.

    image: (N, 3, H, W) sRGB in [0, 1]; fg, bg: (N, 1, H, W) 1 where the trimap is known foreground / background; H and W
    multiples of the stride. Returns (N, 3, H, W) in [0, 1]. Computes in float32 whatever autocast says: the 3x3 inverse needs it.
    """

    following: Tensor
    preceding: Tensor
    total: Tensor

    def __init__(self, stride: int = PRIOR_STRIDE) -> None:
        super().__init__()
        self.stride = stride
        turn = torch.eye(3).roll(1, 1)
        weights = {"following": turn, "preceding": turn.T, "total": torch.ones(1, 3)}
        for name, weight in weights.items():
            self.register_buffer(name, weight[:, :, None, None].contiguous(), persistent=False)

    def forward(self, image: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
        device = image.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self(image.float(), fg.float(), bg.float())
        if device == "cuda":
            with exact_convolutions():
                return self._estimate(image, fg, bg)
        return self._estimate(image, fg, bg)

    def _estimate(self, image: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
        unknown = 1 - fg - bg
        cells, known_fg, known_bg = self._cells(image, fg, bg)
        x = cells * GAIN - GAIN / 2
        moments = torch.cat([x, self._square(x)], 1)
        slope, intercept, separable = self._colour_line(moments, known_fg, known_bg)
        first = self._project(cells, slope, intercept)
        trust = separable * (1 - known_fg - known_bg) * 0.5
        known_fg = known_fg + trust * ((first - CONFIDENT) / (1 - CONFIDENT)).clamp(0.0, 1.0)
        known_bg = known_bg + trust * ((1 - CONFIDENT - first) / (1 - CONFIDENT)).clamp(0.0, 1.0)
        line = self._colour_line(moments, known_fg, known_bg)
        slope, intercept, separable, first = self._pixels(*line, first)
        second = self._project(image, slope, intercept)
        return torch.cat([first * unknown + fg, second * unknown + fg, separable], 1)

    def _cells(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Maps of pixels as maps of cells."""
        return tuple(pool(x, self.stride) for x in maps)

    def _pixels(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Maps of cells as maps of pixels."""
        return tuple(upsample(x, self.stride) for x in maps)

    def _project(self, image: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
        """Alpha (N, 1, H, W): where the colours (N, 3, H, W) lie between background and foreground."""
        return (self._total(image * slope) - intercept).clamp(0.0, 1.0)

    def _colour_line(self, moments: Tensor, w_fg: Tensor, w_bg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slope (N, 3, h, w) and intercept (N, 1, h, w) of alpha as a function of colour, and separability (N, 1, h, w).

        moments: (N, 9, h, w); weights: (N, 1, h, w). With v = S^-1 (m_f - m_b): alpha = (x - m_b) . v / (m_f - m_b) . v.
        """
        n = moments.shape[0]
        # Both models in one pass, stacked as a batch: half as many operations to launch and to export.
        weight = torch.cat([w_fg, w_bg])
        weight = weight * saturate(weight)
        mean, cov = self._gaussian(torch.cat([moments * weight[:n], moments * weight[n:]]), weight)
        mean_fg, mean_bg = mean[:n], mean[n:]
        cov = (cov[:n] + cov[n:]) * 0.5
        gap = mean_fg - mean_bg
        direction = self._solve(cov[:, 0:3].clamp(min=0.0) + EPS_COVARIANCE, cov[:, 3:6], gap)
        distance = self._total(gap * direction)
        slope = direction * GAIN / (distance + EPS_DISTANCE)
        intercept = self._total((mean_bg / GAIN + 0.5) * slope)
        return slope, intercept, distance / (distance + 4)

    def _solve(self, diagonal: Tensor, beside: Tensor, y: Tensor) -> Tensor:
        """S^-1 y by cofactors, (N, 3, h, w) each."""
        before, beside_after = self._previous(diagonal), self._next(beside)
        cofactors = self._next(diagonal) * before - beside_after * beside_after
        cofactors_beside = beside_after * self._previous(beside) - beside * before
        mixed = beside * cofactors_beside
        det = diagonal * cofactors + mixed + self._previous(mixed)  # the same in all channels
        rows = cofactors * y + cofactors_beside * self._next(y) + self._previous(cofactors_beside * y)
        return rows / det.clamp(min=EPS_COVARIANCE**3)

    def _gaussian(self, weighted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, 3, h, w) and packed covariance (N, 6, h, w), defined everywhere, of moments times weight (N, 9, h, w)."""
        filled = self._fill(weighted, weight)
        mean = filled[:, 0:3]
        return mean, filled[:, 3:9] - self._square(mean)

    def _square(self, x: Tensor) -> Tensor:
        """The symmetric matrix x x^T (N, 6, H, W) of x (N, 3, H, W)."""
        return torch.cat([x * x, x * self._next(x)], 1)

    def _fill(self, values: Tensor, weight: Tensor) -> Tensor:
        return push_pull(values, weight)

    def _total(self, x: Tensor) -> Tensor:
        """The sum of the channels (N, 1, H, W).  x: (N, 3, H, W)."""
        return F.conv2d(x, self.total)

    def _next(self, x: Tensor) -> Tensor:
        """Channel i + 1 in the place of channel i, counted round.  x: (N, 3, H, W)."""
        return F.conv2d(x, self.following)

    def _previous(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.preceding)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without TF32, which cuDNN rounds float32 products to by default: its 10 bits are too few for a difference of moments."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def pool(x: Tensor, size: int) -> Tensor:
    return x if size == 1 else F.avg_pool2d(x, size, size, 0, False, False)


def saturate(weight: Tensor) -> Tensor:
    """Factor that makes a half-covered cell count in full."""
    return (2 * weight).clamp(max=1.0) / (weight + 1e-6)


def push_pull(values: Tensor, weight: Tensor) -> Tensor:
    """Fill in `values` (N, C, h, w), already multiplied by `weight` (N, 1, h, w) in [0, 1], where the weight is small."""
    return fill_in(values, weight, global_mean(values, weight), MAX_LEVELS)


def global_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean (N, C, 1, 1) of values that are already multiplied by their weight."""
    return values.mean((2, 3), keepdim=True) / (weight.mean((2, 3), keepdim=True) + 1e-6)


def fill_in(values: Tensor, weight: Tensor, mean: Tensor, levels: int) -> Tensor:
    """`push_pull` with the mean for the coarsest of at most `levels` halvings."""
    if levels == 0 or min(values.shape[2:]) <= 2:
        return (values + EPS_WEIGHT * mean) / (weight + EPS_WEIGHT)
    out = upsample(fill_in(*halve(values, weight), mean, levels - 1))
    if out.shape != values.shape:
        out = out[:, :, : values.shape[2], : values.shape[3]]
    return values + (1 - weight) * out


def halve(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The next coarser level of both."""
    odd = (0, values.shape[3] % 2, 0, values.shape[2] % 2)
    if any(odd):
        values, weight = F.pad(values, odd), F.pad(weight, odd)
    values, weight = pool(values, 2), pool(weight, 2)
    scale = saturate(weight)
    return values * scale, weight * scale
