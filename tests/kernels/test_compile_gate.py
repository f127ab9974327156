"""Every configuration of both operators compiles without a GPU: no spills, shared memory within the card's, the right instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from pam_kernels.build import Build
from pam_kernels.compile_gate import SHARED_MEMORY, STACK, Resources, builds
from pam_kernels.depthwise.configs import DIRECT, HANKEL, TOEPLITZ, TOEPLITZ_STRIDED


def test_every_configuration_is_built() -> None:
    names = [build.name for build in builds() if build.name.startswith("depthwise")]
    sizes = {int(name.partition("k=")[2].split()[0]) for name in names}
    for table in (DIRECT, TOEPLITZ, TOEPLITZ_STRIDED, HANKEL):
        for served in table:
            assert sizes & set(served), served


def test_every_build_is_without_fault() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pam_kernels.compile_gate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr + "\n".join(line for line in lines if ": ok (" not in line)
    assert len(lines) == len(list(builds())) * len(SHARED_MEMORY)


@pytest.mark.parametrize(
    ("stack", "shared", "instructions", "fault"),
    [
        (STACK + 8, 0, {"HMMA": 1, "LDG.128": 1, "STL": 9}, "spills"),
        (0, 0, {"HMMA": 1, "LDG.128": 1, "STL": 1}, "spills"),
        (0, 100 * 1024, {"HMMA": 1, "LDGSTS.128": 1}, "bytes of shared memory"),
        (0, 0, {"LDG.128": 1}, "no tensor cores"),
        (0, 0, {"HGMMA": 1}, "no 128-bit loads"),
    ],
)
def test_each_fault_is_seen(stack: int, shared: int, instructions: dict[str, int], fault: str) -> None:
    build = Build("name", None, {}, {}, 4, 1, (), tensor_cores=True, wide_loads=True)
    faults = Resources(64, stack, shared, Counter(instructions)).faults(build, 86)
    assert len(faults) == 1
    assert fault in faults[0]
    assert Resources(64, 0, 99 * 1024, Counter({"HMMA": 1, "LDG.128": 1})).faults(build, 86) == []
    assert Resources(64, STACK, 0, Counter({"HMMA": 1, "LDG.128": 1, "STL": 9})).faults(build, 86) == []
