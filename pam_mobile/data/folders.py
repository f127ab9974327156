"""Folders of images: what lies in them, and which file belongs to which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as FilePath

from ..errors import InputError
from .shards import in_shard

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_COMPOSITE = re.compile(r"_\d+$")
"""What the composites of one foreground add to its name: `cat_0` to `cat_19` share the alpha `cat`."""


def images_by_stem(*folders: FilePath) -> dict[str, FilePath]:
    """The images of folders by file name without suffix; hidden files are left out.

    Raises InputError if there are none, or two of one name.
    """
    found: dict[str, FilePath] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder", "give a folder of images")
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                if path.stem in found:
                    raise InputError(f"{found[path.stem]} and {path} have the same name", "keep one of them")
                found[path.stem] = path
    if not found:
        where = " and ".join(map(str, folders))
        raise InputError(f"{where} holds no images", f"known endings: {', '.join(SUFFIXES)}")
    return found


def partners(images: dict[str, FilePath], folders: Sequence[FilePath]) -> list[FilePath]:
    """For each image the file of its name in other folders: equal names, or names without the number of the composite.

    Where it is missing, the path at which it was expected: `missing_partner` says so in words.
    """
    others = images_by_stem(*folders)
    keys = list(images)
    shared = [_COMPOSITE.sub("", key) for key in keys]
    if sum(key in others for key in shared) > sum(key in others for key in keys):
        keys = shared
    return [others.get(key, folders[0] / f"{key}.png") for key in keys]


def missing_partner(image: FilePath, partner: FilePath) -> InputError | None:
    """The error for an image whose partner is not there, None if it is."""
    if partner.exists() or in_shard(partner):
        return None
    return InputError(f"{image} has no partner in {partner.parent}", f"add {partner}, or remove {image.name}")
