"""The bank that a configuration asks for: procedural, or made from folders of the user's images."""

from __future__ import annotations

from pathlib import Path as FilePath

from ..config import Data
from ..data.bank import Bank, synthetic_bank
from ..data.folders import background_planes, foreground_patches
from ..errors import UsageError
from ..reporter import Reporter


def load_bank(data: Data, seed: int, reporter: Reporter) -> Bank:
    """Foregrounds and backgrounds from the folders where given, procedural ones otherwise.

    Raises UsageError for an alpha folder without a foreground folder, InputError for unusable files.
    """
    if data.alpha_folder and not data.foreground_folder:
        raise UsageError("--alpha needs --fg", "give the folder of the foregrounds that the alphas belong to")
    own_foregrounds, own_backgrounds = bool(data.foreground_folder), bool(data.background_folder)
    bank = synthetic_bank(
        seed * 1_000_000 % 1_000_000_000,
        4 if own_foregrounds else data.patches,
        4 if own_backgrounds else data.backgrounds,
        data.size,
        data.kinds,
        reporter,
    )
    patches, backgrounds = bank.patches, bank.backgrounds
    if own_foregrounds:
        alpha = FilePath(data.alpha_folder) if data.alpha_folder else None
        patches = foreground_patches(FilePath(data.foreground_folder), alpha, data.patches, data.size, seed, reporter)
    if own_backgrounds:
        backgrounds = background_planes(FilePath(data.background_folder), data.backgrounds, data.size, seed, reporter)
    return Bank(patches, backgrounds)
