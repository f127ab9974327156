"""An interpreter of Core ML's MIL programs with torch, to check a package where Core ML does not exist.

It checks graph and weights. Results are rounded to each operation's type; how a Neural Engine or GPU rounds inside an
operation is unknown to it. An operation or mode that it does not know is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TYPES = {"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}
MAIN = "main"
"""The function of a package that has only one."""


def load(path: FilePath) -> Any:
    """The MIL program of a saved .mlpackage."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load as load_proto

    model = ct.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return load_proto(
        spec, specification_version=spec.specificationVersion, file_weights_dir=getattr(model, "weights_dir", None)
    )


def run(program: Any, inputs: Mapping[str, Tensor], function: str = MAIN) -> list[Tensor]:
    """Float32 outputs of a function of a program. inputs: images as 0..255, by name.

    Raises NotImplementedError for an unknown operation, ValueError if there is no such function or a result has another shape
    than the program says.
    """
    if function not in program.functions:
        raise ValueError(f"the program has no function {function}, it has {', '.join(sorted(program.functions))}")
    main = program.functions[function]
    values = {id(var): inputs[name].float() for name, var in main.inputs.items()}
    _run_block(main, values)
    return [values[id(var)].float() for var in main.outputs]


def _run_block(block: Any, values: dict[int, Tensor]) -> None:
    """Add the outputs of a function or of a branch to `values`."""
    last_use = _last_uses(block)
    for position, op in enumerate(block.operations):
        if op.op_type == "cond":
            _choose(op, values)
        elif op.op_type != "const":
            values[id(op.outputs[0])] = _evaluate(op, values)
        for key in last_use.get(position, ()):
            values.pop(key, None)


def _choose(op: Any, values: dict[int, Tensor]) -> None:
    """Run the branch of a condition that is taken, and no other."""
    taken = op.blocks[0 if bool(values[id(op.inputs["pred"])]) else 1]
    inside = dict(values)
    _run_block(taken, inside)
    values |= {id(out): inside[id(var)] for out, var in zip(op.outputs, taken.outputs, strict=True)}


def type_name(var: Any) -> str:
    """`fp16`, `fp32`, ... of a MIL variable."""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def _last_uses(block: Any) -> dict[int, list[int]]:
    """Which values nobody needs after the operation at a position, so that memory stays bounded."""
    last = {id(var): position for position, op in enumerate(block.operations) for var in _needed(op)}
    kept = {id(var) for var in block.outputs}
    uses: dict[int, list[int]] = {}
    for key, position in last.items():
        if key not in kept:
            uses.setdefault(position, []).append(key)
    return uses


def _needed(op: Any) -> Iterator[Any]:
    """The variables that an operation reads, those in its branches included."""
    for value in op.inputs.values():
        yield from value if isinstance(value, list | tuple) else (value,)
    for branch in op.blocks:
        for inner in branch.operations:
            yield from _needed(inner)
        yield from branch.outputs


def _evaluate(op: Any, values: Mapping[int, Tensor]) -> Tensor:
    if op.op_type not in OPERATIONS or len(op.outputs) != 1:
        raise NotImplementedError(f"MIL operation {op.op_type} ({op.name}) is not known to the interpreter")
    result = OPERATIONS[op.op_type](Arguments(op, values))
    (out,) = op.outputs
    if tuple(result.shape) != tuple(out.shape):
        raise ValueError(f"{op.op_type} ({op.name}) gives {tuple(result.shape)}, the program says {tuple(out.shape)}")
    name = type_name(out)
    if name not in TYPES:
        raise NotImplementedError(f"MIL type {name} ({op.op_type}, {op.name}) is not known to the interpreter")
    return result.to(TYPES[name])


class Arguments:
    """The inputs of one operation by name, computed or constant; float16 is computed with in float32."""

    def __init__(self, op: Any, values: Mapping[int, Tensor]) -> None:
        self.op = op
        self.values = values

    def tensor(self, name: str) -> Tensor:
        return self._tensor(self.op.inputs[name])

    def tensors(self, name: str) -> list[Tensor]:
        return [self._tensor(var) for var in self.op.inputs[name]]

    def maybe(self, name: str) -> Tensor | None:
        return self.tensor(name) if self.op.inputs.get(name) is not None else None

    def constant(self, name: str, default: Any = None) -> Any:
        var = self.op.inputs.get(name)
        return default if var is None else var.val

    def ints(self, name: str, default: list[int]) -> list[int]:
        return [int(value) for value in np.atleast_1d(self.constant(name, default))]

    def only(self, name: str, allowed: Any) -> None:
        """Refuse an argument with another value."""
        value = self.constant(name, allowed)
        if np.any(np.asarray(value) != allowed):
            raise NotImplementedError(f"MIL {self.op.op_type} ({self.op.name}) with {name} = {value} is not known")

    def padding(self) -> tuple[int, int, int, int]:
        """(left, right, top, bottom) as torch wants it; MIL stores top, bottom, left, right."""
        if self.constant("pad_type") == "valid":
            return 0, 0, 0, 0
        self.only("pad_type", "custom")
        top, bottom, left, right = self.ints("pad", [0, 0, 0, 0])
        return left, right, top, bottom

    def _tensor(self, var: Any) -> Tensor:
        value = self.values[id(var)] if id(var) in self.values else torch.as_tensor(np.array(var.val))
        return value.float()


def _conv(a: Arguments) -> Tensor:
    x = F.pad(a.tensor("x"), a.padding())
    strides, dilations, groups = a.ints("strides", [1, 1]), a.ints("dilations", [1, 1]), a.ints("groups", [1])
    return F.conv2d(x, a.tensor("weight"), a.maybe("bias"), strides, 0, dilations, groups[0])


def _avg_pool(a: Arguments) -> Tensor:
    a.only("ceil_mode", False)
    x, padding = a.tensor("x"), a.padding()
    kernel, strides = a.ints("kernel_sizes", []), a.ints("strides", [1, 1])
    mean = F.avg_pool2d(F.pad(x, padding), kernel, strides)
    if not any(padding) or not a.constant("exclude_padding_from_average", False):
        return mean
    covered = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), padding), kernel, strides)
    return mean / covered


def _upsample_bilinear(a: Arguments) -> Tensor:
    factors = [float(a.constant("scale_factor_height", 1)), float(a.constant("scale_factor_width", 1))]
    corners = bool(a.constant("align_corners", True))
    return F.interpolate(a.tensor("x"), scale_factor=factors, mode="bilinear", align_corners=corners)


def _slice_by_index(a: Arguments) -> Tensor:
    x = a.tensor("x")
    rank = x.dim()
    begin, end, stride = a.ints("begin", []), a.ints("end", []), a.ints("stride", [1] * rank)
    open_begin, open_end = a.ints("begin_mask", [0] * rank), a.ints("end_mask", [0] * rank)
    a.only("squeeze_mask", False)
    if min(stride) < 1:
        raise NotImplementedError(f"MIL slice_by_index ({a.op.name}) with stride {stride} is not known")
    return x[
        tuple(
            slice(None if open_begin[i] else begin[i], None if open_end[i] else end[i], stride[i]) for i in range(rank)
        )
    ]


def _pad(a: Arguments) -> Tensor:
    a.only("mode", "constant")
    pairs = np.reshape(a.ints("pad", []), (-1, 2))[::-1]
    return F.pad(a.tensor("x"), [int(n) for n in pairs.ravel()], value=float(a.constant("constant_val", 0.0)))


def _concat(a: Arguments) -> Tensor:
    a.only("interleave", False)
    return torch.cat(a.tensors("values"), a.ints("axis", [])[0])


def _squeeze(a: Arguments) -> Tensor:
    x = a.tensor("x")
    return x.squeeze(tuple(a.ints("axes", list(range(x.dim())))))


def _reduce_mean(a: Arguments) -> Tensor:
    return a.tensor("x").mean(a.ints("axes", []), keepdim=bool(a.constant("keep_dims", False)))


def _affine_dequantize(a: Arguments) -> Tensor:
    """A weight of 8 bits, with scale and zero point per tensor or along one axis."""
    shape = [1] * a.tensor("quantized_data").dim()
    shape[a.ints("axis", [0])[0]] = -1
    scale, zero = a.tensor("scale").reshape(shape), a.tensor("zero_point").reshape(shape)
    return (a.tensor("quantized_data") - zero) * scale


def _lut_to_dense(a: Arguments) -> Tensor:
    """A weight of indices into a palette, whose bits follow each other through the bytes, lowest first."""
    palette, shape = a.tensor("lut"), a.ints("shape", [])
    bits, count = (len(palette) - 1).bit_length(), int(np.prod(shape))
    stream = np.unpackbits(np.asarray(a.constant("indices"), np.uint8), count=bits * count, bitorder="little")
    indices = stream.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))
    return palette[torch.as_tensor(indices)].reshape(shape)


WEIGHTS: dict[str, Callable[[Arguments], Tensor]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_lut_to_dense": _lut_to_dense,
}
"""Operations that expand a compressed weight."""

OPERATIONS: dict[str, Callable[[Arguments], Tensor]] = WEIGHTS | {
    "add": lambda a: a.tensor("x") + a.tensor("y"),
    "sub": lambda a: a.tensor("x") - a.tensor("y"),
    "mul": lambda a: a.tensor("x") * a.tensor("y"),
    "real_div": lambda a: a.tensor("x") / a.tensor("y"),
    "maximum": lambda a: torch.maximum(a.tensor("x"), a.tensor("y")),
    "minimum": lambda a: torch.minimum(a.tensor("x"), a.tensor("y")),
    "clip": lambda a: a.tensor("x").clamp(float(a.constant("alpha")), float(a.constant("beta"))),
    "relu": lambda a: a.tensor("x").relu(),
    "sigmoid": lambda a: a.tensor("x").sigmoid(),
    "cast": lambda a: a.tensor("x"),
    "identity": lambda a: a.tensor("x"),
    "conv": _conv,
    "avg_pool": _avg_pool,
    "upsample_bilinear": _upsample_bilinear,
    "slice_by_index": _slice_by_index,
    "pad": _pad,
    "concat": _concat,
    "reduce_mean": _reduce_mean,
    "abs": lambda a: a.tensor("x").abs(),
    "squeeze": _squeeze,
    "greater": lambda a: a.tensor("x") > a.tensor("y"),
    "greater_equal": lambda a: a.tensor("x") >= a.tensor("y"),
}
