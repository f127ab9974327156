"""The pieces of export/arm64 that need no emulator, then the counter and the runner on an emulated processor where one can be had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import platformdirs
import pytest
import torch
from safetensors.torch import load_file

from pam_export import manifest
from pam_export.docs import filled
from pam_mobile.errors import InputError, IntegrityError, SetupError

ROOT = FilePath(__file__).parents[2]
ARM64 = ROOT / "export" / "arm64"
sys.path.insert(0, str(ARM64))
import cpu  # noqa: E402
import emulate  # noqa: E402
import page  # noqa: E402
import stubs  # noqa: E402
import toolchain  # noqa: E402

sys.path.remove(str(ARM64))
CLASSES = ("fmla", "imla", "simd", "simd_memory", "memory", "branch", "integer")
CACHE = platformdirs.user_cache_path("pam-mobile") / "arm64"
TOOLS = (toolchain.EMULATOR, f"{toolchain.CROSS}-gcc", toolchain.HOST_COMPILER)
needs_emulator = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)


def line(**counts: int) -> str:
    full = dict.fromkeys(CLASSES, 0) | counts
    return json.dumps({"total": sum(full.values()), **full})


def test_an_inference_is_the_mean_of_all_but_the_first() -> None:
    text = "\n".join(
        [line(fmla=900, integer=100), line(fmla=1100, integer=140), line(fmla=1300, integer=180), line(fmla=1301)]
    )
    counted = emulate.per_inference(text)
    assert counted["total"] == 240
    assert (counted["fmla"], counted["integer"], counted["simd"]) == (200, 40, 0)


def test_counts_that_do_not_repeat_are_refused() -> None:
    """Relative: 10 of a million repeat, 11 do not."""
    start, end = line(), line(fmla=9_000_000)
    emulate.per_inference("\n".join([start, line(fmla=1_000_000), line(fmla=2_000_010), end]))
    with pytest.raises(IntegrityError, match="do not repeat: 1000000, then 1000011"):
        emulate.per_inference("\n".join([start, line(fmla=1_000_000), line(fmla=2_000_011), end]))


def test_a_counter_that_contradicts_itself_is_refused() -> None:
    good = [line(fmla=n * 100) for n in range(4)]
    emulate.per_inference("\n".join(good))
    with pytest.raises(IntegrityError, match="saw 2 inferences instead of 3"):
        emulate.per_inference("\n".join(good[1:]))
    with pytest.raises(IntegrityError, match="do not add up to its total of 101"):
        emulate.per_inference(
            "\n".join([*good[:3], good[3].replace("300}", "300}").replace('"total": 300', '"total": 101')])
        )


def test_symbols_are_read_without_versions_and_weak_ones_are_optional() -> None:
    listing = (
        "                 U PyErr_SetString\n                 w __gmon_start__\n                 w maybe_there\n"
        "0000000000001000 T run@@VERS_1.0\n0000000000002000 B table\n                 U malloc@GLIBC_2.17\n"
    )
    assert stubs.symbols(listing) == ({"PyErr_SetString", "malloc"}, {"run", "table"})


def test_missing_symbols_are_those_that_nobody_defines(monkeypatch: pytest.MonkeyPatch) -> None:
    listings = {
        "runtime": "U malloc\nU PyErr_SetString\nU cudaFree\nU helper\n0 T run\nU __cxa_finalize",
        "other": "0 T helper\nU run",
        "libc": "0 T malloc\nU _dl_something",
    }
    monkeypatch.setattr(stubs, "_nm", lambda library: listings[library.name])
    runtime, other, libc = map(FilePath, listings)
    assert stubs.missing([runtime, other], [libc]) == ["PyErr_SetString", "cudaFree"]
    assert stubs.missing([runtime], []) == ["PyErr_SetString", "cudaFree", "helper", "malloc"]


def test_stub_functions_trap_and_stub_data_is_zero() -> None:
    text = stubs.assembly(["PyErr_SetString", "PyExc_ValueError", stubs.STREAMS])
    code, data = text.split(".data")
    assert "PyErr_SetString:\nbrk #1\n" in code
    assert f"{stubs.STREAMS}:\nret\n" in code
    assert "PyExc_ValueError:\n.zero 512\n" in data
    assert "PyExc_ValueError" not in code


@pytest.mark.parametrize("name", cpu.CPUS)
def test_the_described_processor_is_one_core_with_its_own_part_number(name: str, tmp_path: FilePath) -> None:
    """The main ID register is written in another field order than /proc/cpuinfo; both must say the same."""
    cpu.write_files(tmp_path, cpu.CPUS[name])
    rows = (text.split(":") for text in (tmp_path / "proc/cpuinfo").read_text().splitlines())
    info = {key.strip(): value.strip() for key, value in rows}
    system = tmp_path / "sys/devices/system/cpu"
    register = int((system / "cpu0/regs/identification/midr_el1").read_text(), 16)
    assert int(info["CPU part"], 16) == (register >> 4) & 0xFFF == cpu.CPUS[name].part
    assert int(info["CPU implementer"], 16) == register >> 24 == 0x41
    assert ("asimddp" in info["Features"]) == (name in ("cortex-a75", "cortex-a76"))
    assert {(system / file).read_text() for file in ("possible", "present", "online")} == {"0\n"}


def test_without_the_tools_the_command_for_an_administrator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name == toolchain.EMULATOR else "/bin/true")
    monkeypatch.setattr(toolchain.os, "geteuid", lambda: 1000)
    with pytest.raises(SetupError, match="needs qemu-user") as caught:
        toolchain.programs(lambda text: pytest.fail("something was installed"))
    assert "apt-get install --no-install-recommends qemu-user" in caught.value.hint


def test_a_step_of_the_setup_is_whole_or_absent(tmp_path: FilePath) -> None:
    made: list[str] = []

    def make(folder: FilePath) -> None:
        (folder / "file").write_text("whole")
        made.append(folder.name)

    def fail(folder: FilePath) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    one, two = tmp_path / "step-1", tmp_path / "step-2"
    with pytest.raises(RuntimeError, match="power cut"):
        toolchain._once(one, fail)
    assert not one.exists()
    toolchain._once(one, make)
    toolchain._once(one, fail)
    assert [p.name for p in one.iterdir()] == ["file"]
    toolchain._once(two, make)
    assert list(tmp_path.iterdir()) == [two]
    assert len(made) == 2


def test_a_changed_source_is_built_again(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*toolchain.SOURCES, "wheels.txt"):
        shutil.copy(ARM64 / name, tmp_path)
    wheels, build = toolchain.folders(tmp_path)
    monkeypatch.setattr(toolchain, "HERE", tmp_path)
    assert toolchain.folders(tmp_path) == (wheels, build)
    for name in toolchain.SOURCES:
        with open(tmp_path / name, "a") as file:
            file.write("\n")
        changed = toolchain.folders(tmp_path)
        assert changed[0] == wheels
        assert changed[1] not in (build, wheels)
        build = changed[1]


def test_the_wheels_are_those_of_the_constraints() -> None:
    """Another version would be compared with this machine's as if it were the same."""
    constraints = (ROOT / "constraints.txt").read_text().split()
    pins = [row.split() for row in toolchain.WHEELS.read_text().splitlines() if not row.startswith("#")]
    assert [pin[0].split("==")[0] for pin in pins] == ["executorch", "torch"]
    for name, digest in pins:
        assert name in constraints
        assert len(digest.removeprefix("--hash=sha256:")) == 64


def driver() -> Any:
    """export/arm64/run.py as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("arm64_run", ARM64 / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["arm64_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run() -> Any:
    return driver()


def row(macs: int, total: float, **other: object) -> dict[str, Any]:
    fixed = {"cpu": "cortex-a75", "network": "tiny", "precision": "fp32", "form": "single", "size": 64}
    return {"file": f"{macs}.pte", "method": "forward", "macs": macs, "m_total": f"{total:.3f}", **fixed} | other


def test_counts_have_to_grow_with_the_macs(run: Any) -> None:
    good = [row(100, 1.0), row(300, 3.0), row(200, 2.0)]
    assert run.not_growing(good) == []
    (wrong,) = run.not_growing([row(100, 1.0), row(300, 3.0), row(200, 3.5)])
    assert "300.pte forward takes 3.0 M instructions, 200.pte forward 3.5" in wrong
    assert run.not_growing([row(100, 1.0), row(200, 1.0)])
    assert run.not_growing([row(100, 0.0), row(200, 1.0)])


def test_only_counts_of_one_kind_are_compared(run: Any) -> None:
    assert run.not_growing([row(100, 4.0), row(200, 1.0, precision="int8")]) == []
    assert run.not_growing([row(100, 4.0), row(200, 1.0, cpu="cortex-a73")]) == []
    assert run.not_growing([row(100, 4.0), row(100, 4.00001)]) == []
    assert run.not_growing([row(100, 4.0), row(100, 4.001)])


def test_rows_replace_their_like_and_keep_the_rest(run: Any, tmp_path: FilePath) -> None:
    out = tmp_path / "new" / "rows.csv"
    run.merge(out, [row(100, 1.0), row(200, 2.0)])
    run.merge(out, [row(100, 1.5), row(100, 7.0, cpu="cortex-a73")])
    kept = [(r["file"], r["cpu"], r["m_total"]) for r in run.read(out)]
    assert kept == [
        ("100.pte", "cortex-a73", "7.000"),
        ("100.pte", "cortex-a75", "1.500"),
        ("200.pte", "cortex-a75", "2.000"),
    ]


def test_an_unknown_processor_is_refused_with_those_that_are_known(
    run: Any, tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = run.parser_of("counts", tmp_path)
    assert parser.parse_args(["--cpu", "cortex-a53, cortex-a76"]).cpu == ["cortex-a53", "cortex-a76"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--cpu", "cortex-a75,z80"])
    assert "unknown processor 'z80', choose among cortex-a53" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: FilePath) -> FilePath:
    """An export folder whose files hold no networks: two for ExecuTorch, one of them with two methods, one for Core ML."""
    folder = tmp_path / "folder"
    folder.mkdir()
    kinds = {
        "one.pte": ("executorch", "single", 1),
        "two.pte": ("executorch", "shared", 2),
        "three.x": ("coreml", "single", 1),
    }
    artifacts = []
    for name, (target, form, methods) in kinds.items():
        (folder / name).write_bytes(name.encode() * 50)
        files = manifest.file_entries(folder, folder / name)
        fixed = {"height": 64, "path": "1", "budget": {"text": "100%"}}
        named = [{"name": f"b{i}", "macs": 1_000_000 * (i + 1), **fixed} for i in range(methods)]
        kind = {"target": target, "form": form, "precision": "fp32"}
        artifacts.append({"name": name, **kind, "files": files, "methods": named})
    content = {"kind": manifest.KIND, "schema_version": manifest.SCHEMA, "model": {"arch": "tiny"}}
    manifest.write(folder, content | {"artifacts": artifacts, "golden": []})
    return folder


@pytest.fixture
def emulated(run: Any, folder: FilePath, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, FilePath]]:
    """The whole command with an emulator that answers an alpha and millions of instructions by method; code and rows."""

    def command(alpha: float, **million: float) -> tuple[int, FilePath]:
        def answer(tools: object, cpu: str, file: FilePath, method: str, inputs: object) -> emulate.Emulated:
            total = million[method] * 1e6
            return emulate.Emulated(torch.full((4,), alpha), dict.fromkeys(CLASSES, 0.0) | {"total": total}, 64)

        out = folder.parent / "rows.csv"
        monkeypatch.setattr(run, "set_up", lambda cache, say: None)
        monkeypatch.setattr(run, "environment", dict)
        monkeypatch.setattr(run, "reference", lambda work: (torch.zeros(1, 1, 2, 2), []))
        monkeypatch.setattr(run, "emulate", answer)
        monkeypatch.setattr(sys, "argv", ["run.py", str(folder), "--out", str(out), "--cpu", "cortex-a75"])
        return run.main(), out

    return command


def test_the_command_compares_and_writes_a_row_per_method(
    run: Any, emulated: Callable[..., tuple[int, FilePath]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = emulated(1e-6, b0=0.4, b1=0.7)
    assert code == 0
    rows = run.read(out)
    assert [(r["file"], r["method"], r["m_total"]) for r in rows] == [
        ("one.pte", "b0", "0.400"),
        ("two.pte", "b0", "0.400"),
        ("two.pte", "b1", "0.700"),
    ]
    assert [r["instructions_per_mac"] for r in rows] == ["0.4000", "0.4000", "0.3500"]
    assert "all outputs agree" in capsys.readouterr().err


def test_the_command_catches_a_wrong_alpha_and_a_wrong_count(
    emulated: Callable[..., tuple[int, FilePath]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = emulated(2e-5, b0=0.4, b1=0.7)
    assert code == 1
    assert "one.pte b0 on cortex-a75 differs by 2.0e-05, above 1e-05" in capsys.readouterr().err
    code, _ = emulated(float("nan"), b0=0.4, b1=0.7)
    assert code == 1
    code, out = emulated(1e-6, b0=0.4, b1=0.3)
    assert code == 1
    assert out.exists()
    assert "two.pte b1 takes 0.3 M instructions, two.pte b0 0.4" in capsys.readouterr().err


def test_the_command_ends_with_3_where_nothing_can_be_set_up(
    run: Any, folder: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(cache: FilePath, say: object) -> None:
        raise SetupError("emulation needs qemu-user", "as administrator: apt-get install qemu-user")

    monkeypatch.setattr(run, "set_up", refuse)
    monkeypatch.setattr(sys, "argv", ["run.py", str(folder)])
    assert run.main() == 3
    assert capsys.readouterr().err.startswith("cannot run here: emulation needs qemu-user\nas administrator")


def test_every_method_of_every_pte_is_work_and_hashes_come_first(run: Any, folder: FilePath) -> None:
    def work(path: FilePath) -> list[tuple[str, str]]:
        return [(item.file.name, item.method["name"]) for item in run.methods_of(path)]

    assert work(folder) == [("one.pte", "b0"), ("two.pte", "b0"), ("two.pte", "b1")]
    assert work(folder / "two.pte") == [("two.pte", "b0"), ("two.pte", "b1")]
    with pytest.raises(InputError, match="is not in the manifest"):
        work(folder / "other.pte")
    (folder / "two.pte").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="is damaged"):
        work(folder / "one.pte")


def test_the_tables_of_the_page_are_those_of_the_rows() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in page.TABLES)
    assert filled(text, page.TABLES) == text, "run: python export/arm64/page.py"
    assert filled(text.replace("0.471", "0.417"), page.TABLES) == text


def test_the_committed_rows_are_sound(run: Any) -> None:
    rows = run.read(page.ROWS)
    assert run.not_growing(rows) == []
    for row in rows:
        assert float(row["max_difference"]) <= run.BOUNDS[row["precision"]]
        assert sum(float(row[f"m_{name}"]) for name in CLASSES) == pytest.approx(float(row["m_total"]), abs=0.01)
        if row["precision"] == "fp32":
            assert float(row["m_fmla"]) == pytest.approx(int(row["macs"]) / 4e6, rel=0.15)


PROGRAM = """
.globl _start
_start:
    mov x9, #{loops}
again:
    fmla v0.4s, v1.4s, v2.4s
    fmla v0.4s, v1.4s, v2.s[1]
    fmla v0.4s, v1.4s, v2.s[3]
    sdot v3.4s, v4.16b, v5.16b
    udot v3.4s, v4.16b, v5.4b[2]
    smlal v3.4s, v4.4h, v5.4h
    umlal2 v3.4s, v4.8h, v5.h[3]
    mla v3.4s, v4.4s, v5.4s
    mla v3.8h, v4.8h, v5.h[1]
    fmul v6.4s, v1.4s, v2.4s
    fmls v0.4s, v1.4s, v2.4s
    smull v6.4s, v4.4h, v5.4h
    movi v7.4s, #1
    ldr q8, [sp]
    ldp x1, x2, [sp]
    str x1, [sp, #-16]
    add x3, x1, x2
    subs x9, x9, #1
    b.ne again
    mov x0, #0x616d
    movk x0, #0x70, lsl #16
    mov x8, #155
    svc #0
    mov x0, #0
    mov x8, #93
    svc #0
"""
LOOP = {"fmla": 3, "imla": 6, "simd": 4, "simd_memory": 1, "memory": 2, "integer": 2, "branch": 1}


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    path = tmp_path_factory.mktemp("counter") / "counter.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, ARM64 / "counter.c"], check=True)
    return path


def counted(counter: FilePath, folder: FilePath, loops: int) -> list[dict[str, int]]:
    source, program, counts = folder / "program.s", folder / "program", folder / "counts"
    source.write_text(PROGRAM.format(loops=loops))
    compiler = [f"{toolchain.CROSS}-gcc", "-march=armv8.2-a+dotprod", "-nostdlib", "-static"]
    subprocess.run([*compiler, "-o", program, source], check=True)
    emulator = [toolchain.EMULATOR, "-cpu", "cortex-a76", "-plugin", f"{counter},out={counts}"]
    subprocess.run([*emulator, program], check=True)
    return [json.loads(text) for text in counts.read_text().splitlines()]


@needs_emulator
def test_the_counter_is_exact_and_knows_its_classes(counter: FilePath, tmp_path: FilePath) -> None:
    """Every instruction of a program in assembly, at the mark and at its end."""
    mark, end = counted(counter, tmp_path, 1000)
    once = dict.fromkeys(CLASSES, 0) | {"integer": 4, "branch": 1}
    expected = {key: 1000 * LOOP[key] + once[key] for key in CLASSES}
    assert mark == {"total": 19 * 1000 + 5, **expected}
    assert end == mark | {"total": mark["total"] + 3, "integer": mark["integer"] + 2, "branch": mark["branch"] + 1}


@needs_emulator
def test_the_counter_refuses_to_run_without_a_place_for_its_result(counter: FilePath, tmp_path: FilePath) -> None:
    done = subprocess.run(
        [toolchain.EMULATOR, "-plugin", f"{counter},out={tmp_path}/no/where", "/bin/true"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs out=FILE" in done.stderr


@needs_emulator
def test_a_runner_that_does_not_start_is_a_matter_of_setup(tmp_path: FilePath) -> None:
    with pytest.raises(SetupError, match="does not start under this emulator"):
        toolchain._try(toolchain.Toolchain(tmp_path, tmp_path))


@needs_emulator
@pytest.mark.skipif(
    not all(folder.exists() for folder in toolchain.folders(CACHE)), reason="needs the tools that make arm64 sets up"
)
def test_a_real_artifact_gives_its_golden_alpha_on_an_emulated_processor(exported: FilePath) -> None:
    artifact = next(a for a in manifest.read(exported)["artifacts"] if a["target"] == "executorch")
    (method,) = artifact["methods"]
    golden = load_file(exported / method["golden"]["file"])
    inputs = [golden["image"] / 255, golden["trimap"] / 255]
    tools = toolchain.set_up(CACHE, lambda text: pytest.fail(f"something was missing: {text}"))
    done = emulate.emulate(tools, "cortex-a75", exported / artifact["name"], method["name"], inputs)
    expected = golden[method["golden"]["alpha"]].flatten()
    assert float((done.output - expected).abs().max()) < 1e-5
    assert float((done.output - expected.flip(0)).abs().max()) > 0.1
    assert done.instructions["fmla"] == pytest.approx(method["macs"] / 4, rel=0.5)
    with pytest.raises(IntegrityError, match="nothing failed on cortex-a75 with exit code 1"):
        emulate.emulate(tools, "cortex-a75", exported / artifact["name"], "nothing", inputs)
    with pytest.raises(IntegrityError, match="failed on cortex-a75"):
        emulate.emulate(tools, "cortex-a75", exported / artifact["name"], method["name"], inputs[:1])
