"""Compile every kernel configuration for several architectures, without a GPU, and look for what would make it slow or fail.

python -m pam_kernels.compile_gate [--arch 80,86,90] [--only NAME]       without TRITON_INTERPRET

A build fails if more than a few registers spill to memory, if it needs more shared memory than the architecture has, or if
instructions are missing that its design counts on: tensor cores, loads of 128 bits. This says nothing about speed.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .build import Build
from .connect.builds import builds as connect
from .depthwise.builds import builds as depthwise

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
STACK = 128
"""Bytes of stack a thread may use: on an H200, block sizes that spill a few registers were faster than smaller ones that spill none."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.  shared: bytes; stack: bytes a thread; instructions: how many of each name."""

    registers: int
    stack: int
    shared: int
    instructions: Counter[str] = field(repr=False)

    def faults(self, build: Build, arch: int) -> list[str]:
        """Why the build must not be used on sm_<arch>, if so."""
        count = self.instructions
        # A thread's LOCAL memory stays 0 when registers spill; the stack and the instructions tell.
        spills = self.stack > STACK or (self.stack == 0 and count["STL"] + count["LDL"] > 0)
        return [
            fault
            for fault, found in (
                (f"spills (stack {self.stack} bytes)", spills),
                (
                    f"{self.shared} bytes of shared memory, {SHARED_MEMORY[arch]} exist",
                    self.shared > SHARED_MEMORY[arch],
                ),
                ("no tensor cores", build.tensor_cores and not count["HMMA"] + count["HGMMA"]),
                ("no 128-bit loads", build.wide_loads and not count["LDG.128"] + count["LDGSTS.128"]),
            )
            if found
        ]


def builds() -> Iterator[Build]:
    """Every configuration. An operator joins by a generator of its own."""
    yield from depthwise()
    yield from connect()


def compile_build(build: Build, arch: int) -> Resources:
    """Compile for sm_<arch>, one of SHARED_MEMORY."""
    names = list(inspect.signature(build.kernel.fn).parameters)
    source = ASTSource(
        fn=build.kernel,
        signature={name: "constexpr" if name in build.constants else build.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in build.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in build.divisible},
    )
    options = {"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(TOOLS / "nvdisasm", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage!r}")
    return Resources(int(found[1]), int(found[2]), compiled.metadata.shared, _instructions(code))


def _instructions(code: str) -> Counter[str]:
    count: Counter[str] = Counter()
    for full in re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*)", code, re.M):
        name = full.partition(".")[0]
        count[name] += 1
        if ".128" in full:
            count[f"{name}.128"] += 1
    return count


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """One line a build and architecture; returns the number of builds with faults."""
    parser = argparse.ArgumentParser(prog="python -m pam_kernels.compile_gate")
    parser.add_argument("--arch", default="80,86,90", type=lambda text: [int(arch) for arch in text.split(",")])
    parser.add_argument("--only", default="", help="builds whose name starts with this")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("unset TRITON_INTERPRET: a process interprets kernels or compiles them")
    bad = 0
    for build in builds():
        if not build.name.startswith(options.only):
            continue
        for arch in options.arch:
            resources = compile_build(build, arch)
            faults = resources.faults(build, arch)
            bad += bool(faults)
            size = f"{resources.registers} registers, {resources.shared} bytes shared"
            sys.stdout.write(f"{build.name} sm_{arch}: {'; '.join(faults) or 'ok'} ({size})\n")
            sys.stdout.flush()
    return bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))
