"""Tensor files: every change is refused before a tensor is touched, and nothing in the package can run what a file says."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from pam_mobile import tensorfile
from pam_mobile.errors import InputError, IntegrityError, PartialFailureError
from pam_mobile.tensorfile import HEADER_LIMIT, layout_of, read, read_layout, require_layout, write

ROOT = FilePath(__file__).resolve().parents[1]
TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


def _write(path: FilePath, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _file(header: object, body: bytes = bytes(24), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def test_tensors_come_back_and_the_layout_is_known_without_them(tmp_path: FilePath) -> None:
    digest = write(tmp_path / "a.safetensors", TENSORS)
    assert read_layout(tmp_path / "a.safetensors", digest, "") == layout_of(TENSORS)
    back = read(tmp_path / "a.safetensors")
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())


def test_every_flipped_byte_and_every_truncation_is_refused_unparsed(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    digest = write(path, TENSORS)
    good = path.read_bytes()
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    rng = random.Random(0)
    bad = [good[:i] + bytes([good[i] ^ (1 << rng.randrange(8))]) + good[i + 1 :] for i in range(len(good))]
    bad += [good[:length] for length in range(len(good))] + [good + b"\0", good[8:] + good[:8]]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"a\.safetensors is damaged") as caught:
            read_layout(path, digest, "copy again")
        assert (caught.value.code, caught.value.hint) == (5, "copy again")


def test_without_the_hash_most_flips_would_go_unnoticed(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "verify_file", lambda *_: None)
    path = tmp_path / "a.safetensors"
    write(path, TENSORS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read_layout(path, "", "") == layout_of(TENSORS)


def test_a_missing_file_is_an_input_error(tmp_path: FilePath) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_layout(tmp_path / "a.safetensors", "0" * 64, "")


GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        _file(GOOD, length=2**63),
        _file(GOOD, length=len(json.dumps(GOOD)) + 25),
        _file(GOOD, length=3),
        _file(GOOD, body=bytes(23)),
        _file(GOOD, body=bytes(25)),
        _file([]),
        _file(3),
        _file(None),
        _file({}),
        _file({"a": {}}),
        _file({"a": 3}),
        _file({"a": {"dtype": "F8", "shape": [2, 3], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": ["F32"], "shape": [2, 3], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [2, 3.0], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [6], "data_offsets": [24, 0]}}),
        _file({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24, 24]}}),
        _file({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, "24"]}}),
        _file({**GOOD, "b": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}),
        _file({**GOOD, "b": {"dtype": "F32", "shape": [6], "data_offsets": [28, 52]}}, body=bytes(52)),
        _file(json.dumps(GOOD)[:-1].encode() + b", " + json.dumps(GOOD)[1:].encode()),
        _file(b"[" * 100_000),
        _file(b'{"a":' * 100_000),
        _file({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}, body=b""),
        _file(b"\xff\xfe" + json.dumps(GOOD).encode()),
        pickle.dumps(GOOD),
    ],
)
def test_a_hostile_header_with_its_right_hash_is_refused(tmp_path: FilePath, data: bytes) -> None:
    digest = _write(tmp_path / "a.safetensors", data)
    with pytest.raises(IntegrityError, match="is damaged"):
        read_layout(tmp_path / "a.safetensors", digest, "")


def test_a_header_above_the_limit_is_refused_and_one_at_the_limit_is_not(tmp_path: FilePath) -> None:
    text = json.dumps(GOOD).encode()
    for padding, refused in ((HEADER_LIMIT - len(text), False), (HEADER_LIMIT - len(text) + 1, True)):
        digest = _write(tmp_path / "a.safetensors", _file(text + b" " * padding))
        if refused:
            with pytest.raises(IntegrityError):
                read_layout(tmp_path / "a.safetensors", digest, "")
        else:
            assert read_layout(tmp_path / "a.safetensors", digest, "") == {"a": (torch.float32, (2, 3))}


@given(st.data())
def test_a_header_that_is_let_through_is_understood_like_safetensors_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = save({"a": torch.ones(2, 3), "b": torch.zeros(3, dtype=torch.float64)})
    end = 8 + int.from_bytes(good[:8], "little")
    mutant = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        mutant[data.draw(st.integers(0, end - 1))] = data.draw(st.sampled_from(list(b'0123456789-.e"[]{},: aF\x00')))
    path = tmp_path_factory.mktemp("mutants") / "a.safetensors"
    digest = _write(path, bytes(mutant))
    try:
        layout = read_layout(path, digest, "")
    except IntegrityError:
        return
    assert layout == layout_of(load(bytes(mutant)))


def test_only_finite_numbers_are_written(tmp_path: FilePath) -> None:
    for value in (float("nan"), float("-inf")):
        with pytest.raises(PartialFailureError, match="b became infinite or NaN"):
            write(tmp_path / "a.safetensors", {"a": torch.zeros(1), "b": torch.tensor([0.0, value])})
    assert list(tmp_path.iterdir()) == []


def test_the_first_difference_is_named_and_the_others_are_counted() -> None:
    have = layout_of(TENSORS)
    require_layout(have, have, FilePath("there"), "it")
    want = {**have, "count": (torch.int64, (1,)), "more": (torch.int64, ())}
    with pytest.raises(
        InputError, match=r"^there does not hold it: count is int64 \(\), not int64 \(1,\) \(and 1 more d"
    ):
        require_layout(have, want, FilePath("there"), "it")


READ = """
import resource, sys
from pathlib import Path
import torch
from pam_mobile.tensorfile import read, read_layout, write
path = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
read(path.parent / "small.safetensors")
before = peak()
read_layout(path, sys.argv[2], "")
total = sum(tensor.sum().item() for tensor in read(path).values())
print(peak() - before, total)
"""


def test_reading_takes_at_most_twice_the_size_of_the_file(tmp_path: FilePath) -> None:
    write(tmp_path / "small.safetensors", {"a": torch.zeros(1)})
    path = tmp_path / "large.safetensors"
    digest = write(path, {f"t{i}": torch.ones(4, 1 << 20) for i in range(4)})
    grown, total = map(float, _python(READ, path, digest).split())
    assert total == 16 << 20
    assert grown <= 2 * path.stat().st_size


# Nothing in the package can run what a file says

BETWEEN_OWN_PROCESSES = {"pam_mobile/workers.py"}
"""Pickles what it sends to its worker processes and what they answer; no file is involved."""
BANNED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def _code_runners(tree: ast.AST) -> list[str]:
    """Imports of unpicklers, `torch.load`, `torch.save`, and anything called with `allow_pickle`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in BANNED]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in BANNED else []
            found += [a.name for a in node.names if node.module == "torch" and a.name in ("load", "save")]
        elif isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
            found += [f"torch.{node.attr}"] if isinstance(node.value, ast.Name) and node.value.id == "torch" else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
        elif isinstance(node, ast.Attribute) and node.attr.endswith("_object_list"):
            found.append(node.attr)
    return found


def test_no_module_reads_what_can_run_code() -> None:
    files = [*ROOT.glob("pam_mobile/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("export/**/*.py")]
    assert len(files) > 80
    for file in files:
        if file.relative_to(ROOT).as_posix() in BETWEEN_OWN_PROCESSES:
            continue
        assert _code_runners(ast.parse(file.read_text())) == [], file


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(f)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "dist.broadcast_object_list(x)",
    ],
)
def test_the_ban_notices(code: str) -> None:
    assert _code_runners(ast.parse(code)) != []


PAYLOADS = """
import pickle, struct, sys, zipfile
from pathlib import Path
folder, marker = Path(sys.argv[1]), sys.argv[2]

class Run:
    def __init__(self, function, *arguments): self.call = function, arguments
    def __reduce__(self): return self.call

import builtins, os, subprocess
calls = [Run(os.system, f"touch {marker}"), Run(builtins.exec, f"open({marker!r}, 'w')"), Run(builtins.eval, f"open({marker!r}, 'w')"),
         Run(subprocess.call, ["touch", marker])]
data = [pickle.dumps(c, protocol) for c in calls for protocol in (0, 2, 4)]
data += [struct.pack("<Q", len(d)) + d for d in data[:4]]
for i, d in enumerate(data):
    (folder / f"p{i}").write_bytes(d)
    with zipfile.ZipFile(folder / f"z{i}", "w") as z: z.writestr("archive/data.pkl", d)
"""

VICTIM = """
import hashlib, json, sys
from pathlib import Path
events = []
from pam_mobile import checkpoint, tensorfile
from pam_mobile.errors import PamError
from pam_mobile.files import write_sealed_json
folder, source = Path(sys.argv[1]), Path(sys.argv[2])
watched = ("pickle.find_class", "subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect")
sys.addaudithook(lambda name, args: events.append(name) if name in watched else None)
tried = 0
for file in sorted(folder.iterdir()):
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    target = source / checkpoint.WEIGHTS
    target.write_bytes(data)
    document = json.loads((source / "original.json").read_text())
    document["weights"]["sha256"] = digest
    write_sealed_json(source / checkpoint.DOCUMENT, document)
    def whole(): checkpoint.load(source)
    def layout(): tensorfile.read_layout(target, digest, "")
    def text():
        (source / checkpoint.DOCUMENT).write_bytes(data)
        checkpoint.load(source)
    for load in (whole, layout, text):
        tried += 1
        try:
            load()
        except PamError as error:
            assert error.code in (3, 5)
        else:
            raise AssertionError(file)
print(tried, events)
"""


def test_pickles_in_disguise_are_refused_and_never_run(tmp_path: FilePath) -> None:
    from pam_mobile import checkpoint
    from pam_mobile.model.presets import preset
    from pam_mobile.model.supernet import Supernet
    from pam_mobile.pathtable import PathTable

    payloads, source, marker = tmp_path / "payloads", tmp_path / "checkpoint", tmp_path / "marker"
    payloads.mkdir()
    _python(PAYLOADS, payloads, marker)
    checkpoint.save(source, Supernet(preset("tiny")), PathTable([]), {})
    (source / checkpoint.DOCUMENT).rename(source / "original.json")
    said = _python(VICTIM, payloads, source)
    assert said.split(maxsplit=1) == ["96", "[]\n"]
    assert not marker.exists()
    with open(payloads / "p0", "rb") as file:
        pickle.load(file)
    assert marker.exists(), "the payload must be a live one"


def _python(code: str, *arguments: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
