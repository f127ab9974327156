"""One method of a .pte on an emulated processor: its output, and the instructions that one inference takes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import torch
from cpu import CPUS
from toolchain import Toolchain, prepare
from torch import Tensor

from pam_mobile.errors import IntegrityError

INFERENCES = 3
REPEATABLE = 1e-5
"""Relative difference of two inferences on the same input above which a count means nothing."""
SECONDS = 3600


@dataclass(frozen=True)
class Emulated:
    """output: the first one, flat float32; instructions: of one inference, the total and each class of counter.c."""

    output: Tensor
    instructions: Mapping[str, float]
    planned_bytes: int


def emulate(toolchain: Toolchain, cpu: str, file: FilePath, method: str, inputs: Sequence[Tensor]) -> Emulated:
    """Run `method` of a .pte three times on `inputs` (float32). Raises IntegrityError if it fails or counts do not repeat."""
    with tempfile.TemporaryDirectory(prefix="pam-arm64-") as name:
        folder = FilePath(name)
        prepare(folder / "root", CPUS[cpu])
        output, counts = folder / "output", folder / "counts"
        names = [folder / f"input{i}" for i in range(len(inputs))]
        for path, tensor in zip(names, inputs, strict=True):
            path.write_bytes(tensor.contiguous().numpy().tobytes())
        arguments = (file.absolute(), method, INFERENCES, output, *names)
        command = toolchain.command(CPUS[cpu], folder / "root", counts, arguments)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise IntegrityError(
                f"{file.name}: {method} did not end within {SECONDS} s", "choose a smaller size"
            ) from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise IntegrityError(f"{file.name}: {method} failed on {cpu} with exit code {done.returncode}", lines[-1])
        alpha = torch.frombuffer(bytearray(output.read_bytes()), dtype=torch.float32)
        planned = json.loads(done.stdout)["planned_bytes"]
        return Emulated(alpha, per_inference(counts.read_text(encoding="ascii")), planned)


def per_inference(text: str) -> dict[str, float]:
    """The mean of all inferences but the first, which alone does some of the work that is done once.

    text: what counter.c wrote, one line after each inference and one at the end. Raises IntegrityError if a line's classes do not
    add up, if there are fewer than three inferences, or if the last two differ by more than REPEATABLE.
    """
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if sum(line.values()) != 2 * line["total"]:
            raise IntegrityError(f"the counter's classes do not add up to its total of {line['total']}", "report it")
    after = lines[:-1]
    if len(after) < INFERENCES:
        raise IntegrityError(f"the counter saw {len(after)} inferences instead of {INFERENCES}", "report it")
    before, last = (after[i + 1]["total"] - after[i]["total"] for i in (-3, -2))
    if abs(last - before) > REPEATABLE * before:
        raise IntegrityError(
            f"instructions do not repeat: {before}, then {last}", "nothing else may use the emulated core"
        )
    return {key: (after[-1][key] - after[0][key]) / (len(after) - 1) for key in after[0]}
