"""Training from images and trimaps alone: pixels of similar colour nearby get similar alpha (directional distance consistency).

Source: alpha-free matting (DDC loss), AAAI 2025. What it can and cannot do: docs/data.md, "Training without alphas".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.compose import Batch

DDC_WEIGHT = 10.0
CHUNK = 2**22
"""Most elements of a tensor that holds the windows of some rows."""


def alpha_free_loss(alpha: Tensor, batch: Batch) -> dict[str, Tensor]:
    """known + 10 ddc as `loss`, and both parts; reads the image and the trimap of the batch only.  alpha: (N, 1, H, W)."""
    alpha = alpha.float()
    known, ddc = known_loss(alpha, batch.trimap), ddc_loss(alpha, batch.image)
    return {"loss": known + DDC_WEIGHT * ddc, "known": known, "ddc": ddc}


def known_loss(alpha: Tensor, trimap: Tensor) -> Tensor:
    """Mean |alpha - trimap| over the known pixels; 0 if there are none.  Both (N, 1, H, W), trimap with 0, 0.5, 1."""
    known = ((trimap - 0.5).abs() > 0.25).to(alpha)
    return ((alpha - trimap).abs() * known).sum() / known.sum().clamp(min=1)


def ddc_loss(alpha: Tensor, image: Tensor, k: int = 11, topk: int = 11) -> Tensor:
    """Mean | d_ij - (a_i - a_j) | over all pixels i and the `topk` pixels j of the k x k window around i of nearest colour.

    d_ij is the Euclidean distance of the colours. i is one of its own neighbours; of equally near ones the first in reading
    order count; beyond the border the image repeats its outermost pixels. The sign of the difference matters: for two
    pixels that are neighbours of each other, both terms together are flat as long as |a_i - a_j| <= d_ij.

    alpha: (N, 1, H, W); image: (N, 3, H, W) in [0, 1], without gradient. Memory beyond the inputs: a few tensors of at
    most CHUNK elements, or of one row of windows if that is more.
    """
    return _Ddc.apply(alpha, image.detach().to(alpha.dtype), k, topk)


class _Ddc(torch.autograd.Function):
    """The gradient is made together with the loss: keeping the windows for it would take 121 times the memory of alpha."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, image: Tensor, k: int, topk: int) -> Tensor:
        r, (n, _, height, width) = k // 2, image.shape
        padded_image, padded_alpha = (F.pad(x, (r,) * 4, mode="replicate") for x in (image, alpha))
        gradient = torch.zeros_like(padded_alpha)
        total = alpha.new_zeros(())
        rows = max(1, CHUNK // (n * width * k * k))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            colours, alphas = (_windows(x[:, :, top : bottom + 2 * r], k) for x in (padded_image, padded_alpha))
            distance = _distance(colours, image[:, :, top:bottom])
            ours = alpha[:, 0, top:bottom, :, None]
            residual = (distance - (ours - alphas[:, 0].flatten(3))) * _nearest(distance, topk)
            total += residual.abs().sum()
            if ctx.needs_input_grad[0]:
                sign = residual.sign()
                gradient[:, 0, r + top : r + bottom, r : r + width] -= sign.sum(3)
                for at in range(k * k):
                    y, x = divmod(at, k)
                    gradient[:, 0, top + y : bottom + y, x : x + width] += sign[..., at]
        count = n * height * width * topk
        ctx.save_for_backward(_unpad(gradient, r) / count)
        return total / count

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None, None


def _windows(x: Tensor, k: int) -> Tensor:
    """(N, C, H - k + 1, W - k + 1, k, k) view of all windows."""
    return x.unfold(2, k, 1).unfold(3, k, 1)


def _distance(windows: Tensor, centre: Tensor) -> Tensor:
    """Colour distances (N, H, W, k * k).  windows: (N, 3, H, W, k, k); centre: (N, 3, H, W)."""
    squares = centre.new_zeros(())
    for channel in range(centre.shape[1]):
        squares = squares + (windows[:, channel] - centre[:, channel, :, :, None, None]).square()
    return squares.sqrt().flatten(3)


def _nearest(distance: Tensor, topk: int) -> Tensor:
    """1 at the `topk` smallest along the last axis, of equal ones the first; 0 elsewhere."""
    limit = distance.topk(topk, 3, largest=False)[0][..., -1:]
    nearer, equal = distance < limit, distance == limit
    room = topk - nearer.sum(3, keepdim=True)
    return (nearer | (equal & (equal.cumsum(3, dtype=torch.int16) <= room))).to(distance)


def _unpad(gradient: Tensor, r: int) -> Tensor:
    """What reached the repeated pixels belongs to the outermost ones that they repeat."""
    for axis in (2, 3):
        size = gradient.shape[axis] - 2 * r
        inner = gradient.narrow(axis, r, size).clone()
        inner.narrow(axis, 0, 1).add_(gradient.narrow(axis, 0, r).sum(axis, keepdim=True))
        inner.narrow(axis, size - 1, 1).add_(gradient.narrow(axis, r + size, r).sum(axis, keepdim=True))
        gradient = inner
    return gradient
