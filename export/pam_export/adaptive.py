"""A supernet cut up for artifacts that choose their path at run time. The trunk is not written again: it is traced and cut."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from pam_mobile.model.layers import same_layout
from pam_mobile.model.prior import ColourPrior
from pam_mobile.model.selection import BudgetEmbedding, PlanningHead, SelectionHead
from pam_mobile.model.supernet import Supernet
from pam_mobile.model.trunk import MattingNet
from pam_mobile.model.unit import Unit

from .artifact import Pair, Part
from .controller import Costs
from .plain import plain
from .rewrite import fold_batch_norm

IMAGE, TRIMAP = 0, 1
"""Numbers of the two inputs among the values of a run."""


@dataclass(frozen=True)
class Piece:
    """A part of the network. inputs: numbers of the values that it takes; its results get the next numbers, in order.

    Values are numbered from image (0) and trimap (1) on, in the order in which the pieces run; the last one is alpha.
    """

    module: nn.Module
    inputs: tuple[int, ...]


class Adaptive(nn.Module):
    """A supernet at one size with plain layers and folded batch norm, its units to be run or bypassed, and its heads."""

    def __init__(self, supernet: Supernet, size: int) -> None:
        super().__init__()
        copied = cast(Supernet, plain(supernet)).cpu().float().eval().requires_grad_(False)
        fold_batch_norm(copied.net)
        self.costs = Costs.of(supernet, size)
        self.graph = _trace(copied.net)
        self.planning = Head(copied.planning, copied.embedding)
        self.heads = nn.ModuleList(Head(unit.head, copied.embedding) for unit in copied.units)

    def units(self) -> list[str]:
        """Names of the units in the traced graph, in the order of execution."""
        modules = dict(self.graph.named_modules())
        return [
            str(node.target)
            for node in self.graph.graph.nodes
            if node.op == "call_module" and isinstance(modules[str(node.target)], Unit)
        ]

    def pieces(self) -> list[Piece]:
        """What lies before the first unit, then every unit together with what follows it up to the next.

        The first input of a unit's piece are the features that its head sees; `branch` makes it runnable.
        """
        units, seen = set(self.units()), 0
        places: dict[str, int] = {}
        for node in self.graph.graph.nodes:
            seen += node.target in units
            places[node.name] = seen
        return _pieces(split_module(self.graph, self.graph, lambda node: places[node.name]))


def only(parts: Sequence[Part]) -> tuple[Adaptive, Pair]:
    """The network of an adaptive artifact, which has one part, and its example inputs."""
    (part,) = parts
    return cast(Adaptive, part.module), part.inputs


def branch(piece: nn.Module, run: bool) -> nn.Module:
    """A copy of a unit's piece in which the unit is run or bypassed."""
    piece = copy.deepcopy(piece)
    for name, child in list(piece.named_children()):
        if isinstance(child, Unit):
            setattr(piece, name, child.branch(run))
    return piece


class Head(nn.Module):
    """A selection or planning head with its budget embedding, as pointwise convolutions.

    What BudgetEmbedding interpolates is here a product with the weights that hat functions give every row.
    """

    index: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, head: SelectionHead | PlanningHead, embedding: BudgetEmbedding) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(embedding.rows.num_embeddings).float()[None, :, None, None])
        self.register_buffer("mean", head.semantics.mean[None, :, None, None].clone())
        self.register_buffer("deviation", head.semantics.deviation[None, :, None, None].clone())
        self.rows = _pointwise(embedding.rows.weight.T)
        self.semantics = _pointwise(head.semantics.layer.weight, head.semantics.layer.bias)
        self.hidden = _pointwise(head.hidden.weight, head.hidden.bias)
        bypass, run = (slice(first, None, 2) for first in (0, 1))
        weight, bias = head.logits.weight, head.logits.bias
        self.margin = _pointwise(weight[run] - weight[bypass], bias[run] - bias[bypass])
        self.act = nn.ReLU()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x: (1, c, h, w) features; position: (1, 1, 1, 1) of the budget among the rows.

        Returns (1, units, 1, 1): what running is worth more than bypassing.
        """
        hats = (1 - (position - self.index).abs()).clamp(min=0.0)
        pooled = x.mean((2, 3), keepdim=True)
        semantics = self.act(self.semantics((pooled - self.mean) / self.deviation))
        scores: Tensor = self.margin(self.act(self.hidden(torch.cat([semantics, self.rows(hats)], 1))))
        return scores


@torch.no_grad()
def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution that does what a linear layer with this weight does at every pixel."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight.copy_(weight[:, :, None, None])
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    return conv.requires_grad_(False)


class _Whole(nn.Module):
    """The trunk with units that are only named, not run: what is traced."""

    def __init__(self, net: MattingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return self.net(image, trimap, lambda unit, x: unit(x))


class _Tracer(fx.Tracer):
    """Keeps units and the colour prior whole; both decide by what a tracer does not know."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(same_layout,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Unit | ColourPrior) or super().is_leaf_module(m, module_qualified_name)


def _trace(net: MattingNet) -> fx.GraphModule:
    whole = _Whole(net)
    return fx.GraphModule(whole, _Tracer().trace(whole))


def _pieces(split: fx.GraphModule) -> list[Piece]:
    """The parts of a graph that was split, with their values numbered."""
    numbers: dict[fx.Node, int] = {}
    pieces: list[Piece] = []
    for node in split.graph.nodes:
        if node.op == "placeholder":
            numbers[node] = len(numbers)
        elif node.op == "call_module":
            pieces.append(Piece(split.get_submodule(str(node.target)), tuple(numbers[arg] for arg in node.args)))
            first = len(numbers)
            # One result is the call itself, several are taken out of it.
            taken: dict[fx.Node, Any] = {u: u.args[1] for u in node.users if u.target is operator.getitem}
            numbers |= {user: first + place for user, place in taken.items()} or {node: first}
    return pieces
