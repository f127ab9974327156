"""Files are whole or absent; documents notice every change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import stat
import tempfile
from pathlib import Path as FilePath
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.errors import InputError, IntegrityError, SetupError
from pam_mobile.files import (
    SEAL,
    atomic_path,
    read_sealed_json,
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
    assert caught.value.hint == "choose another output folder"
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
