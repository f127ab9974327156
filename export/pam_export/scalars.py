"""Python numbers of a graph as constant tensors.

ExecuTorch lifts the number in `1 - x` as a 0-dim tensor of another type and converts it outside the delegate. As a float32
tensor of shape (1, 1, 1, 1) it stays inside.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten
BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


def lift_scalars(module: fx.GraphModule) -> fx.GraphModule:
    """Replace the numbers in sums, differences, products and quotients of an exported graph, in place."""
    constants: dict[float, str] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target == aten.rsub.Scalar and len(node.args) == 2:
            node.target, node.args = aten.sub.Tensor, (node.args[1], node.args[0])
        if node.target in BINARY and not node.kwargs:
            node.args = tuple(
                _constant(module, node, float(arg), constants) if isinstance(arg, int | float) else arg
                for arg in node.args
            )
    module.recompile()
    return module


def _constant(module: fx.GraphModule, user: fx.Node, value: float, constants: dict[float, str]) -> fx.Node:
    if value not in constants:
        constants[value] = f"scalar_{len(constants)}"
        module.register_buffer(constants[value], torch.full((1, 1, 1, 1), value))
    with module.graph.inserting_before(user):
        return module.graph.get_attr(constants[value])
