"""The state of an unfinished stage: all that the next step depends on. The last two are kept, and a damaged one is never used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from .. import tensorfile
from ..errors import IntegrityError
from ..files import read_sealed_json, remove_unfinished, write_sealed_json
from ..reporter import Reporter
from ..tensorfile import Layout, layout_of, require_layout

KEPT = 2
SLOTS = ("step", "exp_avg", "exp_avg_sq")
"""What the optimiser keeps per parameter."""


class RunState:
    """States in a folder, each a sealed document `state-STAGE-STEP.json` and the tensors whose hash it names."""

    def __init__(self, folder: FilePath) -> None:
        self.folder = folder

    def save(self, stage: int, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a state, its document last; then forget all but the newest two."""
        file = self.folder / f"state-{stage}-{step:08d}.safetensors"
        digest = tensorfile.write(file, tensors)
        write_sealed_json(file.with_suffix(".json"), {"stage": stage, "step": step, "sha256": digest, **facts})
        kept = {document.stem for document in self._newest_first()[:KEPT]}
        # In order, a document goes before its tensors: a kill between leaves no damage.
        for old in sorted(self.folder.glob("state-*")):
            if old.stem not in kept:
                old.unlink()

    def newest(self, expected: Callable[[Layout], Layout], reporter: Reporter) -> dict[str, Any] | None:
        """Document of the newest undamaged state, or None if there is no state; says so if a newer one is passed over.

        expected: the layout that a state with the given one must have. Raises IntegrityError if all are damaged, InputError if the
        state is one of another network.
        """
        if not self.folder.is_dir():
            return None
        remove_unfinished(self.folder)
        damage: IntegrityError | None = None
        for document in self._newest_first():
            try:
                facts, layout = self._examine(document)
            except IntegrityError as error:
                damage = error
                reporter.warn(f"{error.message}; it is set aside, and the state before it is used")
                for file in self.folder.glob(f"{document.stem}.*"):
                    file.rename(self.folder / f"damaged-{file.name}")
                continue
            require_layout(layout, expected(layout), document.with_suffix(".safetensors"), "the state of this run")
            return facts
        if damage:
            raise IntegrityError(damage.message, f"delete {self.folder} to repeat the stage from its start")
        return None

    def tensors(self, facts: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a document that `newest` returned."""
        return tensorfile.read(self.folder / f"state-{facts['stage']}-{facts['step']:08d}.safetensors")

    def clear(self) -> None:
        """Forget all states, documents first: tensors without one are no state."""
        for document in self._newest_first():
            document.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[FilePath]:
        return sorted(self.folder.glob("state-*.json"), reverse=True)

    def _examine(self, document: FilePath) -> tuple[dict[str, Any], Layout]:
        file = document.with_suffix(".safetensors")
        facts = read_sealed_json(document, "")
        if f"state-{facts.get('stage')}-{facts.get('step', 0):08d}" != document.stem or not file.is_file():
            raise IntegrityError(f"{document} is damaged: it does not belong to {file.name}")
        return facts, tensorfile.read_layout(file, str(facts.get("sha256")), "")


def collect(network: nn.Module, ema: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name."""
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    return tensors


def state_layout(network: nn.Module, parameters: Sequence[nn.Parameter], have: Layout) -> Layout:
    """What `collect` gives for this network; of the optimiser's parameters those of `have` that had a gradient once."""
    kinds = layout_of(network.state_dict())
    layout = {f"{part}.{name}": kind for part in ("model", "ema") for name, kind in kinds.items()}
    for index, parameter in enumerate(parameters):
        if f"optimiser.{index}.step" in have:
            slots = ((torch.float32, ()), *[(parameter.dtype, tuple(parameter.shape))] * 2)
            layout |= {f"optimiser.{index}.{slot}": kind for slot, kind in zip(SLOTS, slots, strict=True)}
    return layout


def restore(tensors: Mapping[str, Tensor], network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Put what `collect` gave into network and optimiser; returns the averaged weights."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimiser": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        groups[part][name] = value
    network.load_state_dict(groups["model"])
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimiser"].items():
        index, name = key.split(".", 1)
        like = torch.empty_like(parameters[int(index)])
        slots.setdefault(int(index), {})[name] = like.copy_(value) if name != "step" else value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return {name: value.to(parameters[0].device) for name, value in groups["ema"].items()}
