"""An export folder appears whole or not at all: work happens in a staging folder beside it, one rename publishes it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

from pam_mobile.errors import IntegrityError, PamError, SetupError
from pam_mobile.files import LOCK, locked

from . import manifest

DONE = ".done"
"""Folder of the notes that say which artifacts in a staging folder are complete."""
KEPT = "the finished artifacts are kept, the same command goes on with them"


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
    """Yield a folder beside `out`; it becomes `out` when the block succeeds and vanishes when it fails.

    When the block is interrupted (Ctrl-C, a signal, the machine goes down), or refuses an artifact (IntegrityError) and others are
    complete, the folder stays, and the next export to `out` gets it again: only what is complete in it may be used.
    Raises SetupError if the place cannot be written, UsageError if another process exports to it.
    """
    out = out.absolute()
    folder = out.parent / f".{out.name}.partial"
    with locked(folder):
        try:
            yield folder
            check_destination(out)
            (folder / LOCK).unlink(missing_ok=True)
            _publish(folder, out)
        except OSError as error:
            remove(folder)
            raise SetupError(
                f"cannot write {out}: {error.strerror or error}", "free space or choose another folder"
            ) from error
        except IntegrityError as error:
            if not any(folder.glob(f"{DONE}/*")):
                remove(folder)
                raise
            raise IntegrityError(error.message, f"{error.hint}; {KEPT}") from error
        except Exception:
            remove(folder)
            raise


def note(folder: FilePath, name: str) -> FilePath:
    """The note that says that an artifact in a staging folder is complete."""
    return folder / DONE / f"{name}.json"


def forget(folder: FilePath, name: str) -> None:
    """Remove an artifact from a staging folder, so that it is made again."""
    note(folder, name).unlink(missing_ok=True)
    remove(folder / name)


def keep_only(folder: FilePath, names: Collection[str]) -> None:
    """Remove from a staging folder what another command left there: all but these artifacts."""
    (folder / DONE).mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in (DONE, LOCK, *names):
            remove(path)
    for path in (folder / DONE).iterdir():
        if path.stem not in names:
            path.unlink()


def remove(path: FilePath) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
