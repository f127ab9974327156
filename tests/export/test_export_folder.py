"""The export folder: names, manifest, parity of every artifact, the gate, and all or nothing."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from export_samples import CHOICES, MLPACKAGE, MODEL, PTE, SIZE, alphas_of, single

from pam_export import BudgetPath, executorch, export_folder, manifest
from pam_export.artifact import Part, Request
from pam_export.child import Job, Outcome
from pam_export.parity import Case, Gate, cases, compare, reference
from pam_export.plan import key_facts, plan
from pam_export.proof import Reference
from pam_export.publish import DONE, KEPT, check_destination, staging
from pam_export.quiet import quiet
from pam_export.recipe import RECIPES, Recipe, missing, recipe, select
from pam_export.verify import check_files
from pam_export.wrapper import network_of, wrap
from pam_mobile.budget import Budget
from pam_mobile.commands.export import summary
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, IntegrityError, PamError, SetupError, UsageError
from pam_mobile.files import sha256
from pam_mobile.model.presets import preset
from pam_mobile.model.subnet import extract, parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path
from pam_mobile.reporter import Reporter

BYPASS = CHOICES[2]


def digests(folder: FilePath) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in manifest.files_under(folder)}


def export(supernet: Supernet, out: FilePath, **changes: Any) -> dict[str, Any]:
    options = {"targets": ["executorch"], "sizes": [SIZE], "model": MODEL, "workers": 1, **changes}
    choices = options.pop("choices", [BYPASS])
    return export_folder(supernet, choices, out=out, **options)


def swap(monkeypatch: pytest.MonkeyPatch, table: Mapping[str, Recipe]) -> None:
    """Put another table in place of the recipes."""
    monkeypatch.setattr("pam_export.recipe.RECIPES", table)


def plant(monkeypatch: pytest.MonkeyPatch, build: Callable[..., dict[str, Any]], key: str = PTE) -> None:
    swap(monkeypatch, {**RECIPES, key: replace(RECIPES[key], build=build)})


def run_here(jobs: list[Job], advance: Callable[[], None]) -> list[Outcome]:
    """In place of a child process, where none is needed."""
    outcomes = []
    for job in jobs:
        load = recipe(job.key).load
        assert load
        run = load(job.path)
        pairs = [zip(q.images.split(1), q.trimaps.split(1), strict=True) for q in job.questions]
        answers = tuple(
            tuple(run(image, trimap, q.request) for image, trimap in pair)
            for q, pair in zip(job.questions, pairs, strict=True)
        )
        outcomes.append(Outcome(answers))
    return outcomes


def test_names_say_preset_weights_budget_size_and_precision(exported: FilePath) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "golden_64x64.safetensors",
        "manifest.json",
        *sorted(f"pam-mini-v3_b{b}_64x64_{e}" for b in ("096", "097", "100") for e in ("fp16.mlpackage", "fp32.pte")),
    ]
    numbers = preset("tiny", prior=True)
    choice = BudgetPath(Budget.parse("80%"), Path.all_bypass(len(numbers.units)))
    (named,) = plan(numbers, [choice], [RECIPES[MLPACKAGE]], [512], 1, False)
    assert named.name == "pam-tiny-prior-v1_b080_512x512_fp16.mlpackage"


def test_manifest_tells_path_cost_budget_and_hashes(exported: FilePath, supernet: Supernet) -> None:
    content = manifest.read(exported)
    table = CostTable.of(supernet.preset, SIZE, SIZE)
    assert content["model"] == {"arch": "mini", "units": 3, **MODEL}
    assert content["license"] == {"code": "Apache-2.0", "weights": "CC0-1.0", "data": "none"}
    assert content["preprocess"] == "in graph"
    assert set(content["toolchain"]) == {"python", *manifest.TOOLS}
    methods = [method for artifact in content["artifacts"] for method in artifact["methods"]]
    assert [method["path"] for method in methods] == ["111", "111", "010", "010", "000", "000"]
    for artifact in content["artifacts"]:
        (method,) = artifact["methods"]
        path = Path.parse(method["path"])
        assert method["name"] == "forward"
        assert method["macs"] == table.cost(path) <= method["budget"]["limit_macs"]
        assert method["params"] == parameter_count(extract(supernet, path))
        assert method["prior_macs"] == 0
        assert artifact["backend"]["leftovers"] == 0
        assert artifact["backend"]["delegated_ops"] == artifact["backend"]["total_ops"] > 50
        assert [entry["name"] for entry in artifact["io"]["64"]] == ["image", "trimap", "alpha"]
        assert artifact["parity"]["executed"] == (artifact["target"] == "executorch")
        assert artifact["parity"]["compared"]
        assert artifact["parity"]["cases"] == 9
        assert artifact["parity"]["max_abs"] <= artifact["parity"]["gate"]["max_abs"]
        for file in artifact["files"]:
            assert sha256(exported / file["path"]) == file["sha256"]
            assert (exported / file["path"]).stat().st_size == file["bytes"]
    assert [method["budget"]["text"] for method in methods][::2] == ["100%", "97.5%", "96%"]
    assert {a["target"]: a["parity"]["how"].split(",")[0] for a in content["artifacts"]} == {
        "executorch": "executed in the ExecuTorch runtime",
        "coreml": "converted",
    }


def test_every_artifact_equals_its_own_path_and_no_other(exported: FilePath, supernet: Supernet) -> None:
    inputs = cases(SIZE)
    wanted = {str(c.path): reference(network_of(supernet, c.path), inputs) for c in CHOICES}
    for artifact in manifest.read(exported)["artifacts"]:
        row = RECIPES[f"{artifact['target']}/single/{artifact['precision']}"]
        assert row.load
        alphas = alphas_of(row.load, exported / artifact["name"], inputs)
        passed = {path: compare(alpha, alphas, row.gate).passed for path, alpha in wanted.items()}
        assert passed == {path: path == artifact["methods"][0]["path"] for path in wanted}


def test_only_what_its_own_runtime_ran_counts_as_executed() -> None:
    ran = {row.target for row in RECIPES.values() if row.executed}
    assert ran == {"executorch", "executorch-cond", "torchscript", "onnx"}
    for row in RECIPES.values():
        assert row.executed == (row.target in ran) == (not row.how.startswith("converted, not executed"))
        assert row.compared == (row.executed or row.target == "coreml")


def test_what_cannot_be_run_or_interpreted_here_is_published_without_a_difference(
    exported: FilePath, supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        path.write_bytes(b"for another machine")
        return {"delegated_ops": 1, "total_ops": 1}

    plant(monkeypatch, quick, "executorch-vulkan/single/fp32")
    monkeypatch.setattr("pam_export.proof.run_isolated", lambda jobs, advance: [Outcome() for job in jobs])
    content = export(supernet, tmp_path / "out", targets=["executorch-vulkan"])
    (artifact,) = content["artifacts"]
    said = {name: artifact["parity"][name] for name in ("executed", "compared", "max_abs", "mean_abs")}
    assert said == {"executed": False, "compared": False, "max_abs": None, "mean_abs": None}
    assert " - |" in summary(content)
    assert " - |" not in summary(manifest.read(exported)), "what was interpreted has a difference to tell"


def test_known_pixels_are_exact(exported: FilePath) -> None:
    case = cases(SIZE)[0]
    assert {0, 128, 255} == set(case.trimap.unique().tolist())
    for name in ("pam-mini-v3_b100_64x64_fp32.pte", "pam-mini-v3_b100_64x64_fp16.mlpackage"):
        load = RECIPES[PTE if name.endswith("pte") else MLPACKAGE].load
        assert load
        (alpha,) = alphas_of(load, exported / name, [case])
        assert torch.equal(alpha[case.trimap == 255], torch.ones(int((case.trimap == 255).sum())))
        assert not alpha[case.trimap == 0].any()


@pytest.mark.parametrize("key", [PTE, MLPACKAGE])
def test_key_facts_are_inside_the_artifact(exported: FilePath, key: str) -> None:
    for artifact in manifest.read(exported)["artifacts"]:
        if artifact["target"] == RECIPES[key].target:
            with quiet("reading"):
                facts = RECIPES[key].facts(exported / artifact["name"])
            (method,) = artifact["methods"]
            assert facts.items() >= artifact["info"].items()
            assert facts["path"] == method["path"]
            assert facts["macs"] == str(method["macs"])
            assert facts["budget"] == method["budget"]["text"]
            assert facts["weights_sha256"] == MODEL["weights_sha256"]


def test_the_same_input_gives_the_same_bytes(exported: FilePath, supernet: Supernet, tmp_path: FilePath) -> None:
    name = "pam-mini-v3_b096_64x64_fp32.pte"
    (row,) = plan(supernet.preset, [BYPASS], [RECIPES[PTE]], [SIZE], 3, False)
    parts = single(wrap(network_of(supernet, BYPASS.path)), cases(SIZE)[0].inputs())
    executorch.build(parts, tmp_path / name, key_facts(row, supernet.preset, MODEL))
    assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


def test_a_planted_perturbation_fails_the_gate_and_nothing_is_published(
    supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = RECIPES[PTE].build

    def perturbed(parts: list[Part], *rest: Any) -> dict[str, Any]:
        with torch.no_grad():
            parts[0].module.get_parameter("network.net.decoder.head.bias").add_(2e-4)
        return build(parts, *rest)

    plant(monkeypatch, perturbed)
    monkeypatch.setattr("pam_export.proof.run_isolated", run_here)
    with pytest.raises(IntegrityError, match=r"b096_64x64_fp32\.pte differs from PyTorch: max 2\.0e-04 \(gate 1e-04\)"):
        export(supernet, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing_and_spares_the_old_export(
    error: BaseException,
    supernet: Supernet,
    copied: Callable[[], FilePath],
    tmp_path: FilePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        path.write_bytes(b"half an artifact")
        raise error

    plant(monkeypatch, failing)
    old = copied()
    before = digests(old)
    with pytest.raises(SetupError if isinstance(error, OSError) else type(error)):
        export(supernet, old)
    assert digests(old) == before
    assert list(tmp_path.iterdir()) == [old]


def test_an_interrupted_export_spares_the_old_one_and_goes_on_with_what_is_complete(
    supernet: Supernet, copied: Callable[[], FilePath], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, made = RECIPES[PTE].build, []

    def interrupted(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        made.append(path.name)
        if len(made) == 2:
            path.write_bytes(b"half an artifact")
            raise KeyboardInterrupt
        return build(parts, path, info)

    plant(monkeypatch, interrupted)
    monkeypatch.setattr("pam_export.proof.run_isolated", run_here)
    old = copied()
    before, choices = digests(old), CHOICES[:2]
    with pytest.raises(KeyboardInterrupt):
        export(supernet, old, choices=choices)
    assert digests(old) == before
    (partial,) = [path for path in old.parent.iterdir() if path != old]
    assert made[1] in {path.name for path in partial.iterdir()}
    content = export(supernet, old, choices=choices)
    assert made == [made[0], made[1], made[1]], "the first was complete, the second was not"
    assert list(old.parent.iterdir()) == [old]
    assert sorted(path.name for path in old.iterdir()) == sorted(
        ["golden_64x64.safetensors", "manifest.json", *set(made)]
    )
    fresh = {file["path"]: file["sha256"] for a in content["artifacts"] for file in a["files"]}
    assert all(before[name] == digest for name, digest in fresh.items()), "the bytes of an uninterrupted export"


@pytest.mark.parametrize("change", ["weights", "file", "note"])
def test_what_changed_since_the_interruption_is_made_again(
    change: str, supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def quick(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        made.append(path.name)
        path.write_bytes(b"an artifact")
        return {"delegated_ops": 1, "total_ops": 1}

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    plant(monkeypatch, quick)
    monkeypatch.setattr("pam_export.folder.prove", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            export(supernet, tmp_path / "out")
    assert len(made) == 1
    if change == "weights":
        supernet = copy.deepcopy(supernet)
        with torch.no_grad():
            supernet.net.decoder.head.bias.add_(1e-3)  # type: ignore[union-attr]
    elif change == "file":
        flip_first(tmp_path / ".out.partial" / made[0])
    else:
        (note,) = (tmp_path / ".out.partial" / DONE).iterdir()
        flip_first(note)
    with pytest.raises(KeyboardInterrupt):
        export(supernet, tmp_path / "out")
    assert len(made) == 2


@pytest.mark.parametrize("change", ["nothing", "weights", "budgets"])
def test_after_a_refusal_the_finished_artifacts_of_the_same_export_are_kept(
    change: str, supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, made = "torchscript/single/fp32", []
    build = RECIPES[key].build

    def wrong_at_first(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        made.append(path.name)
        if len(made) == 2:
            with torch.no_grad():
                parts[0].module.get_parameter("network.net.decoder.head.bias").add_(2e-4)
        return build(parts, path, info)

    plant(monkeypatch, wrong_at_first, key)
    monkeypatch.setattr("pam_export.proof.run_isolated", run_here)
    out, partial, options = tmp_path / "out", tmp_path / ".out.partial", {"targets": ["torchscript"]}
    with pytest.raises(IntegrityError, match=r"b097_64x64_fp32\.pt differs from PyTorch") as caught:
        export(supernet, out, choices=CHOICES, **options)
    assert caught.value.hint == f"nothing was published; {KEPT}"
    good, bad, last = made
    assert not out.exists()
    assert {path.name for path in partial.iterdir()} >= {good, last}
    assert {path.stem for path in (partial / DONE).iterdir()} == {good, last}
    assert not (partial / bad).exists()
    if change == "weights":
        supernet = copy.deepcopy(supernet)
        with torch.no_grad():
            supernet.units[0].connect.b2.add_(1e-3)
    export(supernet, out, choices=CHOICES[1:2] if change == "budgets" else CHOICES, **options)
    assert made[3:] == ([good, bad, last] if change == "weights" else [bad])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_files(out, manifest.read(out))
    assert {path.name for path in out.glob("*.pt")} == ({bad} if change == "budgets" else {good, bad, last})


def test_every_artifact_that_is_refused_is_named_and_made_again(
    supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quick(parts: list[Part], path: FilePath, info: Any) -> dict[str, Any]:
        path.write_bytes(b"an artifact")
        return {"delegated_ops": 1, "total_ops": 1}

    plant(monkeypatch, quick)
    failing = Outcome(error="no such operation")
    monkeypatch.setattr("pam_export.proof.run_isolated", lambda jobs, advance: [failing] * len(jobs))
    with pytest.raises(IntegrityError, match=r"b100_64x64_fp32\.pte cannot be run") as caught:
        export(supernet, tmp_path / "out", choices=CHOICES[:2], reporter=Reporter())
    assert "b097_64x64_fp32.pte cannot be run" in capsys.readouterr().err
    assert caught.value.hint == "nothing was published", "nothing is finished"
    assert list(tmp_path.iterdir()) == []


def flip_first(path: FilePath) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def test_shared_and_adaptive_artifacts_are_planned_once_for_all_budgets(supernet: Supernet) -> None:
    rows = [RECIPES[f"executorch/{form}/fp32"] for form in ("shared", "adaptive")]
    shared, *adaptive = plan(supernet.preset, CHOICES[:2], rows, [64, 96], 3, learned=True)
    assert shared.name == "pam-mini-v3_shared_64x64-96x96_fp32.pte"
    assert [m.name for m in shared.methods] == ["b100_64x64", "b097_64x64", "b100_96x96", "b097_96x96"]
    assert [m.request for m in shared.methods] == [Request(m.name) for m in shared.methods]
    assert [p.name for p in adaptive] == [f"pam-mini-v3_adaptive_{size}_fp32.pte" for size in ("64x64", "96x96")]
    table = CostTable.of(supernet.preset, SIZE, SIZE)
    limits = [choice.budget.macs(table) for choice in CHOICES[:2]]
    asked = [Request(way, limit) for way in ("planned", "stepwise") for limit in limits]
    assert [m.request for m in adaptive[0].methods] == asked
    info = key_facts(adaptive[0], supernet.preset, MODEL)
    assert info["deltas"] == table.deltas
    assert info["smallest"] == table.smallest


def test_an_adaptive_artifact_needs_a_network_that_has_learned_and_a_budget_for_its_heads(supernet: Supernet) -> None:
    rows, table = [RECIPES["executorch/adaptive/fp32"]], CostTable.of(supernet.preset, SIZE, SIZE)
    with pytest.raises(UsageError, match="has not learned to choose"):
        plan(supernet.preset, CHOICES, rows, [SIZE], 3, learned=False)
    heads = min(table.planning, table.selection)
    for spare, ways in ((0, 0), (max(table.planning, table.selection), 2), (heads, 1)):
        macs = table.smallest + spare
        choice = BudgetPath(Budget(Fraction(macs), False), BYPASS.path)
        if ways:
            (planned,) = plan(supernet.preset, [choice], rows, [SIZE], 3, learned=True)
            assert len(planned.methods) == ways
        else:
            with pytest.raises(BudgetError):
                plan(supernet.preset, [choice], rows, [SIZE], 3, learned=True)


def test_two_exports_to_one_folder_are_refused(supernet: Supernet, tmp_path: FilePath) -> None:
    with staging(tmp_path / "out"), pytest.raises(UsageError, match="is in use by process"):
        export(supernet, tmp_path / "out")


def test_each_target_makes_the_precisions_that_it_has() -> None:
    def keys(*args: Any) -> list[str]:
        return [row.key for row in select(*args)]

    assert keys(["executorch", "coreml"], ["single"]) == [PTE, MLPACKAGE]
    assert keys(["executorch"], ["single"], ["fp32", "fp16"]) == [PTE]
    assert keys(["coreml"], ["single"], ["fp32", "fp16"]) == [MLPACKAGE]


def test_what_no_recipe_makes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    swap(monkeypatch, {key: row for key, row in RECIPES.items() if key != "coreml/shared/fp16"})
    assert missing(["executorch", "coreml"], ["single", "shared"], []) == ["coreml shared fp16"]
    assert missing(["executorch"], ["single", "shared"], ["fp32"]) == []


def test_no_one_can_change_the_table_of_recipes() -> None:
    with pytest.raises(TypeError):
        RECIPES[PTE] = replace(RECIPES[PTE], gate=Gate(None, 1))  # type: ignore[index]


def test_a_failing_tool_is_quoted(supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_export.executorch.lower_all", lambda *args: 1 / 0)
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
        ({"targets": ["tensorrt"]}, UsageError, "unknown target 'tensorrt'"),
        ({"targets": []}, UsageError, "no targets"),
        ({"forms": ["zip"]}, UsageError, "unknown form 'zip'"),
        ({"precisions": ["fp8"]}, UsageError, "unknown precision 'fp8'"),
        ({"precisions": ["fp16"]}, UsageError, "target executorch has none of the precisions fp16"),
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
    monkeypatch.setattr("pam_export.folder.build_all", lambda *args: pytest.fail("work was begun"))
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
    first, second = cases(SIZE), cases.__wrapped__(SIZE)
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


def test_the_reference_leaves_the_network_alone(supernet: Supernet) -> None:
    mine = copy.deepcopy(supernet).to(torch.float64).train()
    before = {key: tensor.clone() for key, tensor in mine.state_dict().items()}
    (method,) = plan(mine.preset, [BYPASS], [RECIPES[PTE]], [SIZE], 3, False)[0].methods
    (answer,) = Reference(mine).answers(method, "one", cases(SIZE)[:1])
    assert answer.alpha.dtype == torch.float32
    assert all(module.training for module in mine.modules())
    for key, tensor in mine.state_dict().items():
        assert (tensor.dtype, tensor.tolist()) == (before[key].dtype, before[key].tolist()), key


def test_the_gate_sees_single_pixels_shapes_and_nan() -> None:
    gate = RECIPES[PTE].gate
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
