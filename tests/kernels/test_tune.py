"""The tuner: what it would time gives equal results, and its table is one that dispatch reads."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pam_kernels import Connect, DepthwiseConv2d, dispatch, tune
from pam_kernels.dispatch import CONNECT, DEPTHWISE, LAYOUTS, decide
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path as Route

WIDE = tune.Case(DEPTHWISE[0], torch.float32, (1, 2, 3, 16), 3)

SMALL = [
    *(tune.Case(op, torch.float32, (1, 2, 5, 6), 3, stride) for op in DEPTHWISE for stride in (1, 2)),
    *(tune.Case(op, torch.float32, (1, 4, 2, 3)) for op in CONNECT),
]


def _first_tensor(result: object) -> torch.Tensor:
    while not isinstance(result, torch.Tensor):
        assert isinstance(result, tuple | list)
        result = next(part for part in result if part is not None)
    return result.detach()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_all_that_is_timed_computes_the_same(case: tune.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_eagerly = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_eagerly(function, backend="eager"))
    monkeypatch.setenv("PAM_KERNELS", "triton")
    calls = case.calls("cpu")
    ours = _first_tensor(calls.pop(tune.OURS["contiguous"])())
    assert len(calls) >= 4
    for name, call in calls.items():
        torch.testing.assert_close(_first_tensor(call()), ours, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder for tables, which dispatch reads too."""
    monkeypatch.setattr(dispatch, "TABLES", tmp_path / "new")
    yield dispatch.TABLES
    dispatch.measured.cache_clear()


def _times(*ms: float) -> Callable[[tune.Call], float]:
    """A clock that tells these times: ours in both layouts, PyTorch, ATen, channels_last."""
    left = iter(ms)
    return lambda call: next(left)


def test_the_table_is_what_dispatch_reads(folder: Path) -> None:
    measured = tune.rows(WIDE, "cpu", _times(2.0, 4.0, 5.0, 3.0, 4.0))
    assert [(row["layout"], row["best"], row["ratio"]) for row in measured] == [
        ("contiguous", "aten", 1.5),
        ("channels_last", "aten", 0.75),
    ]
    path = folder / "sm_90.json"
    tune.write(path, WIDE, [row | {"gpu": "first"} for row in measured])
    other = dataclasses.replace(WIDE, shape=(1, 4, 3, 16))
    tune.write(path, other, [row | {"gpu": "second", "shape": other.shape} for row in measured])
    assert [row["gpu"] for row in _rows(path)] == ["first", "first", "second", "second"]
    tune.write(path, WIDE, [row | {"gpu": "third"} for row in measured])
    assert sorted(row["gpu"] for row in _rows(path)) == ["second", "second", "third", "third"]
    for layout, implementation, ratio in (("contiguous", "triton", "1.50"), ("channels_last", "torch", "0.75")):
        choice = decide("depthwise_conv2d", "sm_90", torch.float32, WIDE.shape, kernel=3, layout=layout)
        assert (choice.implementation, f"{ratio} times" in choice.reason) == (implementation, True)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def test_what_cannot_run_is_not_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    left = iter((2.0, 2.0, 5.0, None, 4.0))

    def clock(call: tune.Call) -> float:
        ms = next(left)
        if ms is None:
            raise NotImplementedError("no such\nkernel")
        return ms

    measured = tune.rows(WIDE, "cpu", clock)
    assert measured[0]["ms"].keys() == {*tune.OURS.values(), "pytorch", "channels_last"}
    assert measured[0]["ratio"] == 2.0
    assert "aten cannot run" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = tune.depthwise_conv2d_reference
    monkeypatch.setattr(tune, "depthwise_conv2d_reference", lambda *given: 1.1 * reference(*given))
    with pytest.raises(RuntimeError, match=r"triton contiguous differs from PyTorch by 0\.09"):
        tune.rows(WIDE, "cpu", _times())


def test_one_case_that_fails_loses_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = dataclasses.replace(WIDE, shape=(1, 2, 3, 32))
    monkeypatch.setattr(tune, "cases", lambda: iter((narrow, WIDE)))
    _pretend_a_card(monkeypatch)

    def rows(case: tune.Case, device: str, clock: object) -> list[dict[str, Any]]:
        if case is narrow:
            raise torch.OutOfMemoryError("out of memory\nat length")
        return measured(case, "cpu", _times(2.0, 4.0, 5.0, 3.0, 4.0))

    measured = tune.rows
    monkeypatch.setattr(tune, "rows", rows)
    tune.main(["--out", str(folder)])
    out = capsys.readouterr().out
    assert "no row: OutOfMemoryError: out of memory\n" in out
    assert "1.50 times as fast as aten" in out
    assert [row["gpu"] for row in _rows(folder / "sm_90.json")] == ["a card"] * 2


@pytest.mark.parametrize(("name", "crop"), [("full", 512), ("phone", 512)])
def test_the_cases_cover_the_layers_of_the_networks(name: str, crop: int) -> None:
    """Batches of 16 in bfloat16, in both memory formats."""
    cells = {case.cell(layout) for case in tune.cases() for layout in LAYOUTS}
    numbers, seen = preset(name), []

    def look(module: Any, given: tuple[torch.Tensor]) -> None:
        kernel = None if isinstance(module, Connect) else module.kernel_size[0]
        for op in CONNECT if kernel is None else DEPTHWISE:
            seen.append((op, torch.bfloat16, tuple(given[0].shape), kernel))

    with FakeTensorMode():
        net = Supernet(numbers)
        for module in net.modules():
            if isinstance(module, Connect | DepthwiseConv2d):
                module.register_forward_pre_hook(look)
        for run in (True, False):
            path = Route((run,) * len(numbers.units))
            net(torch.rand(16, 3, crop, crop), torch.rand(16, 1, crop, crop), path=path)
    assert {op for op, *_ in seen} == {*DEPTHWISE, *CONNECT}
    for op, dtype, shape, kernel in seen:
        for layout in LAYOUTS:
            assert dispatch.cell_of(op, dtype, shape, kernel=kernel, layout=layout) in cells, shape


def test_the_cases_cover_every_op_scale_and_dtype() -> None:
    cells = {case.cell(layout) for case in tune.cases() for layout in LAYOUTS}
    assert {cell.op for cell in cells} == {*DEPTHWISE, *CONNECT}
    for op in DEPTHWISE:
        assert {cell.scale for cell in cells if cell.op == op} == {"small", "medium", "large"}
        assert {cell.dtype for cell in cells if cell.op == op} == {"bfloat16", "float16", "float32"}
    assert all(dataclasses.asdict(case)["kernel"] in (None, *dispatch.KERNEL_SIZES) for case in tune.cases())


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main([])
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_no_case_is_begun_too_late(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pretend_a_card(monkeypatch)
    tune.main(["--out", str(folder), "--op", "connect", "--seconds", "-1"])
    count = sum(case.op == "connect" for case in tune.cases())
    assert f"{count} of {count} cases have no new row: they did not fit into the time" in capsys.readouterr().out
    assert not folder.exists()


def test_processes_compile_every_case_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them runs its share, without a clock."""
    _pretend_a_card(monkeypatch)
    compiled: list[tune.Case] = []
    monkeypatch.setattr(tune, "_compile", lambda share, until: compiled.extend(share))
    monkeypatch.setattr(tune, "write", lambda *_: pytest.fail("a share is not timed"))

    def start(command: list[str]) -> Any:
        tune.main([*command[command.index("pam_kernels.tune") + 1 :]])
        return types.SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(tune.subprocess, "Popen", start)
    tune._compile_by_processes("connect", 3, 60)
    expected = [case for case in tune.cases() if case.op == "connect"]
    assert len(compiled) == len(expected)
    assert set(compiled) == set(expected)


def test_what_fails_to_compile_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def calls(case: tune.Case, device: str) -> dict[str, tune.Call]:
        names = [*tune.OURS.values(), tune.COMPILED, "pytorch"]
        if case is not WIDE:
            raise RuntimeError("it does not compile")
        return {name: lambda name=name: called.append(name) for name in names}  # type: ignore[misc]

    monkeypatch.setattr(tune.Case, "calls", calls)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    tune._compile([dataclasses.replace(WIDE, kernel=5), WIDE], float("inf"))
    assert called == [*tune.OURS.values(), tune.COMPILED]


def _pretend_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
