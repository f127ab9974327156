"""Tensors on disk: safetensors, hashed when written, and refused before a tensor is touched if they are not what is expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from .errors import InputError, IntegrityError, PartialFailureError
from .files import verify_file, write_bytes

HEADER_LIMIT = 1_000_000
"""Bytes; the largest preset's training state needs a third of it."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name to element type and shape."""


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(path: FilePath, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors atomically; returns the file's SHA-256. Raises PartialFailureError if a number is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise PartialFailureError(
                f"{name} became infinite or NaN: {path} is not written", "train again with a lower learning rate"
            )
    return write_bytes(path, serialise({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def read_layout(path: FilePath, sha256: str, remedy: str) -> Layout:
    """The layout of a file of `write`, after its hash was verified.

    Raises InputError if it is missing, IntegrityError if it is damaged or its header is not a plain one of at most HEADER_LIMIT bytes.
    """
    verify_file(path, sha256, remedy)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(HEADER_LIMIT, size - 8) else b""
    try:
        entries = json.loads(text, object_pairs_hook=_unique)
        entries.pop("__metadata__", None)
        layout = {name: (DTYPES[entry["dtype"]], _integers(entry["shape"])) for name, entry in entries.items()}
        offsets = {name: _integers(entry["data_offsets"]) for name, entry in entries.items()}
        spans = [(0, 0), *sorted(offsets.values())]
        whole = spans[-1][1] == size - 8 - length and all(a[1] == b[0] for a, b in pairwise(spans))
        fits = all(end - begin == _bytes(*layout[name]) for name, (begin, end) in offsets.items())
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: its header is not one of safetensors", remedy) from error
    if not whole or not fits:
        raise IntegrityError(f"{path} is damaged: its tensors do not fill it", remedy)
    return layout


def read(path: FilePath, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file whose layout was read and compared before."""
    return load_file(path, str(device))


def require_layout(have: Layout, want: Layout, source: FilePath, owner: str) -> None:
    """Raise InputError, naming the first difference and counting the others, unless both are the same."""
    names = [name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
    if names:
        name = names[0]
        said = (
            "missing"
            if name not in have
            else "unexpected"
            if name not in want
            else f"{_words(*have[name])}, not {_words(*want[name])}"
        )
        more = f" (and {len(names) - 1} more differences)" if len(names) > 1 else ""
        raise InputError(f"{source} does not hold {owner}: {name} is {said}{more}", "use the settings it was made with")


def _words(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shape}"


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _integers(values: list[Any]) -> tuple[int, ...]:
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("not a whole number")
    return tuple(values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)
