"""Target `coreml`: an .mlpackage with image inputs for iOS 16, or with one function per budget and size for iOS 18.

Precisions: float16 where float16 is enough; large weights may moreover be stored in 8 or 6 bits, which Core ML expands.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path as FilePath
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import torch
from torch import nn

from . import mil
from .artifact import FORWARD, Answer, Info, Pair, Part, Request, Runner, text
from .quiet import quiet
from .wrapper import ALPHA, IMAGE, TRIMAP

SINGLE_OS, SHARED_OS = "iOS 16", "iOS 18"
FIRST, LAST = 1, 2
"""Large convolutions at the beginning and at the end that stay float32."""
COMPRESSED_FROM = 2048
"""Weights with fewer elements stay float16."""
SPEC, ITEMS = "Data/com.apple.CoreML/model.mlmodel", "Manifest.json"
DEBUG = "executorch_debug_handle_mapping.json"
WEIGHT = "weight"
Compress = Callable[[Any], Any]
Select = Callable[[Any], bool]
"""Of operations of a MIL program."""


def build(parts: Sequence[Part], path: FilePath, info: Info, compress: Compress | None = None) -> dict[str, Any]:
    """Convert every part for the shapes of its inputs and write the .mlpackage; `info` becomes its user-defined metadata.

    A part named `forward` makes a package of its own; others become functions of one package, which stores a weight once.
    Returns the manifest's `backend`.
    """
    shared = [part.name for part in parts] != [FORWARD]
    with quiet("converting to Core ML"), torch.no_grad():
        models = [convert(part.module, part.inputs) for part in parts]
        if compress:
            models = [compress(model) for model in models]
        if shared:
            _save_functions({part.name: model for part, model in zip(parts, models, strict=True)}, path)
        else:
            models[0].save(str(path))
        return finish(path, info) | {"min_os": SHARED_OS if shared else SINGLE_OS}


def convert(module: nn.Module, inputs: Pair, half: Select | None = None) -> Any:
    """The Core ML model. half: selector of the operations that become float16, `between_convolutions` if None."""
    # Not torch.jit.trace: it keeps sizes as tensors, on which the converter fails where the prior pads an odd size.
    program = torch.export.export(module, inputs).run_decompositions({})
    return to_model(program, inputs, half or between_convolutions())


def to_model(
    program: Any, inputs: Pair, half: Select, numbers: Sequence[str] = (), outputs: Sequence[str] = (ALPHA,)
) -> Any:
    """The Core ML model of an exported or scripted program.

    numbers: names of inputs (1, 1, 1, 1) that follow image and trimap; all outputs are float32.
    """
    import coremltools as ct

    colours = ((IMAGE, ct.colorlayout.RGB), (TRIMAP, ct.colorlayout.GRAYSCALE))
    images = [
        ct.ImageType(name=name, shape=tensor.shape, scale=1 / 255, color_layout=layout)
        for (name, layout), tensor in zip(colours, inputs, strict=True)
    ]
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=half),
        inputs=[*images, *(ct.TensorType(name=name, shape=(1, 1, 1, 1), dtype=np.float32) for name in numbers)],
        outputs=[ct.TensorType(name=name, dtype=np.float32) for name in outputs],
    )


def finish(path: FilePath, info: Info) -> dict[str, Any]:
    """Describe and settle a saved package. Returns the manifest's `backend`."""
    describe(path, info)
    settle(path)
    program = mil.load(path)
    types = Counter(operation_types(program))
    total = types.total() - types[WEIGHT]
    return {
        "name": "coreml",
        "delegated_ops": total,
        "total_ops": total,
        "leftovers": 0,
        "float32_ops": types["fp32"],
        "float16_ops": types["fp16"],
        "compressed_weights": types[WEIGHT],
        "conditions": sum(op.op_type == "cond" for op in operations(program)),
    }


def between_convolutions(first: int = FIRST, last: int = LAST) -> Select:
    """Selector of the operations that may be float16: those behind the `first` convolutions with a kernel above 1 and before the
    `last`, but for maps of one pixel.

    What lies before stays float32: the colour prior, which inverts 3x3 matrices and divides by small weights, and has 1x1
    convolutions only; and the network's first convolution, whose rounded weights would cause most of a matte's error. What lies
    behind goes into alpha as it is rounded. Means over all pixels and what is made of them move the whole image at once.
    """
    before: dict[str, int] = {}
    after: dict[str, int] = {}

    def passed(op: Any) -> int:
        if op.name not in before:
            before[op.name] = max(
                (passed(parent) + _is_large_convolution(parent) for parent in _parents(op)), default=0
            )
        return before[op.name]

    def ahead(op: Any) -> int:
        if op.name not in after:
            after[op.name] = max((ahead(child) + _is_large_convolution(child) for child in _children(op)), default=0)
        return after[op.name]

    return lambda op: passed(op) >= first and ahead(op) >= last and not _has_one_pixel(op)


def _has_one_pixel(op: Any) -> bool:
    return all(tuple(value.shape[2:]) == (1, 1) for value in op.outputs)


def _is_large_convolution(op: Any) -> bool:
    return op.op_type == "conv" and max(op.inputs["weight"].shape[2:]) > 1


def _children(op: Any) -> list[Any]:
    """What reads the results of an operation; what a branch ends with, its condition hands on."""
    block, results = op.enclosing_block, op.outputs
    handed = [block.outer_op] if block.outer_op and any(value in block.outputs for value in results) else []
    return [child for value in results for child in value.child_ops] + handed


def _parents(op: Any) -> list[Any]:
    values = [v for value in op.inputs.values() for v in (value if isinstance(value, list | tuple) else [value])]
    return [value.op for value in values if value is not None and value.op is not None]


def linear8(model: Any) -> Any:
    """Large weights as int8 with one scale per output channel."""
    import coremltools.optimize.coreml as cto

    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=COMPRESSED_FROM)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))


def palette6(model: Any) -> Any:
    """Large weights as 6-bit indices into a palette of 64 values per tensor, found by k-means in one dimension, which is exact."""
    import coremltools.optimize.coreml as cto

    config = cto.OpPalettizerConfig(mode="kmeans", nbits=6, weight_threshold=COMPRESSED_FROM)
    return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config))


build_linear8 = partial(build, compress=linear8)
build_palette6 = partial(build, compress=palette6)


def _save_functions(models: dict[str, Any], path: FilePath) -> None:
    import coremltools as ct

    with tempfile.TemporaryDirectory(prefix="pam-coreml-") as folder:
        functions = ct.utils.MultiFunctionDescriptor()
        for name, model in models.items():
            single = f"{folder}/{name}.mlpackage"
            model.save(single)
            functions.add_function(single, src_function_name="main", target_function_name=name)
        functions.default_function_name = next(iter(models))
        ct.utils.save_multifunction(functions, str(path))


def describe(path: FilePath, info: Info) -> None:
    """Make `info` the user-defined metadata of a saved package, and its program short and always the same.

    What its models had would be lost where they are put together; what the converter left is a date, another one every day.
    """
    import coremltools as ct

    spec = ct.proto.Model_pb2.Model.FromString((path / SPEC).read_bytes())
    for function in spec.mlProgram.functions.values():
        names = {value.name: value.name for value in function.inputs}
        for block in function.block_specializations.values():
            _shorten(block, names | {name: name for name in block.outputs}, count())
    spec.description.metadata.shortDescription = "Path-adaptive image matting"
    spec.description.metadata.userDefined.clear()
    spec.description.metadata.userDefined.update({key: text(value) for key, value in info.items()})
    (path / SPEC).write_bytes(spec.SerializeToString(deterministic=True))


def _shorten(block: Any, names: dict[str, str], numbers: Iterator[int]) -> None:
    """Number the values of a block and its branches in order, but for those in `names`, and keep equal constants once.

    The converter has numbers, too, but counts all programs of a process; its names and constants are half of a program's text.
    """
    constants: dict[bytes, str] = {}
    operations = list(block.operations)
    del block.operations[:]
    for op in operations:
        if op.type == "const":
            name = op.outputs[0].name
            first = constants.setdefault(op.attributes["val"].SerializeToString(deterministic=True), name)
            if first != name:
                names[name] = names[first]
                continue
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = names[binding.name]
        for branch in op.blocks:
            _shorten(branch, dict(names), numbers)
        for value in op.outputs:
            value.name = names.setdefault(value.name, f"v{next(numbers)}")
        op.attributes["name"].immediateValue.tensor.strings.values[:] = [op.outputs[0].name]
        block.operations.append(op)
    block.outputs[:] = [names[name] for name in block.outputs]


def settle(path: FilePath) -> None:
    """Make a saved package the same every time: identifiers from the names of its items, and no file for debuggers."""
    (path / DEBUG).unlink(missing_ok=True)
    content = (path / ITEMS).read_text(encoding="utf-8")
    for identifier, item in json.loads(content)["itemInfoEntries"].items():
        content = content.replace(identifier, str(uuid5(NAMESPACE_URL, item["path"])))
    ordered = json.dumps(json.loads(content), indent=4, sort_keys=True)
    (path / ITEMS).write_text(ordered, encoding="utf-8")


def operation_types(program: Any) -> list[str]:
    """Of every operation of a MIL program its result type, or `weight` if it only expands a compressed weight."""
    return [WEIGHT if op.op_type in mil.WEIGHTS else mil.type_name(op.outputs[0]) for op in operations(program)]


def operations(program: Any) -> Iterator[Any]:
    """Every operation of a MIL program that is no constant, those of branches included."""
    blocks = list(program.functions.values())
    while blocks:
        for op in blocks.pop().operations:
            if op.op_type != "const":
                yield op
            blocks += op.blocks


def load(path: FilePath) -> Runner:
    """A saved package, interpreted with torch."""
    program = mil.load(path)

    def run(image: torch.Tensor, trimap: torch.Tensor, request: Request) -> Answer:
        function = mil.MAIN if request.method == FORWARD else request.method
        return Answer(mil.run(program, {IMAGE: image, TRIMAP: trimap}, function)[0])

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the package says about itself: its user-defined metadata."""
    import coremltools as ct

    return dict(ct.models.MLModel(str(path), skip_model_load=True).user_defined_metadata)
