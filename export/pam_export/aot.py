"""Targets `executorch-coreml` and `executorch-vulkan`: a .pte for the GPUs and accelerators of phones, lowered ahead of time.

Neither delegate can be loaded here, so these artifacts are converted and not executed; their facts can be read all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch.export import ExportedProgram

from pam_mobile.errors import SetupError

from .artifact import Info, Part
from .executorch import constants, delegation, no_collection, total
from .quiet import quiet
from .rewrite import split_batches
from .scalars import lift_scalars

MIN_OS = "iOS 16"
COREML, VULKAN = "CoreML", "Vulkan"
OTHERWISE = "export it with --target executorch, which keeps it whole, or report it"


def build_coreml(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Lower every part to ExecuTorch's Core ML delegate and write the .pte; `info` becomes its constant methods.

    All of it is float32: the delegate has one precision for a whole network, and float16 ruins the colour prior.
    Returns the manifest's `backend`. Raises IntegrityError if an operation is left outside the delegate.
    """
    return _build(parts, path, info, COREML, _coreml, program) | {"min_os": MIN_OS, "compute_precision": "float32"}


def build_vulkan(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """The same for the Vulkan delegate; its convolutions take one image, so those of a batch are split."""
    return _build(parts, path, info, VULKAN, _vulkan, lambda part: split_batches(program(part)))


def program(part: Part) -> ExportedProgram:
    """A part as these delegates take it."""
    traced = torch.export.export(part.module, part.inputs)
    return torch.export.export(lift_scalars(traced.module(check_guards=False)), part.inputs)


def _build(
    parts: Sequence[Part],
    path: FilePath,
    info: Info,
    backend: str,
    partitioner: Callable[[], Any],
    program: Callable[[Part], ExportedProgram],
) -> dict[str, Any]:
    with quiet(f"lowering to ExecuTorch for {backend}"), no_collection(), torch.no_grad():
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(
            {part.name: program(part) for part in parts},
            partitioner={part.name: [partitioner()] for part in parts},
            constant_methods=constants(info) or None,
        )
        modules = [edge.exported_program(part.name).graph_module for part in parts]
        found = [delegation(module, backend, OTHERWISE) for module in modules]
        with open(path, "wb") as file:
            edge.to_executorch().write_to_file(file)
    return total(found)


def _coreml() -> Any:
    try:
        import coremltools as ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    except ImportError as error:
        raise SetupError(
            f"the Core ML delegate needs coremltools: {error}", "pip install 'pam-mobile[export]'"
        ) from error
    specs = CoreMLBackend.generate_compile_specs(
        compute_precision=ct.precision.FLOAT32,
        compute_unit=ct.ComputeUnit.ALL,
        minimum_deployment_target=ct.target.iOS16,
    )
    return CoreMLPartitioner(compile_specs=specs)


def _vulkan() -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner()
