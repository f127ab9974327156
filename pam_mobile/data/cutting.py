"""Patches and backgrounds for the bank, cut from the user's images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..imageio import read_alpha_channel, read_grey, read_photo
from ..reporter import Reporter
from .datasets import Cutout
from .patch import make_patch
from .preflight import check_cutout, check_image, faults, tolerate

SMALLEST_VIEW = 0.35
"""Patches show between this share of the image's shorter side and all of it."""

Item = TypeVar("Item", Cutout, FilePath)


def foreground_patches(cutouts: Sequence[Cutout], count: int, size: int, seed: int, reporter: Reporter) -> Tensor:
    """(count, 5, size, size) uint8 patches around soft pixels of the foregrounds, in turn.

    Raises InputError if more files are unusable than is tolerated.
    """

    def patch(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        view = _random_view(planes, planes[..., 3], size, rng)
        return make_patch(view[..., :3], view[..., 3])

    return _cut(cutouts, check_cutout, read_cutout, patch, count, [seed, 1], "cutting patches", reporter)


def background_planes(files: Sequence[FilePath], count: int, size: int, seed: int, reporter: Reporter) -> Tensor:
    """(count, 3, size, size) uint8 random views of the images, in turn.

    Raises InputError if more files are unusable than is tolerated.
    """

    def plane(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _random_view(image, None, size, rng).transpose(2, 0, 1)

    return _cut(files, check_image, _read_background, plane, count, [seed, 2], "cutting backgrounds", reporter)


def read_cutout(cutout: Cutout) -> np.ndarray:
    """(H, W, 4) uint8 colours of the foreground, and alpha. Raises InputError if a file is damaged or the sizes differ."""
    colours = read_photo(cutout.image).pixels
    alpha = read_alpha_channel(cutout.image) if cutout.alpha == cutout.image else read_grey(cutout.alpha)
    if alpha.shape != colours.shape[:2]:
        raise InputError(
            f"{cutout.alpha} is {alpha.shape[1]}x{alpha.shape[0]}, {cutout.image} is {colours.shape[1]}x{colours.shape[0]}",
            "an alpha has the size of its foreground",
        )
    if cutout.photo:
        from ..predict.foreground import estimate_foreground

        colours = estimate_foreground(colours, alpha)
    return np.dstack([_to_bytes(colours), _to_bytes(alpha)])


def _cut(
    items: Sequence[Item],
    check: Callable[[Item], None],
    read: Callable[[Item], np.ndarray],
    view: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    count: int,
    seed: list[int],
    title: str,
    reporter: Reporter,
) -> Tensor:
    """`count` views of the items in turn, (count, C, S, S) uint8; of more than `count` items, of as many random ones.

    Headers are checked before any file is decoded. An unusable file leaves no trace: what is returned is what the other
    files alone would give. So a run can be resumed after such a file was removed.
    """
    found: dict[Item, InputError] = {}
    while True:
        chosen: list[Item] = _choose([item for item in items if item not in found], count, seed)
        views: list[np.ndarray] = []
        new = faults(chosen, check)
        if not new:
            views, new = _views(chosen, read, view, count, np.random.default_rng(seed), title, reporter)
        for fault in new.values():
            reporter.warn(f"passed over: {fault.message}")
        found |= new
        tolerate(found, len({*chosen, *found}))
        if not new:
            return torch.from_numpy(np.ascontiguousarray(views))


def _choose(items: list[Item], most: int, seed: list[int]) -> list[Item]:
    """`most` random ones of more items, in their order. Drawn by name, so that without one of them the others stay."""
    if len(items) <= most:
        return items
    names = [(item.image if isinstance(item, Cutout) else item).name for item in items]
    draws = [hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names]
    return [items[index] for index in sorted(sorted(range(len(items)), key=draws.__getitem__)[:most])]


def _views(
    items: list[Item],
    read: Callable[[Item], np.ndarray],
    view: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    count: int,
    rng: np.random.Generator,
    title: str,
    reporter: Reporter,
) -> tuple[list[np.ndarray], dict[Item, InputError]]:
    """`count` views of the items in turn, and the items that could not be read: then the views are of no use."""
    views: list[np.ndarray] = []
    found: dict[Item, InputError] = {}
    with reporter.progress(title, count) as advance:
        for index, item in enumerate(items):
            try:
                pixels = read(item)
            except InputError as error:
                found[item] = error
            if not found:
                for _ in range(index, count, len(items)):
                    views.append(view(pixels, rng))
                    advance()
    return views, found


def _read_background(path: FilePath) -> np.ndarray:
    return _to_bytes(read_photo(path).pixels)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255).astype(np.uint8)


def _random_view(image: np.ndarray, alpha: np.ndarray | None, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square view of random extent, area-averaged or enlarged to size x size; around a soft pixel if there is an alpha.

    image: (H, W, 3 or 4) uint8. Returns (size, size, 3 or 4) uint8.
    """
    height, width = image.shape[:2]
    extent = int(min(height, width) * rng.uniform(SMALLEST_VIEW, 1.0)) or 1
    soft = np.empty(0) if alpha is None else np.flatnonzero((alpha > 0) & (alpha < 255))
    y, x = divmod(int(rng.choice(soft)), width) if len(soft) else (int(rng.integers(height)), int(rng.integers(width)))
    top = min(max(y - extent // 2, 0), height - extent)
    left = min(max(x - extent // 2, 0), width - extent)
    view = image[top : top + extent, left : left + extent]
    shrink = cv2.INTER_AREA if extent >= size else cv2.INTER_LINEAR
    return cv2.resize(view, (size, size), interpolation=shrink)
