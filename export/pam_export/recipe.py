"""The targets: one row per kind of artifact. A new target is a module with build, execute and facts, and a row here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor, nn

from pam_mobile.errors import SetupError, UsageError

from . import coreml, executorch
from .parity import Gate

Build = Callable[[nn.Module, tuple[Tensor, Tensor], FilePath, Mapping[str, str | int]], dict[str, Any]]
"""build(wrapper, float inputs, path, info) writes the artifact with `info` inside and returns the manifest's `backend`."""
Execute = Callable[[FilePath, Tensor, Tensor], Tensor]
"""execute(path, images uint8 (n, 3, H, W), trimaps uint8 (n, 1, H, W)) returns alphas (n, 1, H, W) float32."""
Facts = Callable[[FilePath], dict[str, str]]
"""facts(path) returns the `info` that is inside the artifact, as text."""


@dataclass(frozen=True)
class Recipe:
    """How one kind of artifact is made, run and judged."""

    target: str
    package: str
    """The Python package that makes it."""
    precision: str
    suffix: str
    images: bool
    """Whether inputs are 8-bit images, or float tensors."""
    gate: Gate
    how: str
    """How its numbers are checked here, for the manifest."""
    build: Build
    execute: Execute
    facts: Facts

    def require(self) -> None:
        """Raise SetupError with the pip line if the package is not installed."""
        if importlib.util.find_spec(self.package) is None:
            raise SetupError(
                f"target {self.target} needs {self.package}, which is not installed",
                "pip install 'pam-mobile[export]'",
            )


# Gates by measurement: trained `tiny+prior` at 512 differs by at most 4e-6 as .pte and
# 7e-4 (mean 7e-5) as float16 package, so both gates leave a factor of about 25 for other machines and weights.
RECIPES = {
    row.target: row
    for row in (
        Recipe(
            target="executorch",
            package="executorch",
            precision="fp32",
            suffix="pte",
            images=False,
            gate=Gate(max_abs=1e-4, mean_abs=1e-5),
            how="executed in the ExecuTorch runtime",
            build=executorch.build,
            execute=executorch.execute,
            facts=executorch.facts,
        ),
        Recipe(
            target="coreml",
            package="coremltools",
            precision="fp16",
            suffix="mlpackage",
            images=True,
            gate=Gate(max_abs=2e-2, mean_abs=2e-3),
            how="converted, not executed: the saved MIL program was interpreted with torch, each result rounded to its type",
            build=coreml.build,
            execute=coreml.execute,
            facts=coreml.facts,
        ),
    )
}


def recipe(target: str) -> Recipe:
    """The recipe of a target. Raises UsageError naming the known ones."""
    if target not in RECIPES:
        raise UsageError(f"unknown export target {target!r}", f"choose among {', '.join(RECIPES)}")
    return RECIPES[target]
