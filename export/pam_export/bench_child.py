"""The process in which bench runs artifacts: orders come in as lines of JSON, one answer goes out for each."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import load_file

from pam_mobile.errors import PamError

from .artifact import Request
from .parity import Gate, compare
from .quiet import one_line, quiet
from .recipe import recipe

NO_GATE = Gate(0, 0)


def main(target: str, threads: int) -> None:
    """Answer every order on stdin until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as answers, quiet(f"running {target}"):
        use_threads(target, threads)
        load = cache(lambda key, file: recipe(key).load(FilePath(file)))  # type: ignore[misc]
        golden = cache(lambda file: load_file(file))
        for number, line in enumerate(sys.stdin):
            try:
                answer = _answer(json.loads(line), load, golden, fresh=number == 0)
            except PamError as error:
                answer = {"error": error.message}
            except Exception as error:
                answer = {"error": one_line(error)}
            answers.write(json.dumps(answer) + "\n")


def use_threads(target: str, threads: int) -> None:
    """Import the target's runtime, so that its memory is not taken for an artifact's, and give it `threads` threads."""
    torch.set_num_threads(threads)
    if target == "executorch":
        import executorch.runtime
        from executorch.extension.pybindings import _portable_lib

        executorch.runtime.Runtime.get()
        # A runtime keeps the thread pool that it finds when it is loaded.
        _portable_lib._unsafe_reset_threadpool(threads)
    if target == "onnx":
        import onnxruntime  # noqa: F401

        from . import onnx

        onnx.THREADS = threads


def _answer(order: dict[str, Any], load: Any, golden: Any, fresh: bool) -> dict[str, Any]:
    """Run an order once. fresh: nothing was loaded before, so that the peak of memory is this order's."""
    tensors = golden(order["golden"])
    image, trimap = tensors["image"], tensors["trimap"]
    before = start_peak() if fresh else None
    runner = load(order["key"], order["file"])
    started = time.perf_counter()
    answer = runner(image, trimap, Request(**order["request"]))
    ms = (time.perf_counter() - started) * 1e3
    peak = None if before is None else (memory("VmHWM") or before) - before
    parity = compare([tensors[order["alpha"]]], [answer.alpha], NO_GATE)
    return {
        "ms": ms,
        "peak": peak,
        "path": str(answer.path or ""),
        "max_abs": parity.max_abs,
        "mean_abs": parity.mean_abs,
    }


def start_peak() -> int | None:
    """Resident bytes now, from which on the peak counts anew; None where the system cannot tell."""
    gc.collect()
    try:
        FilePath("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return memory("VmRSS")


def memory(field: str) -> int | None:
    """Bytes of a field of /proc/self/status."""
    lines = FilePath("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
