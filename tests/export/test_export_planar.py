"""The colour prior on planes: the same numbers as the model's, and put in its place for XNNPACK only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pam_export.planar import PlanarColourPrior, parts, planes
from pam_export.rewrite import for_xnnpack, prior_on_planes
from pam_export.wrapper import PriorAlone
from pam_mobile.model.prior import ColourPrior


class Mixed(PlanarColourPrior):
    """Turns the channels one way only: the negative control. (Both ways exchanged, the algebra is the same.)"""

    def _next(self, x: Tensor) -> Tensor:
        return super()._previous(x)


def picture(height: int, width: int, images: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Colours, and masks of known foreground and background, in float64."""
    random = torch.Generator().manual_seed(height * width)
    image = torch.rand(images, 3, height, width, generator=random, dtype=torch.float64)
    kind = torch.rand(images, 1, height, width, generator=random)
    return image, (kind > 0.8).double(), (kind < 0.2).double()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (32, 160)])
def test_it_is_the_prior(size: tuple[int, int], stride: int) -> None:
    inputs = picture(*size, images=2)
    expected = ColourPrior(stride).double()(*inputs)
    torch.testing.assert_close(PlanarColourPrior(stride).double()(*inputs), expected, rtol=0, atol=1e-9)
    assert (Mixed(stride).double()(*inputs) - expected).abs().mean() > 1e-3


def test_no_single_channel_is_made_by_a_convolution() -> None:
    image, fg, bg = (x.float() for x in picture(32, 32))
    plain = torch.export.export(ColourPrior(), (image, fg, bg)).graph
    planar = torch.export.export(PlanarColourPrior(), (image, fg, bg)).graph
    convolutions = [sum(node.target == torch.ops.aten.conv2d.default for node in g.nodes) for g in (plain, planar)]
    assert convolutions[0] > 10
    assert convolutions[1] == 0


def test_planes_and_parts_keep_what_they_are_given() -> None:
    maps = tuple(torch.rand(2, c, 3, 5) for c in (3, 1, 2))
    joined = torch.cat(maps, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(planes(joined), joined)
    for got, expected in zip(parts(planes(joined), maps), maps, strict=True):
        assert torch.equal(got, expected)


def test_it_takes_the_place_of_every_prior_of_a_copy() -> None:
    net = nn.ModuleDict({"one": PriorAlone(), "two": nn.ModuleList([ColourPrior(1)])}).train()
    rewritten = for_xnnpack(net)
    assert [type(m) for m in net.modules() if isinstance(m, ColourPrior)] == [ColourPrior, ColourPrior]
    found = [m for m in rewritten.modules() if isinstance(m, ColourPrior)]
    assert [(type(m), m.stride, m.training) for m in found] == [(PlanarColourPrior, s, False) for s in (2, 1)]
    assert prior_on_planes(nn.ReLU()) == 0
