"""The export folder: names, manifest, parity of every artifact, the gate, and all or nothing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from export_samples import CHOICES, MODEL, SIZE
from torch import nn

from pam_export import RECIPES, BudgetPath, executorch, export_folder, manifest
from pam_export.child import Job, Outcome
from pam_export.parity import Case, cases, compare, reference
from pam_export.plan import key_facts, plan
from pam_export.publish import check_destination, staging
from pam_export.wrapper import network_of, wrap
from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, IntegrityError, PamError, SetupError, UsageError
from pam_mobile.files import sha256
from pam_mobile.model.presets import preset
from pam_mobile.model.subnet import extract, parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

BYPASS = CHOICES[2]


def digests(folder: FilePath) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in manifest.files_under(folder)}


def export(supernet: Supernet, out: FilePath, **changes: Any) -> dict[str, Any]:
    options = {"targets": ["executorch"], "sizes": [SIZE], "model": MODEL, "workers": 1, **changes}
    choices = options.pop("choices", [BYPASS])
    return export_folder(supernet, choices, out=out, **options)


def plant(monkeypatch: pytest.MonkeyPatch, build: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setitem(RECIPES, "executorch", replace(RECIPES["executorch"], build=build))


def run_here(jobs: list[Job]) -> list[Outcome]:
    """In place of a child process, where none is needed."""
    return [Outcome(RECIPES[job.target].execute(job.path, job.images, job.trimaps).split(1)) for job in jobs]


def test_names_say_preset_weights_budget_size_and_precision(exported: FilePath) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "golden_64x64.safetensors",
        "manifest.json",
        *sorted(f"pam-mini-v3_b{b}_64x64_{e}" for b in ("096", "097", "100") for e in ("fp16.mlpackage", "fp32.pte")),
    ]
    assert manifest.artifact_name(preset("tiny", prior=True), 1, 80, 512, RECIPES["coreml"]) == (
        "pam-tiny-prior-v1_b080_512x512_fp16.mlpackage"
    )


def test_manifest_tells_path_cost_budget_and_hashes(exported: FilePath, supernet: Supernet) -> None:
    content = manifest.read(exported)
    table = CostTable.of(supernet.preset, SIZE, SIZE)
    assert content["model"] == {"arch": "mini", "units": 3, **MODEL}
    assert content["license"] == {"code": "Apache-2.0", "weights": "CC0-1.0", "data": "none"}
    assert content["preprocess"] == "in graph"
    assert set(content["toolchain"]) == {"python", "torch", "executorch", "coremltools", "numpy"}
    assert [a["path"] for a in content["artifacts"]] == ["111", "111", "010", "010", "000", "000"]
    for artifact in content["artifacts"]:
        path = Path.parse(artifact["path"])
        assert artifact["macs"] == table.cost(path) <= artifact["budget"]["limit_macs"]
        assert artifact["params"] == parameter_count(extract(supernet, path))
        assert artifact["prior_macs"] == 0
        assert artifact["backend"]["leftovers"] == 0
        assert artifact["backend"]["delegated_ops"] == artifact["backend"]["total_ops"] > 50
        assert [entry["name"] for entry in artifact["io"]] == ["image", "trimap", "alpha"]
        assert artifact["parity"]["passed"]
        assert artifact["parity"]["max_abs"] <= artifact["parity"]["gate"]["max_abs"]
        assert artifact["latency"] == []
        for file in artifact["files"]:
            assert sha256(exported / file["path"]) == file["sha256"]
            assert (exported / file["path"]).stat().st_size == file["bytes"]
    assert [a["budget"]["text"] for a in content["artifacts"]][::2] == ["100%", "97.5%", "96%"]
    assert {a["target"]: a["parity"]["how"].split(",")[0] for a in content["artifacts"]} == {
        "executorch": "executed in the ExecuTorch runtime",
        "coreml": "converted",
    }


def test_every_artifact_equals_its_own_path_and_no_other(exported: FilePath, supernet: Supernet) -> None:
    inputs = cases(SIZE)
    wanted = {str(c.path): reference(network_of(supernet, c.path), inputs) for c in CHOICES}
    for artifact in manifest.read(exported)["artifacts"]:
        row = RECIPES[artifact["target"]]
        images, trimaps = torch.cat([c.image for c in inputs]), torch.cat([c.trimap for c in inputs])
        alphas = row.execute(exported / artifact["name"], images, trimaps).split(1)
        passed = {path: compare(alpha, alphas, row.gate).passed for path, alpha in wanted.items()}
        assert passed == {path: path == artifact["path"] for path in wanted}


def test_known_pixels_are_exact(exported: FilePath) -> None:
    case = cases(SIZE)[0]
    assert {0, 128, 255} == set(case.trimap.unique().tolist())
    for name in ("pam-mini-v3_b100_64x64_fp32.pte", "pam-mini-v3_b100_64x64_fp16.mlpackage"):
        row = RECIPES["executorch" if name.endswith("pte") else "coreml"]
        alpha = row.execute(exported / name, case.image, case.trimap)
        assert torch.equal(alpha[case.trimap == 255], torch.ones(int((case.trimap == 255).sum())))
        assert not alpha[case.trimap == 0].any()


@pytest.mark.parametrize("target", ["executorch", "coreml"])
def test_key_facts_are_inside_the_artifact(exported: FilePath, target: str) -> None:
    for artifact in manifest.read(exported)["artifacts"]:
        if artifact["target"] == target:
            facts = RECIPES[target].facts(exported / artifact["name"])
            assert facts["path"] == artifact["path"]
            assert facts["macs"] == str(artifact["macs"])
            assert facts["budget"] == artifact["budget"]["text"]
            assert facts["weights_sha256"] == MODEL["weights_sha256"]


def test_the_same_input_gives_the_same_bytes(exported: FilePath, supernet: Supernet, tmp_path: FilePath) -> None:
    name = "pam-mini-v3_b096_64x64_fp32.pte"
    (row,) = plan(supernet.preset, [BYPASS], ["executorch"], [SIZE], 3)
    module = wrap(network_of(supernet, BYPASS.path))
    executorch.build(module, cases(SIZE)[0].inputs(), tmp_path / name, key_facts(row, supernet.preset, MODEL))
    assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


def test_a_planted_perturbation_fails_the_gate_and_nothing_is_published(
    supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = RECIPES["executorch"].build

    def perturbed(module: nn.Module, *rest: Any) -> dict[str, Any]:
        with torch.no_grad():
            module.get_parameter("network.net.decoder.head.bias").add_(2e-4)
        return build(module, *rest)

    plant(monkeypatch, perturbed)
    monkeypatch.setattr("pam_export.folder.run_isolated", run_here)
    with pytest.raises(IntegrityError, match=r"b096_64x64_fp32\.pte differs from PyTorch: max 2\.0e-04 \(gate 1e-04\)"):
        export(supernet, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_or_ctrl_c_leaves_nothing_and_spares_the_old_export(
    error: BaseException,
    supernet: Supernet,
    copied: Callable[[], FilePath],
    tmp_path: FilePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(module: nn.Module, inputs: Any, path: FilePath, info: Any) -> dict[str, Any]:
        path.write_bytes(b"half an artifact")
        raise error

    plant(monkeypatch, failing)
    old = copied()
    before = digests(old)
    with pytest.raises(SetupError if isinstance(error, OSError) else type(error)):
        export(supernet, old)
    assert digests(old) == before
    assert list(tmp_path.iterdir()) == [old]


def test_a_failing_tool_is_quoted(supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_export.executorch.lower", lambda *args: 1 / 0)
    with pytest.raises(PamError, match=r"lowering to ExecuTorch failed: ZeroDivisionError"):
        export(supernet, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_old_export_is_replaced_as_a_whole(copied: Callable[[], FilePath]) -> None:
    old = copied()
    with staging(old) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in old.iterdir()] == ["new.txt"]
    assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_an_empty_folder_is_used(tmp_path: FilePath) -> None:
    with staging(tmp_path / "a" / "b") as folder:
        (folder / "new.txt").write_text("new")
    assert (tmp_path / "a" / "b" / "new.txt").read_text() == "new"
    (tmp_path / "empty").mkdir()
    with staging(tmp_path / "empty") as folder:
        (folder / "new.txt").write_text("new")
    assert (tmp_path / "empty" / "new.txt").exists()


@pytest.mark.parametrize("planted", ["notes.txt", "pam-mini-v3_b100_64x64_fp16.mlpackage/notes.txt"])
def test_an_export_folder_with_a_foreign_file_is_refused(planted: str, copied: Callable[[], FilePath]) -> None:
    old = copied()
    (old / planted).write_text("mine")
    with pytest.raises(SetupError, match=r"notes\.txt, which no export wrote"):
        check_destination(old)


@pytest.mark.parametrize(
    "files", [{"photo.jpg": "x"}, {"manifest.json": "{}"}, {"manifest.json": '{"kind": "web app"}'}]
)
def test_a_foreign_folder_is_refused_before_any_work(
    files: dict[str, str], supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda *args: pytest.fail("work was begun"))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SetupError, match="which no export wrote; nothing was changed"):
        export(supernet, tmp_path)
    assert digests(tmp_path).keys() == files.keys()


def test_a_file_or_a_link_in_the_way_is_refused(tmp_path: FilePath) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(SetupError, match="is not a folder"):
            check_destination(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"choices": [BudgetPath(Budget.parse("96%"), Path.parse("111"))]},
            BudgetError,
            "path 111 costs .* above the budget 96%",
        ),
        ({"choices": [BudgetPath(Budget.parse("96%"), Path.parse("0000"))]}, UsageError, "has 4 units, mini has 3"),
        ({"targets": ["tensorrt"]}, UsageError, "unknown export target 'tensorrt'"),
        ({"targets": []}, UsageError, "no targets"),
        ({"sizes": [100]}, UsageError, "size 100 is not a multiple of 32"),
        ({"sizes": [0]}, UsageError, "size 0 is not a multiple of 32"),
        ({"sizes": [64, 64]}, UsageError, re.escape("two artifacts would be called pam-mini-v3_b096_64x64_fp32.pte")),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    changes: dict[str, Any],
    error: type[PamError],
    message: str,
    supernet: Supernet,
    tmp_path: FilePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pam_export.folder.cases", lambda size: pytest.fail("work was begun"))
    with pytest.raises(error, match=message):
        export(supernet, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_checked_at_every_size(supernet: Supernet, tmp_path: FilePath) -> None:
    macs = CostTable.of(supernet.preset, SIZE, SIZE).smallest
    choice = BudgetPath(Budget.parse(f"{macs / 1e6:.6f}M"), BYPASS.path)
    with pytest.raises(BudgetError, match="at 96x96"):
        export(supernet, tmp_path / "out", choices=[choice], sizes=[64, 96])


@pytest.mark.parametrize(("target", "package"), [("executorch", "executorch"), ("coreml", "coremltools")])
def test_a_missing_package_gives_the_pip_line(
    target: str, package: str, supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(SetupError, match=f"needs {package}") as caught:
        export(supernet, tmp_path / "out", targets=[target])
    assert caught.value.hint == "pip install 'pam-mobile[export]'"


@pytest.mark.parametrize(("budget", "share"), [("80%", 80), ("82.9%", 82), ("250%", 100), ("0.05G", 4), ("99G", 100)])
def test_the_budget_in_a_name_is_rounded_down(budget: str, share: int) -> None:
    table = replace(CostTable.of(preset("tiny"), 512, 512), base=10**9, run=(10**8,) * 9, bypass=(0,) * 9)
    assert table.largest == 19 * 10**8
    assert manifest.percent(Budget.parse(budget), table) == (share if budget != "0.05G" else 2)


def test_parity_inputs_are_fixed_and_cover_the_odd_ones() -> None:
    first, second = cases(SIZE), cases(SIZE)
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.trimap, b.trimap) for a, b in zip(first, second, strict=True)
    )
    by_name: dict[str, Case] = {case.name: case for case in first}
    assert sum(name.startswith("synthetic") for name in by_name) >= 4
    assert not by_name["all-zero"].image.any()
    assert by_name["all-one"].image.min() == 255
    assert set(by_name["all-unknown"].trimap.unique().tolist()) == {128}
    for case in first[:4]:
        assert 0.1 < float((case.trimap == 128).float().mean()) < 0.9


def test_the_gate_sees_single_pixels_shapes_and_nan() -> None:
    gate = RECIPES["executorch"].gate
    good = torch.rand(1, 1, 8, 8)
    spot, missing = good.clone(), good.clone()
    spot[0, 0, 3, 3] += 2e-4
    missing[0, 0, 3, 3] = float("nan")
    assert compare([good, good], [good, good], gate).passed
    assert not compare([good, good], [good, spot], gate).passed
    assert not compare([good], [good + 5e-5], gate).passed, "a small difference everywhere is a fault, too"
    assert not compare([good], [missing], gate).passed
    assert not compare([good], [good[:, :, :4]], gate).passed
    with pytest.raises(ValueError, match="shorter"):
        compare([good, good], [good], gate)
