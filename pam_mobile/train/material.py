"""The bank that a configuration asks for: procedural, or made from folders of the user's images."""

from __future__ import annotations

from pathlib import Path as FilePath

import torch

from ..config import Data
from ..data.bank import Bank, synthetic_bank
from ..data.folders import background_planes, foreground_patches
from ..errors import UsageError
from ..reporter import Reporter


def load_bank(data: Data, seed: int, reporter: Reporter) -> Bank:
    """Foregrounds and backgrounds from the folders where given, mixed with or replaced by procedural ones.

    Raises UsageError for an alpha folder without a foreground folder, InputError for unusable files.
    """
    if data.alpha_folder and not data.foreground_folder:
        raise UsageError("--alpha needs --fg", "give the folder of the foregrounds that the alphas belong to")
    own_patches = _own(data.patches, data.procedural) if data.foreground_folder else 0
    own_backgrounds = _own(data.backgrounds, data.procedural) if data.background_folder else 0
    made_patches, made_backgrounds = data.patches - own_patches, data.backgrounds - own_backgrounds
    first = seed * 1_000_000 % 1_000_000_000
    bank = synthetic_bank(first, max(4, made_patches), max(4, made_backgrounds), data.size, data.kinds, reporter)
    patches, backgrounds = [bank.patches[:made_patches]], [bank.backgrounds[:made_backgrounds]]
    if own_patches:
        alpha = FilePath(data.alpha_folder) if data.alpha_folder else None
        patches.append(
            foreground_patches(FilePath(data.foreground_folder), alpha, own_patches, data.size, seed, reporter)
        )
    if own_backgrounds:
        backgrounds.append(
            background_planes(FilePath(data.background_folder), own_backgrounds, data.size, seed, reporter)
        )
    return Bank(torch.cat(patches), torch.cat(backgrounds))


def _own(count: int, procedural: float) -> int:
    return count - int(count * procedural)
