"""Target `coreml`, form adaptive: an .mlpackage whose units are conditions, so that the path is chosen inside, by steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pam_mobile.path import Path

from . import coreml, mil
from .adaptive import Adaptive
from .artifact import STEPWISE, Answer, Info, Part, Request, Runner
from .controller import Costs, require_way
from .quiet import quiet
from .scripted import NUMBER, PATH, POSITION, SPARE, Switch, numbers, script
from .wrapper import ALPHA, IMAGE, TRIMAP

WAYS = (STEPWISE,)


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Convert an Adaptive and write the .mlpackage; `info` and what the host must know become its user-defined metadata.

    Returns the manifest's `backend`.
    """
    (part,) = parts
    adaptive = part.module
    assert isinstance(adaptive, Adaptive)
    with quiet("converting to Core ML"), torch.no_grad():
        convert(adaptive, part, choosing_in_float32()).save(str(path))
        coreml.describe(path, {**info, **adaptive.costs.info(WAYS)})
        coreml.settle(path)
        operations = list(_operations(mil.load(path).functions[mil.MAIN]))
    types = Counter(mil.type_name(op.outputs[0]) for op in operations)
    return {
        "name": "coreml",
        "delegated_ops": len(operations),
        "total_ops": len(operations),
        "leftovers": 0,
        "float32_ops": types["fp32"],
        "float16_ops": types["fp16"],
        "conditions": sum(op.op_type == "cond" for op in operations),
        "min_os": coreml.SINGLE_OS,
    }


def convert(adaptive: Adaptive, part: Part, half: Callable[[Any], bool]) -> Any:
    """The Core ML model. half: selector of the operations that become float16."""
    import coremltools as ct

    colours = ((IMAGE, ct.colorlayout.RGB), (TRIMAP, ct.colorlayout.GRAYSCALE))
    images = [
        ct.ImageType(name=name, shape=tensor.shape, scale=1 / 255, color_layout=layout)
        for (name, layout), tensor in zip(colours, part.inputs, strict=True)
    ]
    return ct.convert(
        script(adaptive, part.inputs),
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=half),
        inputs=[*images, *(ct.TensorType(name=name, shape=NUMBER, dtype=np.float32) for name in (POSITION, SPARE))],
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in (ALPHA, PATH)],
    )


def choosing_in_float32() -> Callable[[Any], bool]:
    """Selector of the operations that may be float16: as of a fixed path, but for what chooses the branches.

    Heads standardise small differences of means, and float16 cannot count what is left of a budget.
    """
    behind = coreml.behind_first_convolution()

    def select(op: Any) -> bool:
        return behind(op) and not _chooses(op)

    return select


def _chooses(op: Any) -> bool:
    """Whether an operation belongs to a Switch, but to none of its branches."""
    scope = [name for names in op.scopes.values() for name in names]
    return Switch.__name__ in scope and "if" not in scope


def load(path: FilePath) -> Runner:
    """A saved package, interpreted with torch; of every condition only the branch that is taken."""
    program, costs = mil.load(path), Costs.of_facts(coreml.facts(path))

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        require_way(request, WAYS)
        position, spare = numbers(costs, request.macs)
        alpha, ran = mil.run(program, {IMAGE: image, TRIMAP: trimap, POSITION: position, SPARE: spare})
        return Answer(alpha, Path(tuple(bool(bit) for bit in ran.flatten())))

    return run


def _operations(block: Any) -> Iterator[Any]:
    for op in block.operations:
        if op.op_type != "const":
            yield op
        for inner in op.blocks:
            yield from _operations(inner)
