"""Files that are whole or absent: atomic writes, SHA-256, and JSON documents that carry a hash of themselves."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

from .errors import InputError, IntegrityError, SetupError

SEAL = "document_sha256"


def sha256(path: FilePath) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: FilePath) -> Iterator[FilePath]:
    """Yield a temporary name in the same folder; it replaces `path` when the block succeeds and vanishes when it fails.

    Raises SetupError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}", "choose another output folder") from error
    os.close(handle)
    temporary = FilePath(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise SetupError(
            f"cannot write {path}: {error.strerror or error}", "free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: FilePath, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


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
    """Raise InputError if `path` is missing, IntegrityError if its SHA-256 is another."""
    if not path.is_file():
        raise InputError(f"{path} does not exist", remedy)
    if sha256(path) != expected_sha256:
        raise IntegrityError(f"{path} is damaged: its SHA-256 is not the recorded one", remedy)
