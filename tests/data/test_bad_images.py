"""Whatever lies in a folder of images, reading it gives pixels or one error that names the file, quickly."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import cutout_files, disc, noise
from PIL import Image

from pam_mobile.data.cutting import foreground_patches
from pam_mobile.data.datasets import Cutout, ForegroundSet
from pam_mobile.errors import InputError
from pam_mobile.imageio import read_alpha_channel, read_grey, read_header, read_photo
from pam_mobile.reporter import Silent

READERS: list[Callable[[Path], object]] = [read_photo, read_grey, read_alpha_channel, read_header]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def pipe(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is at most 107 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.mkdir()


def html(path: Path) -> None:
    path.write_text("<!doctype html><title>404</title>")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.png", b"x" * 1000)


def empty(path: Path) -> None:
    path.touch()


SPECIAL = [fifo, pipe, endless, dangling, loop, folder, html, archive, empty]


@pytest.mark.parametrize("make", SPECIAL)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.png"
    make(path)
    for read in READERS:
        with pytest.raises(InputError, match=r"a\.png") as caught:
            read(path)
        assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("make", SPECIAL)
def test_what_is_no_image_is_passed_over_in_training(tmp_path: Path, make: Callable[[Path], None]) -> None:
    fg, alpha = cutout_files(tmp_path, 50)
    (fg / "010.png").unlink()
    make(fg / "010.png")
    items = ForegroundSet(fg, (alpha,)).cutouts()
    good = [item for item in items if item.image.stem != "010"]
    made = foreground_patches([*good[:10], Cutout(fg / "010.png", alpha / "010.png"), *good[10:]], 60, 32, 0, Silent())
    assert (made == foreground_patches(good, 60, 32, 0, Silent())).all()


def encodings() -> dict[str, bytes]:
    """Small pictures in every format and mode that is read."""
    colour, grey = noise(0, 18, 23), disc(18, 23)
    deep = colour.astype(np.uint16) * 257
    pictures = {
        "8.png": colour,
        "grey.png": grey,
        "rgba.png": np.dstack([colour, grey]),
        "16.png": deep,
        "16grey.png": deep[..., 0],
        "8.jpg": colour,
        "8.webp": colour,
        "8.tif": colour,
        "16.tif": deep,
        "8.bmp": colour,
    }
    data = {name: cv2.imencode(f".{name.rpartition('.')[2]}", x)[1].tobytes() for name, x in pictures.items()}
    image = Image.fromarray(colour)
    for name, made in {
        "palette.png": image.quantize(16),
        "one.png": image.convert("1"),
        "cmyk.jpg": image.convert("CMYK"),
        "la.png": Image.merge("LA", [Image.fromarray(grey)] * 2),
    }.items():
        file = io.BytesIO()
        made.save(file, {"png": "PNG", "jpg": "JPEG"}[name.rpartition(".")[2]])
        data[name] = file.getvalue()
    return data


def mutants(data: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """Flipped, cut, doubled and overwritten copies."""
    found = []
    for _ in range(count):
        copy, at = bytearray(data), int(rng.integers(len(data)))
        kind = rng.integers(4)
        if kind == 0:
            copy[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            copy = copy[:at]
        elif kind == 2:
            copy[at:at] = copy[: int(rng.integers(1, 40))]
        else:
            copy[at : at + 4] = rng.integers(0, 256, 4).astype(np.uint8).tobytes()
        found.append(bytes(copy))
    return found


ENCODINGS = encodings()


@pytest.mark.parametrize("name", ENCODINGS)
def test_mutated_images_are_read_or_refused(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    data = ENCODINGS[name]
    path = tmp_path / f"a{Path(name).suffix}"
    path.write_bytes(data)
    assert read_photo(path).pixels.shape == (18, 23, 3)
    refused = []
    for mutant in mutants(data, 500, rng):
        path.write_bytes(mutant)
        for read in (read_photo, read_header):
            try:
                read(path)
            except InputError as error:
                refused.append(error)
    assert len(refused) > 60
    assert all("\n" not in error.message + error.hint and path.name in error.message for error in refused)
