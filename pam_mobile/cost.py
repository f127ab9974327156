"""Exact multiply-accumulate counts (MACs) of every path, from a preset and an input size alone.

Counted: all convolutions, the fixed ones of the colour prior included. Not counted, as in the matting literature: pooling,
interpolation, batch norm (it folds away), activations and other elementwise work. Publish milliseconds beside MACs.

A path's cost is additive: shapes do not depend on decisions, so cost(path) = smallest + sum of the deltas of the units that run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BudgetError
from .model import presets
from .model.presets import Preset, UnitSpec

GIGA = 10**9


@dataclass(frozen=True)
class CostTable:
    """MACs of one preset at one input size. The size is rounded up to a multiple of 32, as the image is padded."""

    height: int
    width: int
    base: int
    """What every path executes, the colour prior included."""
    run: tuple[int, ...]
    """MACs of each unit when its blocks run."""
    bypass: tuple[int, ...]
    """MACs of each unit when its connect layer runs instead."""
    selection: int = 0
    """Extra MACs of the selection heads, when they choose the path unit by unit."""
    planning: int = 0
    """Extra MACs of the planning head, when it chooses the whole path at once."""
    prior: int = 0
    """The colour prior's share of `base`."""

    @classmethod
    def of(cls, preset: Preset, height: int, width: int) -> CostTable:
        return _table(preset, height, width)

    @property
    def deltas(self) -> tuple[int, ...]:
        """What running a unit costs more than bypassing it."""
        return tuple(run - bypass for run, bypass in zip(self.run, self.bypass, strict=True))

    @property
    def smallest(self) -> int:
        return self.base + sum(self.bypass)

    @property
    def largest(self) -> int:
        return self.base + sum(self.run)

    def cost(self, path: Iterable[bool]) -> int:
        """Exact MACs of a path. Raises ValueError if the number of decisions is not the number of units."""
        pairs = zip(path, self.run, self.bypass, strict=True)
        return self.base + sum(run if bit else bypass for bit, run, bypass in pairs)

    def require(self, macs: int, heads: int = 0) -> None:
        """Raise BudgetError, naming the smallest and the largest path, if no path costs at most `macs`, the heads included."""
        smallest = self.smallest + heads
        if macs < smallest:
            raise BudgetError(
                f"budget {macs / GIGA:.3f}G is below the smallest path at {self.height}x{self.width}: "
                f"smallest {smallest / GIGA:.3f}G, largest {self.largest / GIGA:.3f}G",
                f"use a budget of at least {_up(smallest / GIGA):.3f}G or {_up(100 * smallest / self.largest, 10):.1f}%",
            )


def _up(value: float, steps: int = 1000) -> float:
    return -(-value * steps // 1) / steps


def padded(size: int) -> int:
    """A height or width as the network sees it: rounded up to a multiple of its largest stride."""
    return -(-size // presets.MAX_STRIDE) * presets.MAX_STRIDE


def conv_macs(kernel: int, c_in: int, c_out: int, pixels: int) -> int:
    """MACs of a dense kernel x kernel convolution with `pixels` output pixels."""
    return kernel * kernel * c_in * c_out * pixels


def block_macs(kernel: int, channels: int, pixels: int) -> int:
    """Depthwise kernel x kernel, then pointwise c -> 2c -> c."""
    return (kernel * kernel * channels + 4 * channels * channels) * pixels


def dense_macs(channels: int, pixels: int) -> int:
    """Two dense 3x3 convolutions c -> c."""
    return 2 * conv_macs(3, channels, channels, pixels)


def connect_macs(channels: int, pixels: int) -> int:
    """Pointwise c -> c/2 -> c."""
    return 2 * channels * (channels // 2) * pixels


def attention_macs(channels: int) -> int:
    """Channel attention c -> c/4 -> c on the pooled features; every path runs it."""
    return 2 * channels * (channels // 4)


def head_macs(channels: int) -> int:
    """Semantics c -> c and logits (c + embedding) -> c/2 -> 2; only a network that chooses its path runs it."""
    hidden = channels // 2
    return channels * channels + (channels + presets.EMBEDDING) * hidden + hidden * 2


def planning_macs(channels: int, units: int) -> int:
    """Semantics c -> c and logits (c + embedding) -> hidden -> 2 units; only a network that plans its path runs it."""
    return channels * channels + (channels + presets.EMBEDDING) * presets.PLANNING + presets.PLANNING * 2 * units


def ppm_macs(channels: int, pixels: int) -> int:
    """Three local bins and one global bin, each c -> c/4, fused with the input by a pointwise convolution."""
    quarter = channels // 4
    local = 3 * channels * quarter * pixels + (channels + 3 * quarter) * channels * pixels
    return local + channels * quarter + quarter * channels


def prior_macs(preset: Preset, height: int, width: int) -> int:
    """The fixed pointwise convolutions of the colour prior (`model/prior.py`), at full and at reduced resolution."""
    if not preset.prior:
        return 0
    pixels = height * width
    return presets.PRIOR_MACS_FINE * pixels + presets.PRIOR_MACS_COARSE * (pixels // presets.PRIOR_STRIDE**2)


def _block(preset: Preset, unit: UnitSpec, pixels: int) -> int:
    return dense_macs(unit.channels, pixels) if unit.dense else block_macs(preset.kernel, unit.channels, pixels)


def _table(preset: Preset, height: int, width: int) -> CostTable:
    h, w = padded(height), padded(width)
    pixels = {stride: (h // stride) * (w // stride) for stride in (1, 2, 4, 8, 16, 32)}
    inputs, stem = preset.input_channels, preset.stem
    c2, c4, c8, c16, c32 = preset.channels
    d2, d1 = preset.decoder_channels

    base = conv_macs(3, inputs, stem, pixels[1])
    entry = zip((2, 4, 8, 16, 32), (stem, c2, c4, c8, c16), preset.channels, strict=True)
    base += sum(conv_macs(3, c_in, c_out, pixels[stride]) for stride, c_in, c_out in entry)
    base += sum(
        n * conv_macs(3, c, c, pixels[s]) for s, c, n in zip((2, 4), (c2, c4), preset.encoder_convs, strict=True)
    )
    base += preset.ppm * ppm_macs(c32, pixels[32])
    base += conv_macs(1, c32 + c16, c16, pixels[16]) + conv_macs(1, c16 + c8, c8, pixels[8])
    base += conv_macs(1, c8 + c4, c4, pixels[4]) + conv_macs(preset.tail_kernel, c4 + c2, d2, pixels[2])
    base += conv_macs(preset.tail_kernel, d2 + stem + inputs, d1, pixels[1]) + conv_macs(3, d1, 1, pixels[1])
    levels = zip((4, 2, 1), (c4, d2, d1), preset.decoder_convs, strict=True)
    base += sum(n * conv_macs(3, c, c, pixels[stride]) for stride, c, n in levels)
    base += sum(attention_macs(unit.channels) for unit in preset.units)
    prior = prior_macs(preset, h, w)

    return CostTable(
        height=height,
        width=width,
        base=base + prior,
        run=tuple(u.blocks * _block(preset, u, pixels[u.stride]) for u in preset.units),
        bypass=tuple(preset.connect * connect_macs(u.channels, pixels[u.stride]) for u in preset.units),
        selection=sum(head_macs(unit.channels) for unit in preset.units),
        planning=planning_macs(preset.units[0].channels, len(preset.units)),
        prior=prior,
    )
