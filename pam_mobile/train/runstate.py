"""The state of an unfinished stage: all that the next step depends on. The last two are kept, and a damaged one is never used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor

from .. import tensorfile
from ..errors import IntegrityError
from ..files import read_sealed_json, remove_unfinished, write_sealed_json
from ..reporter import Reporter
from ..tensorfile import Layout, require_layout

KEPT = 2


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
        for old in self.folder.glob("state-*"):
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
        """Forget all states."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[FilePath]:
        return sorted(self.folder.glob("state-*.json"), reverse=True)

    def _examine(self, document: FilePath) -> tuple[dict[str, Any], Layout]:
        file = document.with_suffix(".safetensors")
        facts = read_sealed_json(document, "")
        if f"state-{facts.get('stage')}-{facts.get('step', 0):08d}" != document.stem or not file.is_file():
            raise IntegrityError(f"{document} is damaged: it does not belong to {file.name}")
        return facts, tensorfile.read_layout(file, str(facts.get("sha256")), "")
