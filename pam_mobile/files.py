"""Files that are whole or absent: durable atomic writes, locks, SHA-256, and JSON documents that carry a hash of themselves.

A write is: temporary file, read back and hashed, fsync, rename, fsync of the folder. After a crash or a power cut the old file or the
new one is there, never half of one, and a disk that drops data while it reports success is noticed before the old file is gone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import Any

from .errors import InputError, IntegrityError, SetupError, UsageError

SEAL = "document_sha256"
UNFINISHED = ".unfinished-"
LOCK = ".lock"


def sha256(path: FilePath) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: FilePath) -> Iterator[FilePath]:
    """Yield a temporary name in the same folder; it durably replaces `path` when the block succeeds and vanishes when it fails.

    Raises SetupError if the folder cannot be written.
    """
    try:
        _make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=path.parent)
        temporary = FilePath(name)
        try:
            os.close(handle)
            yield temporary
            _publish(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"cannot write {path}: {error.strerror or error}", "free space or choose another output folder"
        ) from error


def write_bytes(path: FilePath, data: bytes) -> str:
    """Write `data` to `path` atomically and durably; returns its SHA-256.

    Raises SetupError if it cannot be written, or reads back as something else.
    """
    digest = hashlib.sha256(data).hexdigest()
    with atomic_path(path) as temporary:
        _write(temporary, data)
        if sha256(temporary) != digest:
            raise OSError(errno.EIO, "what was read back is not what was written: the disk fails or is full")
    return digest


def remove_unfinished(folder: FilePath) -> None:
    """Remove the temporary files that a killed process left in `folder`. Only who holds its lock may call this."""
    for left in folder.glob(f"{UNFINISHED}*"):
        left.unlink(missing_ok=True)


@contextmanager
def locked(folder: FilePath) -> Iterator[None]:
    """Hold the folder's lock; it is released when the block or the process ends, however it ends.

    Raises UsageError at once, naming the process, if another one holds it.
    """
    try:
        _make_folder(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SetupError(f"cannot write {folder}: {error.strerror}", "choose another output folder") from error
    try:
        _take(handle, folder)
        yield
    finally:
        with suppress(OSError):
            os.close(handle)


def refuse_if_locked(folder: FilePath) -> None:
    """Raise UsageError, naming the process, if one holds the folder's lock: an early answer, before anything slow."""
    if (folder / LOCK).exists():
        with locked(folder):
            pass


def _take(handle: int, folder: FilePath) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "of unknown number"
        raise UsageError(
            f"{folder} is in use by process {holder}", "wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        raise SetupError(f"cannot lock {folder}: {error.strerror}", "choose another output folder") from error


def _make_folder(folder: FilePath) -> None:
    """mkdir -p whose entries survive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _write(path: FilePath, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
    finally:
        os.close(handle)


def _publish(temporary: FilePath, path: FilePath) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: FilePath) -> None:
    """fsync of a file or a folder; some file systems have none for folders."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def _seal_of(document: dict[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != SEAL}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_sealed_json(path: FilePath, document: dict[str, Any]) -> None:
    """Write a JSON document with a hash of its own content in the field `document_sha256`."""
    document = json.loads(json.dumps(document, allow_nan=False))
    document[SEAL] = _seal_of(document)
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_sealed_json(path: FilePath, remedy: str) -> dict[str, Any]:
    """Read a document of `write_sealed_json`. Raises InputError if it is missing, IntegrityError if it was changed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", remedy) from error
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is damaged: it is not text", remedy) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", remedy) from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: it is not JSON", remedy) from error
    if not isinstance(document, dict) or document.get(SEAL) != _seal_of(document):
        raise IntegrityError(f"{path} is damaged or was edited: its hash does not fit its content", remedy)
    return document


def verify_file(path: FilePath, expected_sha256: str, remedy: str) -> None:
    """Raise InputError if `path` is missing or cannot be read, IntegrityError if its SHA-256 is another."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", remedy)
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", remedy) from error
    if found != expected_sha256:
        raise IntegrityError(f"{path} is damaged: its SHA-256 is not the recorded one", remedy)
