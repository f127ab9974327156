"""Target `executorch-cond`: a .pte with one method that chooses its path inside, by steps; every piece is an XNNPACK delegate.

XNNPACK does not look into conditions, so every piece is lowered first and called in its branch. Memory is planned naively: the usual
planner gives values of different branches the same place, and results are silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import executorch
from .adaptive import only
from .artifact import FORWARD, STEPWISE, Answer, Info, Part, Request, Runner, floats
from .controller import Costs, require_way
from .quiet import quiet
from .scripted import Switch, driver, numbers, path_of

WAYS = (STEPWISE,)


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Lower an Adaptive and write the .pte; `info` and what the host must know become its constant methods.

    Returns the manifest's `backend`; what is left outside the delegates counts the budget and copies the results of branches.
    Raises IntegrityError if an operation of the network is left outside.
    """
    adaptive, inputs = only(parts)
    lowered: list[Lowered] = []

    def lower(module: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
        lowered.append(Lowered(module, inputs))
        return lowered[-1]

    with quiet("lowering to ExecuTorch"), executorch.no_collection(), torch.no_grad():
        graph = driver(adaptive, inputs, lower, Condition)
        budget = numbers(adaptive.costs, 2 * adaptive.costs.table.largest)
        program = torch.export.export(graph, (*inputs, *budget), strict=True)
        constants = executorch.constants({**info, **adaptive.costs.info(WAYS)})
        edge = _to_edge(program, constants)
        outside = _outside(edge.exported_program().graph_module)
        with open(path, "wb") as file:
            edge.to_executorch(_naive()).write_to_file(file)
    found = executorch.total([piece.backend for piece in lowered])
    return found | {"total_ops": found["delegated_ops"] + outside, "leftovers": outside}


def load(path: FilePath) -> Runner:
    """A .pte in the ExecuTorch runtime."""
    program, costs = executorch.open_program(path), Costs.of_facts(executorch.facts(path))

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        require_way(request, WAYS)
        inputs = (*floats(image, trimap), *numbers(costs, request.macs))
        alpha, ran = program.load_method(FORWARD).execute(inputs)
        return Answer(alpha, path_of(ran))

    return run


class Condition(Switch):
    """The choice as an operation that export keeps; run eagerly, the unit always runs."""

    def forward(self, x: Tensor, position: Tensor, spare: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = (self.head(x, position) > 0).to(torch.float32)
        ran = wanted * (spare >= self.step).to(torch.float32)
        if torch.compiler.is_dynamo_compiling():
            y = torch.cond(
                (ran > 0.5).reshape(()), lambda t: self.run(t).clone(), lambda t: self.bypass(t).clone(), (x,)
            )
        else:
            y = self.run(x)
        return y, spare - ran * self.step, ran


class Lowered(nn.Module):
    """A piece as one XNNPACK delegate, called as the piece is.

    A delegate takes its inputs in the order of first use, constants among them, and returns its results in an order of its own.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        program = executorch.lower_all({FORWARD: executorch.exported(_Named(module), inputs)}, {}).exported_program()
        graph, signature = program.graph_module, program.graph_signature
        self.backend = executorch.delegation(graph)
        (name,) = [name for name, _ in graph.named_children() if name.startswith("lowered_module")]
        self.delegate = getattr(graph, name)
        (call,) = [node for node in graph.graph.nodes if "executorch_call_delegate" in str(node.target)]
        held = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
        values = {**program.constants, **program.state_dict}
        order = list(signature.user_inputs)
        for node in call.args[1:]:
            if node.name in held:
                self.register_buffer(node.name, values[held[node.name]].clone())
        self.order = [order.index(node.name) if node.name in order else node.name for node in call.args[1:]]
        self.results = [node.args[1] for node in graph.graph.output_node().args[0]]

    def forward(self, *inputs: Tensor) -> Any:
        taken = [inputs[place] if isinstance(place, int) else getattr(self, place) for place in self.order]
        results = self.delegate(*taken)
        return results[self.results[0]] if len(self.results) == 1 else tuple(results[place] for place in self.results)


class _Named(nn.Module):
    """Lowering fails at modules whose children have numbers for names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _to_edge(program: Any, constants: dict[str, Any]) -> Any:
    from executorch.exir import EdgeCompileConfig, to_edge

    # Delegates are no operations that the check knows.
    return to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False), constant_methods=constants)


def _outside(graph: fx.GraphModule) -> int:
    """How many operations are outside delegates, those of branches included."""
    inner = [child for name, child in graph.named_children() if isinstance(child, fx.GraphModule)]
    return len(executorch.leftovers(graph.graph)) + sum(_outside(child) for child in inner)


def _naive() -> Any:
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite, naive
    from executorch.exir.passes import MemoryPlanningPass

    planning = MemoryPlanningPass(memory_planning_algo=MemoryPlanningAlgorithmSuite([naive]))
    return ExecutorchBackendConfig(memory_planning_pass=planning)
