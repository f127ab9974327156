"""Training in sittings of a few minutes, on machines that are lent and keep nothing.

python -m pam_mobile.train.pieces --out FOLDER [--from FOLDER] [--minutes 9] -- OPTIONS OF pam-mobile train

A sitting unpacks the run that an earlier one left in --from, continues it, stops it in time or when it is interrupted, and packs what
the next sitting needs into --out: files of at most 15 MiB, run.tar.00 and so on, and run.json with their hashes. Exit codes: 0 trained,
130 to be continued, 3 no NVIDIA GPU, otherwise those of `pam-mobile train`.
"""

from __future__ import annotations

import argparse
import io
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path as FilePath

from ..checkpoint import DOCUMENT
from ..errors import InputError, PamError
from ..files import UNFINISHED, read_sealed_json, verify_file, write_bytes, write_sealed_json

PART_BYTES = 15 << 20
MANIFEST = "run.json"
RESERVE_SECONDS = 60
"""Of a sitting, for the last step, its state and the packing."""
REMEDY = "copy the folder of the sitting before again"


def needed(run: FilePath) -> list[FilePath]:
    """What the next sitting needs of a run folder: its small files, the last finished stage and the newest state."""
    small = [file for file in sorted(run.iterdir()) if file.is_file() and not file.name.startswith(".")]
    finished = sorted(document.parent for document in run.glob(f"stage*/{DOCUMENT}"))
    states = sorted((run / "last").glob("state-*.json"))
    stage = [file for folder in finished[-1:] for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return [
        *small,
        *stage,
        *(file for document in states[-1:] for file in (document, document.with_suffix(".safetensors"))),
    ]


def pack(run: FilePath, folder: FilePath) -> None:
    """Write what is needed of a run as parts into a folder; the manifest comes last. Raises SetupError if it cannot be written."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in needed(run):
            archive.add(file, file.relative_to(run).as_posix())
    data, parts = buffer.getbuffer(), []
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        name = f"run.tar.{number:02d}"
        digest = write_bytes(folder / name, bytes(data[start : start + PART_BYTES]))
        parts.append({"file": name, "sha256": digest})
    write_sealed_json(folder / MANIFEST, {"parts": parts})


def unpack(folder: FilePath, run: FilePath) -> None:
    """Make a run folder of the parts. Raises InputError if parts are missing, IntegrityError if one was changed."""
    parts = read_sealed_json(folder / MANIFEST, REMEDY)["parts"]
    names = [f"run.tar.{number:02d}" for number in range(len(parts))]
    if [part["file"] for part in parts] != names:
        raise InputError(f"{folder / MANIFEST} does not list the parts of a run", REMEDY)
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            verify_file(folder / part["file"], part["sha256"], REMEDY)
            whole.write((folder / part["file"]).read_bytes())
        whole.seek(0)
        unfinished = run.with_name(f"{UNFINISHED}{run.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(run)  # half a run would go on from an earlier state, or from none


def sit(run: FilePath, seconds: float, options: list[str]) -> int:
    """Train for at most that long, or until Ctrl-C; returns the exit code of `pam-mobile train`, 130 if there is more to do."""
    command = [sys.executable, "-m", "pam_mobile", "train", "--out", str(run), "--resume", *options]
    process = subprocess.Popen(command, start_new_session=True)  # a terminal's Ctrl-C reaches it once, from here
    try:
        return process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGINT)
        return process.wait()
    finally:
        process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=FilePath, default=FilePath("runs/phone"), help="the run folder on this machine")
    parser.add_argument("--from", type=FilePath, dest="source", help="what the sitting before left")
    parser.add_argument("--out", type=FilePath, required=True, help="where the parts go")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--any-device", action="store_true", help="train without an NVIDIA GPU, too")
    parser.add_argument("options", nargs="*", help="options of pam-mobile train")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is trained so far is packed
    import torch

    if not torch.cuda.is_available() and not given.any_device:
        sys.stderr.write("there is no NVIDIA GPU here\n")
        return 3
    try:
        if given.source and not given.run.exists():
            unpack(given.source, given.run)
        code = sit(given.run, 60 * given.minutes - RESERVE_SECONDS, given.options)
        if given.run.is_dir():
            pack(given.run, given.out)
    except PamError as error:
        sys.stderr.write(f"error: {error.message}\n  {error.hint}\n")
        return error.code
    if code == 130:
        again = ["--from", str(given.out), "--out", "NEXT", "--minutes", str(given.minutes), "--", *given.options]
        sys.stderr.write(f"continue: python -m pam_mobile.train.pieces {shlex.join(again)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
