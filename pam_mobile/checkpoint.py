"""Checkpoints: a folder with `model.safetensors` and a sealed `checkpoint.json` that names its SHA-256. Nothing in it can run code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from cattrs import structure
from safetensors.torch import load_file, save_file

from . import __version__
from .errors import InputError, IntegrityError
from .files import atomic_path, read_sealed_json, sha256, verify_file, write_sealed_json
from .model.presets import Preset
from .model.supernet import Supernet
from .path import Path
from .pathtable import MeasuredPath, PathTable

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
DOCUMENT = "checkpoint.json"
REMEDY = "train it again, or copy the run folder again from where it came"


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is known about it."""

    supernet: Supernet
    paths: PathTable
    document: dict[str, Any]

    @property
    def preset(self) -> Preset:
        return self.supernet.preset


def save(folder: FilePath, supernet: Supernet, paths: PathTable, facts: dict[str, Any]) -> None:
    """Write a checkpoint; the document comes last, so that a folder without one is not a checkpoint."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    document = {
        "schema_version": SCHEMA_VERSION,
        "package": {"name": "pam-mobile", "version": __version__},
        "preset": asdict(supernet.preset),
        "weights": {"file": WEIGHTS, "sha256": sha256(folder / WEIGHTS)},
        "paths": paths.to_json(),
        **facts,
    }
    write_sealed_json(folder / DOCUMENT, document)


def load(folder: FilePath) -> Checkpoint:
    """Read a checkpoint in evaluation mode; hashes are verified before anything is parsed.

    Raises InputError if it is missing or of another kind, IntegrityError if it is damaged.
    """
    document = read_sealed_json(folder / DOCUMENT, REMEDY)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{folder / DOCUMENT} has schema version {document.get('schema_version')}, this pam-mobile reads {SCHEMA_VERSION}",
            "upgrade: pip install -U pam-mobile",
        )
    if not {"preset", "weights", "paths"} <= document.keys():
        raise InputError(f"{folder / DOCUMENT} is not a checkpoint's document", REMEDY)
    weights = folder / document["weights"]["file"]
    verify_file(weights, document["weights"]["sha256"], REMEDY)
    preset = structure(document["preset"], Preset)
    supernet = Supernet(preset)
    load_weights(supernet, load_file(weights), weights)
    units = len(preset.units)
    paths = PathTable.from_json(document["paths"])
    if not paths.measured:
        paths = PathTable([MeasuredPath(Path.all_bypass(units), 0.0)])
    return Checkpoint(supernet.eval(), paths, document)


def load_weights(supernet: Supernet, state: dict[str, torch.Tensor], source: FilePath) -> None:
    """Raise InputError, naming the first difference, if the tensors are those of another network."""
    expected = supernet.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        have, want = state.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            raise InputError(
                f"{source} does not hold a {supernet.preset.label} network: {name} is "
                f"{'missing' if have is None else 'unexpected' if want is None else f'{tuple(have.shape)}, not {tuple(want.shape)}'}",
                "use the checkpoint's own preset",
            )
    supernet.load_state_dict(state)


def find(model: str) -> FilePath:
    """The checkpoint folder that a MODEL argument means: a run folder (its last finished stage), a checkpoint folder or a file in one.

    Raises InputError naming what is accepted.
    """
    place = FilePath(model)
    if place.is_file() and place.name in (WEIGHTS, DOCUMENT):
        return place.parent
    for folder in (place, place / "stage3", place / "stage2", place / "stage1"):
        if (folder / DOCUMENT).is_file():
            return folder
    hint = "give a run folder of `pam-mobile train`, a checkpoint folder, or `prior` for the colour prior without a network"
    if (place / WEIGHTS).is_file():
        raise IntegrityError(f"{place} is incomplete: {DOCUMENT} is missing", REMEDY)
    raise InputError(f"no model found at {model}", hint)
