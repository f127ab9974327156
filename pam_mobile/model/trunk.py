"""The network's figure, written once: input, encoder, pyramid pooling, decoder, known pixels.

What a unit does is handed in: the supernet passes units that may be bypassed, a subnet passes plain modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import ConvBlock, same_layout, upsample
from .ppm import PyramidPooling
from .presets import Preset
from .prior import ColourPrior

Step = Callable[[nn.Module, Tensor], Tensor]
"""Runs one unit on its features."""


def run_units(units: Iterable[nn.Module], x: Tensor, step: Step) -> Tensor:
    for unit in units:
        x = step(unit, x)
    return x


class Encoder(nn.Module):
    """Regular convolutions down to stride 4, units at strides 8, 16 and 32, pyramid pooling at the end."""

    def __init__(self, preset: Preset, units: list[nn.Module]) -> None:
        super().__init__()
        c2, c4, c8, c16, c32 = preset.channels
        n2, n4 = preset.encoder_convs
        a, b, c = preset.encoder_units
        self.stem = ConvBlock(preset.input_channels, preset.stem)
        self.level2 = nn.Sequential(ConvBlock(preset.stem, c2, stride=2), *(ConvBlock(c2, c2) for _ in range(n2)))
        self.level4 = nn.Sequential(ConvBlock(c2, c4, stride=2), *(ConvBlock(c4, c4) for _ in range(n4)))
        self.down8, self.units8 = ConvBlock(c4, c8, stride=2), nn.ModuleList(units[:a])
        self.down16, self.units16 = ConvBlock(c8, c16, stride=2), nn.ModuleList(units[a : a + b])
        self.down32, self.units32 = ConvBlock(c16, c32, stride=2), nn.ModuleList(units[a + b : a + b + c])
        self.ppm = nn.Sequential(*(PyramidPooling(c32) for _ in range(preset.ppm)))

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, ...]:
        """x: (N, inputs, H, W). Returns the features at strides 1, 2, 4, 8, 16, 32."""
        f1 = self.stem(x)
        f2 = self.level2(f1)
        f4 = self.level4(f2)
        f8 = run_units(self.units8, self.down8(f4), step)
        f16 = run_units(self.units16, self.down16(f8), step)
        f32 = self.ppm(run_units(self.units32, self.down32(f16), step))
        return f1, f2, f4, f8, f16, f32


class Decoder(nn.Module):
    """Upsample, take in the skip, run the units; the last level sees the network's input again."""

    def __init__(self, preset: Preset, units: list[nn.Module]) -> None:
        super().__init__()
        c2, c4, c8, c16, c32 = preset.channels
        d2, d1 = preset.decoder_channels
        n4, n2, n1 = preset.decoder_convs
        a, b, c = preset.decoder_units
        tail, after = a + b + c, preset.tail_units[0]
        self.squeeze16, self.units16 = ConvBlock(c32 + c16, c16, 1), nn.ModuleList(units[:a])
        self.squeeze8, self.units8 = ConvBlock(c16 + c8, c8, 1), nn.ModuleList(units[a : a + b])
        self.squeeze4, self.units4 = ConvBlock(c8 + c4, c4, 1), nn.ModuleList(units[a + b : tail])
        self.convs4 = nn.Sequential(*(ConvBlock(c4, c4) for _ in range(n4)))
        join, inputs = preset.tail_kernel, d2 + preset.stem + preset.input_channels
        self.level2 = nn.Sequential(ConvBlock(c4 + c2, d2, join), *(ConvBlock(d2, d2) for _ in range(n2)))
        self.units2 = nn.ModuleList(units[tail : tail + after])
        self.level1 = nn.Sequential(ConvBlock(inputs, d1, join), *(ConvBlock(d1, d1) for _ in range(n1)))
        self.units1 = nn.ModuleList(units[tail + after :])
        self.head = nn.Conv2d(d1, 1, 3, padding=1)

    def forward(self, features: tuple[Tensor, ...], x: Tensor, step: Step) -> Tensor:
        """features: of the encoder; x: its input. Returns (N, 1, H, W)."""
        f1, f2, f4, f8, f16, f32 = features
        y = run_units(self.units16, self.squeeze16(torch.cat([upsample(f32), f16], 1)), step)
        y = run_units(self.units8, self.squeeze8(torch.cat([upsample(y), f8], 1)), step)
        y = run_units(self.units4, self.squeeze4(torch.cat([upsample(y), f4], 1)), step)
        y = run_units(self.units2, self.level2(torch.cat([upsample(self.convs4(y)), f2], 1)), step)
        y = run_units(self.units1, self.level1(torch.cat([upsample(y), f1, x.to(f1.dtype)], 1)), step)
        return self.head(y)


def known_masks(trimap: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (foreground, background), exactly 0 or 1, of a trimap (N, 1, H, W) with 0, 0.5 and 1 or nearby values.

    The thresholds are those of 8-bit trimaps (below 85, from 170 on). Clamps instead of comparisons: exporters keep them whole.
    """
    fg = ((trimap - 169.5 / 255) * 1e4).clamp(0.0, 1.0)
    bg = ((84.5 / 255 - trimap) * 1e4).clamp(0.0, 1.0)
    return fg, bg


class Inputs(NamedTuple):
    """What the network sees of image and trimap, (N, ..., H, W) each."""

    x: Tensor
    """RGB, one-hot trimap, and the prior's maps if there is one."""
    unknown: Tensor
    fg: Tensor
    guess: Tensor | None
    """The prior's alpha, which the network corrects."""


class MattingNet(nn.Module):
    """Image and trimap to alpha, with whatever units it was given."""

    def __init__(self, preset: Preset, units: list[nn.Module]) -> None:
        super().__init__()
        split = sum(preset.encoder_units)
        self.prior = ColourPrior() if preset.prior else None
        self.encoder = Encoder(preset, units[:split])
        self.decoder = Decoder(preset, units[split:])

    def forward(self, image: Tensor, trimap: Tensor, step: Step) -> Tensor:
        """image: (N, 3, H, W) sRGB in [0, 1]; trimap: (N, 1, H, W); H and W multiples of 32.

        Returns alpha (N, 1, H, W) in [0, 1], known pixels exactly 0 or 1. In training, pixels beyond the range keep their gradient.
        """
        inputs = self.inputs(image, trimap)
        return self.decode(self.encoder(inputs.x, step), inputs, step)

    def inputs(self, image: Tensor, trimap: Tensor) -> Inputs:
        fg, bg = known_masks(trimap)
        unknown = 1 - fg - bg
        x = torch.cat([image, bg, unknown, fg], 1)
        if self.prior is None:
            return Inputs(x, unknown, fg, None)
        guess = self.prior(image, fg, bg)
        return Inputs(same_layout(torch.cat([x, guess], 1), image), unknown, fg, guess[:, 1:2])

    def decode(self, features: tuple[Tensor, ...], inputs: Inputs, step: Step) -> Tensor:
        alpha = self.decoder(features, inputs.x, step)
        if inputs.guess is not None:
            alpha = inputs.guess + alpha
        clamped = alpha.clamp(0.0, 1.0)
        if self.training:
            # Straight-through: being beyond 0 where alpha is 0 costs nothing, being there where it is 1 can be unlearned.
            clamped = alpha + (clamped - alpha).detach()
        return clamped * inputs.unknown + inputs.fg

    def unit_lists(self) -> tuple[nn.ModuleList, ...]:
        """The units' places, in the order of execution."""
        e, d = self.encoder, self.decoder
        return e.units8, e.units16, e.units32, d.units16, d.units8, d.units4, d.units2, d.units1
