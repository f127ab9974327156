"""Verify: what a changed, missing, foreign, exchanged or crashing file leads to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from export_samples import PTE as PTE_KEY
from safetensors.torch import load_file

from pam_export import manifest, verify_folder
from pam_export.artifact import Answer, Request
from pam_export.child import Job, Outcome, Question, run_isolated
from pam_export.verify import check_files, judge
from pam_mobile.errors import InputError, IntegrityError
from pam_mobile.files import write_sealed_json
from pam_mobile.path import Path

PTE = "pam-mini-v3_b{}_64x64_fp32.pte"
WEIGHTS = "pam-mini-v3_b100_64x64_fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture
def no_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pam_export.verify.run_isolated", lambda jobs: pytest.fail("a file was parsed before the refusal")
    )


def flip(path: FilePath) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether both are JSON of one content: 1e-05 became 1E-05, or the last line break is gone. That is no damage."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_the_other_formats_pass_too(exported_others: FilePath) -> None:
    checks = verify_folder(exported_others)
    assert [check.file.rsplit(".", 1)[1] for check in checks] == ["pt", "onnx"]
    assert all(check.passed and check.max_abs < 1e-4 for check in checks)


def test_a_good_folder_passes(exported: FilePath) -> None:
    checks = verify_folder(exported)
    assert [check.file for check in checks] == [a["name"] for a in manifest.read(exported)["artifacts"]]
    assert len(checks) == 6
    assert all(check.passed and 0 < check.max_abs < 2e-2 for check in checks)
    assert all(check.max_abs < 1e-4 for check in checks if check.file.endswith("pte"))


@pytest.mark.usefixtures("no_execution")
@pytest.mark.parametrize("name", [PTE.format("100"), WEIGHTS, "golden_64x64.safetensors"])
def test_a_flipped_bit_is_found_before_anything_is_parsed(name: str, copied: Callable[[], FilePath]) -> None:
    folder = copied()
    flip(folder / name)
    with pytest.raises(IntegrityError, match=f"{FilePath(name).name} is damaged"):
        verify_folder(folder)


@pytest.mark.usefixtures("no_execution")
@pytest.mark.parametrize("suffix", [".pte", ".mlpackage", ".pt", ".onnx", "manifest.json", ".safetensors"])
def test_five_hundred_flips_and_truncations_are_refused_and_nothing_is_parsed(
    suffix: str, exported: FilePath, exported_others: FilePath, tmp_path: FilePath
) -> None:
    whole_folder = exported_others if suffix in (".pt", ".onnx") else exported
    folder, rng = FilePath(shutil.copytree(whole_folder, tmp_path / "copy")), np.random.default_rng(5)
    files = [
        file for path in sorted(folder.iterdir()) if path.name.endswith(suffix) for file in manifest.files_under(path)
    ]
    for number in range(500):
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        place = int(rng.integers(len(whole)))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        changed = whole[:place] if number % 5 == 0 else bytes(flipped)
        if says_the_same(changed, whole):
            continue
        file.write_bytes(changed)
        with pytest.raises(IntegrityError):
            verify_folder(folder)
        file.write_bytes(whole)
    check_files(folder, manifest.read(folder))


@pytest.mark.usefixtures("no_execution")
def test_exchanged_files_are_found(copied: Callable[[], FilePath]) -> None:
    folder = copied()
    one, other, aside = folder / PTE.format("100"), folder / PTE.format("096"), folder.parent / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    with pytest.raises(IntegrityError, match="is damaged"):
        verify_folder(folder)


@pytest.mark.usefixtures("no_execution")
def test_an_edited_manifest_is_found(copied: Callable[[], FilePath]) -> None:
    folder = copied()
    text = (folder / manifest.NAME).read_text()
    assert '"path": "010"' in text
    (folder / manifest.NAME).write_text(text.replace('"path": "010"', '"path": "011"'))
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged or was edited"):
        verify_folder(folder)


@pytest.mark.usefixtures("no_execution")
def test_a_missing_and_an_extra_file_are_found(copied: Callable[[], FilePath]) -> None:
    folder = copied()
    extra = folder / "pam-mini-v3_b100_64x64_fp16.mlpackage" / "notes.txt"
    extra.write_text("x")
    with pytest.raises(IntegrityError, match=r"notes\.txt is not listed"):
        verify_folder(folder)
    extra.unlink()
    (folder / WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match=r"weight\.bin is missing"):
        verify_folder(folder)
    with pytest.raises(InputError, match="does not exist"):
        verify_folder(folder / "nowhere")


@pytest.mark.usefixtures("no_execution")
def test_a_link_in_place_of_a_file_is_refused(copied: Callable[[], FilePath]) -> None:
    folder = copied()
    target = folder.parent / "elsewhere.pte"
    (folder / PTE.format("100")).rename(target)
    (folder / PTE.format("100")).symlink_to(target)
    with pytest.raises(IntegrityError, match="is missing"):
        verify_folder(folder)


@pytest.mark.usefixtures("no_execution")
@pytest.mark.parametrize("name", ["../secret.pte", "/etc/hostname"])
def test_a_manifest_cannot_point_outside_its_folder(name: str, exported: FilePath) -> None:
    content = manifest.read(exported)
    content["artifacts"][0]["files"][0]["path"] = name
    with pytest.raises(IntegrityError, match="outside the folder"):
        check_files(exported, content)


@pytest.mark.usefixtures("no_execution")
def test_a_newer_schema_is_refused_with_the_pip_line(tmp_path: FilePath) -> None:
    write_sealed_json(tmp_path / manifest.NAME, {"kind": manifest.KIND, "schema_version": 99})
    with pytest.raises(InputError, match="has schema 99") as caught:
        verify_folder(tmp_path)
    assert caught.value.hint == "pip install --upgrade pam-mobile"
    write_sealed_json(tmp_path / manifest.NAME, {"kind": "web app", "schema_version": 1})
    with pytest.raises(InputError, match="is no export manifest"):
        verify_folder(tmp_path)


def test_wrong_artifacts_under_fitting_hashes_fail_and_the_rest_is_still_checked(
    copied: Callable[[], FilePath],
) -> None:
    """A manifest that was sealed again: 100 is a copy of 096, 097 lost its end, 096 is untouched."""
    folder = copied()
    content = manifest.read(folder)
    content["artifacts"] = [a for a in content["artifacts"] if a["target"] == "executorch"]
    for package in folder.glob("*.mlpackage"):
        shutil.rmtree(package)
    shutil.copy(folder / PTE.format("096"), folder / PTE.format("100"))
    short = folder / PTE.format("097")
    short.write_bytes(short.read_bytes()[:4000])
    # The manifest is a lie all the way: it even says path 000 of the artifact that should be 111.
    content["artifacts"][0]["info"] = content["artifacts"][2]["info"]
    for artifact in content["artifacts"]:
        artifact["files"] = manifest.file_entries(folder, folder / artifact["name"])
    manifest.write(folder, content)
    # Truncated on purpose: the runtime may refuse it or die of it.
    wrong, damaged, good = verify_folder(folder)
    assert (wrong.passed, damaged.passed, good.passed) == (False, False, True)
    assert 1e-3 < wrong.max_abs < 1
    assert damaged.max_abs == float("inf")


def test_what_an_artifact_says_about_itself_must_fit_the_manifest(exported: FilePath) -> None:
    artifact = manifest.read(exported)["artifacts"][0]
    (method,) = artifact["methods"]
    golden = load_file(exported / method["golden"]["file"])[method["golden"]["alpha"]]
    answers, facts = ((Answer(golden),),), artifact["info"]
    assert facts["path"] == "111"
    assert judge(artifact, [golden], Outcome(answers, tuple(facts.items()))).passed
    check = judge(artifact, [golden], Outcome(answers, tuple({**facts, "path": "000"}.items())))
    assert (check.passed, check.message) == (False, "it holds path 000, the manifest says 111")
    chosen = ((Answer(golden, Path.parse("011")),),)
    check = judge(artifact, [golden], Outcome(chosen, tuple(facts.items())))
    assert (check.passed, check.message) == (False, "forward takes path 011, the manifest says None")


def test_a_crash_takes_only_its_own_job_down(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the ExecuTorch runtime that aborts on one of three files and cannot read another."""
    package = tmp_path / "site" / "executorch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "runtime.py").write_text(
        "import os\n"
        "class Verification: InternalConsistency = 0\n"
        "class Method:\n"
        "    def execute(self, inputs): return [inputs[1] if inputs else 'x']\n"
        "class Metadata:\n"
        "    def __init__(self, count): self.num_inputs = lambda: count\n"
        "class Program:\n"
        "    method_names = {'forward', 'path'}\n"
        "    def load_method(self, name): return Method()\n"
        "    def metadata(self, name): return Metadata(2 if name == 'forward' else 0)\n"
        "class Runtime:\n"
        "    @staticmethod\n"
        "    def get(): return Runtime()\n"
        "    def load_program(self, path, verification):\n"
        "        if path.name == 'crash.pte': os.abort()\n"
        "        if path.name == 'broken.pte': raise RuntimeError('not a program')\n"
        "        return Program()\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    image, trimap = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    names = ("good.pte", "crash.pte", "broken.pte", "fine.pte")
    asked = [Question(Request(), image, trimap)]
    ended: list[int] = []
    jobs = [Job(PTE_KEY, tmp_path / name, asked) for name in names]
    good, crash, broken, fine = run_isolated(jobs, lambda: ended.append(1))
    assert len(ended) == len(jobs)
    assert torch.equal(good.answers[0][0].alpha, torch.ones(1, 1, 4, 4))
    assert dict(good.facts) == {"path": "x"}
    assert crash.error.startswith("crashed its process (signal 6)")
    assert broken.error == "reading ExecuTorch failed: RuntimeError: not a program"
    assert not fine.error


def test_the_manifest_is_plain_sealed_json(exported: FilePath) -> None:
    content = json.loads((exported / manifest.NAME).read_text())
    assert content["schema_version"] == manifest.SCHEMA
    assert len(content["document_sha256"]) == 64
