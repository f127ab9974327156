"""Random changes of appearance and geometry as batched tensor code, the same on CPU and GPU.

Random numbers are drawn on the CPU from one generator, so that a seed means the same on every device; only noise, a number for
every value of the image, is drawn where the image is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MAX_ROTATION = math.radians(30)
MAX_SHEAR = math.radians(10)


def uniform(shape: tuple[int, ...], low: float, high: float, rng: Generator) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def normal(shape: tuple[int, ...], like: Tensor, rng: Generator) -> Tensor:
    """Standard normal numbers on the device and in the dtype of `like`; another device than the CPU draws them from a seed of rng."""
    if like.device.type == "cpu":
        return torch.randn(shape, generator=rng).to(like)
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.randn(shape, generator=Generator(like.device).manual_seed(seed), device=like.device).to(like)


def random_affine(batch: int, scale: tuple[float, float], rng: Generator) -> Tensor:
    """(batch, 2, 2) maps from output to source pixels: rotation, shear, flip, and a scale (source pixels per output pixel)."""
    angle = uniform((batch,), -MAX_ROTATION, MAX_ROTATION, rng)
    shear = torch.tan(uniform((batch,), -MAX_SHEAR, MAX_SHEAR, rng))
    size = torch.exp(uniform((batch,), math.log(scale[0]), math.log(scale[1]), rng))
    aspect = torch.exp(uniform((batch,), -0.1, 0.1, rng))
    flip = (torch.rand(batch, generator=rng) < 0.5) * 2.0 - 1.0
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos * aspect * flip, (cos * shear - sin) / aspect], 1)
    second = torch.stack([sin * aspect * flip, (sin * shear + cos) / aspect], 1)
    return torch.stack([first, second], 1) * size[:, None, None]


def warp(x: Tensor, matrix: Tensor, centre: Tensor, size: int) -> Tensor:
    """Crop of `size` x `size` output pixels around `centre`, bilinear, mirrored beyond the border.

    x: (N, C, S, S) float; matrix: (N, 2, 2) of `random_affine`; centre: (N, 2) source pixels (x, y).
    """
    step = torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2
    unit = 2 / x.shape[-1]  # source pixels to the sampler's -1..1
    columns, rows = (step[:, None] * matrix.to(x)[:, None, :, i] * unit for i in range(2))
    grid = columns[:, None] + (rows + ((centre.to(x) + 0.5) * unit - 1)[:, None])[:, :, None]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def colour_jitter(x: Tensor, strength: float, rng: Generator) -> Tensor:
    """Random hue, saturation, contrast, brightness and gamma per image.  x: (N, 3, H, W) in 0..255, returned in [0, 1]."""
    n = x.shape[0]
    hue = uniform((n,), -math.pi, math.pi, rng) * uniform((n,), 0, 1, rng) ** 2 * strength
    saturation = 1 + uniform((n,), -0.6, 0.6, rng) * strength
    gain = 1 + uniform((n, 1, 1), -0.35, 0.35, rng) * strength
    shift = uniform((n, 1, 1), -0.15, 0.15, rng) * strength
    gamma = torch.exp(uniform((n, 1, 1), -0.4, 0.4, rng) * strength)
    matrix, bias = gain * _hue_matrix(hue, saturation), 0.5 - 0.5 * gain + shift
    y = torch.baddbmm(bias.to(x), matrix.to(x) / 255, x.flatten(2)).clamp_(1e-4, 1)
    return y.log2_().mul_(gamma.to(x)).exp2_().view_as(x)  # half the time of a power on the CPU


def _hue_matrix(angle: Tensor, saturation: Tensor) -> Tensor:
    """(N, 3, 3): rotation about the grey axis, and scaling away from it."""
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    chroma = cos * (torch.eye(3) - grey) + sin * cross
    return grey + saturation[:, None, None] * chroma


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur with one sigma (in pixels) per image; 0 leaves an image as it is.  x: (N, C, H, W)."""
    blurred = (sigma > 0).nonzero()[:, 0]
    if len(blurred) < len(x):
        if not len(blurred):
            return x
        where = blurred.to(x.device)
        return x.index_copy(0, where, gaussian_blur(x.index_select(0, where), sigma[blurred], radius))
    n, c, h, w = x.shape
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma.to(x).clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    y = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, n * c, h + 2 * radius, w + 2 * radius)
    y = F.conv2d(y, kernel[:, None, None, :], groups=n * c)
    return F.conv2d(y, kernel[:, None, :, None], groups=n * c).reshape(n, c, h, w)


def degrade(image: Tensor, rng: Generator) -> Tensor:
    """What a phone camera adds, on half of the images: blur, noise, rounding to 8 bits.  image: (N, 3, H, W) in [0, 1]."""
    n = image.shape[0]
    on = torch.rand(n, generator=rng) < 0.5
    image = gaussian_blur(image, uniform((n,), 0, 1.0, rng) * on, 3)
    sigma = uniform((n, 1, 1, 1), 0, 0.03, rng)[on].to(image)
    noise = normal((len(sigma), *image.shape[1:]), image, rng)
    image = image.index_add(0, on.nonzero()[:, 0].to(image.device), noise * sigma)
    return image.clamp_(0, 1).mul_(255).round_().div_(255)
