"""A network that chooses its path inside one graph: traced pieces, a scripted switch between the two branches of every unit.

The budget is a promise here, too. What is left of it is counted in whole grains (`controller.Costs`), which float32 holds exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from pam_mobile.path import Path

from .adaptive import Adaptive, branch
from .artifact import Pair
from .controller import Costs

POSITION, SPARE, PATH = "position", "spare", "path"
NUMBER = (1, 1, 1, 1)
Prepare = Callable[[nn.Module, tuple[Any, ...]], nn.Module]
"""prepare(module, example inputs): a piece as the format wants it, for example traced."""


class Switch(nn.Module):
    """One unit: its head, and the branch that the score and the budget allow. Only that branch is computed."""

    __constants__ = ("step",)

    def __init__(self, head: nn.Module, run: nn.Module, bypass: nn.Module, step: int) -> None:
        super().__init__()
        self.head, self.run, self.bypass = head, run, bypass
        self.step = float(step)

    def forward(self, x: Tensor, position: Tensor, spare: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (1, c, h, w); position, spare: (1, 1, 1, 1). Returns the unit's result, what is left to spare, and 1 if it ran."""
        wanted = (self.head(x, position) > 0).to(torch.float32)
        ran = wanted * (spare >= self.step).to(torch.float32)
        if bool(ran > 0.5):  # noqa: SIM108 - the branches are blocks of the scripted graph
            y = self.run(x)
        else:
            y = self.bypass(x)
        return y, spare - ran * self.step, ran


def script(adaptive: Adaptive, inputs: Pair) -> Any:
    """The network as a script module: image, trimap, position, spare -> alpha, path (1, units, 1, 1) of 0 and 1."""
    with torch.no_grad():
        return torch.jit.script(driver(adaptive, inputs, _traced)).eval()


def _traced(module: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    # What is traced was exported before, where sizes are numbers: tracing alone would keep them as tensors.
    program = torch.export.export(module, example).module(check_guards=False)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        program.graph.erase_node(node)
    program.recompile()
    return cast(nn.Module, torch.jit.trace(program, example, check_trace=False))


def numbers(costs: Costs, macs: int) -> tuple[Tensor, Tensor]:
    """A budget as the graph takes it: position and spare. Raises BudgetError if no path fits."""
    spare = costs.spare(macs)
    return torch.full(NUMBER, costs.position(macs)), torch.full(NUMBER, float(spare))


def path_of(ran: Tensor) -> Path:
    """The path that a graph says it took.  ran: (1, units, 1, 1) of 0 and 1."""
    return Path(tuple(bool(bit) for bit in ran.flatten()))


def driver(adaptive: Adaptive, inputs: Pair, prepare: Prepare, kind: type[Switch] = Switch) -> fx.GraphModule:
    """The trunk with a Switch (or a `kind` of it) in place of every unit, as one graph of prepared pieces.

    Raises ValueError if float32 cannot count the costs.
    """
    units, steps = adaptive.units(), adaptive.costs.steps
    places: dict[str, int] = {}
    last = 0
    for node in adaptive.graph.graph.nodes:
        # Even numbers are what lies between units, odd ones the units.
        last = 2 * units.index(node.target) + 1 if node.target in units else last + last % 2
        places[node.name] = last
    split = split_module(adaptive.graph, adaptive.graph, lambda node: places[node.name])
    graph = split.graph
    for node in graph.nodes:
        node.type = None
    trimap = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(trimap):
        position = graph.placeholder(POSITION)
    with graph.inserting_after(position):
        spare = graph.placeholder(SPARE)
    ran: list[fx.Node] = []
    for node in [n for n in graph.nodes if n.op == "call_module" and int(str(n.target).rsplit("_", 1)[1]) % 2]:
        piece, i = split.get_submodule(str(node.target)), len(ran)
        switch = kind(adaptive.heads[i], branch(piece, True), branch(piece, False), steps[i])
        setattr(split, str(node.target), switch)
        with graph.inserting_after(node):
            called = graph.call_module(str(node.target), (node.args[0], position, spare))
        results = [_item(graph, called, place) for place in (2, 1, 0)][::-1]
        node.replace_all_uses_with(results[0])
        graph.erase_node(node)
        spare = results[1]
        ran.append(results[2])
    output = next(iter(reversed(graph.nodes)))
    with graph.inserting_before(output):
        path = graph.call_function(torch.cat, (ran, 1))
    output.args = ((output.args[0], path),)
    split.recompile()
    _Preparing(split, prepare).run(*inputs, *numbers(adaptive.costs, adaptive.costs.table.largest * 2))
    return split


def _item(graph: fx.Graph, called: fx.Node, place: int) -> fx.Node:
    with graph.inserting_after(called):
        return graph.call_function(operator.getitem, (called, place))


class _Preparing(fx.Interpreter):
    """Runs a graph and prepares every piece with the inputs that it gets."""

    def __init__(self, module: fx.GraphModule, prepare: Prepare) -> None:
        super().__init__(module)
        self.prepare = prepare

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        piece = cast(nn.Module, self.fetch_attr(target))
        if isinstance(piece, Switch):
            x, position, _ = args
            piece.head = self.prepare(piece.head, (x, position))
            piece.run, piece.bypass = self.prepare(piece.run, (x,)), self.prepare(piece.bypass, (x,))
        else:
            piece = self.prepare(piece, args)
            setattr(self.module, target, piece)
        return piece(*args)
