"""Stub libraries: the symbols that the AArch64 wheels name but do not need here (Python's C interface, CUDA).

A stub function is a trap, so a call that was not foreseen stops the program instead of making its result wrong.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath

NAMES = ("libtorch_python.so", "libtorch.so", "libcudart.so.13", "libcupti.so.13")
"""Libraries that the wheels ask the loader for; the first holds all symbols, the others are empty."""
STREAMS = "_ZSt21ios_base_library_initv"
"""Start-up of the C++ streams, which older C++ libraries do elsewhere: there a plain return is enough."""
DATA = re.compile(r"PyExc_\w+|Py\w+_Type|_Py_\w+Struct|environ|_ZN3c1019UndefinedTensorImpl10_singletonE")
OPTIONAL = re.compile(r"__gmon_start__|_ITM_\w+|__cxa_finalize")


def missing(consumers: Iterable[FilePath], providers: Iterable[FilePath]) -> list[str]:
    """The symbols that `consumers` leave undefined and neither they nor `providers` define, sorted."""
    wanted, defined = set(), set()
    for library in consumers:
        undefined, own = symbols(_nm(library))
        wanted |= undefined
        defined |= own
    for library in providers:
        defined |= symbols(_nm(library))[1]
    return sorted(name for name in wanted - defined if not OPTIONAL.fullmatch(name))


def symbols(listing: str) -> tuple[set[str], set[str]]:
    """Undefined and defined symbols in the output of `nm -D`, without their versions. Weak ones may stay undefined."""
    undefined, defined = set(), set()
    for line in listing.splitlines():
        *address, kind, name = line.split()
        if address:
            defined.add(name.split("@")[0])
        elif kind == "U":
            undefined.add(name.split("@")[0])
    return undefined, defined


def assembly(names: Sequence[str]) -> str:
    """AArch64 assembly that defines `names`: types and exceptions as zeros, the rest as traps."""
    lines = [".text"]
    for name in names:
        if not DATA.fullmatch(name):
            lines += [f".globl {name}", f".type {name}, %function", f"{name}:", "ret" if name == STREAMS else "brk #1"]
    lines += [".data", ".balign 64"]
    for name in names:
        if DATA.fullmatch(name):
            lines += [f".globl {name}", f".type {name}, %object", f".size {name}, 512", f"{name}:", ".zero 512"]
    return "\n".join(lines) + "\n"


def build(compiler: str, names: Sequence[str], folder: FilePath) -> None:
    """Write the stub libraries into `folder`."""
    for library, content in zip(NAMES, [assembly(names), *[""] * (len(NAMES) - 1)], strict=True):
        source = folder / f"{library}.s"
        source.write_text(content, encoding="ascii")
        command = [compiler, "-shared", "-nostdlib", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(command, check=True)
        source.unlink()


def _nm(library: FilePath) -> str:
    return subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
