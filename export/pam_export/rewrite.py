"""Equal rewrites of the network for single backends; no other exporter wants them, and the model knows nothing of them.

XNNPACK has no fast depthwise kernel above 25 taps (about 14 times slower per layer), so a larger kernel is split into
windows of at most 25 taps whose results add up to the original, exactly. A convolution computes 8 or 16 channels at a time, so one
to a single channel wastes most of its work, and is split into its columns and its rows. Operations between maps of few channels are
slow, so the colour prior is computed on planes. A mean is summed up one number after the other in float32, which of a flat image
leaves three digits, so it is taken in steps. Vulkan convolves one image at a time.
"""

from __future__ import annotations

import copy
from itertools import pairwise, product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pam_mobile.model.prior import ColourPrior

from .planar import PlanarColourPrior

aten = torch.ops.aten
MAX_TAPS = 25
BLOCK = 5
STEP = 8
Window = tuple[int, int, int, int]
"""Rows a..b and columns c..d of a kernel: (a, b, c, d)."""


def for_xnnpack(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode: batch norm folded, large depthwise kernels and single channels split, prior on planes."""
    module = copy.deepcopy(module).eval()
    fold_batch_norm(module)
    split_depthwise(module)
    split_single_channel(module)
    prior_on_planes(module)
    return module


def fold_batch_norm(module: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution among its siblings into it, in place; returns how many."""
    count = 0
    for (name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, nn.Identity())
            count += 1
    return count + sum(fold_batch_norm(child) for child in module.children())


def split_depthwise(module: nn.Module) -> int:
    """Replace every depthwise convolution of more than 25 taps, in place; returns how many. Fold batch norm first."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and is_splittable(child):
            setattr(module, name, SplitDepthwise(child))
            count += 1
        else:
            count += split_depthwise(child)
    return count


def split_single_channel(module: nn.Module) -> int:
    """Replace every convolution to a single channel, in place; returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.out_channels == 1 and child.in_channels > 1 and _is_same(child):
            setattr(module, name, columns_and_rows(child))
            count += 1
        else:
            count += split_single_channel(child)
    return count


def prior_on_planes(module: nn.Module) -> int:
    """Replace every colour prior by the one that XNNPACK computes faster, in place; returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, ColourPrior):
            setattr(module, name, PlanarColourPrior(child.stride).eval())
            count += 1
        else:
            count += prior_on_planes(child)
    return count


def is_splittable(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, square, of more than 25 taps, stride 1 and same padding."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    return depthwise and _is_same(conv) and conv.kernel_size[0] ** 2 > MAX_TAPS


def _is_same(conv: nn.Conv2d) -> bool:
    """Whether a convolution is square with an odd side above 1, of stride 1 and same padding."""
    k = conv.kernel_size[0]
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding == (k // 2, k // 2)
    return plain and conv.kernel_size == (k, k) and k % 2 == 1 and k > 1


def windows(k: int) -> list[Window]:
    """Windows of at most 25 taps that tile a k x k kernel: strips of rows, or 5 x 5 blocks where a strip is one row."""
    rows, columns = (MAX_TAPS // k, k) if MAX_TAPS // k > 1 else (BLOCK, BLOCK)
    corners = product(range(0, k, rows), range(0, k, columns))
    return [(a, min(a + rows, k), c, min(c + columns, k)) for a, c in corners]


class SplitDepthwise(nn.Module):
    """The sum of one small depthwise convolution per window.  x: (N, C, H, W)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.windows = windows(conv.kernel_size[0])
        self.pad = conv.kernel_size[0] // 2
        self.parts = nn.ModuleList(_part(conv, window, first=i == 0) for i, window in enumerate(self.windows))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        padded = F.pad(x, (self.pad,) * 4)
        results = [
            part(padded[:, :, a : h + b - 1, c : w + d - 1])
            for (a, b, c, d), part in zip(self.windows, self.parts, strict=True)
        ]
        total = results[0]
        for result in results[1:]:
            total = total + result
        return cast(Tensor, total)


@torch.no_grad()
def _part(conv: nn.Conv2d, window: Window, first: bool) -> nn.Conv2d:
    a, b, c, d = window
    part = nn.Conv2d(conv.in_channels, conv.out_channels, (b - a, d - c), groups=conv.groups, bias=False)
    part.weight.copy_(conv.weight[:, :, a:b, c:d])
    if first and conv.bias is not None:
        part.bias = nn.Parameter(conv.bias.clone())
    return part.requires_grad_(False)


@torch.no_grad()
def columns_and_rows(conv: nn.Conv2d) -> nn.Sequential:
    """A k x k convolution of C channels to one as 1 x k to k channels, one per row of the kernel, and k x 1 that adds these up."""
    k = conv.kernel_size[0]
    along = nn.Conv2d(conv.in_channels, k, (1, k), padding=(0, k // 2), bias=False)
    across = nn.Conv2d(k, 1, (k, 1), padding=(k // 2, 0), bias=conv.bias is not None)
    along.weight.copy_(conv.weight[0].transpose(0, 1)[:, :, None])
    across.weight.copy_(torch.eye(k)[None, :, :, None])
    if conv.bias is not None and across.bias is not None:
        across.bias.copy_(conv.bias)
    return nn.Sequential(along, across).requires_grad_(False)


def means_in_steps(module: fx.GraphModule) -> fx.GraphModule:
    """Replace every mean over all pixels of an exported graph by means of means of 8 x 8 of them, in place."""
    for node in module.graph.find_nodes(op="call_function", target=aten.mean.dim):
        x, axes = node.args[:2]
        height, width = x.meta["val"].shape[-2:]
        if sorted(axes) not in ([-2, -1], [2, 3]):
            continue
        while height % STEP == 0 and width % STEP == 0:
            with module.graph.inserting_before(node):
                window = [STEP, STEP], [STEP, STEP], [0, 0], False, False
                x = module.graph.call_function(aten.avg_pool2d.default, (x, *window))
            height, width = height // STEP, width // STEP
        node.update_arg(0, x)
    module.recompile()
    return module


def split_batches(program: ExportedProgram) -> ExportedProgram:
    """The program with every convolution of several images as one convolution per image, their results concatenated."""
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        images = node.args[0].meta["val"].shape[0] if node.target == aten.conv2d.default else 1
        if images > 1:
            with module.graph.inserting_before(node):
                singles = [
                    module.graph.call_function(aten.slice.Tensor, (node.args[0], 0, i, i + 1)) for i in range(images)
                ]
                results = [module.graph.call_function(node.target, (single, *node.args[1:])) for single in singles]
                joined = module.graph.call_function(aten.cat.default, (results, 0))
            node.replace_all_uses_with(joined)
            module.graph.erase_node(node)
    module.recompile()
    return torch.export.export(module, program.example_inputs[0])
