"""Block sizes of the connect kernels: a plain table, no tuning at run time. A test compiles every row for its architectures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Config:
    """channels, hidden, pixels: block sizes BC, BM, BP (powers of two, at least 16); warps and stages of the launch."""

    channels: int
    hidden: int
    pixels: int
    warps: int
    stages: int


Row = tuple[int, Config]
"""Largest C, and the configuration up to there."""

# Measured on an H200 (kernels/bench/blocks.py). Up to the last row's C hardly anything spills, on sm_80, sm_86 and sm_90. More
# channels are computed correctly with that row, but the tiles of a pixel block leave the registers.
HALF_FORWARD: list[Row] = [
    (32, Config(32, 16, 128, 4, 2)),
    (64, Config(64, 32, 128, 4, 2)),
    (96, Config(32, 32, 128, 4, 2)),
    (128, Config(128, 64, 64, 4, 2)),
    (192, Config(64, 32, 64, 4, 2)),
    (256, Config(128, 32, 64, 4, 2)),
    (384, Config(64, 16, 32, 4, 1)),
    (512, Config(128, 32, 64, 8, 1)),
]
HALF_BACKWARD: list[Row] = [
    (32, Config(32, 16, 128, 4, 2)),
    (64, Config(64, 32, 64, 4, 2)),
    (96, Config(32, 16, 128, 4, 2)),
    (128, Config(128, 64, 64, 4, 2)),
    (192, Config(64, 64, 64, 4, 1)),
    (256, Config(64, 128, 32, 4, 1)),
    (384, Config(128, 32, 32, 4, 1)),
    (512, Config(64, 32, 16, 4, 1)),
]
# float32 products are IEEE ones, without tensor cores: there for its numbers, not for its speed.
FULL_FORWARD: list[Row] = [
    (128, Config(32, 32, 32, 4, 2)),
    (192, Config(64, 32, 32, 8, 2)),
    (256, Config(64, 16, 16, 8, 1)),
]
FULL_BACKWARD: list[Row] = [
    (128, Config(32, 32, 32, 4, 2)),
    (192, Config(64, 32, 32, 8, 1)),
    (256, Config(32, 16, 16, 4, 1)),
]
TABLE = {
    ("forward", 2): HALF_FORWARD,
    ("backward", 2): HALF_BACKWARD,
    ("forward", 4): FULL_FORWARD,
    ("backward", 4): FULL_BACKWARD,
}
"""Rows by kernel and bytes of the dtype; float64, which only the interpreter runs, uses those of float32."""


def pick(kernel: str, w1: Tensor) -> Config:
    """The configuration of `forward` or `backward` for w1: (M, C): that of the first row that holds C."""
    rows = TABLE[kernel, min(w1.dtype.itemsize, 4)]
    return next((config for largest, config in rows if w1.shape[1] <= largest), rows[-1][1])
