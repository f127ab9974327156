"""Target `executorch`: a .pte whose whole network is one XNNPACK delegate, float32, static shape."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from pam_mobile.errors import IntegrityError

from .artifact import FORWARD, Answer, Info, Part, Request, Runner, text
from .quiet import quiet
from .rewrite import for_xnnpack
from .scalars import lift_scalars


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Lower the part for the shapes of its inputs and write the .pte; `info` becomes its constant methods.

    Returns the manifest's `backend`. Raises IntegrityError if an operation is left outside the delegate.
    """
    (part,) = parts
    with quiet("lowering to ExecuTorch"), _no_collection(), torch.no_grad():
        edge = lower(part.module, part.inputs, info)
        facts = _delegation(edge.exported_program(FORWARD).graph_module)
        with open(path, "wb") as file:
            edge.to_executorch().write_to_file(file)
    return facts


def lower(module: nn.Module, inputs: tuple[Tensor, ...], info: Info | None = None) -> Any:
    """The edge program of `module` with everything that XNNPACK takes delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(for_xnnpack(module), inputs)
    program = torch.export.export(lift_scalars(program.module(check_guards=False)), inputs)
    return to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods=dict(info) if info else None
    )


def leftovers(graph: fx.Graph) -> list[str]:
    """The operations of a lowered graph that run outside the delegates."""
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return [name for name in names if "executorch_call_delegate" not in name and "getitem" not in name]


def load(path: FilePath) -> Runner:
    """A .pte in the ExecuTorch runtime; a method is loaded when it is first asked for."""
    program = open_program(path)
    load_method = cache(program.load_method)

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        outputs = load_method(request.method).execute((image / 255, trimap / 255))
        return Answer(outputs[0].clone())

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the .pte says about itself: its constant methods."""
    program = open_program(path)
    names = sorted(set(program.method_names) - {FORWARD})
    return {name: text(program.load_method(name).execute([])[0]) for name in names}


def open_program(path: FilePath) -> Any:
    """The runtime's program of a .pte, its structure checked. Keep it as long as its methods are used."""
    with quiet("reading ExecuTorch"):
        from executorch.runtime import Runtime, Verification

        return Runtime.get().load_program(path, verification=Verification.InternalConsistency)


def _delegation(module: fx.GraphModule) -> dict[str, Any]:
    left = leftovers(module.graph)
    if left:
        raise IntegrityError(
            f"XNNPACK left {len(left)} operations outside its delegate: {', '.join(sorted(set(left)))}",
            "this network needs another rewrite for XNNPACK, or another operation; please report it",
        )
    lowered: list[Any] = [child for name, child in module.named_children() if name.startswith("lowered_module")]
    inside = [n for child in lowered for n in child.original_module.graph.nodes if n.op == "call_function"]
    return {
        "name": "xnnpack",
        "delegates": len(lowered),
        "delegated_ops": len(inside),
        "total_ops": len(inside) + len(left),
        "leftovers": len(left),
        "min_os": None,
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Lowering makes millions of small objects that live on; looking for garbage among them costs a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
