"""One picture that shows a cut-out: photo, trimap, alphas, and the object on a new background."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..files import atomic_path
from ..predict.foreground import composite

TILE = 400
LABEL = 22


def contact_sheet(
    path: Path, photo: np.ndarray, trimap: np.ndarray, alphas: dict[str, np.ndarray], foreground: np.ndarray
) -> None:
    """Two rows: photo, trimap, new background; below, the labelled alphas.

    photo, foreground: (H, W, 3) float32 in [0, 1]; trimap: (H, W) uint8; alphas: label to (H, W) float32, the last one is composed.
    """
    label, alpha = list(alphas.items())[-1]
    backdrop = _backdrop(*alpha.shape)
    first = {
        "photo (NASA, public domain)": photo,
        "trimap": _grey(trimap / 255),
        f"new background, {label.removeprefix('alpha, ')}": composite(foreground, alpha, backdrop),
    }
    rows = [first, {name: _grey(values) for name, values in alphas.items()}]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * TILE, len(rows) * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (name, tile) in enumerate(row.items()):
            corner = (x * TILE, y * (TILE + LABEL))
            draw.text((corner[0] + 4, corner[1] + 4), name, fill="black")
            sheet.paste(_tile(tile), (corner[0], corner[1] + LABEL))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.float32)[..., None], 3, 2)


def _tile(image: np.ndarray) -> Image.Image:
    """Fitted into a square of TILE pixels."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(
        np.rint(np.clip(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 0, 1) * 255).astype(np.uint8)
    )


def _backdrop(height: int, width: int) -> np.ndarray:
    """A plain gradient of a colour that is far from skin, hair and cloth."""
    top, bottom = np.array([0.05, 0.35, 0.40], np.float32), np.array([0.55, 0.85, 0.70], np.float32)
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return np.broadcast_to(top + (bottom - top) * share, (height, width, 3)).copy()
