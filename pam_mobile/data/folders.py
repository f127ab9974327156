"""Folders of the user's own images, cut into patches for the bank."""

from __future__ import annotations

from pathlib import Path as FilePath

import cv2
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..imageio import read_alpha_channel, read_grey, read_photo
from ..reporter import Reporter
from .patch import make_patch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
SMALLEST_VIEW = 0.35
"""Patches show between this share of the image's shorter side and all of it."""


def images_by_stem(folder: FilePath) -> dict[str, FilePath]:
    """The images of a folder by file name without suffix. Raises InputError if there are none, or two of one name."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "give a folder of images")
    found: dict[str, FilePath] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise InputError(f"{found[path.stem]} and {path} have the same name", "keep one of them")
            found[path.stem] = path
    if not found:
        raise InputError(f"{folder} holds no images", f"known endings: {', '.join(SUFFIXES)}")
    return found


def partner(path: FilePath, others: dict[str, FilePath], folder: FilePath) -> FilePath:
    """The image of the same name in another folder. Raises InputError naming what is missing."""
    if path.stem not in others:
        raise InputError(f"{path} has no partner in {folder}", f"add {folder / path.stem}.png, or remove {path.name}")
    return others[path.stem]


def foreground_patches(
    folder: FilePath, alpha_folder: FilePath | None, count: int, size: int, seed: int, reporter: Reporter
) -> Tensor:
    """(count, 5, size, size) uint8 patches around soft pixels of the folder's foregrounds, in turn.

    Alphas come from `alpha_folder` by equal names, or from the fourth channel of the foreground files.
    """
    files = list(images_by_stem(folder).values())
    alphas = images_by_stem(alpha_folder) if alpha_folder else {}
    pairs = [(path, partner(path, alphas, alpha_folder) if alpha_folder else path) for path in files]
    rng = np.random.default_rng([seed, 1])
    patches = []
    with reporter.progress(f"cutting patches from {folder}", count) as advance:
        for index, (path, alpha_path) in enumerate(pairs):
            foreground, alpha = _read_pair(path, alpha_path)
            for _ in range(index, count, len(pairs)):
                view = _random_view(foreground, alpha, size, rng)
                patches.append(make_patch(view[..., :3], view[..., 3]))
                advance()
    return torch.from_numpy(np.ascontiguousarray(patches))


def background_planes(folder: FilePath, count: int, size: int, seed: int, reporter: Reporter) -> Tensor:
    """(count, 3, size, size) uint8 random views of the folder's images, in turn."""
    files = list(images_by_stem(folder).values())
    rng = np.random.default_rng([seed, 2])
    planes = []
    with reporter.progress(f"cutting backgrounds from {folder}", count) as advance:
        for index, path in enumerate(files):
            image = _to_bytes(read_photo(path).pixels)
            for _ in range(index, count, len(files)):
                planes.append(_random_view(image, None, size, rng).transpose(2, 0, 1))
                advance()
    return torch.from_numpy(np.ascontiguousarray(planes))


def _read_pair(path: FilePath, alpha_path: FilePath) -> tuple[np.ndarray, np.ndarray]:
    foreground = _to_bytes(read_photo(path).pixels)
    alpha = _to_bytes(read_alpha_channel(path) if path == alpha_path else read_grey(alpha_path))
    if alpha.shape != foreground.shape[:2]:
        raise InputError(
            f"{alpha_path} is {alpha.shape[1]}x{alpha.shape[0]}, {path} is {foreground.shape[1]}x{foreground.shape[0]}",
            "an alpha has the size of its foreground",
        )
    return foreground, alpha


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255).astype(np.uint8)


def _random_view(image: np.ndarray, alpha: np.ndarray | None, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square view of random extent, area-averaged or enlarged to size x size; around a soft pixel if there is an alpha.

    image: (H, W, 3) uint8. Returns (size, size, 3 or 4) uint8.
    """
    planes = image if alpha is None else np.dstack([image, alpha])
    height, width = planes.shape[:2]
    extent = int(min(height, width) * rng.uniform(SMALLEST_VIEW, 1.0)) or 1
    soft = np.empty(0) if alpha is None else np.flatnonzero((alpha > 0) & (alpha < 255))
    y, x = divmod(int(rng.choice(soft)), width) if len(soft) else (int(rng.integers(height)), int(rng.integers(width)))
    top = min(max(y - extent // 2, 0), height - extent)
    left = min(max(x - extent // 2, 0), width - extent)
    view = planes[top : top + extent, left : left + extent]
    shrink = cv2.INTER_AREA if extent >= size else cv2.INTER_LINEAR
    return cv2.resize(view, (size, size), interpolation=shrink)
