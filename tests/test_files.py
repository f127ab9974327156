"""Files are whole or absent; documents notice every change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path as FilePath
from typing import NoReturn

import pytest
from faults import before_each_call, fail_at
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile import files
from pam_mobile.commands.common import Result, verb
from pam_mobile.errors import InputError, IntegrityError, SetupError, UsageError
from pam_mobile.files import (
    SEAL,
    atomic_path,
    locked,
    read_sealed_json,
    refuse_if_locked,
    remove_unfinished,
    sha256,
    verify_file,
    write_bytes,
    write_sealed_json,
)

DOCUMENT = {
    "name": "Mähne",
    "macs": 2719939584,
    "rate": 1e-05,
    "rows": [[1, 2.5], []],
    "nested": {"a": None, "b": True},
}


def _names(folder: FilePath) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_has_the_bytes_and_no_company(tmp_path: FilePath) -> None:
    target = tmp_path / "new" / "folder" / "a.bin"
    write_bytes(target, b"first")
    write_bytes(target, b"second")
    assert target.read_bytes() == b"second"
    assert _names(target.parent) == ["a.bin"]


@pytest.mark.parametrize("fault", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: FilePath, fault: BaseException) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fail(temporary: FilePath) -> NoReturn:
        temporary.write_bytes(b"half of the n")
        raise fault

    with pytest.raises(SetupError if isinstance(fault, OSError) else type(fault)), atomic_path(target) as temporary:
        fail(temporary)
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.bin"]


def test_while_it_is_written_the_old_file_is_there_and_the_new_is_hidden(tmp_path: FilePath) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    with atomic_path(target) as one, atomic_path(target) as other:
        assert one != other
        assert one.parent == other.parent == tmp_path
        assert one.name.startswith(".")
        assert one.suffix == ".safetensors"
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"one"


def test_a_full_disk_is_a_set_up_error_with_its_cause(tmp_path: FilePath) -> None:
    with pytest.raises(SetupError, match=r"cannot write .*a\.bin: no space") as caught, atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "no space")
    assert caught.value.hint


def test_a_read_only_folder_is_a_set_up_error(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)  # root may write into read-only folders
    with pytest.raises(SetupError, match="Permission denied") as caught:
        write_bytes(tmp_path / "a.bin", b"x")
    assert "choose another output folder" in caught.value.hint
    assert _names(tmp_path) == []


def test_a_folder_that_is_a_file_is_a_set_up_error(tmp_path: FilePath) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for target in (tmp_path / "file" / "a.bin", tmp_path / "file" / "below" / "a.bin"):
        with pytest.raises(SetupError, match="cannot write"):
            write_bytes(target, b"x")


def test_a_target_that_is_a_folder_is_a_set_up_error_and_leaves_no_temporary_file(tmp_path: FilePath) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(SetupError, match="cannot write"):
        write_bytes(tmp_path / "a.bin", b"x")
    assert _names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_written_file_has_the_usual_permissions(tmp_path: FilePath, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode


def test_names_of_the_greatest_length_can_be_written(tmp_path: FilePath) -> None:
    write_bytes(tmp_path / ("n" * 251 + ".bin"), b"x")
    assert _names(tmp_path) == ["n" * 251 + ".bin"]


# Faults, power cuts and disks that lie

CHILD = "import sys; from pathlib import Path; from pam_mobile.files import write_bytes; write_bytes(Path(sys.argv[1]), b'new')"


NO_SYNC = "import pam_mobile.files as f; f._sync = lambda path: None; "


def _traced(folder: FilePath, code: str) -> list[str]:
    """The system calls on the file and its folder when a child process replaces it, repetitions left out."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    (folder / "a.bin").write_bytes(b"old")
    trace = folder / "trace"
    command = ["strace", "-y", "-o", str(trace), "-e", "trace=write,read,fsync,rename,renameat2"]
    done = subprocess.run([*command, sys.executable, "-c", code, str(folder / "a.bin")], capture_output=True, text=True)
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [""]
    for line in trace.read_text().splitlines():
        found = re.match(rf"(\w+)\((?:\d+<{re.escape(str(folder))}(/[^>]*)?>|\"{re.escape(str(folder))})", line)
        if found:
            what = "of the folder" if found[1] == "fsync" and not found[2] else ""
            calls += [f"{found[1]} {what}".strip()] * (calls[-1] != f"{found[1]} {what}".strip())
    return calls[1:]


def test_the_order_is_write_read_back_fsync_rename_fsync_of_the_folder(tmp_path: FilePath) -> None:
    assert _traced(tmp_path, CHILD) == ["write", "read", "fsync", "rename", "fsync of the folder"]


def test_a_missing_fsync_would_be_noticed(tmp_path: FilePath) -> None:
    assert _traced(tmp_path, NO_SYNC + CHILD) == ["write", "read", "rename"]


def test_every_new_folder_is_synced_into_its_parent(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[FilePath] = []
    sync = files._sync

    def noted(path: FilePath) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(files, "_sync", noted)
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"x")
    assert synced[:2] == [tmp_path, tmp_path / "a"]
    assert synced[-1] == tmp_path / "a" / "b"


@verb
def _save(reporter: object, out: FilePath) -> Result:
    write_bytes(out, b"new content")
    return Result({}, "saved")


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE])
def test_whichever_call_fails_the_file_is_old_or_new_and_the_command_says_so(
    tmp_path: FilePath, capsys: pytest.CaptureFixture[str], number: int, forever: bool
) -> None:
    target = tmp_path / "folder" / "a.bin"
    write_bytes(target, b"old content")
    failed = 0
    while True:
        with before_each_call(fail_at(failed, number, forever)) as calls:
            code = _save(as_json=False, quiet=True, verbose=False, out=target)
        error = capsys.readouterr().err
        if len(calls) <= failed:
            break
        assert code == 4, (calls[failed], error)
        assert "Traceback" not in error
        assert len(error.splitlines()) == 2
        assert str(target) in error
        assert target.read_bytes() == (b"new content" if "replace" in calls[:failed] else b"old content")
        assert _names(target.parent) == ["a.bin"]
        failed += 1
    assert code == 0
    assert target.read_bytes() == b"new content"
    assert failed >= 9


def test_a_disk_that_drops_data_and_reports_success_is_caught(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    write = os.write
    for lie in (lambda h, d: len(d), lambda h, d: write(h, bytes(len(d))), lambda h, d: write(h, d[:-1]) + 1):
        monkeypatch.setattr(os, "write", lie)
        with pytest.raises(SetupError, match="read back") as caught:
            write_bytes(target, b"new")
        monkeypatch.undo()
        assert caught.value.code == 4
        assert target.read_bytes() == b"old"
        assert _names(tmp_path) == ["a.bin"]


def test_without_the_read_back_the_same_lie_would_be_published(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda handle, data: len(data))
    monkeypatch.setattr(files, "sha256", lambda path: hashlib.sha256(b"new").hexdigest())
    write_bytes(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b""


def test_short_writes_are_continued(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    write_bytes(tmp_path / "a.bin", b"0123456789")
    assert (tmp_path / "a.bin").read_bytes() == b"0123456789"


@pytest.mark.skipif(not FilePath("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device_is_a_set_up_error(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def onto_the_full_device(path: object, flags: int, *rest: object, **more: object) -> int:
        return open_file("/dev/full" if flags & os.O_WRONLY else path, flags, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", onto_the_full_device)
    with pytest.raises(SetupError, match="No space left"):
        write_bytes(tmp_path / "a.bin", b"new")
    assert _names(tmp_path) == []


DIE_HALF_WAY = """
import os, sys
from pathlib import Path
from pam_mobile.files import atomic_path
with atomic_path(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: FilePath) -> None:
    killed = subprocess.run([sys.executable, "-c", DIE_HALF_WAY, str(tmp_path / "a.bin")])
    assert killed.returncode == -signal.SIGKILL
    assert len(_names(tmp_path)) == 1
    (tmp_path / ".mine").write_bytes(b"")
    remove_unfinished(tmp_path)
    assert _names(tmp_path) == [".mine"]


# Locks

HOLD = """
import subprocess, sys, time
from pathlib import Path
from pam_mobile.files import locked
with locked(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_locked_folder_names_its_process_and_is_free_when_that_dies(tmp_path: FilePath) -> None:
    for _ in range(3):
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError, match=f"in use by process {holder.pid}$") as caught, locked(tmp_path):
                pass
            assert caught.value.code == 2
            with pytest.raises(UsageError, match=f"in use by process {holder.pid}$"):
                refuse_if_locked(tmp_path)
        finally:
            holder.kill()
            holder.communicate()
        refuse_if_locked(tmp_path)
        with locked(tmp_path):
            pass


def test_asking_for_a_lock_makes_none(tmp_path: FilePath) -> None:
    refuse_if_locked(tmp_path / "nowhere")
    refuse_if_locked(tmp_path)
    assert _names(tmp_path) == []


def test_a_folder_that_cannot_be_locked_is_a_set_up_error(tmp_path: FilePath) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="cannot write"), locked(tmp_path / "file"):
        pass


def test_sha256_is_that_of_hashlib(tmp_path: FilePath) -> None:
    data = random.Random(0).randbytes(300_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_verify_file_notices_a_change_and_an_absence(tmp_path: FilePath) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    good = hashlib.sha256(b"abc").hexdigest()
    verify_file(file, good, "copy again")
    file.write_bytes(b"abd")
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        verify_file(file, good, "copy again")
    assert caught.value.hint == "copy again"
    file.unlink()
    with pytest.raises(InputError, match="does not exist"):
        verify_file(file, good, "copy again")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_an_input_error(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.setattr(hashlib, "file_digest", refuse)  # root reads everything
    with pytest.raises(InputError, match=f"cannot read .*a: {os.strerror(number)}"):
        verify_file(tmp_path / "a", "0" * 64, "copy again")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_a_sealed_document_reads_back_as_written(document: dict) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # lone surrogates have no UTF-8
    with tempfile.TemporaryDirectory() as folder:
        path = FilePath(folder) / "a.json"
        write_sealed_json(path, document)
        back = read_sealed_json(path, "")
        assert back.pop(SEAL)
        assert back == {key: value for key, value in document.items() if key != SEAL}


def _sealed(folder: FilePath) -> FilePath:
    path = folder / "a.json"
    write_sealed_json(path, DOCUMENT)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2719939584", "2719939585"),
        ("true", "false"),
        ("Mähne", "Mahne"),
        ('"b"', '"c"'),
        ("2.5", "2.5, 3"),
        (SEAL, "seal"),
    ],
)
def test_an_edit_is_noticed(tmp_path: FilePath, old: str, new: str) -> None:
    path = _sealed(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(IntegrityError, match="was edited") as caught:
        read_sealed_json(path, "copy again")
    assert caught.value.hint == "copy again"
    assert caught.value.code == 5


def test_an_edit_with_a_seal_of_its_own_guess_is_noticed(tmp_path: FilePath) -> None:
    path = _sealed(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document[SEAL] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError):
        read_sealed_json(path, "")


def test_other_white_space_is_no_change(tmp_path: FilePath) -> None:
    path = _sealed(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document, sort_keys=True))
    assert read_sealed_json(path, "") == document


def test_every_truncation_is_noticed(tmp_path: FilePath) -> None:
    path = _sealed(tmp_path)
    data = path.read_bytes()
    assert data.endswith(b"}\n")
    for length in range(len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(IntegrityError):
            read_sealed_json(path, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"3",
        b"not json",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"9" * 5000,
        b"PK\x03\x04" + bytes(99),
    ],
)
def test_what_is_not_a_sealed_document_is_an_integrity_error(tmp_path: FilePath, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        read_sealed_json(path, "")


def test_a_missing_document_is_an_input_error(tmp_path: FilePath) -> None:
    for path in (tmp_path / "a.json", tmp_path / "no" / "a.json", tmp_path):
        with pytest.raises(InputError) as caught:
            read_sealed_json(path, "train first")
        assert str(path) in caught.value.message
        assert caught.value.hint == "train first"


def test_what_json_cannot_say_is_never_written(tmp_path: FilePath) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_sealed_json(tmp_path / "a.json", {"loss": float("nan")})
    assert _names(tmp_path) == []
