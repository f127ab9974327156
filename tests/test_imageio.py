"""Image files as users have them: turned, 16-bit, palette, CMYK, damaged; and files that are whole or not written."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, ImageOps

from pam_mobile import files, imageio
from pam_mobile.errors import InputError, SetupError, UsageError
from pam_mobile.imageio import read_grey, read_photo, read_trimap, to_integers, write_grey, write_rgba

# Where row 0 and column 0 of the file belong in the upright picture (EXIF 2.3, tag 274).
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
_in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def _stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores for an upright picture."""
    first_row, _ = ORIENTATIONS[orientation]
    stored = upright.swapaxes(0, 1) if first_row in ("left", "right") else upright
    row_flip, column_flip = (side in ("bottom", "right") for side in ORIENTATIONS[orientation])
    return np.ascontiguousarray(stored[:: -1 if row_flip else 1, :: -1 if column_flip else 1])


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _noise(shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(0).integers(0, 2**bits, shape).astype(dtype)


def _quarters() -> np.ndarray:
    """(32, 48, 3) uint8: four flat colours on the 16-pixel grid of JPEG, all different under every turn."""
    picture = np.zeros((32, 48, 3), dtype=np.uint8)
    picture[:16, :16] = 250, 10, 10
    picture[:16, 16:] = 10, 250, 10
    picture[16:, :16] = 10, 10, 250
    picture[16:, 16:] = 240, 240, 240
    return picture


def _tiff(pixels: np.ndarray, orientation: int = 1, order: str = "<", private_tag: bool = False) -> bytes:
    """An uncompressed TIFF, written by hand because Pillow has no 16-bit colour and OpenCV no orientation."""
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    data = pixels.astype(f"{order}u{bits // 8}").tobytes()
    directory = 8 + len(data) + len(data) % 2
    fields = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, directory + 1000),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    if channels == 4:
        fields.append((338, 3, 1, 2))
    if private_tag:
        fields.append((65000, 3, 1, 7))
    magic = b"II" if order == "<" else b"MM"
    out = bytearray(magic + struct.pack(f"{order}HI", 42, directory) + data.ljust(directory - 8, b"\0"))
    out += struct.pack(f"{order}H", len(fields))
    for tag, kind, count, value in fields:
        inline_short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if inline_short else struct.pack(f"{order}I", value)
        out += struct.pack(f"{order}HHI", tag, kind, count) + packed
    out = out.ljust(directory + 1000, b"\0")
    return bytes(out + struct.pack(f"{order}{channels}H", *[bits] * channels))


def _with_png_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def _png(pixels: np.ndarray) -> bytes:
    """PNG of RGB(A) or grey pixels, 8 or 16 bit, by OpenCV."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    stored = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., order[pixels.shape[2]]])
    return cv2.imencode(".png", stored)[1].tobytes()


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = _noise((5, 8, 3))
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(_stored(upright, orientation)).save(path, exif=_exif(orientation), lossless=True)
    np.testing.assert_array_equal(to_integers(read_photo(path).pixels, 8), upright)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), upright)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied_to_jpeg(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(_stored(_quarters(), orientation)).save(path, exif=_exif(orientation), quality=95, subsampling=0)
    pixels = read_photo(path).pixels * 255
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels - _quarters()).max() < 8


def test_what_else_a_16_bit_file_holds_makes_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = _noise((5, 8, 3), 16)
    (tmp_path / "a.png").write_bytes(_with_png_chunk(_png(pixels), b"iCCP", b"name\0\0no profile"))
    (tmp_path / "b.png").write_bytes(_with_png_chunk(_png(pixels), b"gAMA", b"\0\0\xb1\x8f"))
    (tmp_path / "c.tif").write_bytes(_tiff(pixels, private_tag=True))
    for name in ("a.png", "b.png", "c.tif"):
        photo = read_photo(tmp_path / name)
        assert photo.bits == 16
        np.testing.assert_array_equal(to_integers(photo.pixels, 16), pixels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_orientation_of_a_tiff_is_applied_once(
    tmp_path: Path, bits: int, channels: int, order: str, orientation: int
) -> None:
    upright = _noise((5, 8, channels), bits)
    path = tmp_path / "photo.tif"
    path.write_bytes(_tiff(_stored(upright, orientation), orientation, order))
    photo = read_photo(path)
    assert photo.bits == bits
    np.testing.assert_array_equal(to_integers(photo.pixels, bits), upright[..., :3])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_of_a_16_bit_png_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = _noise((5, 8, 3), 16)
    path = tmp_path / "photo.png"
    path.write_bytes(_with_png_chunk(_png(_stored(upright, orientation)), b"eXIf", _exif(orientation).tobytes()[6:]))
    photo = read_photo(path)
    assert photo.bits == 16
    np.testing.assert_array_equal(to_integers(photo.pixels, 16), upright)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_of_a_mask_is_applied(tmp_path: Path, suffix: str, bits: int, orientation: int) -> None:
    upright = _noise((5, 8), bits)
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(_stored(upright, orientation)).save(path, exif=_exif(orientation))
    np.testing.assert_array_equal(to_integers(read_grey(path), bits), upright)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.tif"
    path.write_bytes(_tiff(_noise((5, 8, 3)), orientation))
    np.testing.assert_array_equal(to_integers(read_photo(path).pixels, 8), _noise((5, 8, 3)))


# --- what a file may hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_exact(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = _noise((6, 9, channels), 16)
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(_png(pixels) if suffix == "png" else _tiff(pixels))
    photo = read_photo(path)
    assert (photo.bits, photo.pixels.dtype, photo.pixels.shape) == (16, np.float32, (6, 9, 3))
    np.testing.assert_array_equal(to_integers(photo.pixels, 16), pixels[..., :3])
    np.testing.assert_array_equal(to_integers(read_grey(path), 16), pixels[..., 0])


def test_16_bit_grey_with_alpha(tmp_path: Path) -> None:
    grey = _noise((4, 5), 16)
    header = struct.pack(">IIBBBBB", 5, 4, 16, 4, 0, 0, 0)
    rows = b"".join(b"\0" + np.dstack((row, row // 2)).astype(">u2").tobytes() for row in grey)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path = tmp_path / "grey.png"
    path.write_bytes(png)
    np.testing.assert_array_equal(to_integers(read_grey(path), 16), grey)
    np.testing.assert_array_equal(to_integers(read_photo(path).pixels, 16), np.dstack([grey] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_of_png(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(_quarters()).convert(mode)
    path = tmp_path / "photo.png"
    image.save(path)
    photo = read_photo(path)
    assert (photo.bits, photo.icc) == (8, None)
    np.testing.assert_array_equal(to_integers(photo.pixels, 8), np.asarray(image.convert("RGBA"))[..., :3])


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(_quarters()).quantize(4)
    path = tmp_path / "photo.png"
    image.save(path, transparency=bytes([0, 128]))
    np.testing.assert_array_equal(to_integers(read_photo(path).pixels, 8), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(_quarters()).save(path)
    assert np.abs(read_photo(path).pixels * 255 - _quarters()).mean() < 6


def test_photo_of_a_phone_with_a_second_picture_in_it(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    second = Image.fromarray(255 - _quarters())
    Image.fromarray(_quarters()).save(path, "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(read_photo(path).pixels * 255 - _quarters()).mean() < 6


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    cmyk_profile = bytearray(_profile())
    cmyk_profile[16:20] = b"CMYK"
    Image.fromarray(_quarters()).convert("CMYK").save(path, icc_profile=bytes(cmyk_profile))
    photo = read_photo(path)
    assert photo.icc is None
    assert np.abs(photo.pixels * 255 - _quarters()).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_rgb_profile_is_kept(tmp_path: Path, suffix: str) -> None:
    path, profile = tmp_path / f"photo.{suffix}", _profile()  # made once: a profile says the second that it was made in
    Image.fromarray(_quarters()).save(path, icc_profile=profile)
    assert read_photo(path).icc == profile


def test_mask_in_three_channels_gives_the_first(tmp_path: Path) -> None:
    pixels = _noise((6, 9, 3))
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(to_integers(read_grey(path), 8), pixels[..., 0])


def test_pillow_limit_is_lifted_only_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.tif"
    Image.fromarray(_quarters()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_photo(path).pixels.shape == (32, 48, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(InputError):
        read_photo(tmp_path / "absent.png")
    assert Image.MAX_IMAGE_PIXELS == 10


# --- messages --------------------------------------------------------------------------------------------------------


def _refused(path: Path, message: str, hint: str) -> None:
    for read in (read_photo, read_grey, lambda name: read_trimap(name, None)):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert path.name in caught.value.message
        assert "\n" not in caught.value.message
        assert hint in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path / "cat.png", r"cat\.png does not exist", "check the name")


def test_folder(tmp_path: Path) -> None:
    _refused(tmp_path, r"is a folder, not an image", "name one image file")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, mode: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    _refused(tmp_path / "cat.png", r"cannot read .*cat\.png: Permission denied", "permissions")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"")
    _refused(path, r"cat\.png is empty \(0 bytes\)", "copy or save")


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_text("not an image")
    _refused(path, r"cat\.png is not a PNG, JPEG, TIFF, WebP or BMP image", "convert it to PNG or JPEG")


def test_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    _refused(path, r"cat\.png is damaged or incomplete: its structure cannot be read", "copy the file again")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cat.{suffix}"
    Image.fromarray(_noise((64, 64, 3))).save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    _refused(path, rf"cat\.{suffix} is damaged or incomplete: ", "copy the file again")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_16_bit_file(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cat.{suffix}"
    data = cv2.imencode(f".{suffix}", _noise((64, 64, 3), 16))[1].tobytes()
    path.write_bytes(data[: int(kept * len(data))])
    _refused(path, rf"cat\.{suffix} is damaged or incomplete: ", "copy the file again")


@pytest.mark.parametrize("failure", ["none", "error"])
def test_16_bit_pixels_that_opencv_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(_png(_noise((6, 9, 3), 16)))

    def decode(*_: object) -> None:
        if failure == "error":
            raise cv2.error("first line\nsecond line")

    monkeypatch.setattr(imageio.cv2, "imdecode", decode)
    message = "first line" if failure == "error" else "its 16-bit pixels cannot be decoded"
    _refused(path, rf"cat\.png is damaged or incomplete: {message}$", "copy the file again")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_pixels(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "cat.tif"
    Image.fromarray(np.zeros((4, 5), dtype=dtype)).save(path)
    _refused(path, r"cat\.tif has 32-bit pixels of unknown range", "8 or 16 bits")


def test_too_many_pixels(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    path = tmp_path / "cat.png"
    path.write_bytes(body + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + b"\0\0\0\0IDAT" + bytes(4))
    _refused(path, r"cat\.png has 30000x20000 pixels, more than the limit of 500 megapixels", "smaller")


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_quarters()).save(buffer, kind, exif=_exif(6))
    return buffer.getvalue()


_VALID = {kind: _encoded(kind) for kind in ("png", "jpeg", "tiff", "webp", "bmp")} | {
    "png16": _png(_noise((8, 9, 3), 16)),
    "tiff16": _tiff(_noise((8, 9, 3), 16), 6),
}


@_in_tmp_path
@given(
    st.sampled_from(sorted(_VALID)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_are_read_or_refused_but_never_crash(
    tmp_path: Path, kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(_VALID[kind])
    for place, value in changes:
        data[int(place * min(len(data), 300))] = value
    path = tmp_path / "damaged"
    path.write_bytes(data[: int(len(data) * max(kept, 0.2))])
    try:
        photo = read_photo(path)
    except InputError:
        return
    assert photo.pixels.shape[2] == 3
    assert np.isfinite(photo.pixels).all()


# --- trimaps ---------------------------------------------------------------------------------------------------------


def _save_trimap(path: Path, values: list[int], bits: int = 8) -> None:
    pixels = np.tile(np.array(values), (4, 1))
    Image.fromarray((pixels * 257).astype(np.uint16) if bits == 16 else pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_trimap_is_brought_to_three_values(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "trimap.png"
    _save_trimap(path, [0, 84, 85, 128, 169, 170, 255], bits)
    trimap = read_trimap(path, (4, 7))
    assert trimap.dtype == np.uint8
    assert trimap[0].tolist() == [0, 0, 128, 128, 128, 255, 255]


def test_trimap_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "trimap.png"
    _save_trimap(path, [0, 128, 255])
    with pytest.raises(InputError, match=r"trimap .*trimap\.png is 3x4 pixels but cat\.jpg is 8x6 \(width x") as caught:
        read_trimap(path, (6, 8), "cat.jpg")
    assert "resize it to 8x6 without smoothing" in caught.value.hint
    with pytest.raises(InputError, match=r"is 3x4 pixels but the photo is 8x6"):
        read_trimap(path, (6, 8))


def test_turned_trimap(tmp_path: Path) -> None:
    path = tmp_path / "trimap.png"
    _save_trimap(path, [0, 128, 255])
    with pytest.raises(InputError, match=r"is 3x4 pixels but cat\.jpg is 4x3") as caught:
        read_trimap(path, (3, 4), "cat.jpg")
    assert "turned by 90 degrees" in caught.value.hint


def test_trimap_without_unknown_pixel(tmp_path: Path) -> None:
    path = tmp_path / "trimap.png"
    _save_trimap(path, [0, 255])
    with pytest.raises(InputError, match=r"trimap .*trimap\.png has no unknown pixel") as caught:
        read_trimap(path, None)
    assert "grey (128)" in caught.value.hint


# --- writing ---------------------------------------------------------------------------------------------------------


@_in_tmp_path
@given(
    st.sampled_from([".png", ".tif", ".TIFF"]),
    st.sampled_from([8, 16]),
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(0, 1, width=32)),
)
def test_alpha_comes_back_rounded(tmp_path: Path, suffix: str, bits: int, alpha: np.ndarray) -> None:
    path = tmp_path / f"alpha{suffix}"
    write_grey(path, alpha, bits)
    back = read_grey(path)
    half_a_level = 0.5 / (2**bits - 1)
    assert np.abs(back.astype(np.float64) - alpha).max() <= half_a_level + 2**-24  # read back as float32
    write_grey(path, back, bits)
    np.testing.assert_array_equal(read_grey(path), back)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_level_comes_back(tmp_path: Path, bits: int) -> None:
    levels = np.arange(2**bits, dtype=np.float64).reshape(2 ** (bits // 2), -1)
    for dtype in (np.float32, np.float64):
        write_grey(tmp_path / "alpha.png", (levels / (2**bits - 1)).astype(dtype), bits)
        with Image.open(tmp_path / "alpha.png") as image:
            assert image.mode == ("L" if bits == 8 else "I;16")
            np.testing.assert_array_equal(np.asarray(image), levels)


def test_alpha_is_rounded_not_truncated(tmp_path: Path) -> None:
    write_grey(tmp_path / "alpha.png", np.full((2, 2), 0.7 / 255, dtype=np.float32))
    assert (read_grey(tmp_path / "alpha.png") == np.float32(1) / np.float32(255)).all()


@pytest.mark.parametrize("with_profile", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_cut_out_is_exact_and_keeps_its_profile(tmp_path: Path, bits: int, with_profile: bool) -> None:
    pixels = _noise((6, 9, 4), bits)
    pixels[:3, :, 3] = 0
    unit = pixels.astype(np.float32) / (2**bits - 1)
    path = tmp_path / "cut.png"
    icc = _profile() if with_profile else None
    write_rgba(path, unit[..., :3], unit[..., 3], bits, icc)
    stored = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(stored[..., [2, 1, 0, 3]], pixels)
    photo = read_photo(path)
    assert (photo.bits, photo.icc) == (bits, icc)
    with Image.open(path) as image:
        image.verify()
        assert image.mode == "RGBA"


def test_photo_to_cut_out_keeps_pixels_and_profile(tmp_path: Path) -> None:
    Image.fromarray(_noise((5, 8, 3))).save(tmp_path / "photo.png", icc_profile=_profile(), exif=_exif(6))
    photo = read_photo(tmp_path / "photo.png")
    write_rgba(tmp_path / "cut.png", photo.pixels, np.ones((8, 5), np.float32), photo.bits, photo.icc)
    again = read_photo(tmp_path / "cut.png")
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert again.icc == photo.icc


@pytest.mark.parametrize("name", ["alpha.jpg", "alpha", "alpha.webp"])
def test_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    alpha = np.zeros((2, 2), np.float32)
    with pytest.raises(UsageError, match=r"cannot write .*alpha.*: the suffix .* is not one of \.png, \.tif, \.tiff"):
        write_grey(tmp_path / name, alpha)
    with pytest.raises(UsageError, match=r"the suffix .* is not one of \.png$"):
        write_rgba(tmp_path / name, np.zeros((2, 2, 3), np.float32), alpha)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arrays_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, alpha, rgb = tmp_path / "a.png", np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"alpha must have the shape \(H, W\), got \(2, 2, 3\)"):
        write_grey(path, rgb)
    with pytest.raises(
        ValueError, match=r"rgb must have the shape \(H, W, 3\) and alpha \(H, W\), got \(2, 2, 3\) and"
    ):
        write_rgba(path, rgb, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="bits must be 8 or 16, got 12"):
        write_grey(path, alpha, 12)
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\] without NaN, got \[nan, nan\]"):
        write_grey(path, alpha * np.nan)
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\] without NaN, got \[0.0, 255.0\]"):
        write_rgba(path, rgb, np.array([[0, 255], [0, 0]], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_slight_overshoot_of_a_network_is_clipped(tmp_path: Path) -> None:
    write_grey(tmp_path / "a.png", np.array([[-9e-4, 1 + 9e-4]], np.float32), bits=16)
    assert read_grey(tmp_path / "a.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    path, alpha = tmp_path / "a.png", np.ones((20, 20), np.float32)
    if existing:
        path.write_bytes(b"before")

    def fill_up(temporary: Path, data: bytes) -> None:
        with open(temporary, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", fill_up)
    with pytest.raises(SetupError, match=r"cannot write .*a\.png: No space left on device"):
        write_grey(path, alpha)
    with pytest.raises(SetupError, match=r"cannot write .*a\.png: No space left on device"):
        write_rgba(path, np.ones((20, 20, 3), np.float32), alpha)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"before"] if existing else [])


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"cannot write .*a\.png: Not a directory|cannot write .*a\.png: File exists"):
        write_grey(tmp_path / "file" / "a.png", np.zeros((2, 2), np.float32))
