"""Photos, masks and trimaps from files, mattes and cut-outs to files.

Pillow checks that a file is whole and knows its orientation and colour profile; it cuts 16-bit colour to 8 bit
without a word, so those pixels come from OpenCV.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .data.shards import in_shard, read_member
from .data.trimap import UNKNOWN, quantise_trimap
from .errors import InputError, UsageError
from .files import write_bytes

MAX_PIXELS = 500_000_000
"""Larger images are refused: as float32 photo this is 6 GB already."""

_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_READABLE = "PNG, JPEG, TIFF, WebP or BMP"
_GREY_SUFFIXES = (".png", ".tif", ".tiff")
_RGBA_SUFFIXES = (".png",)
_PNG_HEADER_BYTES = 33
_PIXEL_CHUNKS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")
_HEAD_BYTES = 2**16
"""Enough for what comes before the pixels of nearly every PNG or JPEG; where it is not, the file is read whole."""
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 0x0102
_TIFF_SHORT = 3
# What Pillow's decoders raise for damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)
_PILLOW_LOCK = threading.Lock()


class Photo(NamedTuple):
    """A photo as it is meant to be seen.

    pixels: (H, W, 3) float32 in [0, 1], in the colour space of `icc`, sRGB if that is None.
    bits: 8 or 16, per channel in the file. icc: the RGB profile of the file.
    """

    pixels: np.ndarray
    bits: int
    icc: bytes | None


class Header(NamedTuple):
    """What a file says about its pixels before they are decoded: the size as stored, and whether there is an alpha channel."""

    width: int
    height: int
    has_alpha: bool


class _Raster(NamedTuple):
    pixels: np.ndarray
    icc: bytes | None


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a photo upright: 8 or 16 bit, grey, palette, RGB, RGBA (alpha is dropped) or CMYK.

    A profile that is not an RGB one is left out, because the pixels are RGB. Of several pages the first is read.
    Raises InputError if the file is missing, a folder, empty, no image, damaged or above MAX_PIXELS.
    """
    pixels, icc = _read(FilePath(path))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else np.broadcast_to(pixels[..., :1], (*pixels.shape[:2], 3))
    return Photo(_to_unit(colours), pixels.dtype.itemsize * 8, icc)


def read_grey(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mask, matte or trimap upright: its only channel, or channel 0 of a colour file.

    Returns (H, W) float32 in [0, 1]. Raises InputError as `read_photo` does.
    """
    pixels = _read(FilePath(path)).pixels
    return _to_unit(pixels if pixels.ndim == 2 else pixels[..., 0])


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the start of a file only; damage further on is not seen. Orientation is not applied to the size.

    Raises InputError if the file is missing, a folder, empty, no image or above MAX_PIXELS.
    """
    path = FilePath(path)
    head = _read_bytes(path, _HEAD_BYTES)
    if head.startswith(_SIGNATURES[:2]):  # TIFF and WebP keep no order
        with suppress(InputError):
            return _header(path, head)
    return _header(path, _read_bytes(path))


def _header(path: FilePath, data: bytes) -> Header:
    try:
        with _pillow_on_our_terms():
            image = _open(path, data)
    except _DECODE_ERRORS as error:
        raise _damaged(path, str(error)) from error
    return Header(*image.size, image.mode in ("RGBA", "RGBa", "P", "PA"))


def check_suffixes(alpha: FilePath, cutout: FilePath | None = None) -> None:
    """Raise UsageError, before any work, if an alpha or a cut-out cannot be written under that name."""
    _checked_suffix(alpha, _GREY_SUFFIXES)
    if cutout:
        _checked_suffix(cutout, _RGBA_SUFFIXES)


def read_alpha_channel(path: str | os.PathLike[str]) -> np.ndarray:
    """The fourth channel of an RGBA file upright, (H, W) float32 in [0, 1].

    Raises InputError as `read_photo` does, and if the file has no such channel.
    """
    pixels = _read(FilePath(path)).pixels
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise InputError(f"{path} has no alpha channel", "give one grey image per foreground as its alpha")
    return _to_unit(pixels[..., 3])


def read_trimap(path: str | os.PathLike[str], size: tuple[int, int] | None, photo_name: str = "") -> np.ndarray:
    """Read a trimap and bring it to its three values.

    size: (H, W) of the upright photo, None to accept any; photo_name: the file that a message names.
    Returns (H, W) uint8 with values 0, 128, 255. Raises InputError as `read_photo` does, and if the size is another
    or no pixel is unknown.
    """
    trimap = quantise_trimap(to_integers(read_grey(path), 8))
    if size is not None and trimap.shape != size:
        raise _size_error(FilePath(path), trimap.shape, photo_name or "the photo", size)
    if not (trimap == UNKNOWN).any():
        raise InputError(
            f"trimap {path} has no unknown pixel: there is nothing to estimate",
            "paint the uncertain band along hair and edges grey (128)",
        )
    return trimap


def to_integers(values: np.ndarray, bits: int) -> np.ndarray:
    """Round values in [0, 1] to unsigned integers.

    values: any shape, float; overshoot up to 1e-3 is clipped. bits: 8 or 16. Returns uint8 or uint16.
    Raises ValueError for NaN, another range or other bits.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    if values.size and not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
        raise ValueError(f"values must lie in [0, 1] without NaN, got [{values.min()}, {values.max()}]")
    scaled = np.clip(values, 0, 1) * np.float32(2**bits - 1)
    return np.rint(scaled, out=scaled).astype(np.uint8 if bits == 8 else np.uint16)


def write_grey(path: str | os.PathLike[str], alpha: np.ndarray, bits: int = 8) -> None:
    """Write a matte as grey PNG or TIFF, whole or not at all.

    alpha: (H, W) float in [0, 1]; bits: 8 or 16. Raises UsageError for another suffix, SetupError if the file cannot
    be written, ValueError for another shape, range or bits.
    """
    suffix = _checked_suffix(FilePath(path), _GREY_SUFFIXES)
    if alpha.ndim != 2:
        raise ValueError(f"alpha must have the shape (H, W), got {alpha.shape}")
    write_bytes(FilePath(path), _encode(suffix, to_integers(alpha, bits)))


def write_rgba(
    path: str | os.PathLike[str], rgb: np.ndarray, alpha: np.ndarray, bits: int = 8, icc: bytes | None = None
) -> None:
    """Write a cut-out as PNG with straight (not premultiplied) alpha, whole or not at all.

    rgb: (H, W, 3) float in [0, 1]; alpha: (H, W) float in [0, 1]; bits: 8 or 16; icc: RGB profile to embed.
    Raises UsageError for another suffix, SetupError if the file cannot be written, ValueError for another shape,
    range or bits.
    """
    suffix = _checked_suffix(FilePath(path), _RGBA_SUFFIXES)
    if alpha.ndim != 2 or rgb.shape != (*alpha.shape, 3):
        raise ValueError(f"rgb must have the shape (H, W, 3) and alpha (H, W), got {rgb.shape} and {alpha.shape}")
    bgra = np.dstack((to_integers(rgb[..., ::-1], bits), to_integers(alpha, bits)))
    data = _encode(suffix, bgra)
    write_bytes(FilePath(path), data if icc is None else _with_profile(data, icc))


def _to_unit(pixels: np.ndarray) -> np.ndarray:
    unit = pixels.astype(np.float32, order="C")
    unit /= np.iinfo(pixels.dtype).max
    return unit


def _size_error(path: FilePath, size: tuple[int, ...], photo_name: str, photo_size: tuple[int, int]) -> InputError:
    (height, width), (photo_height, photo_width) = size, photo_size
    if (height, width) == (photo_width, photo_height):
        hint = "one of the two is turned by 90 degrees: save the photo upright and make the trimap from that file"
    else:
        hint = f"make the trimap from this photo, or resize it to {photo_width}x{photo_height} without smoothing"
    return InputError(
        f"trimap {path} is {width}x{height} pixels but {photo_name} is {photo_width}x{photo_height} (width x height)",
        hint,
    )


def _read(path: FilePath) -> _Raster:
    """Decode a file into upright (H, W) or (H, W, C) uint8 or uint16 pixels, RGB order first."""
    data, tiff_orientation = _without_tiff_orientation(_read_bytes(path))
    try:
        with _pillow_on_our_terms():
            image = _open(path, data)
            image.load()
            orientation = tiff_orientation or _orientation(image)
        pixels = _colour16(path, data) if _has_16_bit_colour(image, data) else _pixels(path, image)
    except _DECODE_ERRORS as error:
        raise _damaged(path, str(error)) from error
    return _Raster(_upright(pixels, orientation), _rgb_profile(image))


def _read_bytes(path: FilePath, most: int = -1) -> bytes:
    if in_shard(path):
        return read_member(path, most)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not an image", "name one image file")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a device or a pipe, not an image", "name one image file")
        with path.open("rb") as file:
            data = file.read(most)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", "check the name and the folder") from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", "check its name and the permissions of the file"
        ) from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes)", "copy or save the image again")
    return data


@contextmanager
def _pillow_on_our_terms() -> Iterator[None]:
    """Lift Pillow's own limit, which refuses photos that MAX_PIXELS allows, and its warnings ahead of each error.

    Both are global to the process, hence the lock.
    """
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(path: FilePath, data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise _damaged(path, "its structure cannot be read") from error
        raise InputError(f"{path} is not a {_READABLE} image", "convert it to PNG or JPEG first") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} has {width}x{height} pixels, more than the limit of {MAX_PIXELS // 1_000_000} megapixels",
            "make the image smaller or cut it into parts",
        )
    return image


def _damaged(path: FilePath, reason: str) -> InputError:
    first_line = reason.splitlines()[0] if reason else "it cannot be decoded"
    return InputError(f"{path} is damaged or incomplete: {first_line}", "copy the file again or save it as PNG")


def _without_tiff_orientation(data: bytes) -> tuple[bytes, int]:
    """Set the orientation of a TIFF to upright and return what it was; 0 for other files and where none is given.

    Pillow and OpenCV turn TIFFs while decoding, each version in its own way, so it is hidden from both.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or data[2:4] not in (b"*\0", b"\0*"):
        return data, 0
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, directory)
        for position in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, orientation = struct.unpack_from(f"{order}HHIH", data, position)
            if tag == _ORIENTATION_TAG and kind == _TIFF_SHORT:
                upright = struct.pack(f"{order}H", 1)
                return data[: position + 8] + upright + data[position + 10 :], orientation
    except struct.error:
        return data, 0
    return data, 0


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        # Viewers show a photo with unreadable EXIF as it is stored.
        return 1


def _has_16_bit_colour(image: Image.Image, data: bytes) -> bool:
    if image.mode not in ("RGB", "RGBA"):
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (8,))) == 16
    return image.format == "PNG" and data[24] == 16


def _colour16(path: FilePath, data: bytes) -> np.ndarray:
    """Pixels of a file that Pillow has found whole, without the remarks that OpenCV and its libraries print about it."""
    plain = _pixel_chunks(data) if data.startswith(_SIGNATURES[0]) else data
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(plain, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _damaged(path, str(error)) from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None:
        raise _damaged(path, "its 16-bit pixels cannot be decoded")
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _pixel_chunks(png: bytes) -> bytes:
    """A PNG of the chunks that make its pixels: libpng comments on profiles and the like."""
    kept, start = [png[:8]], 8
    while start + 12 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] in _PIXEL_CHUNKS:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _pixels(path: FilePath, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise InputError(f"{path} has 32-bit pixels of unknown range", "save it with 8 or 16 bits per channel")
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("P", "PA", "RGBa"):
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation; values outside 1 to 8 leave the pixels as they are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def _rgb_profile(image: Image.Image) -> bytes | None:
    icc = image.info.get("icc_profile")
    return icc if icc and icc[16:20] == b"RGB " else None


def _checked_suffix(path: FilePath, allowed: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise UsageError(
            f"cannot write {path}: the suffix {suffix!r} is not one of {', '.join(allowed)}",
            f"end its name in {allowed[0]}",
        )
    return suffix


def _encode(suffix: str, pixels: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3] if suffix == ".png" else []
    encoded, data = cv2.imencode(suffix, pixels, options)
    if not encoded:
        raise ValueError(f"pixels cannot be encoded as {suffix}: {pixels.dtype} of shape {pixels.shape}")
    return data.tobytes()


def _with_profile(png: bytes, icc: bytes) -> bytes:
    """Insert an iCCP chunk behind the header of a PNG."""
    body = b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:_PNG_HEADER_BYTES] + chunk + png[_PNG_HEADER_BYTES:]
