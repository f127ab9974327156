"""Target `executorch`, form adaptive: the network's pieces as methods of one .pte, and a host that chooses among them.

`begin` runs up to the first unit, `run_0` or `bypass_0` the first unit and what follows it up to the next, and so on; `plan` scores all
units at once, `select_0` the first one, and so on. `wiring` says which values a method takes. A method is loaded when it is first
needed, so a branch that is never taken costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from pam_mobile.budget import StepPlanner, knapsack
from pam_mobile.path import Path

from . import executorch
from .adaptive import Adaptive, branch, only
from .artifact import PLANNED, STEPWISE, Answer, Info, Part, Request, Runner, floats
from .controller import Costs, require_way
from .quiet import quiet

BEGIN, PLAN, WIRING = "begin", "plan", "wiring"
WAYS = (PLANNED, STEPWISE)


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Lower every piece of an Adaptive and write the .pte; `info` and what the host must know become its constant methods.

    Returns the manifest's `backend`. Raises IntegrityError if an operation is left outside a delegate.
    """
    adaptive, inputs = only(parts)
    with quiet("lowering to ExecuTorch"), executorch.no_collection(), torch.no_grad():
        programs = {
            name: executorch.exported(_ChannelsLast(module), taken) for name, module, taken in methods(adaptive, inputs)
        }
        wiring = {f"{WIRING}_{i}": piece.inputs for i, piece in enumerate(adaptive.pieces())}
        edge = executorch.lower_all(programs, {**info, **adaptive.costs.info(WAYS), **wiring})
        found = [executorch.delegation(edge.exported_program(name).graph_module) for name in programs]
        with open(path, "wb") as file:
            edge.to_executorch(_inputs_stay_where_they_are()).write_to_file(file)
    return executorch.total(found)


def methods(adaptive: Adaptive, inputs: tuple[Tensor, Tensor]) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Name, module and example inputs of every method."""
    values: list[Tensor] = list(inputs)
    position = torch.zeros(1, 1, 1, 1)
    for i, piece in enumerate(adaptive.pieces(), start=-1):
        taken = tuple(values[number] for number in piece.inputs)
        if i < 0:
            module: nn.Module = piece.module
            yield BEGIN, module, taken
        else:
            if i == 0:
                yield PLAN, adaptive.planning, (taken[0], position)
            yield f"select_{i}", adaptive.heads[i], (taken[0], position)
            module = branch(piece.module, False)
            yield f"bypass_{i}", module, taken
            yield f"run_{i}", branch(piece.module, True), taken
        values += _several(_ChannelsLast(module)(*taken))


def load(path: FilePath) -> Runner:
    """A .pte in the ExecuTorch runtime, driven by the planners of pam_mobile.budget with the costs that it holds."""
    inside = executorch.facts(path)
    costs = Costs.of_facts(inside)
    units = len(costs.deltas)
    wiring = [[int(number) for number in inside[f"{WIRING}_{i}"].split(",")] for i in range(units + 1)]
    program = executorch.open_program(path)

    def call(name: str, *inputs: Tensor) -> list[Tensor]:
        # Outputs are copies, and must be: in this runtime all methods of a program work in the same memory.
        return list(program.load_method(name).execute(inputs))

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        require_way(request)
        position = torch.full((1, 1, 1, 1), costs.position(request.macs))
        decide = (
            _planned(costs, request.macs, call) if request.method == PLANNED else _stepwise(costs, request.macs, call)
        )
        told = _told(request.path, units)
        values, bits = [*floats(image, trimap)], []
        values += call(BEGIN, *(values[number] for number in wiring[0]))
        for unit, numbers in enumerate(wiring[1:]):
            taken = [values[number] for number in numbers]
            chosen = decide(unit, taken[0], position)
            bits.append(chosen if told is None else told[unit])
            values += call(f"{'run' if bits[-1] else 'bypass'}_{unit}", *taken)
        return Answer(values[-1], Path(tuple(bits)))

    return run


def _told(path: str, units: int) -> tuple[bool, ...] | None:
    """The decisions of a path that runs whatever was chosen; None if there is no such path."""
    if path and len(path) != units:
        raise ValueError(f"this artifact wants a path of {units} units, not {path}")
    return Path.parse(path).bits if path else None


Call = Callable[..., list[Tensor]]
Decide = Callable[[int, Tensor, Tensor], bool]
"""decide(unit, features that enter it, position of the budget): whether to run it."""


def _planned(costs: Costs, macs: int, call: Call) -> Decide:
    """Decides all units by the planning head when asked about the first. Raises BudgetError if no path fits."""
    costs.table.require(macs, costs.planning)
    path: list[bool] = []

    def decide(unit: int, features: Tensor, position: Tensor) -> bool:
        if unit == 0:
            path[:] = knapsack(call(PLAN, features, position)[0].flatten().tolist(), costs.table, macs - costs.planning)
        return path[unit]

    return decide


def _stepwise(costs: Costs, macs: int, call: Call) -> Decide:
    """Decides every unit by its own head. Raises BudgetError if no path fits."""
    planner = StepPlanner(costs.table, macs)
    return lambda unit, features, position: planner.decide(call(f"select_{unit}", features, position)[0].item())


class _ChannelsLast(nn.Module):
    """A module whose results are channels-last, as XNNPACK computes them: handed on, they need not be transposed.

    One channel or one pixel is both; strides that say so are ambiguous to the runtime, so such results are made plain.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            x.to(memory_format=torch.channels_last)
            if x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1
            else x.to(memory_format=torch.contiguous_format, copy=True)
            for x in _several(self.module(*inputs))
        )


def _several(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _inputs_stay_where_they_are() -> Any:
    """The runtime reads a method's inputs in place: most of them are the results of another method."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    return ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
