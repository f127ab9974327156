"""Shards give what the folders gave, their bytes depend on nothing else, and what does not belong in them is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import cutout_files, disc, noise, write, write_all

from pam_mobile.commands import data as command
from pam_mobile.data import shards
from pam_mobile.data.cutting import background_planes, foreground_patches, read_cutout
from pam_mobile.data.datasets import image_trimap_alpha, open_dataset, pack, read_triple
from pam_mobile.data.preflight import check_dataset
from pam_mobile.errors import InputError, IntegrityError, PamError, UsageError
from pam_mobile.files import write_sealed_json
from pam_mobile.reporter import Silent

AM2K = {
    "train/original": ["m_1.jpg", "m_2.jpg"],
    "train/mask": ["m_1.png", "m_2.png"],
    "train/fg": ["m_1.png", "m_2.png"],
    "train/bg": ["m_1.jpeg"],
    "validation/original": ["m_3.jpg"],
    "validation/mask": ["m_3.png"],
    "validation/trimap": ["m_3.png"],
}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Shards of four pairs."""
    cutout_files(tmp_path / "set", 4)
    pack(open_dataset(str(tmp_path / "set")), tmp_path / "packed", 10**6)
    shards._index.cache_clear()
    return tmp_path / "packed"


def test_shards_give_the_bank_and_the_evaluation_images_of_the_folders(tmp_path: Path) -> None:
    write_all(tmp_path / "set", AM2K)
    folders = open_dataset(str(tmp_path / "set"))
    assert pack(folders, tmp_path / "packed", 10**6) == {"train": 2, "test": 1, "backgrounds": 1}
    read = open_dataset(str(tmp_path / "packed"))
    assert check_dataset(read) == []
    banks = [foreground_patches(data.cutouts(), 5, 32, 0, Silent()) for data in (folders, read)]
    assert torch.equal(*banks)
    planes = [background_planes(data.background_files(), 2, 32, 0, Silent()) for data in (folders, read)]
    assert torch.equal(*planes)
    (theirs,), (ours,) = (image_trimap_alpha(str(data.root)) for data in (folders, read))
    assert ours.name == "validation/original/m_3.jpg"
    for a, b in zip(read_triple(theirs), read_triple(ours), strict=True):
        np.testing.assert_array_equal(a, b)


def test_photos_rgba_files_and_shared_alphas_survive_packing(tmp_path: Path) -> None:
    write_all(tmp_path / "real", {"image": ["cat_0.png", "cat_1.png"], "alpha": ["cat.png"]})
    write(tmp_path / "rgba" / "fg" / "a.png", np.dstack([noise(), disc()]))
    for name in ("real", "rgba"):
        folders = open_dataset(str(tmp_path / name))
        pack(folders, tmp_path / f"{name}-packed", 10**6)
        read = open_dataset(str(tmp_path / f"{name}-packed"))
        for theirs, ours in zip(folders.cutouts(), read.cutouts(), strict=True):
            assert ours.photo == theirs.photo == (name == "real")
            np.testing.assert_array_equal(read_cutout(ours), read_cutout(theirs))
    (first, second) = open_dataset(str(tmp_path / "real-packed")).triples()
    assert first.trimap is second.trimap is None


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_bytes_depend_on_the_files_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_all(tmp_path / name, AM2K)
        for path in sorted((tmp_path / "two").rglob("*.png")):
            os.utime(path, (1, 2))
            path.chmod(0o600)
        pack(open_dataset(str(tmp_path / name)), tmp_path / f"{name}-packed", 20_000)
    assert digests(tmp_path / "one-packed") == digests(tmp_path / "two-packed")
    write(tmp_path / "two" / "train" / "fg" / "m_2.png", noise(77))
    pack(open_dataset(str(tmp_path / "two")), tmp_path / "changed", 20_000)
    assert digests(tmp_path / "changed") != digests(tmp_path / "two-packed")


def test_shards_keep_to_their_size_and_order(tmp_path: Path) -> None:
    cutout_files(tmp_path / "set", 9)
    data = open_dataset(str(tmp_path / "set"))
    largest = 40_960
    pack(data, tmp_path / "packed", largest)
    files = sorted((tmp_path / "packed").glob("*.tar"))
    assert [path.name for path in files] == [f"train-{i:06}.tar" for i in range(len(files))]
    assert len(files) > 2
    assert all(path.stat().st_size <= largest for path in files)
    sources = [sample.source for sample in shards.read_shards(tmp_path / "packed")["train"]]
    assert sources == [f"fg/{i:03}.png" for i in range(9)]
    pack(data, tmp_path / "single", 1)
    assert len(list((tmp_path / "single").glob("*.tar"))) == 9


def test_a_shard_is_an_ordinary_tar_in_the_order_of_webdataset(packed: Path) -> None:
    with tarfile.open(packed / "train-000000.tar") as tar:
        names = tar.getnames()
        assert names[:4] == ["000000.fg.png", "000000.alpha.png", "000000.json", "000001.fg.png"]
        info = tar.getmember("000000.fg.png")
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


# --- damage


def content(folder: Path) -> list[bytes]:
    """Everything that a training would read."""
    shards._index.cache_clear()
    cutouts = open_dataset(str(folder)).cutouts()
    return [shards.read_member(path) for cutout in cutouts for path in (cutout.image, cutout.alpha)]


def test_no_flipped_byte_changes_what_is_read(packed: Path) -> None:
    before, shard = content(packed), packed / "train-000000.tar"
    data = shard.read_bytes()
    rng = np.random.default_rng(0)
    headers = [offset + int(at) for offset in range(0, len(data), 512) for at in rng.integers(0, 512, 2)]
    refused = []
    for at in [*headers, *range(512), *rng.integers(0, len(data), 200).tolist()]:
        shard.write_bytes(data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :])
        try:
            assert content(packed) == before
        except PamError as error:
            refused.append(error.message)
    assert len(refused) > 300
    assert all(str(packed) in message for message in refused)


def test_without_hashes_a_flip_would_go_unnoticed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    before, shard = content(packed), packed / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"000000\.fg\.png is damaged"):
        content(packed)
    monkeypatch.setattr(shards, "read_member", lambda path, most=-1: _unchecked(path))
    assert content(packed) != before


def _unchecked(path: Path) -> bytes:
    member = shards._index_of(path.parent)[1][path.name]
    return path.parent.read_bytes()[member.offset : member.offset + member.size]


@pytest.mark.parametrize("length", [0, 100, 512, 20_000])
def test_truncated_and_missing_shards(packed: Path, length: int) -> None:
    shard = packed / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(IntegrityError, match="bytes, not"):
        content(packed)
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        content(packed)


def test_an_image_of_a_damaged_shard_is_passed_over_like_a_file(tmp_path: Path) -> None:
    cutout_files(tmp_path / "set", 50)
    pack(open_dataset(str(tmp_path / "set")), tmp_path / "packed", 10**7)
    shard = tmp_path / "packed" / "train-000000.tar"
    items = open_dataset(str(tmp_path / "packed")).cutouts()
    member = shards._index_of(shard)[1][items[20].image.name]
    data = bytearray(shard.read_bytes())
    data[member.offset + member.size // 2] ^= 255
    shard.write_bytes(data)
    shards._index.cache_clear()
    expected = foreground_patches([item for item in items if item != items[20]], 60, 32, 0, Silent())
    assert torch.equal(foreground_patches(items, 60, 32, 0, Silent()), expected)


# --- hostile shards


def hostile(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]], raw: bytes = b"", **options: int) -> Path:
    """A folder whose index is in order and whose only shard holds these members."""
    folder.mkdir()
    path = folder / "train-000000.tar"
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    if raw:
        path.write_bytes(raw + path.read_bytes())
    size = path.stat().st_size
    samples = {"train": 1, "test": 0, "backgrounds": 0}
    write_sealed_json(folder / "shards.json", {"format": 1, "samples": samples, "shards": {path.name: size}})
    shards._index.cache_clear()
    return folder


def entry(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def document(*names: str, **more: object) -> bytes:
    return json.dumps({"sha256": {n: hashlib.sha256(b"x").hexdigest() for n in names}, "source": "s", **more}).encode()


GOOD = [entry("0.fg.png"), entry("0.alpha.png"), entry("0.json", document("0.fg.png", "0.alpha.png"))]


def test_a_shard_made_by_hand_is_read(tmp_path: Path) -> None:
    """What the hostile cases below differ from is accepted."""
    assert content(hostile(tmp_path / "x", GOOD)) == [b"x", b"x"]


def huge_header() -> bytes:
    info = tarfile.TarInfo("0.fg.png")
    info.size = 8 * 2**30 - 1
    return info.tobuf(tarfile.USTAR_FORMAT)


CASES: dict[str, Callable[[Path], Path]] = {
    "absolute": lambda p: hostile(p, [entry("/etc/0.fg.png"), *GOOD]),
    "parent": lambda p: hostile(p, [entry("../0.fg.png"), *GOOD]),
    "folder in name": lambda p: hostile(p, [entry("a/0.fg.png"), *GOOD]),
    "other name": lambda p: hostile(p, [entry("0.fg.exe"), *GOOD]),
    "other role": lambda p: hostile(p, [entry("0.mask.png"), *GOOD]),
    "symlink": lambda p: hostile(p, [entry("1.fg.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *GOOD]),
    "hard link": lambda p: hostile(p, [*GOOD, entry("1.fg.png", b"", type=tarfile.LNKTYPE, linkname="0.fg.png")]),
    "folder": lambda p: hostile(p, [entry("1.fg.png", b"", type=tarfile.DIRTYPE), *GOOD]),
    "device": lambda p: hostile(p, [entry("1.fg.png", b"", type=tarfile.CHRTYPE), *GOOD]),
    "pipe": lambda p: hostile(p, [entry("1.fg.png", b"", type=tarfile.FIFOTYPE), *GOOD]),
    "sparse": lambda p: hostile(p, [entry("1.fg.png", type=tarfile.GNUTYPE_SPARSE), *GOOD]),
    "long name": lambda p: hostile(p, [entry("0" * 200 + ".fg.exe"), *GOOD], format=tarfile.GNU_FORMAT),
    "pax": lambda p: hostile(
        p, [entry("0.fg.png", pax_headers={"comment": "x"}), *GOOD[1:]], format=tarfile.PAX_FORMAT
    ),
    "twice": lambda p: hostile(p, [*GOOD[:1], *GOOD]),
    "empty file": lambda p: hostile(p, [entry("0.fg.png", b""), *GOOD[1:]]),
    "beyond the end": lambda p: hostile(p, [], raw=huge_header()),
    "large JSON": lambda p: hostile(p, [*GOOD[:2], entry("0.json", document("0.fg.png", more="x" * 70_000))]),
    "no JSON": lambda p: hostile(p, GOOD[:2]),
    "no text": lambda p: hostile(p, [*GOOD[:2], entry("0.json", b"\xff\xfe")]),
    "deep JSON": lambda p: hostile(p, [*GOOD[:2], entry("0.json", b"[" * 60_000)]),
    "a list": lambda p: hostile(p, [*GOOD[:2], entry("0.json", b"[]")]),
    "hash missing": lambda p: hostile(p, [*GOOD[:2], entry("0.json", document("0.fg.png"))]),
    "another sample's": lambda p: hostile(
        p, [GOOD[0], entry("1.alpha.png"), entry("0.json", document("0.fg.png", "1.alpha.png"))]
    ),
    "two of a role": lambda p: hostile(
        p, [GOOD[0], entry("0.fg.jpg"), entry("0.json", document("0.fg.png", "0.fg.jpg"))]
    ),
    "roles missing": lambda p: hostile(p, [entry("0.trimap.png"), entry("0.json", document("0.trimap.png"))]),
    "more samples than said": lambda p: hostile(p, [*GOOD, entry("1.fg.png"), entry("1.json", document("1.fg.png"))]),
    "compressed": lambda p: _replace(hostile(p, GOOD), b"\x1f\x8b" + b"0" * 1000),
    "no tar": lambda p: _replace(hostile(p, GOOD), b"<html>" * 500),
}


def _replace(folder: Path, data: bytes) -> Path:
    (folder / "train-000000.tar").write_bytes(data)
    samples = {"train": 1, "test": 0, "backgrounds": 0}
    sizes = {"train-000000.tar": len(data)}
    write_sealed_json(folder / "shards.json", {"format": 1, "samples": samples, "shards": sizes})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_belong_in_a_shard_is_refused(tmp_path: Path, case: str) -> None:
    folder = CASES[case](tmp_path / "x")
    with pytest.raises((InputError, IntegrityError)) as caught:
        content(folder)
    assert str(folder) in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.hint


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other.tar", "train-000000.tar/..", "train-1.tar"])
def test_an_index_that_names_other_files_is_refused(packed: Path, name: str) -> None:
    write_sealed_json(packed / "shards.json", {"format": 1, "samples": {}, "shards": {name: 1}})
    with pytest.raises(InputError, match="is missing or no shard"):
        content(packed)


def test_a_shard_that_is_a_link_is_refused(packed: Path) -> None:
    shard = packed / "train-000000.tar"
    shard.rename(packed / "elsewhere")
    shard.symlink_to(packed / "elsewhere")
    with pytest.raises(InputError, match="is missing or no shard"):
        content(packed)


def test_an_edited_index_is_refused(packed: Path) -> None:
    index = packed / "shards.json"
    index.write_text(index.read_text().replace('"train": 4', '"train": 3'))
    with pytest.raises(IntegrityError, match="edited"):
        content(packed)
    write_sealed_json(index, {"format": 2})
    with pytest.raises(InputError, match="has the format 2"):
        content(packed)


# --- the command


def run(verb: Callable[..., int], capsys: pytest.CaptureFixture[str], **options: object) -> tuple[int, str, str]:
    code = verb(as_json=False, quiet=False, verbose=False, **options)
    return code, *capsys.readouterr()


def test_pack_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path / "set", AM2K)
    code, out, _ = run(command.check, capsys, root=str(tmp_path / "set"))
    assert (code, "am-2k, 2 foregrounds, 1 backgrounds, 1 test images" in out) == (0, True)
    code, out, _ = run(command.pack, capsys, root=str(tmp_path / "set"), out=tmp_path / "packed", megabytes=1)
    assert (code, f"pam-mobile train --data {tmp_path / 'packed'}" in out) == (0, True)
    code, out, _ = run(command.check, capsys, root=str(tmp_path / "packed"))
    assert (code, "shards, 2 foregrounds, 1 backgrounds, 1 test images" in out) == (0, True)


def test_an_unsound_set_is_not_packed_and_every_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "set", AM2K)
    (tmp_path / "set" / "train" / "mask" / "m_1.png").unlink()
    write(tmp_path / "set" / "validation" / "trimap" / "m_3.png", disc(9, 9))
    code, out, err = run(command.pack, capsys, root=str(tmp_path / "set"), out=tmp_path / "packed", megabytes=1)
    assert (code, out) == (3, "")
    assert "m_1.png has no partner" in err
    assert "m_3.png is 9x9" in err
    assert "Traceback" not in err
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("failing", ["_write_shard", "write_sealed_json"])
def test_packing_that_was_interrupted_leaves_nothing_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    cutout_files(tmp_path / "set", 4)
    data, real, calls = open_dataset(str(tmp_path / "set")), getattr(shards, failing), []

    def interrupted(*arguments: object) -> None:
        calls.append(real(*arguments))
        if len(calls) == 2 or failing == "write_sealed_json":
            raise KeyboardInterrupt

    monkeypatch.setattr(shards, failing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(data, tmp_path / "packed", 1)
    assert calls
    assert not list((tmp_path / "packed").glob("*.tar"))
    monkeypatch.undo()
    if failing == "_write_shard":
        assert pack(data, tmp_path / "packed", 1)["train"] == 4


def test_packing_does_not_overwrite(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an empty folder"):
        pack(open_dataset(str(tmp_path / "set")), packed, 10**6)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not an empty folder"):
        pack(open_dataset(str(tmp_path / "set")), tmp_path / "file", 10**6)


def test_shards_are_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is packed already"):
        pack(open_dataset(str(packed)), tmp_path / "again", 10**6)
    assert not (tmp_path / "again").exists()
