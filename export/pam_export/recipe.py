"""The recipes: one row per kind of artifact. A new kind is a module with build, load and facts, and a row here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from pam_mobile.errors import SetupError, UsageError

from . import (
    aot,
    coreml,
    coreml_adaptive,
    executorch,
    executorch_adaptive,
    executorch_cond,
    onnx,
    torchscript,
)
from .artifact import Build, Facts, Load
from .parity import Gate

SINGLE, SHARED, ADAPTIVE = "single", "shared", "adaptive"
FORMS = {
    SINGLE: "one file per budget and size",
    SHARED: "one file for all budgets and sizes, weights stored once",
    ADAPTIVE: "one file per size, the path chosen at run time from image and budget",
}


@dataclass(frozen=True)
class Recipe:
    """How one kind of artifact is made, run and judged."""

    target: str
    form: str
    precision: str
    package: str
    """The Python package that makes it."""
    suffix: str
    images: bool
    """Whether inputs are 8-bit images, or float tensors."""
    gate: Gate
    executed: bool
    """Whether its own runtime runs it here; else it is interpreted at best."""
    how: str
    """How its numbers are checked here, for the manifest."""
    build: Build
    load: Load | None
    """None: nothing here can tell what it computes."""
    facts: Facts
    selection: tuple[str, ...] = ()
    """The ways in which an adaptive artifact can choose its path."""
    hosted: bool = False
    """Whether a host runs its pieces, which can be told another path than the chosen one."""
    calibrated: bool = False
    """Whether building it needs calibration images."""

    @property
    def key(self) -> str:
        return f"{self.target}/{self.form}/{self.precision}"

    @property
    def compared(self) -> bool:
        """Whether its numbers are compared with PyTorch: it is executed, or interpreted."""
        return self.load is not None

    def require(self) -> None:
        """Raise SetupError with the pip line if the package is not installed."""
        if importlib.util.find_spec(self.package) is None:
            raise SetupError(
                f"target {self.target} needs {self.package}, which is not installed",
                "pip install 'pam-mobile[export]'",
            )


EXECUTED = "executed in the ExecuTorch runtime"
NOT_EXECUTED = "converted, not executed"
INTERPRETED = f"{NOT_EXECUTED}: the saved MIL program was interpreted with torch, each result rounded to its type"
LOWERED = f"{NOT_EXECUTED}: this platform has no such delegate"

# Gates by measurement on the trained networks: docs/export.md has the figures.
EXACT, HALF, COMPRESSED = Gate(1e-4, 1e-5), Gate(2e-3, 1e-3), Gate(None, 2e-2, sad=0.03)
# Images without a trimap are where int8 differs most (mean 0.09) and means least: the SAD on composites decides.
INT8 = Gate(None, 1e-1, sad=0.03)

_executorch = partial(
    Recipe,
    target="executorch",
    package="executorch",
    suffix="pte",
    images=False,
    executed=True,
    how=EXECUTED,
    load=executorch.load,
    facts=executorch.facts,
)
_exact = partial(_executorch, precision="fp32", gate=EXACT)
_int8 = partial(_executorch, precision="int8", gate=INT8, build=executorch.build_int8, calibrated=True)
_ahead = partial(_exact, form=SINGLE, executed=False, how=LOWERED, load=None)
_coreml = partial(
    Recipe,
    target="coreml",
    package="coremltools",
    suffix="mlpackage",
    images=True,
    executed=False,
    how=INTERPRETED,
    load=coreml.load,
    facts=coreml.facts,
)
_half = partial(_coreml, precision="fp16", gate=HALF)
_linear8 = partial(_coreml, precision="int8", gate=COMPRESSED, build=coreml.build_linear8)
_torchscript = partial(
    Recipe,
    target="torchscript",
    precision="fp32",
    package="torch",
    suffix="pt",
    images=False,
    gate=EXACT,
    executed=True,
    how="executed by TorchScript",
    facts=torchscript.facts,
)
_onnx = partial(
    Recipe,
    target="onnx",
    form=SINGLE,
    package="onnxruntime",
    suffix="onnx",
    images=False,
    executed=True,
    how="executed in ONNX Runtime on the CPU",
    load=onnx.load,
    facts=onnx.facts,
)


def _choosing(module: Any) -> dict[str, Any]:
    """What the row of an adaptive artifact takes from the module that makes it."""
    return {"form": ADAPTIVE, "build": module.build, "load": module.load, "selection": module.WAYS}


ROWS = (
    _exact(form=SINGLE, build=executorch.build),
    _int8(form=SINGLE),
    _exact(form=SHARED, build=executorch.build),
    _int8(form=SHARED),
    _exact(**_choosing(executorch_adaptive), hosted=True),
    _exact(target="executorch-cond", suffix="cond.pte", **_choosing(executorch_cond)),
    _half(form=SINGLE, build=coreml.build),
    _linear8(form=SINGLE),
    _coreml(form=SINGLE, precision="palette6", gate=COMPRESSED, build=coreml.build_palette6),
    _half(form=SHARED, build=coreml.build),
    _linear8(form=SHARED),
    _half(**_choosing(coreml_adaptive)),
    _torchscript(form=SINGLE, build=torchscript.build, load=torchscript.load),
    _torchscript(
        form=ADAPTIVE,
        build=torchscript.build_adaptive,
        load=torchscript.load_adaptive,
        selection=torchscript.WAYS,
    ),
    _onnx(precision="fp32", gate=EXACT, build=onnx.build),
    _onnx(precision="int8", gate=INT8, build=onnx.build_int8, calibrated=True),
    _ahead(target="executorch-coreml", suffix="coreml.pte", build=aot.build_coreml),
    _ahead(target="executorch-vulkan", suffix="vulkan.pte", build=aot.build_vulkan),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({row.key: row for row in ROWS})
"""In the order of the documentation. Never changed; tests put another table in its place."""


def recipe(key: str) -> Recipe:
    """The recipe of a key `target/form/precision`. Raises UsageError for another."""
    if key not in RECIPES:
        raise UsageError(f"unknown kind of artifact {key!r}", f"choose among {', '.join(RECIPES)}")
    return RECIPES[key]


def recipe_of(artifact: Mapping[str, Any]) -> Recipe:
    """The recipe of an artifact of a manifest. Raises UsageError if there is none."""
    return recipe("/".join(artifact[name] for name in ("target", "form", "precision")))


def select(targets: Sequence[str], forms: Sequence[str], precisions: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of all targets and forms; of each target those precisions that it has, or its first if none is named.

    Raises UsageError for a name that no recipe has, a form that none of the targets has, or a target without any of the precisions.
    """
    for what, given in (("targets", targets), ("forms", forms)):
        if not given:
            raise UsageError(f"nothing to export: no {what}", f"give at least one of {what}")
    _known("form", forms, set(FORMS))
    rows = [row for row in _able(targets, precisions) if row.form in forms]
    for form in forms:
        if not any(row.form == form for row in rows):
            able = dict.fromkeys(f"{row.target} {row.precision}" for row in RECIPES.values() if row.form == form)
            raise UsageError(
                f"no target of these makes {form} artifacts: {', '.join(targets)}", f"these do: {', '.join(able)}"
            )
    return rows


def missing(targets: Sequence[str], forms: Sequence[str], precisions: Sequence[str] = ()) -> list[str]:
    """What was asked for but `select` does not give, as `target form precision`: the target has that precision in other forms."""
    asked = {(row.target, form, row.precision) for row in _able(targets, precisions) for form in forms}
    return sorted(" ".join(key) for key in asked if "/".join(key) not in RECIPES)


def _able(targets: Sequence[str], precisions: Sequence[str]) -> list[Recipe]:
    """The recipes of the targets in the precisions, in all forms."""
    _known("target", targets, {row.target for row in RECIPES.values()})
    _known("precision", precisions, {row.precision for row in RECIPES.values()})
    rows: list[Recipe] = []
    for target in targets:
        own = [row for row in RECIPES.values() if row.target == target]
        kept = [row for row in own if row.precision in (precisions or (own[0].precision,))]
        if not kept:
            raise UsageError(
                f"target {target} has none of the precisions {', '.join(precisions)}",
                f"it has {', '.join(dict.fromkeys(row.precision for row in own))}",
            )
        rows += kept
    return rows


def _known(what: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}", f"choose among {', '.join(sorted(known))}")
