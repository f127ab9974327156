"""Target `executorch`: a .pte whose whole network is one XNNPACK delegate, float32, static shape."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, fx, nn

from pam_mobile.errors import IntegrityError

from .quiet import quiet
from .rewrite import for_xnnpack
from .scalars import lift_scalars

FORWARD = "forward"


def build(
    module: nn.Module, inputs: tuple[Tensor, Tensor], path: FilePath, info: Mapping[str, str | int]
) -> dict[str, Any]:
    """Lower `module` for the shapes of `inputs` and write the .pte; `info` becomes its constant methods.

    Returns the manifest's `backend`. Raises IntegrityError if an operation is left outside the delegate.
    """
    with quiet("lowering to ExecuTorch"), _no_collection(), torch.no_grad():
        edge = lower(module, inputs, info)
        facts = _delegation(edge.exported_program(FORWARD).graph_module)
        with open(path, "wb") as file:
            edge.to_executorch().write_to_file(file)
    return facts


def lower(module: nn.Module, inputs: tuple[Tensor, ...], info: Mapping[str, str | int] | None = None) -> Any:
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


def execute(path: FilePath, images: Tensor, trimaps: Tensor) -> Tensor:
    """Run a .pte in the ExecuTorch runtime, image by image.

    images: (n, 3, H, W) uint8; trimaps: (n, 1, H, W) uint8. Returns alphas (n, 1, H, W) float32.
    """
    with quiet("running ExecuTorch"):
        program = load(path)
        method = program.load_method(FORWARD)
        pairs = zip(images.split(1), trimaps.split(1), strict=True)
        return torch.cat([method.execute((image / 255, trimap / 255))[0].clone() for image, trimap in pairs])


def facts(path: FilePath) -> dict[str, str]:
    """What the .pte says about itself: its constant methods."""
    with quiet("reading ExecuTorch"):
        program = load(path)
        names = sorted(set(program.method_names) - {FORWARD})
        return {name: str(program.load_method(name).execute([])[0]) for name in names}


def load(path: FilePath) -> Any:
    """The runtime's program of a .pte, its structure checked. Keep it as long as its methods are used."""
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
