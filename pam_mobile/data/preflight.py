"""Unusable files: found by their headers before any work, and how many of them a training may pass over."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from pathlib import Path as FilePath
from typing import TypeVar

from ..errors import InputError
from ..imageio import read_header
from .datasets import Cutout, DataSet, Triple
from .folders import missing_partner

Item = TypeVar("Item", bound=Hashable)


def tolerated(count: int) -> int:
    """How many of `count` files may be unusable: 1 in 100, and from 50 files on at least one."""
    return max(count // 100, min(1, count // 50))


def check_cutout(cutout: Cutout) -> None:
    """Raises InputError if a partner is missing, a header cannot be read, the sizes differ or there is no alpha."""
    if cutout.alpha != cutout.image:
        _same_size(cutout.image, cutout.alpha)
    elif not read_header(cutout.image).has_alpha:
        raise InputError(f"{cutout.image} has no alpha channel", "give one grey image per foreground as its alpha")


def check_triple(triple: Triple) -> None:
    """Raises InputError as `check_cutout` does."""
    for partner in (triple.alpha, triple.trimap):
        if partner:
            _same_size(triple.image, partner)


def check_image(path: FilePath) -> None:
    """Raises InputError if the header cannot be read."""
    read_header(path)


def faults(items: Iterable[Item], check: Callable[[Item], None]) -> dict[Item, InputError]:
    """The items that a check refuses, and why."""
    found = {}
    for item in items:
        try:
            check(item)
        except InputError as error:
            found[item] = error
    return found


def tolerate(found: dict[Item, InputError], count: int) -> None:
    """Raises InputError if more of `count` files are unusable than is tolerated."""
    if len(found) > tolerated(count):
        first = next(iter(found.values()))
        raise InputError(f"{len(found)} of {count} images cannot be used, the first: {first.message}", first.hint)


def check_dataset(data: DataSet) -> list[InputError]:
    """Every fault that the headers of a data set show, training, test and backgrounds.

    Raises InputError for a folder that cannot be listed.
    """
    return [
        *faults(data.cutouts(), check_cutout).values(),
        *faults(data.triples(), check_triple).values(),
        *faults(data.background_files(), check_image).values(),
    ]


def _same_size(image: FilePath, partner: FilePath) -> None:
    """Sizes are compared up to a turn by 90 degrees, which only the decoded picture can tell."""
    missing = missing_partner(image, partner)
    if missing:
        raise missing
    one, other = read_header(image), read_header(partner)
    if {one.width, one.height} != {other.width, other.height}:
        raise InputError(
            f"{partner} is {other.width}x{other.height}, {image} is {one.width}x{one.height}",
            "an alpha or a trimap has the size of its image; do not resize it",
        )
