"""Evaluation sets on disk."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import NamedTuple

from ..errors import InputError
from .folders import images_by_stem, partner


class Triple(NamedTuple):
    """The files of one evaluation image."""

    name: str
    image: FilePath
    trimap: FilePath
    alpha: FilePath


def image_trimap_alpha(folder: FilePath) -> list[Triple]:
    """The images of `image/` with the files of equal names in `trimap/` and `alpha/`.

    Raises InputError naming the first missing folder or partner.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "give a folder with image/, trimap/ and alpha/")
    places = [folder / part for part in ("image", "trimap", "alpha")]
    images, trimaps, alphas = (images_by_stem(place) for place in places)
    return [
        Triple(name, path, partner(path, trimaps, places[1]), partner(path, alphas, places[2]))
        for name, path in images.items()
    ]
