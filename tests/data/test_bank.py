"""Banks: cached, seeded, and made from folders of real files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pam_mobile.data import bank as banks
from pam_mobile.data.datasets import image_trimap_alpha
from pam_mobile.data.folders import background_planes, foreground_patches, images_by_stem
from pam_mobile.errors import InputError
from pam_mobile.reporter import Silent


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_HOME", str(tmp_path / "home"))


def test_a_bank_is_made_once_and_read_back_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    first = banks.synthetic_bank(3, 4, 2, 64)
    monkeypatch.setattr(banks, "_render", lambda *_: pytest.fail("made again"))
    again = banks.synthetic_bank(3, 4, 2, 64)
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.backgrounds, again.backgrounds)
    assert first.patches.shape == (4, 5, 64, 64)


def test_a_damaged_cache_is_made_again() -> None:
    first = banks.synthetic_bank(3, 4, 2, 64)
    (file,) = (banks.cache_folder() / "banks").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(banks.synthetic_bank(3, 4, 2, 64).patches, first.patches)


def test_held_out_seeds_are_apart_from_training_seeds() -> None:
    ours, theirs = banks.synthetic_bank(0, 4, 2, 64), banks.synthetic_bank(banks.HELD_OUT_SEED, 4, 2, 64)
    assert not any(torch.equal(a, b) for a in ours.patches for b in theirs.patches)


def folder(root: Path, name: str, images: dict[str, np.ndarray]) -> Path:
    place = root / name
    place.mkdir()
    for stem, pixels in images.items():
        cv2.imwrite(str(place / stem), pixels)
    return place


def disc(height: int = 90, width: int = 120) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 2, height // 2), 30, 255, -1)
    return cv2.GaussianBlur(mask, (0, 0), 3)


def test_patches_from_foreground_and_alpha_folders(tmp_path: Path) -> None:
    red = np.full((90, 120, 3), (0, 0, 200), np.uint8)
    fg = folder(tmp_path, "fg", {"a.png": red, "b.png": red})
    alpha = folder(tmp_path, "alpha", {"a.png": disc(), "b.png": disc()})
    patches = foreground_patches(fg, alpha, 5, 48, 0, Silent())
    assert patches.shape == (5, 5, 48, 48)
    assert (patches[:, 0] == 200).all()
    assert (patches[:, 1:3] == 0).all()
    soft = (patches[:, 3] > 0) & (patches[:, 3] < 255)
    assert soft.flatten(1).any(1).all()


def test_rgba_files_carry_their_alpha_and_others_are_refused(tmp_path: Path) -> None:
    rgba = np.dstack([np.full((90, 120, 3), 99, np.uint8), disc()])
    patches = foreground_patches(folder(tmp_path, "fg", {"a.png": rgba}), None, 2, 48, 0, Silent())
    assert patches[:, 3].max() > 200
    with pytest.raises(InputError, match=r"a\.png has no alpha channel"):
        foreground_patches(folder(tmp_path, "rgb", {"a.png": rgba[..., :3]}), None, 2, 48, 0, Silent())


def test_backgrounds_from_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (70, 50, 3), dtype=np.uint8)
    planes = background_planes(folder(tmp_path, "bg", {"a.png": noise}), 3, 64, 0, Silent())
    assert planes.shape == (3, 3, 64, 64)
    assert not torch.equal(planes[0], planes[1])


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    grey = np.zeros((20, 30), np.uint8)
    fg = folder(tmp_path, "fg", {"a.png": np.zeros((90, 120, 3), np.uint8)})
    with pytest.raises(InputError, match=r"a\.png has no partner in .*other"):
        foreground_patches(fg, folder(tmp_path, "other", {"b.png": grey}), 1, 48, 0, Silent())
    with pytest.raises(InputError, match=r"a\.png is 30x20, .*a\.png is 120x90"):
        foreground_patches(fg, folder(tmp_path, "small", {"a.png": grey}), 1, 48, 0, Silent())
    with pytest.raises(InputError, match="holds no images"):
        images_by_stem(folder(tmp_path, "empty", {}))
    with pytest.raises(InputError, match="is not a folder"):
        images_by_stem(tmp_path / "missing")
    with pytest.raises(InputError, match="have the same name"):
        images_by_stem(folder(tmp_path, "twice", {"a.png": grey, "a.bmp": grey}))


def test_evaluation_folders_pair_by_name(tmp_path: Path) -> None:
    grey = np.zeros((20, 30), np.uint8)
    for part in ("image", "trimap", "alpha"):
        folder(tmp_path, part, {f"{stem}.png": grey for stem in ("x", "y")})
    assert [t.name for t in image_trimap_alpha(tmp_path)] == ["x", "y"]
    (tmp_path / "alpha" / "y.png").unlink()
    with pytest.raises(InputError, match=r"y\.png has no partner in .*alpha"):
        image_trimap_alpha(tmp_path)
