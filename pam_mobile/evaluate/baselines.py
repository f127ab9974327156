"""What a network has to beat: no answer at all, the colour prior alone, and classical matting by PyMatting."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import numpy as np

from ..errors import InputError, SetupError, UsageError
from ..predict.matter import Matter
from .contenders import Answer, Contender, of_model
from .images import Sample

SOLVERS = {"closed-form": "estimate_alpha_cf", "knn": "estimate_alpha_knn"}
"""PyMatting's function (image, trimap) -> alpha of a baseline: Levin et al. 2008, and Chen et al. 2013."""
BASELINES = ("half", "prior", *SOLVERS)


def baselines(names: Sequence[str], device: str = "auto") -> list[Contender]:
    """The baselines of these names. Raises UsageError for an unknown name, SetupError if PyMatting is needed and missing."""
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise UsageError(f"baseline {unknown[0]!r} is not known", f"choose among {', '.join(BASELINES)}")
    return [_baseline(name, device) for name in names]


def _baseline(name: str, device: str) -> Contender:
    if name == "half":
        return Contender(name, "", lambda sample: Answer(_half(sample)))
    if name == "prior":
        return of_model(Matter.load("prior", device), name)
    return Contender(name, "", _classical(name))


def _half(sample: Sample) -> np.ndarray:
    return np.full(sample.trimap.shape, 0.5, np.float32)


def _classical(name: str) -> Callable[[Sample], Answer]:
    try:
        solve = getattr(importlib.import_module("pymatting"), SOLVERS[name])
    except ImportError as error:
        raise SetupError(
            f"baseline {name} needs PyMatting, which is not installed", "pip install 'pam-mobile[baselines]'"
        ) from error

    def answer(sample: Sample) -> Answer:
        levels = np.rint(sample.trimap / 127.5) / 2
        if not {0.0, 1.0} <= set(np.unique(levels)):
            return Answer(_half(sample), defaulted=True)
        try:
            with redirect_stdout(io.StringIO()):  # PyMatting prints its warnings where --json promises nothing else
                alpha = solve(sample.photo.astype(np.float64), levels)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{sample.name}: baseline {name} fails: {reason}", f"leave {name} out of --baselines"
            ) from error
        return Answer(np.clip(alpha, 0, 1))

    return answer
