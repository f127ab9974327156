"""How long a phone might take: an ESTIMATE from counted instructions, for two phones and one thread. Never a measurement.

Anchors are the float32 latencies of four MobileNets at 224x224 that XNNPACK's README published in 2020, and the instructions that the
same networks take on the same core, counted under emulation by export/arm64/anchors.py. One factor per phone, in milliseconds per
million instructions, is the geometric mean over its anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from statistics import fmean

LABEL = "ESTIMATE from emulated instruction counts, calibrated on XNNPACK's 2020 MobileNet table; not measured"
OUTSIDE = "outside calibration"
LEAST_BAND = 0.25
"""Half the width of the band, at least: the anchors are old, small and no mattes, and counts know no caches and no heat."""

PRECISION = "fp32"
NETWORKS = ("MobileNet v1", "MobileNet v2", "MobileNet v3 large", "MobileNet v3 small")
MACS = (568.74, 300.77, 216.59, 56.51)
"""Multiply-adds of the anchors, in millions."""


@dataclass(frozen=True)
class Phone:
    """instructions: of the anchors, in millions, counted on `cpu`; ms: their published latencies with one thread."""

    name: str
    cpu: str
    instructions: tuple[float, ...]
    ms: tuple[float, ...]

    @property
    def factor(self) -> float:
        """Milliseconds per million instructions."""
        return _factor(self.instructions, self.ms)

    @property
    def errors(self) -> tuple[float, ...]:
        """Relative error of the estimate of each anchor when it is left out of the factor."""
        return tuple(
            _factor(_without(self.instructions, i), _without(self.ms, i)) * self.instructions[i] / self.ms[i] - 1
            for i in range(len(self.ms))
        )

    @property
    def band(self) -> float:
        """The relative band of an estimate, up and down."""
        return max(LEAST_BAND, *map(abs, self.errors))

    @property
    def calibrated(self) -> tuple[float, float]:
        """The smallest and the largest number of instructions per multiply-add among the anchors."""
        ratios = [count / macs for count, macs in zip(self.instructions, MACS, strict=True)]
        return min(ratios), max(ratios)


PHONES = (
    Phone("Pixel 2", "cortex-a73", (191.778, 115.135, 88.945, 27.840), (86, 53, 42, 14)),
    Phone("Pixel 3a", "cortex-a75", (203.166, 121.325, 93.251, 28.912), (88, 55, 44, 14)),
)


@dataclass(frozen=True)
class Estimate:
    """ms: the estimate; low, high: its band; calibrated: whether the network is like the anchors; else the band is void."""

    phone: str
    ms: float
    low: float
    high: float
    calibrated: bool

    def __str__(self) -> str:
        return f"{self.ms:.0f} ({self.low:.0f} to {self.high:.0f})" if self.calibrated else f"{self.ms:.0f}, {OUTSIDE}"


def estimate(phone: Phone, million_instructions: float, macs: int, precision: str) -> Estimate:
    """What one inference of so many instructions, counted on the phone's own core, might take. Publish it with LABEL."""
    ms = phone.factor * million_instructions
    least, most = phone.calibrated
    like = precision == PRECISION and least <= million_instructions * 1e6 / macs <= most
    return Estimate(phone.name, ms, ms * (1 - phone.band), ms * (1 + phone.band), like)


def _factor(instructions: tuple[float, ...], ms: tuple[float, ...]) -> float:
    return exp(fmean(log(time / count) for time, count in zip(ms, instructions, strict=True)))


def _without(values: tuple[float, ...], index: int) -> tuple[float, ...]:
    return values[:index] + values[index + 1 :]
