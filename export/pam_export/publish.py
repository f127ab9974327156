"""An export folder appears whole or not at all: work happens in a staging folder beside it, one rename publishes it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

from pam_mobile.errors import PamError, SetupError

from . import manifest


def check_destination(out: FilePath) -> None:
    """Raise SetupError unless `out` is absent, an empty folder, or an export folder with nothing foreign in it."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise SetupError(f"{out} exists and is not a folder", "choose another output folder")
    if not any(out.iterdir()):
        return
    foreign = _foreign(out)
    if foreign:
        raise SetupError(
            f"{out} holds {foreign}, which no export wrote; nothing was changed",
            "choose an empty or a new output folder",
        )


@contextmanager
def staging(out: FilePath) -> Iterator[FilePath]:
    """Yield an empty folder beside `out`; it becomes `out` when the block succeeds and vanishes when it fails.

    Raises SetupError if the place cannot be written.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = FilePath(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise SetupError(f"cannot write {out}: {error.strerror}", "choose another output folder") from error
    try:
        yield folder
        check_destination(out)
        _publish(folder, out)
    except OSError as error:
        raise SetupError(
            f"cannot write {out}: {error.strerror or error}", "free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: FilePath, out: FilePath) -> None:
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    if not out.exists() or not any(out.iterdir()):
        os.rename(folder, out)
        return
    old = FilePath(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    os.rename(out, old)
    try:
        os.rename(folder, out)
    except BaseException:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _foreign(out: FilePath) -> str | None:
    """A file in a non-empty folder that an export did not write, or None."""
    try:
        content = json.loads((out / manifest.NAME).read_text(encoding="utf-8"))
        if content["kind"] != manifest.KIND:
            return manifest.NAME
        unlisted = manifest.unlisted_files(out, content)
    except (OSError, ValueError, KeyError, TypeError, PamError):
        return next(iter(sorted(path.name for path in out.iterdir())))
    return unlisted[0] if unlisted else None
