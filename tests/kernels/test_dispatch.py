"""The choice between Triton and PyTorch: forced, refused, measured and explained."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pam_kernels import connect, depthwise_conv2d, dispatch, explain
from pam_kernels.dispatch import Choice, choose, decide

SHAPE = (16, 384, 64, 64)


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "op": "depthwise_conv2d",
        "size": 13,
        "stride": 1,
        "dtype": "bfloat16",
        "scale": "medium",
        "layout": "contiguous",
        "ratio": 1.5,
    }
    return row | changes


def _decide(op: str = "depthwise_conv2d", kernel: int | None = 13, **changes: Any) -> Choice:
    arguments: dict[str, Any] = {"dtype": torch.bfloat16, "shape": SHAPE, "kernel": kernel} | changes
    return decide(op, "sm_90", **arguments)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dispatch, "TABLES", tmp_path)

    def write(*rows: dict[str, Any]) -> None:
        (tmp_path / "sm_90.json").write_text(json.dumps({"rows": rows}))
        dispatch.measured.cache_clear()

    write()
    yield write
    dispatch.measured.cache_clear()


def test_on_the_cpu_torch_runs_whatever_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAM_KERNELS", raising=False)
    choice = choose("connect", torch.rand(1, 3, 4, 4))
    assert choice == Choice("torch", "there are no kernels for the device type cpu")


def test_an_unmeasured_architecture_runs_torch_and_says_so(table: Any) -> None:
    choice = _decide()
    assert choice.implementation == "torch"
    assert "not measured on sm_90 yet" in choice.reason


def test_a_cell_goes_to_triton_where_it_was_measured_fast_enough_and_nowhere_else(table: Any) -> None:
    table(_row(), _row(op="connect", size=128, ratio=1.2), _row(op="depthwise_conv2d_weight_grad", ratio=1.19))
    assert _decide().implementation == "triton"
    assert "1.50 times as fast" in _decide().reason
    slow = _decide("depthwise_conv2d_weight_grad")
    assert slow.implementation == "torch"
    assert "1.19 times" in slow.reason
    for changes in (
        {"kernel": 11},
        {"stride": 2},
        {"dtype": torch.float16},
        {"shape": (1, 8, 64, 64)},
        {"shape": (16, 384, 128, 128)},
        {"layout": "channels_last"},
    ):
        other = _decide(**changes)
        assert other.implementation == "torch"
        assert "not measured on sm_90 yet" in other.reason
    assert _decide("connect", None, shape=(8, 96, 256, 256)).implementation == "triton"
    assert _decide("connect", None, shape=(8, 192, 128, 128)).implementation == "torch"
    table(_row(op="connect", size=512))
    assert _decide("connect", None, shape=(8, 512, 64, 128)).implementation == "triton"
    assert _decide("connect", None, shape=(8, 513, 64, 128)).implementation == "torch"


def test_the_slowest_row_of_a_cell_counts(table: Any) -> None:
    for rows in ((_row(ratio=3.0), _row(ratio=1.1)), (_row(ratio=1.1), _row(ratio=3.0))):
        table(*rows)
        assert _decide().implementation == "torch"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel": 4}, "odd sizes from 3 to 31"),
        ({"kernel": 33}, "odd sizes"),
        ({"kernel": None}, "odd sizes"),
        ({"dtype": torch.float64}, "not float64"),
        ({"shape": (0, 3, 4, 4)}, "empty"),
        ({"shape": (1, 3, 0, 4)}, "empty"),
        ({"shape": (16, 384, 64, 60)}, "widths in multiples of 16 are measured"),
        ({"stride": 2, "shape": (16, 384, 64, 80)}, "widths in multiples of 32 are measured"),
        ({"op": "connect", "kernel": None, "shape": (16, 384, 63, 65)}, "pixel counts in multiples of 16 are measured"),
    ],
)
def test_what_no_kernel_can_do_is_refused_with_a_reason(table: Any, changes: dict[str, Any], reason: str) -> None:
    table(_row(), _row(size=4), _row(size=33), _row(dtype="float64"), _row(scale="small"))
    choice = _decide(**changes)
    assert choice.implementation == "torch"
    assert reason in choice.reason


def test_pam_kernels_forces_an_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 4, 4)
    monkeypatch.setenv("PAM_KERNELS", "triton")
    assert choose("connect", x) == Choice("triton", "PAM_KERNELS=triton asks for it")
    assert choose("connect", x.double()).implementation == "torch"
    assert choose("connect", x[:0]).implementation == "torch"
    assert choose("depthwise_conv2d", x, kernel=33).implementation == "torch"
    monkeypatch.setenv("PAM_KERNELS", "torch")
    assert dispatch.explain("connect", x) == "connect: torch, because PAM_KERNELS=torch asks for it"
    monkeypatch.setenv("PAM_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"auto, triton, torch, PAM_KERNELS = 'cuda'"):
        choose("connect", x)


def test_an_unknown_op_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="op = 'convolve'"):
        _decide("convolve")


def test_triton_forced_without_a_gpu_or_the_interpreter_says_what_to_do() -> None:
    code = "import torch; from pam_kernels.dispatch import choose; choose('connect', torch.rand(1, 3, 4, 4))"
    environment = os.environ | {"PAM_KERNELS": "triton", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: PAM_KERNELS=triton cannot run on cpu")
    assert "TRITON_INTERPRET=1" in done.stderr


def test_a_gpu_is_asked_for_its_architecture(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(_row())
    assert choose("depthwise_conv2d", _on_a_gpu(monkeypatch), kernel=13).implementation == "triton"


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """An input on a card of sm_90 that is not there."""
    monkeypatch.delenv("PAM_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        return torch.empty(SHAPE, dtype=dtype, device="cuda:0")


def test_a_card_of_another_maker_reads_no_table_of_nvidia(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm's devices call themselves `cuda` too, and some have the capability (9, 0)."""
    table(_row())
    monkeypatch.setattr(torch.version, "hip", "7.0")
    choice = choose("depthwise_conv2d", _on_a_gpu(monkeypatch), kernel=13)
    assert choice.implementation == "torch"
    assert "not measured on rocm_90" in choice.reason


def test_without_triton_torch_runs_whatever_the_tables_say(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table(_row())
    x = _on_a_gpu(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose("depthwise_conv2d", x, kernel=13) == Choice("torch", "triton is not installed")
    monkeypatch.setenv("PAM_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=r"needs triton: pip install 'pam-mobile\[kernels\]'"):
        choose("depthwise_conv2d", x, kernel=13)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_a_layout_has_measurements_of_its_own(table: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _on_a_gpu(monkeypatch)
    with x.fake_mode:  # type: ignore[attr-defined]
        x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x.transpose(2, 3)
    table(_row())
    assert choose("depthwise_conv2d", x, kernel=13).implementation == "torch"
    table(_row(layout="channels_last"))
    chosen = choose("depthwise_conv2d", x, kernel=13).implementation
    assert chosen == ("triton" if layout == "channels_last" else "torch")


def test_the_dtype_of_the_products_counts(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast x may be float32 where the products are not."""
    table(_row(), _row(op="connect", size=512))
    x = _on_a_gpu(monkeypatch, torch.float32)
    assert choose("depthwise_conv2d", x, kernel=13).implementation == "torch"
    assert choose("depthwise_conv2d", x, kernel=13, dtype=torch.bfloat16).implementation == "triton"
    assert choose("connect", x.bfloat16(), dtype=torch.bfloat16).implementation == "triton"
    mixed = choose("connect", x, dtype=torch.bfloat16)
    assert mixed == Choice("torch", "bfloat16 products of a float32 input are not measured")


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_choice_from_a_table_is_made_inside_a_compiled_graph(table: Any, dynamic: bool) -> None:
    table(_row(scale="small"))

    def halve_if_measured(x: torch.Tensor, kernel: int) -> torch.Tensor:
        chosen = decide("depthwise_conv2d", "sm_90", x.dtype, x.shape, kernel=kernel)
        return x / 2 if chosen.implementation == "triton" else x

    compiled = torch.compile(halve_if_measured, fullgraph=True, backend="eager", dynamic=dynamic)
    x = torch.ones(2, 3, 5, 32, dtype=torch.bfloat16)
    assert torch.equal(compiled(x, 13), x / 2)
    assert torch.equal(compiled(x, 11), x)
    assert torch.equal(compiled(x[..., :7], 13), x[..., :7])


def test_explain_answers_in_words_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(["--arch", "sm_90", "--kernel", "13", "--dtype", "bf16", "--shape", "16,384,64,64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(dispatch.DEPTHWISE)
    assert all(", because " in line for line in lines)
    explain.main(["--arch", "sm_90", "--shape", "16,384,64,64"])
    assert capsys.readouterr().out.startswith("connect: torch, because ")
    with pytest.raises(SystemExit):
        explain.main(["--arch", "sm_90", "--shape", "16,384,64"])
    assert "four numbers" in capsys.readouterr().err


@pytest.mark.parametrize("autocast", [False, True])
def test_meta_tensors_have_shapes_and_no_autocast(autocast: bool) -> None:
    x = torch.empty(2, 4, 6, 5, device="meta", dtype=torch.float16)
    weight = torch.empty(4, 1, 3, 3, device="meta", dtype=torch.float16)
    w1, b1 = (torch.empty(*shape, device="meta", dtype=torch.float16) for shape in ((2, 4), (2,)))
    w2, b2 = (torch.empty(*shape, device="meta", dtype=torch.float16) for shape in ((4, 2), (4,)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert depthwise_conv2d(x, weight, stride=2).shape == (2, 4, 3, 3)
        y = connect(x, w1, b1, w2, b2)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
