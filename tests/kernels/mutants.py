"""Variants of a kernel module with some of its text replaced: planted bugs, and grids that start far out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from triton.runtime.interpreter import interpreter_builder

from pam_kernels import arithmetic
from pam_kernels.depthwise import forward, grad_weight

MODULES = (arithmetic, forward, grad_weight)


def altered(module: ModuleType, folder: Path, replacements: dict[str, str]) -> ModuleType:
    """A second copy of `module` with some of its text replaced, in a file of `folder`."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    for old, new in replacements.items():
        assert old in text, f"{module.__name__} does not contain {old!r}"
        text = text.replace(old, new)
    path = folder / f"altered_{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"{module.__package__}.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {copy.__name__: copy}):  # dataclasses look themselves up there
        spec.loader.exec_module(copy)
    return copy


def replace_text(
    monkeypatch: pytest.MonkeyPatch, folder: Path, module: ModuleType, replacements: dict[str, str]
) -> None:
    """Put the device functions of the altered text of `module` in the place of its own, wherever they are used."""
    copy = altered(module, folder, replacements)
    device_functions = {
        name: value for name, value in vars(module).items() if type(value).__name__ == "InterpretedFunction"
    }
    for user in MODULES:
        for name, original in device_functions.items():
            if vars(user).get(name) is original:
                monkeypatch.setattr(user, name, getattr(copy, name))


def start_at(program: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter's grids begin with this program."""
    dim, index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    monkeypatch.setattr(interpreter_builder, "set_grid_dim", lambda x, y, z: dim(program + x, y, z))
    monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda x, y, z: index(program + x, y, z))
