"""The tuner: what it would time gives equal results, and its table is one that dispatch reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pam_kernels import dispatch, tune
from pam_kernels.dispatch import CONNECT, DEPTHWISE, decide

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
    monkeypatch.setattr(torch, "compile", lambda function: compile_eagerly(function, backend="eager"))
    monkeypatch.setenv("PAM_KERNELS", "triton")
    calls = case.calls("cpu")
    ours = _first_tensor(calls.pop(tune.OURS)())
    assert len(calls) >= 3
    for name, call in calls.items():
        torch.testing.assert_close(_first_tensor(call()), ours, msg=lambda text, name=name: f"{name}: {text}")


def test_the_table_is_what_dispatch_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2.0, 5.0, 3.0, 4.0])
    measured = tune.row(SMALL[0], "cpu", lambda call: next(times))
    assert (measured["best"], measured["ratio"]) == ("aten", 1.5)
    folder = tmp_path / "new"
    monkeypatch.setattr(dispatch, "TABLES", folder)
    path = folder / "sm_90.json"
    tune.write(path, [measured], {"gpu": "first"})
    tune.write(path, [measured | {"op": "connect", "size": 32}], {"gpu": "second"})
    assert [(row["op"], row["gpu"]) for row in json.loads(path.read_text())["rows"]] == [
        ("depthwise_conv2d", "first"),
        ("connect", "second"),
    ]
    choice = decide("depthwise_conv2d", "sm_90", torch.float32, (1, 2, 5, 6), kernel=3)
    assert (choice.implementation, "1.50 times" in choice.reason) == ("triton", True)
    dispatch.measured.cache_clear()


def test_the_cases_cover_every_op_scale_and_dtype() -> None:
    cells = {
        dispatch.cell_of(case.op, case.dtype, case.shape, kernel=case.kernel, stride=case.stride)
        for case in tune.cases()
    }
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
