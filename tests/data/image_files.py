"""Small image files of many shapes, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 45, 60


def disc(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W) uint8 alpha of a soft disc."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 2, height // 2), min(height, width) // 3, 255, -1)
    return cv2.GaussianBlur(mask, (0, 0), 2)


def noise(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_all(root: Path, files: dict[str, list[str]]) -> None:
    """folder -> file names; masks and trimaps by the folder's name, noise elsewhere."""
    for folder, names in files.items():
        grey = Path(folder).name in ("alpha", "mask", "GT", "trimap", "trimaps")
        for index, name in enumerate(names):
            write(root / folder / name, disc() if grey else noise(index))


def cutout_files(root: Path, count: int) -> tuple[Path, Path]:
    """fg/ and alpha/ with `count` pairs of different colours."""
    for index in range(count):
        write(root / "fg" / f"{index:03}.png", noise(index))
        write(root / "alpha" / f"{index:03}.png", disc())
    return root / "fg", root / "alpha"


def truncate(path: Path) -> None:
    """Keep the header and some pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
