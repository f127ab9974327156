"""Checkpoints come back exactly, and damage of any kind is refused before anything is used."""

from __future__ import annotations

import errno
import json
import random
import shutil
from dataclasses import fields, replace
from pathlib import Path as FilePath

import pytest
import torch
from faults import before_each_call, fail_at
from safetensors.torch import save_file

import pam_mobile
from pam_mobile import checkpoint, tensorfile
from pam_mobile.checkpoint import DOCUMENT, RUN, WEIGHTS, find, load, network_layout, save
from pam_mobile.errors import InputError, IntegrityError, PartialFailureError, SetupError
from pam_mobile.files import sha256, write_sealed_json
from pam_mobile.model.presets import Preset, preset
from pam_mobile.model.supernet import Supernet, chooses
from pam_mobile.path import Path
from pam_mobile.pathtable import MeasuredPath, PathTable
from pam_mobile.tensorfile import layout_of, require_layout

PATHS = PathTable([MeasuredPath(Path.all_bypass(9), 2.5), MeasuredPath(Path.parse("101100111"), 1.123456)])
FACTS = {"stage": 2, "best": {"sad": 1.5}}


def _supernet(seed: int) -> Supernet:
    """With statistics and biases that are not those of the start."""
    torch.manual_seed(seed)
    net = Supernet(preset("tiny", prior=True))
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif "running" in name or name.endswith("bias"):
            tensor.uniform_(0.1, 0.9)
    return net


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[FilePath, Supernet]:
    folder = tmp_path_factory.mktemp("checkpoint")
    net = _supernet(0).train()
    save(folder, net, PATHS, FACTS)
    return folder, net


@pytest.fixture
def folder(saved: tuple[FilePath, Supernet], tmp_path: FilePath) -> FilePath:
    """A copy that may be damaged."""
    return FilePath(shutil.copytree(saved[0], tmp_path / "copy"))


def _document(folder: FilePath) -> dict:
    return json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))


def test_a_checkpoint_from_before_networks_could_choose_is_read_with_fresh_heads(tmp_path: FilePath) -> None:
    network = Supernet(preset("tiny"))
    checkpoint.save(tmp_path, network, PathTable([]), {"stage": 2})
    old = {name: value for name, value in network.state_dict().items() if not chooses(name)}
    old["net.encoder.units8.0.head.semantics.weight"] = torch.zeros(64, 64)
    digest = tensorfile.write(tmp_path / checkpoint.WEIGHTS, old)
    document = _document(tmp_path) | {"schema_version": 1, "weights": {"file": checkpoint.WEIGHTS, "sha256": digest}}
    write_sealed_json(tmp_path / checkpoint.DOCUMENT, document)
    first, second = checkpoint.load(tmp_path), checkpoint.load(tmp_path)
    for name, value in first.supernet.state_dict().items():
        assert torch.equal(value, second.supernet.state_dict()[name])
        assert chooses(name) or torch.equal(value, old[name])
    del old["net.encoder.stem.0.weight"]
    document["weights"]["sha256"] = tensorfile.write(tmp_path / checkpoint.WEIGHTS, old)
    write_sealed_json(tmp_path / checkpoint.DOCUMENT, document)
    with pytest.raises(InputError, match=r"stem\.0\.weight is missing"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_comes_back_exactly(saved: tuple[FilePath, Supernet]) -> None:
    folder, net = saved
    back = load(folder)
    have, want = back.supernet.state_dict(), net.state_dict()
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert have[name].dtype == tensor.dtype
        assert torch.equal(have[name], tensor), name
    assert back.preset == net.preset
    assert back.paths.measured == PATHS.measured
    assert back.document["stage"] == 2
    assert back.document["best"] == {"sad": 1.5}
    assert back.document["package"] == {"name": "pam-mobile", "version": pam_mobile.__version__}
    assert sorted(path.name for path in folder.iterdir()) == [DOCUMENT, WEIGHTS]


def test_a_loaded_network_is_in_evaluation_mode_and_computes_the_same(saved: tuple[FilePath, Supernet]) -> None:
    folder, net = saved
    back = load(folder).supernet
    assert not any(module.training for module in back.modules())
    image, trimap = torch.rand(1, 3, 32, 32), torch.full((1, 1, 32, 32), 0.5)
    path = Path.parse("101100111")
    with torch.no_grad():
        have, want = back(image, trimap, path=path), net.eval()(image, trimap, path=path)
    net.train()
    assert torch.equal(have, want)
    assert have.std() > 0


def test_without_measured_paths_the_cheapest_is_known(tmp_path: FilePath) -> None:
    save(tmp_path, _supernet(1), PathTable([]), {})
    assert [m.path for m in load(tmp_path).paths.measured] == [Path.all_bypass(9)]


@pytest.mark.parametrize("file", [WEIGHTS, DOCUMENT])
def test_every_flipped_bit_is_an_integrity_error(folder: FilePath, file: str) -> None:
    path = folder / file
    data = bytearray(path.read_bytes())
    rng = random.Random(1)
    places = [0, len(data) - 2, *(rng.randrange(len(data) - 1) for _ in range(38))]
    for place in places:
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            load(folder)
        assert str(path) in caught.value.message
        data[place] ^= bit
    path.write_bytes(data)
    load(folder)


@pytest.mark.parametrize("size", [0, 7, 100_000, -1])
def test_truncated_weights_are_an_integrity_error(folder: FilePath, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    with pytest.raises(IntegrityError):
        load(folder)


@pytest.mark.parametrize("file", [WEIGHTS, DOCUMENT])
def test_a_missing_file_is_named(folder: FilePath, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(InputError, match="does not exist") as caught:
        load(folder)
    assert str(folder / file) in caught.value.message


def test_a_document_of_a_newer_version_says_upgrade(folder: FilePath) -> None:
    write_sealed_json(folder / DOCUMENT, {**_document(folder), "schema_version": checkpoint.SCHEMA_VERSION + 1})
    with pytest.raises(InputError, match="schema version 3, this pam-mobile reads 2") as caught:
        load(folder)
    assert "upgrade" in caught.value.hint


def test_a_sealed_document_of_another_kind_is_an_input_error(folder: FilePath) -> None:
    write_sealed_json(folder / DOCUMENT, {"schema_version": checkpoint.SCHEMA_VERSION, "artifact": "a.pte"})
    with pytest.raises(InputError, match="not a checkpoint"):
        load(folder)


def test_weights_of_another_preset_are_refused_by_their_first_difference(folder: FilePath) -> None:
    document = _document(folder)
    document["preset"]["stem"] = 12
    write_sealed_json(folder / DOCUMENT, document)
    with pytest.raises(
        InputError, match=r"a tiny\+prior network: net\.decoder\.level1\.0\.0\.weight is float32 \(8, 33, 3, 3\), not"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("net.decoder.head.bias", "remove", r"net.decoder.head.bias is missing$"),
        ("net.extra", "add", r"net.extra is unexpected$"),
        ("net.decoder.head.bias", "reshape", r"net.decoder.head.bias is float32 \(1, 1\), not float32 \(1,\)$"),
        ("net.decoder.head.bias", "half", r"net.decoder.head.bias is float16 \(1,\), not float32 \(1,\)$"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    folder: FilePath,
    saved: tuple[FilePath, Supernet],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: str,
    said: str,
) -> None:
    state = saved[1].state_dict()
    if change == "remove":
        del state[name]
    elif change == "half":
        state[name] = state[name].half()
    else:
        state[name] = state[name][None] if change == "reshape" else torch.zeros(1)
    document = _document(folder)
    document["weights"]["sha256"] = tensorfile.write(folder / WEIGHTS, state)
    write_sealed_json(folder / DOCUMENT, document)
    monkeypatch.setattr(tensorfile, "read", lambda *_: pytest.fail("tensors were read"))
    with pytest.raises(InputError, match=said) as caught:
        load(folder)
    assert caught.value.code == 3


def test_a_prior_less_network_does_not_take_weights_for_the_prior() -> None:
    have, want = layout_of(_supernet(0).state_dict()), network_layout(preset("tiny"))
    with pytest.raises(InputError, match=r"a tiny network: net\..* \(and \d+ more differences\)"):
        require_layout(have, want, FilePath("there"), "a tiny network")


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", [field.name for field in fields(Preset) if field.name not in ("name", "reference")])
@pytest.mark.parametrize("value", [0, -1, 3, None, "x", [], [1, 1, 1]])
def test_a_changed_number_of_the_network_is_an_input_error_of_few_lines(
    folder: FilePath, name: str, value: object
) -> None:
    document = _document(folder)
    before, document["preset"][name] = document["preset"][name], value
    write_sealed_json(folder / DOCUMENT, document)
    try:
        found = load(folder)
    except InputError as error:
        said = f"{error.message}\n{error.hint}"
    else:
        assert network_layout(found.preset) == layout_of(_supernet(0).state_dict()), (before, value)
        return
    assert len(said.splitlines()) == 2


def test_a_network_with_a_weight_that_is_not_finite_is_never_saved(folder: FilePath) -> None:
    for value in (float("nan"), float("inf")):
        net = _supernet(3)
        net.state_dict()["net.decoder.head.bias"].fill_(value)
        with pytest.raises(PartialFailureError, match=r"net\.decoder\.head\.bias became infinite or NaN") as caught:
            save(folder, net, PATHS, FACTS)
        assert caught.value.code == 7
    load(folder)


def test_two_checkpoints_with_swapped_files_are_refused(folder: FilePath, tmp_path: FilePath) -> None:
    save(tmp_path / "other", _supernet(3), PATHS, FACTS)
    for file in (WEIGHTS, DOCUMENT):
        swapped = FilePath(shutil.copytree(folder, tmp_path / f"swapped-{file}"))
        shutil.copy(tmp_path / "other" / file, swapped / file)
        with pytest.raises(IntegrityError, match=WEIGHTS):
            load(swapped)


def test_a_failed_save_leaves_the_old_checkpoint(folder: FilePath) -> None:
    with before_each_call(fail_at(4, errno.ENOSPC)), pytest.raises(SetupError, match="No space left"):
        save(folder, _supernet(3), PATHS, FACTS)
    assert sorted(path.name for path in folder.iterdir()) == [DOCUMENT, WEIGHTS]
    load(folder)


def test_new_weights_beside_an_old_document_are_refused(folder: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_sealed_json", stop)
    with pytest.raises(KeyboardInterrupt):
        save(folder, _supernet(3), PATHS, FACTS)
    with pytest.raises(IntegrityError):
        load(folder)


def test_nothing_is_parsed_before_the_hashes_are_verified(folder: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    loads = json.loads
    monkeypatch.setattr(tensorfile, "load_file", parsed.append)
    monkeypatch.setattr(json, "loads", lambda text, **_: parsed.append(text) if "\x80" in str(text) else loads(text))
    (folder / WEIGHTS).write_bytes(b"\x80\x04malicious")
    with pytest.raises(IntegrityError):
        load(folder)
    assert parsed == []


def test_a_preset_of_the_users_own_numbers_comes_back_too(tmp_path: FilePath) -> None:
    custom = replace(preset("tiny"), name="mine", encoder_units=(1, 1, 1), decoder_units=(1, 1, 1))
    save(tmp_path, Supernet(custom), PathTable([]), {})
    assert load(tmp_path).preset == custom


# Where a MODEL argument points


def _empty_checkpoint(folder: FilePath) -> None:
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / WEIGHTS)
    write_sealed_json(folder / DOCUMENT, {"weights": {"sha256": sha256(folder / WEIGHTS)}})


def test_a_run_folder_means_its_last_stage(tmp_path: FilePath) -> None:
    for stage in ("stage1", "stage2", "stage3"):
        _empty_checkpoint(tmp_path / stage)
        assert find(str(tmp_path)) == tmp_path / stage
    (tmp_path / "stage3" / DOCUMENT).unlink()
    assert find(str(tmp_path)) == tmp_path / "stage2"


def test_a_checkpoint_folder_and_its_files_mean_the_folder(saved: tuple[FilePath, Supernet]) -> None:
    for place in (saved[0], saved[0] / WEIGHTS, saved[0] / DOCUMENT):
        assert find(str(place)) == saved[0]


def test_weights_alone_are_incomplete(folder: FilePath) -> None:
    (folder / DOCUMENT).unlink()
    with pytest.raises(IntegrityError, match=f"incomplete: {DOCUMENT} is missing"):
        find(str(folder))


@pytest.mark.parametrize("name", ["nothing", "other.txt", "empty", "prior"])
def test_no_model_says_what_is_accepted(tmp_path: FilePath, name: str) -> None:
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"no model found at .*{name}") as caught:
        find(str(tmp_path / name))
    assert "run folder" in caught.value.hint
    assert "`prior`" in caught.value.hint


def test_a_run_before_the_end_of_its_first_stage_is_no_model_yet(tmp_path: FilePath) -> None:
    (tmp_path / RUN).write_text("preset: tiny")
    with pytest.raises(InputError, match="has not finished a stage yet") as caught:
        find(str(tmp_path))
    assert "--resume" in caught.value.hint


def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path: FilePath) -> None:
    with pytest.raises(InputError, match="no model found at"):
        find(str(tmp_path / ("n" * 300)))
