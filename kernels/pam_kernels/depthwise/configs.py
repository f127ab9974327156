"""Block sizes of the depthwise kernels: plain tables, so that one test can compile every entry for every architecture.

No entry is chosen at run time by timing. The interpreter has entries of its own: it costs per operation, not per element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

Config = TypeVar("Config")


@dataclass(frozen=True)
class Direct:
    """A program computes `strips` x `rows` rows by `columns` columns; each thread holds `rows` sums of one column."""

    rows: int
    strips: int
    columns: int
    warps: int


@dataclass(frozen=True)
class Toeplitz:
    """A program computes `tiles` tiles of `height` x `width` outputs of one channel."""

    height: int
    width: int
    tiles: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Hankel:
    """A program sums over `rows` rows of one image and channel, `columns` pixels at a time; the tables say it for two bytes each."""

    rows: int
    columns: int
    warps: int


DIRECT: dict[range, Direct] = {
    range(3, 6, 2): Direct(16, 1, 64, 1),
    range(7, 32, 2): Direct(8, 1, 64, 1),
}
TOEPLITZ: dict[range, Toeplitz] = {
    range(3, 12, 2): Toeplitz(4, 16, 64, 4, 3),
    range(13, 18, 2): Toeplitz(8, 16, 128, 4, 3),
    range(19, 32, 2): Toeplitz(4, 32, 128, 8, 3),
}
TOEPLITZ_STRIDED: dict[range, Toeplitz] = {range(3, 32, 2): Toeplitz(4, 16, 128, 4, 3)}
HANKEL: dict[range, Hankel] = {
    range(3, 17, 2): Hankel(32, 64, 1),
    range(17, 32, 2): Hankel(64, 64, 2),
}
INTERPRETER = Direct(2, 16, 64, 4), Toeplitz(4, 16, 32, 4, 1), Hankel(8, 64, 4)


def convolution_config(k: int, dtype: torch.dtype, stride: int, interpreter: bool) -> Direct | Toeplitz:
    """Tensor cores take half precision; the rest is computed directly.  `stride` of the convolution."""
    if dtype not in (torch.float16, torch.bfloat16):
        return INTERPRETER[0] if interpreter else _entry(DIRECT, k)
    if interpreter:
        return INTERPRETER[1]
    return _entry(TOEPLITZ if stride == 1 else TOEPLITZ_STRIDED, k)


def weight_grad_config(k: int, dtype: torch.dtype, interpreter: bool) -> Hankel:
    """Block sizes of the weight gradient: wider numbers, fewer columns, or the registers do not hold them."""
    if interpreter:
        return INTERPRETER[2]
    entry = _entry(HANKEL, k)
    return replace(entry, columns=entry.columns * 2 // dtype.itemsize)


def _entry(table: dict[range, Config], k: int) -> Config:
    return next(config for sizes, config in table.items() if k in sizes)
