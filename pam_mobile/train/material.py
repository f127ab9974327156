"""The bank that a configuration asks for: procedural, or made from the user's images, or both."""

from __future__ import annotations

import hashlib
from pathlib import Path as FilePath

import torch

from ..config import Data
from ..data.bank import Bank, synthetic_bank
from ..data.cutting import background_planes, foreground_patches
from ..data.datasets import Cutout, DataSet, ForegroundSet, open_dataset
from ..data.folders import images_by_stem
from ..errors import InputError, UsageError
from ..files import read_sealed_json, write_sealed_json
from ..reporter import Reporter


def load_bank(data: Data, seed: int, reporter: Reporter) -> Bank:
    """Foregrounds and backgrounds of the data sets and folders where given, mixed with or replaced by procedural ones.

    Raises UsageError for an alpha folder without a foreground folder, InputError for unusable files.
    """
    cutouts, backgrounds = own_files(data)
    own_patches = _own(data.patches, data.procedural) if cutouts else 0
    own_backgrounds = _own(data.backgrounds, data.procedural) if backgrounds else 0
    made_patches, made_backgrounds = data.patches - own_patches, data.backgrounds - own_backgrounds
    first = seed * 1_000_000 % 1_000_000_000
    bank = synthetic_bank(first, max(4, made_patches), max(4, made_backgrounds), data.size, data.kinds, reporter)
    patches, planes = [bank.patches[:made_patches]], [bank.backgrounds[:made_backgrounds]]
    if own_patches:
        patches.append(foreground_patches(cutouts, own_patches, data.size, seed, reporter))
    if own_backgrounds:
        planes.append(background_planes(backgrounds, own_backgrounds, data.size, seed, reporter))
    return Bank(torch.cat(patches), torch.cat(planes))


def own_files(data: Data) -> tuple[list[Cutout], list[FilePath]]:
    """The user's foregrounds and backgrounds: those of the data sets, then those of the folders.

    Raises UsageError for an alpha folder without a foreground folder, InputError for unusable folders and for data sets
    that hold nothing to train with.
    """
    if data.alpha_folder and not data.foreground_folder:
        raise UsageError("--alpha needs --fg", "give the folder of the foregrounds that the alphas belong to")
    cutouts: list[Cutout] = []
    backgrounds: list[FilePath] = []
    for spec in data.sets:
        dataset = open_dataset(spec)
        found = dataset.cutouts(), dataset.background_files()
        if not any(found):
            raise InputError(f"{dataset.root} ({dataset.layout}) has nothing to train with", _only_test(dataset))
        cutouts += found[0]
        backgrounds += found[1]
    if data.foreground_folder:
        alphas = (FilePath(data.alpha_folder),) if data.alpha_folder else ()
        cutouts += ForegroundSet(FilePath(data.foreground_folder), alphas).cutouts()
    if data.background_folder:
        backgrounds += images_by_stem(FilePath(data.background_folder)).values()
    return cutouts, backgrounds


def require_same_bank(file: FilePath, bank: Bank, first: bool) -> None:
    """Refuse to continue a run on other images than it began with. The first process writes down what they are.

    Raises InputError if the bank on the CPU is not the one of `file`.
    """
    digest = hashlib.sha256()
    for planes in (bank.patches, bank.backgrounds):
        digest.update(str(tuple(planes.shape)).encode())
        digest.update(planes.contiguous().numpy().data)
    if file.exists():
        if read_sealed_json(file, "delete the run folder and train again").get("sha256") != digest.hexdigest():
            raise InputError(
                f"the images are not those that the run began with ({file})",
                "put back the files that were changed, added or removed, or train again in another folder",
            )
    elif first:
        write_sealed_json(file, {"sha256": digest.hexdigest()})


def _only_test(dataset: DataSet) -> str:
    return f"evaluate on it: pam-mobile eval --data {dataset.root}" if dataset.triples() else "give another data set"


def _own(count: int, procedural: float) -> int:
    return count - int(count * procedural)
