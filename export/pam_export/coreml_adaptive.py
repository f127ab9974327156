"""Target `coreml`, form adaptive: an .mlpackage whose units are conditions, so that the path is chosen inside, by steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from . import coreml, mil
from .adaptive import only
from .artifact import STEPWISE, Answer, Info, Part, Request, Runner
from .controller import Costs, require_way
from .quiet import quiet
from .scripted import PATH, POSITION, SPARE, Switch, numbers, path_of, script
from .wrapper import ALPHA, IMAGE, TRIMAP

WAYS = (STEPWISE,)
FIRST, LAST = 2, 3
"""One large convolution more at either end than on a fixed path: some of its many paths are less lucky in float16."""


def build(parts: Sequence[Part], path: FilePath, info: Info) -> dict[str, Any]:
    """Convert an Adaptive and write the .mlpackage; `info` and what the host must know become its user-defined metadata.

    Returns the manifest's `backend`.
    """
    adaptive, inputs = only(parts)
    with quiet("converting to Core ML"), torch.no_grad():
        program, half = script(adaptive, inputs), choosing_in_float32()
        coreml.to_model(program, inputs, half, (POSITION, SPARE), (ALPHA, PATH)).save(str(path))
        return coreml.finish(path, {**info, **adaptive.costs.info(WAYS)}) | {"min_os": coreml.SINGLE_OS}


def choosing_in_float32() -> coreml.Select:
    """Selector of the operations that may be float16: as of a fixed path, but for more at both ends and for what
    chooses the branches.

    Heads standardise small differences of means, and float16 cannot count what is left of a budget.
    """
    between = coreml.between_convolutions(FIRST, LAST)

    def select(op: Any) -> bool:
        return between(op) and not _chooses(op)

    return select


def _chooses(op: Any) -> bool:
    """Whether an operation belongs to a Switch, but to none of its branches."""
    scope = [name for names in op.scopes.values() for name in names]
    return Switch.__name__ in scope and "if" not in scope


def load(path: FilePath) -> Runner:
    """A saved package, interpreted with torch; of every condition only the branch that is taken."""
    program, costs = mil.load(path), Costs.of_facts(coreml.facts(path))

    def run(image: Tensor, trimap: Tensor, request: Request) -> Answer:
        require_way(request, WAYS)
        position, spare = numbers(costs, request.macs)
        alpha, ran = mil.run(program, {IMAGE: image, TRIMAP: trimap, POSITION: position, SPARE: spare})
        return Answer(alpha, path_of(ran))

    return run
