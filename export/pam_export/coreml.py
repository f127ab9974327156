"""Target `coreml`: an .mlpackage for iOS 16 with image inputs, float16 where float16 is enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pam_mobile.model.prior import ColourPrior

from . import mil
from .artifact import Answer, Info, Part, Request, Runner, text
from .quiet import quiet
from .wrapper import ALPHA, IMAGE, TRIMAP

MIN_OS = "iOS 16"


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Convert the part for the shapes of its inputs and write the .mlpackage; `info` becomes its user-defined metadata.

    Returns the manifest's `backend`.
    """
    (part,) = parts
    with quiet("converting to Core ML"), torch.no_grad():
        model = convert(part.module, part.inputs)
        model.short_description = f"Path-adaptive image matting, path {info.get('path', '?')}"
        model.user_defined_metadata.update({key: text(value) for key, value in info.items()})
        model.save(str(path))
        types = Counter(operation_types(model._mil_program))
    total = sum(types.values())
    return {
        "name": "coreml",
        "delegated_ops": total,
        "total_ops": total,
        "leftovers": 0,
        "float32_ops": types["fp32"],
        "float16_ops": types["fp16"],
        "min_os": MIN_OS,
    }


def convert(module: nn.Module, inputs: tuple[Tensor, Tensor], keep_prior: bool = True) -> Any:
    """The Core ML model. keep_prior: False forces float16 on the colour prior too, which ruins it; for the test that shows it."""
    import coremltools as ct

    traced = torch.jit.trace(module, inputs, check_trace=False)
    colours = ((IMAGE, ct.colorlayout.RGB), (TRIMAP, ct.colorlayout.GRAYSCALE))
    has_prior = any(isinstance(child, ColourPrior) for child in module.modules())
    selector = behind_convolution() if has_prior and keep_prior else None
    return ct.convert(
        traced,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=selector),
        inputs=[
            ct.ImageType(name=name, shape=tensor.shape, scale=1 / 255, color_layout=layout)
            for (name, layout), tensor in zip(colours, inputs, strict=True)
        ],
        outputs=[ct.TensorType(name=ALPHA, dtype=np.float32)],
    )


def behind_convolution() -> Callable[[Any], bool]:
    """Selector of the operations that may be float16: those at or behind a convolution with a kernel above 1.

    The colour prior inverts 3x3 matrices and divides by small weights; it has 1x1 convolutions only and lies before the
    network's first larger one, so all of it stays float32.
    """
    known: dict[str, bool] = {}

    def select(op: Any) -> bool:
        if op.name not in known:
            known[op.name] = _is_large_convolution(op) or any(select(parent) for parent in _parents(op))
        return known[op.name]

    return select


def _is_large_convolution(op: Any) -> bool:
    return op.op_type == "conv" and max(op.inputs["weight"].shape[2:]) > 1


def _parents(op: Any) -> list[Any]:
    values = [v for value in op.inputs.values() for v in (value if isinstance(value, list | tuple) else [value])]
    return [value.op for value in values if value is not None and value.op is not None]


def operation_types(program: Any) -> list[str]:
    """The result type of every operation of a MIL program that is not a constant."""
    operations = program.functions["main"].operations
    return [mil.type_name(op.outputs[0]) for op in operations if op.op_type != "const"]


def load(path: FilePath) -> Runner:
    """A saved package, interpreted with torch."""
    program = mil.load(path)

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        return Answer(mil.run(program, {IMAGE: image, TRIMAP: trimap})[0])

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the package says about itself: its user-defined metadata."""
    import coremltools as ct

    return dict(ct.models.MLModel(str(path), skip_model_load=True).user_defined_metadata)
