"""Checkpoints: a folder with `model.safetensors` and a sealed `checkpoint.json` that names its SHA-256. Nothing in it can run code."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from cattrs import structure
from cattrs.errors import ClassValidationError

from . import __version__, models, tensorfile
from .errors import InputError, IntegrityError, PamError
from .files import read_sealed_json, write_sealed_json
from .model.presets import Preset
from .model.supernet import Supernet, chooses
from .path import Path
from .pathtable import MeasuredPath, PathTable
from .tensorfile import Layout, layout_of, require_layout

SCHEMA_VERSION = 2
WITHOUT_CHOICE = 1
"""The version before networks could learn to choose: what chooses was there, untrained and of another form."""
WEIGHTS = "model.safetensors"
DOCUMENT = "checkpoint.json"
RUN = "config.yaml"
"""The settings of a training run, by which its folder is known; checkpoints are in folders beside it, one per finished stage."""
LONGEST_NAME = 255
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

    @property
    def learned_paths(self) -> bool:
        """Whether the network has learned to choose its path (stage 3)."""
        return bool(self.document.get("stage") == 3)


def save(folder: FilePath, supernet: Supernet, paths: PathTable, facts: dict[str, Any], half: bool = False) -> None:
    """Write a checkpoint; the document comes last, so that a folder without one is not a checkpoint.

    half: store the weights as `halved` makes them; they are read back as float32.

    Raises PartialFailureError, and writes nothing, if a weight is not finite.
    """
    state = halved(supernet.state_dict()) if half else supernet.state_dict()
    digest = tensorfile.write(folder / WEIGHTS, state)
    document = {
        "schema_version": SCHEMA_VERSION,
        "package": {"name": "pam-mobile", "version": __version__},
        "preset": asdict(supernet.preset),
        "weights": {"file": WEIGHTS, "sha256": digest, "half": half},
        "paths": paths.to_json(),
        **facts,
    }
    write_sealed_json(folder / DOCUMENT, document)


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with weights in float16; biases and statistics, which may be large, stay as they are."""
    return {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in state.items()}


def load(folder: FilePath) -> Checkpoint:
    """Read a checkpoint in evaluation mode; hashes are verified before anything is parsed.

    Raises InputError if it is missing or of another kind, IntegrityError if it is damaged.
    """
    document = read_sealed_json(folder / DOCUMENT, REMEDY)
    version = document.get("schema_version")
    if version not in (WITHOUT_CHOICE, SCHEMA_VERSION):
        raise InputError(
            f"{folder / DOCUMENT} has schema version {version}, this pam-mobile reads {SCHEMA_VERSION}",
            "upgrade: pip install -U pam-mobile",
        )
    try:
        preset = structure(document["preset"], Preset)
        paths = PathTable.from_json(document["paths"])
        digest, half = document["weights"]["sha256"], bool(document["weights"].get("half"))
    except (ClassValidationError, KeyError, TypeError, ValueError, PamError) as error:
        raise InputError(f"{folder / DOCUMENT} is not a checkpoint's document", REMEDY) from error
    weights = folder / WEIGHTS
    layout, wanted = tensorfile.read_layout(weights, digest, REMEDY), network_layout(preset, half)
    kept = [name for name in wanted if version == SCHEMA_VERSION or not chooses(name)]
    if version == WITHOUT_CHOICE:
        layout = {name: kind for name, kind in layout.items() if not chooses(name)}
    require_layout(layout, {name: wanted[name] for name in kept}, weights, f"a {preset.label} network")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for what the file does not hold
        supernet = Supernet(preset)
    state = tensorfile.read(weights)
    supernet.load_state_dict(supernet.state_dict() | {name: state[name] for name in kept})
    if not paths.measured:
        paths = PathTable([MeasuredPath(Path.all_bypass(len(preset.units)), 0.0)])
    return Checkpoint(supernet.eval(), paths, document)


def network_layout(preset: Preset, half: bool = False) -> Layout:
    """Names, types and shapes of a preset's weights as they are stored, without making them.

    Raises InputError if there is no such network.
    """
    try:
        with torch.device("meta"):
            state = Supernet(preset).state_dict()
            return layout_of(halved(state) if half else state)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError, PamError) as error:
        raise InputError(f"the preset {preset.label} describes no network", REMEDY) from error


def find(model: str) -> FilePath:
    """The checkpoint folder that a MODEL argument means: the name of a shipped model, a run folder (its last finished stage), a
    checkpoint folder or a file in one.

    Raises InputError naming what is accepted.
    """
    place = FilePath(model)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in place.parts):
        raise InputError(f"no model found at {model[:40]}...", "a name is longer than file systems allow")
    if place.is_file() and place.name in (WEIGHTS, DOCUMENT):
        return place.parent
    if model in models.SHIPPED and not place.exists():
        return models.folder(model)
    for folder in (place, place / "stage3", place / "stage2", place / "stage1"):
        if (folder / DOCUMENT).is_file():
            return folder
    hint = "give a run folder of `pam-mobile train`, a checkpoint folder, " + ", ".join(
        [*models.SHIPPED, "or `prior` for the colour prior without a network"]
    )
    if (place / WEIGHTS).is_file():
        raise IntegrityError(f"{place} is incomplete: {DOCUMENT} is missing", REMEDY)
    if (place / RUN).is_file():
        raise InputError(f"{model} has not finished a stage yet", "continue it: its command, and --resume")
    raise InputError(f"no model found at {model}", hint)
