"""Target `onnx`: an .onnx of one path for browsers (onnxruntime-web) and ONNX Runtime, float32 or int8, static shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from pam_mobile.errors import IntegrityError

from .artifact import Answer, Info, Pair, Part, Request, Runner, floats, text
from .quiet import quiet
from .wrapper import ALPHA, IMAGE, TRIMAP

OPSET = 18
THREADS = 1
FLOAT = frozenset(
    [
        "Conv",
        "Relu",
        "Sigmoid",
        "Clip",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Concat",
        "Slice",
        "Pad",
        "AveragePool",
        "ReduceMean",
        "Resize",
    ]
)
"""Operations that were seen running in a browser; `python -m pam_export.webpage` shows it again."""
STORED = frozenset(("QuantizeLinear", "DequantizeLinear"))
QUANTISED = ["Conv", "Relu"]


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Convert the part for the shapes of its inputs and write the .onnx; `info` becomes its metadata.

    Returns the manifest's `backend`. Raises IntegrityError if an operation is none of those known to run in browsers.
    """
    (part,) = parts
    with quiet("converting to ONNX"), torch.no_grad():
        return _write(convert(part.module, part.inputs), path, info)


def build_int8(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """As `build`, with int8 weights (one scale per output channel) and int8 activations in the middle of the network.

    Ranges of activations are those of the part's calibration inputs.
    """
    (part,) = parts
    if not part.calibration:
        raise ValueError("int8 needs calibration inputs")
    with quiet("converting to ONNX"), torch.no_grad():
        return _write(quantise(convert(part.module, part.inputs), part.calibration), path, info)


def convert(module: nn.Module, inputs: Pair) -> Any:
    """The ONNX model."""
    program = torch.onnx.export(
        torch.export.export(module, inputs),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        input_names=[IMAGE, TRIMAP],
        output_names=[ALPHA],
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def quantise(model: Any, calibration: Sequence[Pair]) -> Any:
    """The model with int8 convolutions.

    Colour prior, masks, first and last convolution and what follows stay float32: with the last one in int8 a matte's mean
    error would be nine times as large.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="pam-onnx-") as folder:
        quantised = FilePath(folder) / "quantised.onnx"
        quantize_static(
            model,
            quantised,
            _reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: pairs of products overflow 16 bits on x86 without VNNI (docs/findings.md)
            nodes_to_quantize=between_convolutions(model.graph),
        )
        return onnx.load(quantised)


def between_convolutions(graph: Any) -> list[str]:
    """The nodes behind the first and before the last convolution with a kernel above 1, by name."""
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    large = [i for i, node in enumerate(graph.node) if node.op_type == "Conv" and max(shapes[node.input[1]][2:]) > 1]
    return [node.name for node in graph.node[large[0] + 1 : large[-1]]]


def _reader(pairs: Sequence[Pair]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = (_feed(*pair) for pair in pairs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    return Reader()


def _feed(image: Tensor, trimap: Tensor) -> dict[str, Any]:
    return {IMAGE: image.numpy(), TRIMAP: trimap.numpy()}


def _write(model: Any, path: FilePath, info: Info) -> dict[str, Any]:
    import onnx

    graph = model.graph
    types = [node.op_type for node in graph.node]
    unknown = set(types) - FLOAT - STORED
    if unknown:
        raise IntegrityError(
            f"operations that are not known to run in browsers: {', '.join(sorted(unknown))}",
            "this network needs another rewrite for ONNX, or another operation; please report it",
        )
    # Stack traces with the paths of this machine, and shapes that every runtime infers.
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.doc_string = ""
    del graph.value_info[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: text(value) for key, value in sorted(info.items())})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    computed = len([name for name in types if name in FLOAT])
    return {
        "name": "onnxruntime",
        "delegated_ops": computed,
        "total_ops": computed,
        "leftovers": 0,
        "quantised_convolutions": _quantised(graph),
        "opset": OPSET,
        "min_os": None,
    }


def _quantised(graph: Any) -> int:
    """How many convolutions have an int8 weight."""
    expanded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return len([node for node in graph.node if node.op_type == "Conv" and node.input[1] in expanded])


def load(path: FilePath) -> Runner:
    """An .onnx in ONNX Runtime on the CPU, with a fixed number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        (alpha,) = session.run([ALPHA], _feed(*floats(image, trimap)))
        return Answer(torch.from_numpy(alpha))

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the .onnx says about itself: its metadata."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
