"""Presets: the numbers of a network. This file imports nothing heavy, so that costs and help texts are instant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import UsageError

MAX_STRIDE = 32
EMBEDDING = 64
"""Width of the budget embedding."""
PLANNING = 128
"""Hidden width of the planning head."""
PRIOR_CHANNELS = 3
"""Alpha of pass 1, alpha of pass 2, separability: what the colour prior adds to the network's input."""
PRIOR_STRIDE = 2
PRIOR_MACS_FINE = 3
PRIOR_MACS_COARSE = 186
"""Fixed-weight MACs of the prior per pixel at full and at 1/PRIOR_STRIDE resolution; a test counts them."""


@dataclass(frozen=True)
class UnitSpec:
    """Where one unit sits: `blocks` blocks of `channels` at `stride`, depthwise ones or dense ones."""

    channels: int
    blocks: int
    stride: int
    dense: bool = False


@dataclass(frozen=True)
class Preset:
    """All numbers of one network. Units are listed in the order in which they are decided."""

    name: str
    kernel: int
    """Depthwise kernel size."""
    stem: int
    """Channels at stride 1."""
    channels: tuple[int, int, int, int, int]
    """Channels at strides 2, 4, 8, 16, 32."""
    encoder_convs: tuple[int, int]
    """Further 3x3 convolutions at strides 2 and 4."""
    encoder_units: tuple[int, int, int]
    """Units at strides 8, 16, 32."""
    ppm: int
    """Pyramid pooling modules in sequence at stride 32."""
    decoder_units: tuple[int, int, int]
    """Units at strides 16, 8, 4."""
    decoder_channels: tuple[int, int]
    """Channels at strides 2 and 1 on the way up."""
    decoder_convs: tuple[int, int, int]
    """Further 3x3 convolutions at strides 4, 2, 1 on the way up."""
    last_unit_blocks: int
    """Depthwise blocks of the units at stride 4; all others have 2."""
    reference: int
    """Height and width at which the preset's cost is quoted, and at which budgets are embedded."""
    budget_step: int
    """MACs between two rows of the budget embedding."""
    prior: bool = False
    """Feed the local-Gaussian colour prior to the network and let the network correct it."""
    tail_kernel: int = 3
    """Kernel of the convolutions that take in the skips at strides 2 and 1."""
    tail_units: tuple[int, int] = (0, 0)
    """Units of one dense 3x3 block at strides 2 and 1 on the way up."""
    connect: bool = True
    """Bypassed units run their connect layer; without, nothing (the paper's ablation of naive skips)."""

    @property
    def input_channels(self) -> int:
        """RGB, one-hot trimap, and the prior's maps if there is one."""
        return 6 + (PRIOR_CHANNELS if self.prior else 0)

    @cached_property
    def units(self) -> tuple[UnitSpec, ...]:
        c4, c8, c16, c32 = self.channels[1:]
        levels = (
            *zip(self.encoder_units, (c8, c16, c32), (2, 2, 2), (8, 16, 32), strict=True),
            *zip(self.decoder_units, (c16, c8, c4), (2, 2, self.last_unit_blocks), (16, 8, 4), strict=True),
        )
        tail = zip(self.tail_units, self.decoder_channels, (2, 1), strict=True)
        return (
            *(UnitSpec(c, blocks, stride) for count, c, blocks, stride in levels for _ in range(count)),
            *(UnitSpec(c, 1, stride, dense=True) for count, c, stride in tail for _ in range(count)),
        )

    @property
    def label(self) -> str:
        return self.name + "+prior" * self.prior + "+skip" * (not self.connect)


PHONE = Preset(
    name="phone",
    kernel=5,
    stem=12,
    channels=(24, 40, 96, 144, 224),
    encoder_convs=(0, 1),
    encoder_units=(2, 3, 2),
    ppm=1,
    decoder_units=(1, 1, 1),
    decoder_channels=(20, 12),
    decoder_convs=(0, 0, 1),
    last_unit_blocks=2,
    reference=512,
    budget_step=10**8,
)

PRESETS = {
    "full": Preset(
        name="full",
        kernel=7,
        stem=16,
        channels=(32, 64, 128, 192, 312),
        encoder_convs=(2, 2),
        encoder_units=(2, 3, 2),
        ppm=2,
        decoder_units=(2, 2, 2),
        decoder_channels=(32, 28),
        decoder_convs=(1, 1, 1),
        last_unit_blocks=2,
        reference=1024,
        budget_step=10**9,
    ),
    "phone": PHONE,
    "phone-wide": replace(
        PHONE,
        name="phone-wide",
        decoder_units=(1, 2, 2),
        decoder_channels=(24, 12),
        decoder_convs=(0, 0, 0),
        tail_kernel=1,
        tail_units=(1, 1),
    ),
    "tiny": Preset(
        name="tiny",
        kernel=5,
        stem=8,
        channels=(16, 32, 64, 96, 160),
        encoder_convs=(0, 1),
        encoder_units=(2, 2, 1),
        ppm=1,
        decoder_units=(1, 2, 1),
        decoder_channels=(16, 8),
        decoder_convs=(0, 0, 0),
        last_unit_blocks=1,
        reference=512,
        budget_step=10**8,
    ),
}


def preset(name: str, prior: bool = False, connect: bool = True) -> Preset:
    """The preset of that name. Raises UsageError naming the known ones."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", f"choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], prior=prior, connect=connect)
