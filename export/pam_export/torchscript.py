"""Target `torchscript`: a frozen .pt, float32; one network on a fixed path, or one that chooses its path by steps."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from .adaptive import only
from .artifact import STEPWISE, Answer, Info, Part, Request, Runner, floats, text
from .controller import Costs, require_way
from .quiet import quiet
from .scripted import numbers, path_of, script

WAYS = (STEPWISE,)
FACTS = "extra/"
EPOCH = (1980, 1, 1, 0, 0, 0)


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Trace and freeze the part and write the .pt with `info` in its extra files. Returns the manifest's `backend`."""
    (part,) = parts
    with quiet("writing TorchScript"), torch.no_grad(), _clean_slate():
        return _write(torch.jit.trace(part.module, part.inputs, check_trace=False), path, info)


def build_adaptive(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """The same for an Adaptive, scripted; what the host must know goes into the extra files, too."""
    adaptive, inputs = only(parts)
    with quiet("writing TorchScript"), torch.no_grad(), _clean_slate():
        return _write(script(adaptive, inputs), path, {**info, **adaptive.costs.info(WAYS)})


def load(path: FilePath) -> Runner:
    """A .pt with a fixed path, run by PyTorch."""
    module = open_module(path)

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        with torch.no_grad():
            return Answer(module(*floats(image, trimap)))

    return run


def load_adaptive(path: FilePath) -> Runner:
    """A .pt that chooses its path, run by PyTorch."""
    module, costs = open_module(path), Costs.of_facts(facts(path))

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        require_way(request, WAYS)
        with torch.no_grad():
            alpha, ran = module(*floats(image, trimap), *numbers(costs, request.macs))
        return Answer(alpha, path_of(ran))

    return run


def facts(path: FilePath) -> dict[str, str]:
    """What the .pt says about itself: its extra files."""
    with zipfile.ZipFile(path) as file:
        names = {name.split(FACTS, 1)[1]: name for name in sorted(file.namelist()) if f"/{FACTS}" in name}
        return {key: file.read(name).decode() for key, name in names.items()}


def open_module(path: FilePath) -> Any:
    """The script module of a .pt."""
    with quiet("reading TorchScript"):
        return torch.jit.load(path, map_location="cpu")


def _write(module: Any, path: FilePath, info: Info) -> dict[str, Any]:
    frozen = torch.jit.freeze(module.eval())
    buffer = io.BytesIO()
    torch.jit.save(frozen, buffer, _extra_files={key: text(value) for key, value in info.items()})
    _strip(buffer, path)
    count = sum(1 for _ in _operations(frozen.graph))
    return {"name": "torchscript", "delegated_ops": count, "total_ops": count, "leftovers": 0, "min_os": None}


def _operations(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        if node.kind().startswith("aten::"):
            yield node
        for inner in node.blocks():
            yield from _operations(inner)


def _strip(archive: io.BytesIO, path: FilePath) -> None:
    """Write an archive without what is of the machine that made it: source locations, and the hash over them."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if not name.endswith((".debug_pkl", "serialization_id")):
                target.writestr(zipfile.ZipInfo(name, EPOCH), source.read(name))


@contextmanager
def _clean_slate() -> Iterator[None]:
    """What the process did before leaves traces in a file: class names are numbered on, and settings of convolutions are stored."""
    state = torch.jit._state
    units, deterministic = state._python_cu, torch.are_deterministic_algorithms_enabled()
    state._python_cu = torch._C.CompilationUnit()
    torch.use_deterministic_algorithms(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
            yield
    finally:
        state._python_cu = units
        torch.use_deterministic_algorithms(deterministic)
