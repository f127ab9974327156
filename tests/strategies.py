"""Small networks, runs and pictures that many tests share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pam_mobile.config import Crop, Data, HeldOut, PathLearningSettings, Stage, TrainConfig
from pam_mobile.reporter import Silent

TINY_RUN = TrainConfig(
    stage1=Stage(steps=4, learning_rate=1e-3),
    stage2=Stage(steps=4, learning_rate=1e-3),
    stage3=Stage(steps=4, learning_rate=1e-3),
    paths=PathLearningSettings(candidates=2, prior_images=2, prior_paths=2),
    crops=(Crop(64, 2, 0.5), Crop(32, 3, 0.5)),
    data=Data(patches=6, backgrounds=4, size=96),
    held_out=HeldOut(composites=2, size=64),
    precision="fp32",
    validate_every=2,
    save_every=2,
)


class Ear(Silent):
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def warn(self, text: str) -> None:
        self.heard.append(text)


def picture_files(folder: Path, height: int = 45, width: int = 70, name: str = "x") -> tuple[Path, Path, Path]:
    """Image, trimap and alpha files of a soft disc, in image/, trimap/ and alpha/."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y - height / 2, x - width / 2)
    alpha = np.clip((min(height, width) / 3 - radius) / 6 + 0.5, 0, 1)
    colours = alpha[..., None] * np.array([30, 60, 220.0]) + (1 - alpha[..., None]) * np.array([200, 180, 40.0])
    noisy = colours + np.random.default_rng(0).normal(0, 3, colours.shape)
    trimap = np.select([alpha >= 1, alpha <= 0], [255, 0], 128)
    files = {"image": noisy, "trimap": trimap, "alpha": alpha * 255}
    paths = []
    for part, pixels in files.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        paths.append(folder / part / f"{name}.png")
        cv2.imwrite(str(paths[-1]), np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return paths[0], paths[1], paths[2]
