"""Matting data sets on disk: which files to train with, and which to evaluate on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np

from ..errors import InputError, UsageError
from ..imageio import read_grey, read_photo, read_trimap, to_integers
from .folders import images_by_stem, missing_partner, partners
from .layouts import Place, expand, find_layout
from .shards import INDEX, Sample, read_shards, write_shards
from .trimap import UNKNOWN, trimap_from_alpha


class Cutout(NamedTuple):
    """The files of one foreground to train with."""

    image: FilePath
    alpha: FilePath
    """`image` itself: its fourth channel."""
    photo: bool = False
    """The image is a photo: the colours of its foreground must be estimated."""


class Triple(NamedTuple):
    """The files of one evaluation image."""

    name: str
    image: FilePath
    trimap: FilePath | None
    """None: made from the alpha."""
    alpha: FilePath


@dataclass(frozen=True)
class ForegroundSet:
    """Images with their alphas, to be put over backgrounds. Files are listed when they are asked for."""

    images: FilePath
    alphas: tuple[FilePath, ...]
    """None: the images carry their alpha as a fourth channel."""
    photos: bool = False

    def cutouts(self) -> list[Cutout]:
        """In the order of their names; the alpha of a pair may be missing. Raises InputError for an unusable folder."""
        images = images_by_stem(self.images)
        alphas = partners(images, self.alphas) if self.alphas else list(images.values())
        return [Cutout(image, alpha, self.photos) for image, alpha in zip(images.values(), alphas, strict=True)]


@dataclass(frozen=True)
class RealSet:
    """Finished images with alphas, and trimaps where they exist."""

    images: FilePath
    alphas: tuple[FilePath, ...]
    trimaps: tuple[FilePath, ...]

    def triples(self) -> list[Triple]:
        """In the order of their names; partners may be missing. Raises InputError for an unusable folder."""
        images = images_by_stem(self.images)
        alphas = partners(images, self.alphas)
        trimaps = partners(images, self.trimaps) if self.trimaps else [None] * len(images)
        return [Triple(*row) for row in zip(images, images.values(), trimaps, alphas, strict=True)]


@dataclass(frozen=True)
class DataSet:
    """What one root folder holds."""

    layout: str
    root: FilePath
    train: tuple[ForegroundSet, ...]
    test: tuple[RealSet, ...]
    backgrounds: tuple[FilePath, ...]
    """Folders of training backgrounds."""

    def cutouts(self) -> list[Cutout]:
        """All foregrounds to train with."""
        return [cutout for part in self.train for cutout in part.cutouts()]

    def triples(self) -> list[Triple]:
        """All images to evaluate on."""
        return [triple for part in self.test for triple in part.triples()]

    def background_files(self) -> list[FilePath]:
        """All backgrounds to train with."""
        return list(images_by_stem(*self.backgrounds).values()) if self.backgrounds else []


@dataclass(frozen=True)
class Packed(DataSet):
    """A data set in tar shards."""

    def cutouts(self) -> list[Cutout]:
        found = []
        for sample in read_shards(self.root)["train"]:
            photo = "image" in sample.files
            image = sample.files["image" if photo else "fg"]
            found.append(Cutout(image, sample.files.get("alpha", image), photo))
        return found

    def triples(self) -> list[Triple]:
        return [
            Triple(sample.source, sample.files["image"], sample.files.get("trimap"), sample.files["alpha"])
            for sample in read_shards(self.root)["test"]
        ]

    def background_files(self) -> list[FilePath]:
        return [sample.files["bg"] for sample in read_shards(self.root)["backgrounds"]]


def pack(data: DataSet, out: FilePath, largest: int) -> dict[str, int]:
    """Write a data set as shards of at most `largest` bytes (data/shards.py); returns the number of samples by split.

    Raises UsageError if the set is packed already or `out` is not empty, InputError for unreadable files.
    """
    if isinstance(data, Packed):
        raise UsageError(f"{data.root} is packed already", "pack the folder that it was made from")

    def sample(**files: FilePath | None) -> Sample:
        present = {role: path for role, path in files.items() if path}
        return Sample(next(iter(present.values())).relative_to(data.root).as_posix(), present)

    train = [
        sample(**{"image" if c.photo else "fg": c.image}, alpha=c.alpha if c.alpha != c.image else None)
        for c in data.cutouts()
    ]
    test = [sample(image=t.image, alpha=t.alpha, trimap=t.trimap) for t in data.triples()]
    backgrounds = [sample(bg=path) for path in data.background_files()]
    return write_shards(out, {"train": train, "test": test, "backgrounds": backgrounds}, data.layout, largest)


def open_dataset(spec: str) -> DataSet:
    """The data set of `ROOT`, or `NAME:ROOT` where the folder alone does not say what it is.

    Raises InputError if the root is no folder, or its layout is unknown or ambiguous.
    """
    if (FilePath(spec) / INDEX).is_file():
        return Packed("shards", FilePath(spec), (), (), ())
    layout, root = find_layout(spec)
    train = [
        ForegroundSet(images, tuple(_nearest(root, place.alpha, images)), place is layout.photos)
        for place in (layout.foregrounds, layout.photos)
        if place
        for images in expand(root, place.image)
    ]
    test = [real for place in layout.test for real in _real_sets(root, place)]
    return DataSet(layout.name, root, tuple(train), tuple(test), tuple(expand(root, layout.backgrounds)))


def _real_sets(root: FilePath, place: Place) -> list[RealSet]:
    sets = []
    for images in expand(root, place.image):
        alphas, trimaps = (tuple(_nearest(root, pattern, images)) for pattern in (place.alpha, place.trimap))
        if alphas:
            sets.append(RealSet(images, alphas, trimaps))
    return sets


def _nearest(root: FilePath, pattern: str, images: FilePath) -> list[FilePath]:
    """The folders of a pattern beside `images`, or all of them if there is none."""
    folders = expand(root, pattern)
    return [folder for folder in folders if folder.parent == images.parent] or folders


def image_trimap_alpha(spec: str | FilePath) -> list[Triple]:
    """The evaluation images of a data set: the test split, or `image/`, `alpha/` and `trimap/` of a plain folder.

    Raises InputError as `open_dataset` does, if there is no test split, and naming the first missing partner.
    """
    data = open_dataset(str(spec))
    triples = data.triples()
    if not triples:
        raise InputError(
            f"{data.root} ({data.layout}) has no images to evaluate on", "give a folder with image/, alpha/ and trimap/"
        )
    for triple in triples:
        for file in (triple.trimap, triple.alpha):
            if file and (fault := missing_partner(triple.image, file)):
                raise fault
    return triples


def read_triple(triple: Triple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photo (H, W, 3) float32 in [0, 1], the trimap (H, W) uint8 with 0, 128, 255, and the alpha (H, W) uint8.

    Raises InputError if a file cannot be read, the sizes differ, or nothing is unknown.
    """
    photo = read_photo(triple.image).pixels
    size = (photo.shape[0], photo.shape[1])
    alpha = to_integers(read_grey(triple.alpha), 8)
    if alpha.shape != size:
        raise InputError(
            f"{triple.alpha} is {alpha.shape[1]}x{alpha.shape[0]}, {triple.image} is {size[1]}x{size[0]}",
            "an alpha has the size of its image; do not resize it",
        )
    if triple.trimap:
        return photo, read_trimap(triple.trimap, size, str(triple.image)), alpha
    trimap = trimap_from_alpha(alpha)
    if not (trimap == UNKNOWN).any():
        raise InputError(f"{triple.alpha} is constant: there is nothing to estimate", f"remove {triple.image.name}")
    return photo, trimap, alpha
