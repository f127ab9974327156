"""Tar shards: a data set as a few large files that are read without unpacking.

A shard is an uncompressed tar in the order of WebDataset: the files of a sample follow each other as `KEY.ROLE.SUFFIX`, the last one is
`KEY.json` with where they come from and their SHA-256. `shards.json` beside the shards names all of them. A file in a shard is
addressed like one in a folder: `DIR/train-000000.tar/000012.fg.png`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path as FilePath
from typing import NamedTuple

from ..errors import InputError, IntegrityError, UsageError
from ..files import atomic_path, read_sealed_json, write_sealed_json

INDEX = "shards.json"
FORMAT = 1
SPLITS: dict[str, list[set[str]]] = {
    "train": [{"fg"}, {"image", "alpha"}],
    "test": [{"image", "alpha"}],
    "backgrounds": [{"bg"}],
}
"""The roles that a sample must have, one of the sets. A foreground without an alpha is an RGBA file."""
ROLES = ("fg", "image", "alpha", "trimap", "bg")
LARGEST_MEMBER = 2**30
LARGEST_JSON = 2**16
REMEDY = "pack the data set again"
_NAME = re.compile(rf"(\d+)\.(?:json|(?:{'|'.join(ROLES)})\.(?:png|jpe?g|webp|tiff?|bmp))")
_SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{6}}\.tar")


class Sample(NamedTuple):
    """The files of one sample by their roles."""

    source: str
    """Where the first of them lay, relative to the data set."""
    files: dict[str, FilePath]


class Member(NamedTuple):
    """Where a file of a shard lies, and what it must be."""

    offset: int
    size: int
    sha256: str


def write_shards(folder: FilePath, splits: dict[str, Iterable[Sample]], layout: str, largest: int) -> dict[str, int]:
    """Pack samples into shards of at most `largest` bytes, or of one sample that is larger. Equal files give equal bytes.

    Returns the number of samples by split. Raises UsageError if the folder is a file or not empty, InputError for unreadable files.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder", "choose another --out")
    sizes: dict[str, int] = {}
    counts = dict.fromkeys(splits, 0)
    try:
        for split, samples in splits.items():
            shard: list[tuple[str, bytes]] = []
            for sample in samples:
                members = _members_of(f"{counts[split]:06}", sample)
                if shard and _packed_size([*shard, *members]) > largest:
                    _write_shard(folder, split, sizes, shard)
                    shard = []
                shard += members
                counts[split] += 1
            if shard:
                _write_shard(folder, split, sizes, shard)
        write_sealed_json(folder / INDEX, {"format": FORMAT, "layout": layout, "samples": counts, "shards": sizes})
    except BaseException:  # shards without an index are of no use, and in the way of the next attempt
        for name in sizes:
            (folder / name).unlink(missing_ok=True)
        raise
    return counts


def read_shards(folder: FilePath) -> dict[str, list[Sample]]:
    """The samples of a folder of shards, by split; no image is read.

    Raises InputError or IntegrityError if a shard is missing, damaged, or holds anything that `write_shards` would not write.
    """
    index = read_sealed_json(folder / INDEX, REMEDY)
    if index.get("format") != FORMAT:
        raise InputError(f"{folder / INDEX} has the format {index.get('format')!r}, not {FORMAT}", REMEDY)
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    sizes = index.get("shards")
    for name, size in sorted(sizes.items() if isinstance(sizes, dict) else ()):
        shard = folder / name
        if not _SHARD.fullmatch(name) or not shard.is_file() or shard.is_symlink():
            raise InputError(f"{shard} is missing or no shard", REMEDY)
        if shard.stat().st_size != size:
            raise IntegrityError(f"{shard} has {shard.stat().st_size} bytes, not {size}", REMEDY)
        split = name.partition("-")[0]
        for sample in _index_of(shard)[0]:
            if not any(roles <= sample.files.keys() for roles in SPLITS[split]):
                raise InputError(f"{shard} holds a sample of {', '.join(sample.files)} only", REMEDY)
            samples[split].append(sample)
    counts = {split: len(found) for split, found in samples.items()}
    if counts != index.get("samples"):
        raise IntegrityError(f"{folder} holds {counts} samples, not {index.get('samples')}", REMEDY)
    return samples


def in_shard(path: FilePath) -> bool:
    """Whether a path addresses a file inside a shard."""
    return path.parent.suffix == ".tar" and path.parent.is_file()


def read_member(path: FilePath, most: int = -1) -> bytes:
    """The bytes of a file in a shard, or the first `most` of them; checked against their SHA-256 if read whole.

    Raises InputError if it is missing or damaged.
    """
    member = _index_of(path.parent)[1].get(path.name)
    if member is None:
        raise InputError(f"{path} does not exist", "check the name and the shard")
    with path.parent.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size if most < 0 else min(most, member.size))
    if most < 0 and hashlib.sha256(data).hexdigest() != member.sha256:
        raise InputError(f"{path} is damaged: its SHA-256 is not the recorded one", REMEDY)
    return data


def _members_of(key: str, sample: Sample) -> list[tuple[str, bytes]]:
    """Names and bytes of a sample's files in a shard."""
    members = []
    for role, path in sample.files.items():
        try:
            members.append((f"{key}.{role}{path.suffix.lower()}", path.read_bytes()))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", "repair the data set and pack again") from error
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members}
    document = json.dumps({"source": sample.source, "sha256": hashes}, sort_keys=True)
    return [*members, (f"{key}.json", document.encode())]


def _packed_size(members: list[tuple[str, bytes]]) -> int:
    blocks = sum(2 + (len(data) - 1) // tarfile.BLOCKSIZE for _, data in members) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _write_shard(folder: FilePath, split: str, sizes: dict[str, int], members: list[tuple[str, bytes]]) -> None:
    name = f"{split}-{sum(shard.startswith(split) for shard in sizes):06}.tar"
    with atomic_path(folder / name) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        sizes[name] = temporary.stat().st_size


def _index_of(shard: FilePath) -> tuple[list[Sample], dict[str, Member]]:
    facts = shard.stat()
    return _index(shard, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _index(shard: FilePath, size: int, changed: int) -> tuple[list[Sample], dict[str, Member]]:
    """Samples and members of a shard. size, changed: of the file, so that another one is indexed anew."""
    samples: list[Sample] = []
    members: dict[str, Member] = {}
    pending: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                _check(shard, info, size)
                if info.name in members or info.name in pending:
                    raise InputError(f"{shard} holds {info.name} twice", REMEDY)
                pending[info.name] = info
                if info.name.endswith(".json"):
                    file = tar.extractfile(info)
                    document = json.loads(file.read()) if file else {}
                    sample, found = _sample(shard, info.name, document, pending)
                    samples.append(sample)
                    members |= found
                    pending = {}
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{shard} is damaged: {error}", REMEDY) from error
    if pending:
        raise IntegrityError(f"{shard} is damaged: it ends within a sample", REMEDY)
    return samples, members


def _check(shard: FilePath, info: tarfile.TarInfo, size: int) -> None:
    """Refuse what no shard holds: links, devices, folders, other names, and sizes beyond the file or all reason."""
    limit = LARGEST_JSON if info.name.endswith(".json") else LARGEST_MEMBER
    if info.type != tarfile.REGTYPE or info.pax_headers or not _NAME.fullmatch(info.name):
        raise InputError(f"{shard} holds {info.name[:80]!r}, which does not belong there", "use shards of `data pack`")
    if not 0 < info.size <= limit or info.offset_data + info.size > size:
        raise InputError(f"{shard} holds {info.name} with an impossible size of {info.size} bytes", REMEDY)


def _sample(
    shard: FilePath, name: str, document: object, infos: dict[str, tarfile.TarInfo]
) -> tuple[Sample, dict[str, Member]]:
    """The sample that a `KEY.json` closes."""
    images = [member for member in infos if member != name]
    hashes = document.get("sha256") if isinstance(document, dict) else None
    key = name.partition(".")[0]
    if not isinstance(document, dict) or not isinstance(hashes, dict) or set(hashes) != set(images) or not images:
        raise ValueError(f"{name} does not describe the files before it")
    if any(member.partition(".")[0] != key for member in images):
        raise ValueError(f"{name} follows files of another sample")
    files = {member.split(".")[1]: shard / member for member in images}
    if len(files) != len(images):
        raise ValueError(f"{name} closes two files of one role")
    found = {m: Member(infos[m].offset_data, infos[m].size, str(hashes[m])) for m in images}
    return Sample(str(document.get("source", "")), files), found
