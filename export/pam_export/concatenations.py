"""Concatenations that must not be quantised: XNNPACK joins 8-bit tensors of one scale only.

That scale becomes the scale of every tensor that is joined, wherever else it is used. A skip of small values beside large ones
from the decoder then loses its low bits not only there, but for the whole encoder behind it as well. In float32, the join leaves
each tensor its own scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pam_mobile.train.rounding import round_between

from .artifact import Pair
from .parity import unknown_difference

Range = tuple[float, float]


@dataclass(frozen=True)
class Join:
    """A concatenation. name: where it goes; loss: what its scale does to alpha, the mean difference over the unknown pixels."""

    node: fx.Node
    name: str
    loss: float


def losses(graph: fx.GraphModule, pairs: Sequence[Pair], quantised: Collection[fx.Node]) -> list[Join]:
    """The concatenations of an exported graph, each alone. quantised: the nodes that will be; pairs: images and trimaps."""
    nodes = [node for node in graph.graph.nodes if node in quantised and node.target == torch.ops.aten.cat.default]
    runs = [_Run(graph, {part for node in nodes for part in node.all_input_nodes}, {}) for _ in pairs]
    expected = [run.alpha(pair) for run, pair in zip(runs, pairs, strict=True)]

    def loss(parts: Sequence[fx.Node]) -> float:
        ends = [run.ranges[part] for run in runs for part in parts]
        scale = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
        got = [_Run(graph, (), dict.fromkeys(parts, scale)).alpha(pair) for pair in pairs]
        return unknown_difference(expected, got, pairs)

    return [Join(node, _name(node), loss(node.all_input_nodes)) for node in nodes]


def _name(node: fx.Node) -> str:
    stack = list((next(iter(node.users)).meta.get("nn_module_stack") or {}).values())
    return f"concatenation before {stack[-1][0] if stack else node.name}"


class _Run(fx.Interpreter):
    """Runs the graph once; notes the range of the nodes that are watched and rounds those that have one."""

    def __init__(self, graph: fx.GraphModule, watched: Collection[fx.Node], rounded: Mapping[fx.Node, Range]) -> None:
        super().__init__(graph)
        self.watched, self.rounded = watched, rounded
        self.ranges: dict[fx.Node, Range] = {}

    def alpha(self, pair: Pair) -> Tensor:
        result = self.run(*pair)
        return result if isinstance(result, Tensor) else result[0]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            self.ranges[n] = float(value.min()), float(value.max())
        return round_between(value, *self.rounded[n]) if n in self.rounded else value
