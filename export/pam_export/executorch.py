"""Target `executorch`: a .pte in which every part is whole inside XNNPACK delegates, at a static shape, in float32 or int8.

A part is a method of the file; the weights of several parts are stored once, and so is their colour prior. The facts are methods,
too, without inputs.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pam_mobile.errors import IntegrityError, UsageError
from pam_mobile.model.prior import ColourPrior

from .artifact import Answer, Info, Part, Request, Runner, floats, text
from .quantize import quantise, report
from .quiet import quiet
from .rewrite import for_xnnpack, means_in_steps
from .scalars import lift_scalars

XNNPACK = "XNNPACK"
TAG, PRIOR = "delegation_tag", "prior"
REWRITE = "this network needs another rewrite for XNNPACK, or another operation; please report it"


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Lower every part for the shapes of its inputs and write the .pte; `info` becomes its constant methods.

    Returns the manifest's `backend`. Raises IntegrityError if an operation is left outside the delegates.
    """
    with quiet("lowering to ExecuTorch"), no_collection(), torch.no_grad():
        programs = {part.name: exported(part.module, part.inputs) for part in parts}
        return _write(programs, path, info, prior_apart=len(parts) > 1)


def build_int8(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """The same with weights and activations in int8, but for the layers that `quantize` keeps in float32.

    The manifest's `backend` says which layers stayed float32, and why. Raises UsageError if a part has no calibration inputs.
    """
    for part in parts:
        if not part.calibration:
            raise UsageError(f"{part.name} has no calibration inputs", "give some that no test uses, or choose fp32")
    with quiet("lowering to ExecuTorch"), no_collection(), torch.no_grad():
        found = [quantise(for_xnnpack(part.module), part.inputs, part.calibration) for part in parts]
        pairs = zip(parts, found, strict=True)
        programs = {part.name: torch.export.export(int8.graph, part.inputs) for part, int8 in pairs}
        return _write(programs, path, info, prior_apart=len(parts) > 1) | report(parts, found)


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The program of a module, rewritten for XNNPACK."""
    program = torch.export.export(for_xnnpack(module), inputs)
    graph = means_in_steps(lift_scalars(program.module(check_guards=False)))
    return torch.export.export(graph, inputs)


def lower_all(programs: Mapping[str, ExportedProgram], info: Info, prior_apart: bool = False) -> Any:
    """The edge program of all methods with everything that XNNPACK takes delegated to it.

    prior_apart: the colour prior, with what it needs, becomes a delegate of its own. It is the same on every path, and of equal
    delegates a file holds one.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class PriorApart(XnnpackPartitioner):
        def partition(self, program: ExportedProgram) -> Any:
            result = super().partition(program)
            for number, node in enumerate(_up_to_prior(program.graph)):
                if TAG in node.meta:
                    result.partition_tags[PRIOR] = result.partition_tags[node.meta[TAG]]
                    # Handles count from the graph's first node on, so those of equal priors would differ.
                    node.meta |= {TAG: PRIOR, "debug_handle": number}
            return result

    kind = PriorApart if prior_apart else XnnpackPartitioner
    return to_edge_transform_and_lower(
        dict(programs),
        partitioner={name: [kind()] for name in programs},
        constant_methods=constants(info) or None,
    )


def _up_to_prior(graph: fx.Graph) -> Collection[fx.Node]:
    """The operations of the colour prior, those that it needs, and the constants that only these use, last ones first."""
    found: dict[fx.Node, None] = {}
    for node in reversed(graph.nodes):
        stack = (node.meta.get("nn_module_stack") or {}).values()
        if node.op == "call_function":
            inside = any(ColourPrior.__name__ in str(kind) for _, kind in stack)
            wanted = inside or any(user in found for user in node.users)
        else:
            wanted = bool(node.users) and all(user in found for user in node.users)
        if wanted:
            found[node] = None
    return found.keys()


def constants(info: Info) -> dict[str, Any]:
    """Facts as constant methods take them."""
    return {key: value if isinstance(value, str | int) else list(value) for key, value in info.items()}


def _write(
    programs: Mapping[str, ExportedProgram], path: FilePath, info: Info, prior_apart: bool = False
) -> dict[str, Any]:
    edge = lower_all(programs, info, prior_apart)
    found = [delegation(edge.exported_program(name).graph_module) for name in programs]
    with open(path, "wb") as file:
        edge.to_executorch().write_to_file(file)
    return total(found)


def delegation(module: fx.GraphModule, backend: str = XNNPACK, remedy: str = REWRITE) -> dict[str, Any]:
    """The manifest's `backend` of one method. Raises IntegrityError if an operation is left outside the delegates."""
    left = Counter(leftovers(module.graph))
    if left:
        named = ", ".join(f"{name} x{count}" for name, count in sorted(left.items()))
        raise IntegrityError(f"{backend} left {left.total()} operations outside its delegate: {named}", remedy)
    lowered: list[Any] = [child for name, child in module.named_children() if name.startswith("lowered_module")]
    inside = sum(node.op == "call_function" for child in lowered for node in child.original_module.graph.nodes)
    return {
        "name": backend.lower(),
        "delegates": len(lowered),
        "delegated_ops": inside,
        "total_ops": inside,
        "leftovers": 0,
        "min_os": None,
    }


def total(methods: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `backend` of a file of several methods."""
    counts = ("delegates", "delegated_ops", "total_ops", "leftovers")
    return methods[0] | {count: sum(method[count] for method in methods) for count in counts}


def leftovers(graph: fx.Graph) -> list[str]:
    """The operations of a lowered graph that run outside the delegates."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    names = [target.__name__ if callable(target) else target for target in targets]
    return [name for name in names if name not in ("executorch_call_delegate", "getitem")]


def load(path: FilePath) -> Runner:
    """A .pte in the ExecuTorch runtime; a method is loaded when it is first asked for."""
    program = open_program(path)
    load_method = cache(program.load_method)

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        return Answer(load_method(request.method).execute(floats(image, trimap))[0].clone())

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the .pte says about itself: its methods without inputs. No other is loaded, so any backend's file can be read."""
    program = open_program(path)
    names = [name for name in sorted(program.method_names) if program.metadata(name).num_inputs() == 0]
    values = {name: program.load_method(name).execute([]) for name in names}
    return {name: text(found[0] if len(found) == 1 else found) for name, found in values.items()}


def open_program(path: FilePath) -> Any:
    """The runtime's program of a .pte, its structure checked. Keep it as long as its methods are used."""
    with quiet("reading ExecuTorch"):
        from executorch.runtime import Runtime, Verification

        return Runtime.get().load_program(path, verification=Verification.InternalConsistency)


@contextmanager
def no_collection() -> Iterator[None]:
    """Lowering makes millions of small objects that live on; looking for garbage among them costs a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
