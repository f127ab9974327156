"""Measure the kernels on this card and write the table that dispatch reads: tables/sm_<architecture>.json.

python -m pam_kernels.tune [--op NAME] [--out FOLDER] [--processes 8] [--seconds 300]

needs an idle NVIDIA GPU, torch and triton. Most of the time is compilation: with several processes all cases are compiled first, side
by side, and then timed alone. With --seconds no case is begun later than that; the most telling come first.

A row compares one op on x of one memory format with the fastest existing implementation of it: cuDNN and ATen in NCHW, cuDNN in
channels_last, and for the connect layer also torch.compile. It replaces the row of the same case, others stay; the table is
written after every case, and a case that fails is said and has no row. Block sizes are those of configs.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from . import dispatch
from .connect.reference import connect_reference
from .depthwise.reference import depthwise_conv2d_reference
from .dispatch import CONNECT, DEPTHWISE, LAYOUTS, TABLES, Cell, cell_of, forced

Call = Callable[[], object]
FORMATS = dict(zip(LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True))
COMPILED = "torch_compile"
OURS = {layout: f"triton {layout}" for layout in LAYOUTS}
DIFFERENCE = 0.02
"""What rounding to bfloat16 may change in the norm of a result."""
SLOW = 50
"""ms."""
HALF = (torch.bfloat16, torch.float16)
KERNELS = (5, 7, 13, 31, 9, 21, 3)
CHANNELS = (64, 96, 144, 224, 128, 256, 32, 40, 192, 312, 512)
"""Several of a cell: the slowest counts, and block sizes change in between."""
SHAPES = ((4, 192, 64, 64), (16, 384, 64, 64), (8, 192, 256, 256))
"""One of each scale."""


@dataclass(frozen=True)
class Case:
    """One op on x: (N, C, H, W).  kernel: None for connect."""

    op: str
    dtype: torch.dtype
    shape: tuple[int, int, int, int]
    kernel: int | None = None
    stride: int = 1

    def cell(self, layout: str) -> Cell:
        return cell_of(self.op, self.dtype, self.shape, kernel=self.kernel, stride=self.stride, layout=layout)

    def calls(self, device: str) -> dict[str, Call]:
        """What to time, by name; OURS are the kernels of this package on the two memory formats."""
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device).to(self.dtype)

        return self._connect(draw) if self.kernel is None else self._depthwise(draw, self.kernel)

    def _depthwise(self, draw: Callable[..., Tensor], k: int) -> dict[str, Call]:
        x, weight, stride = draw(*self.shape), draw(self.shape[1], 1, k, k), self.stride
        height, width = self.shape[2:]
        grad = draw(*self.shape[:2], -(-height // stride), -(-width // stride))
        ops = torch.ops.pam

        def ours(layout: torch.memory_format) -> Call:
            """With the conversions to NCHW and back: the next operator would have to do the latter."""
            given, upstream = (v.contiguous(memory_format=layout) for v in (x, grad))
            calls: dict[str, Callable[[], Tensor]] = {
                DEPTHWISE[0]: lambda: ops.depthwise_conv2d(given, weight, None, stride),
                DEPTHWISE[1]: lambda: ops.depthwise_conv2d_input_grad(upstream, weight, height, width, stride),
            }
            if self.op in calls:
                return lambda: calls[self.op]().contiguous(memory_format=layout)
            return lambda: ops.depthwise_conv2d_weight_grad(upstream, given, k, stride)

        def existing(layout: torch.memory_format, cudnn: bool) -> Call:
            tensors = [v.contiguous(memory_format=layout) for v in (grad, x, weight)]
            mask = [self.op == op for op in (*DEPTHWISE[1:], None)]
            geometry = ([stride] * 2, [k // 2] * 2, [1, 1], False, [0, 0], self.shape[1])

            def call() -> object:
                with torch.backends.cudnn.flags(enabled=cudnn, benchmark=True):
                    if self.op == DEPTHWISE[0]:
                        return depthwise_conv2d_reference(tensors[1], tensors[2], None, stride)
                    return torch.ops.aten.convolution_backward(*tensors, None, *geometry, mask)

            return call

        return {OURS[name]: ours(layout) for name, layout in FORMATS.items()} | {
            "pytorch": existing(torch.contiguous_format, True),
            "aten": existing(torch.contiguous_format, False),
            "channels_last": existing(torch.channels_last, True),
        }

    def _connect(self, draw: Callable[..., Tensor]) -> dict[str, Call]:
        channels, hidden = self.shape[1], self.shape[1] // 2
        x, grad = draw(*self.shape), draw(*self.shape)
        weights = [draw(hidden, channels), draw(hidden), draw(channels, hidden), draw(channels)]
        weights = [w * w.shape[-1] ** -0.5 for w in weights]

        def call(function: Callable[..., Tensor], layout: torch.memory_format) -> Call:
            inputs = [v.detach() for v in (x.contiguous(memory_format=layout), *weights)]
            if self.op == CONNECT[0]:
                return lambda: function(*inputs, "relu")
            upstream = grad.contiguous(memory_format=layout)
            inputs = [v.requires_grad_() for v in inputs]
            with torch._functorch.config.patch(donated_buffer=False):  # or the compiled backward would run only once
                y = function(*inputs, "relu")
            return lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True)

        torch.compiler.reset()  # or the shapes of earlier cases make this one dynamic, and the recompile limit is soon reached
        return {OURS[name]: call(torch.ops.pam.connect, layout) for name, layout in FORMATS.items()} | {
            "pytorch": call(connect_reference, torch.contiguous_format),
            "channels_last": call(connect_reference, torch.channels_last),
            COMPILED: call(torch.compile(connect_reference, dynamic=False), torch.contiguous_format),
        }


def cases() -> Iterator[Case]:
    """Every cell that a network of this project needs, those of training in bfloat16 first."""
    for dtype in HALF:
        for k in KERNELS:
            yield from (Case(op, dtype, shape, k, s) for op in DEPTHWISE for s in (1, 2) for shape in SHAPES)
        for op in CONNECT:
            for c in CHANNELS:
                small, medium, large = _sides(c)
                sides = (small, medium, large) if dtype == torch.bfloat16 else (medium,)
                yield from (Case(op, dtype, (16 if c > 40 else 32, c, s, s)) for s in sides)
    for op in DEPTHWISE:
        yield from (Case(op, torch.float32, shape, k) for k in KERNELS for shape in SHAPES)
    for op in CONNECT:
        yield from (Case(op, torch.float32, (16, c, _sides(c)[1], _sides(c)[1])) for c in CHANNELS)


def _sides(channels: int) -> tuple[int, int, int]:
    """Heights of one image of each scale."""
    return (16, 64, 128) if channels > 256 else (32, 64, 128) if channels > 224 else (32, 128, 256)


def rows(case: Case, device: str, milliseconds: Callable[[Call], float]) -> list[dict[str, Any]]:
    """For each memory format: the cell, the times in ms, and the ratio of the fastest existing implementation to ours.

    Raises RuntimeError if a kernel fails, differs from PyTorch, or has nothing to be compared with.
    """
    times: dict[str, float] = {}
    with forced("triton"):
        calls = case.calls(device)
        expected = calls["pytorch"]()
        for name in OURS.values():
            difference = _difference(calls[name](), expected)
            if not difference <= DIFFERENCE:
                raise RuntimeError(f"{name} differs from PyTorch by {difference:.3g}")
        del expected
        for name, call in calls.items():
            try:
                times[name] = milliseconds(call)
            except Exception as error:  # of whichever library
                if name in OURS.values():
                    raise
                _say(f"{name} cannot run {case}: {_first_line(error)}")
    best = min(times.keys() - OURS.values(), key=times.__getitem__)
    return [
        case.cell(layout)._asdict()
        | {"shape": case.shape, "ms": times, "best": best, "ratio": times[best] / times[OURS[layout]]}
        for layout in LAYOUTS
    ]


def _difference(result: object, expected: object) -> float:
    """Of two results, relative and in the norm."""
    ours, theirs = (torch.cat([t.detach().float().flatten() for t in _tensors(r)]) for r in (result, expected))
    return float((ours - theirs).norm() / theirs.norm())


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


def write(path: Path, case: Case, new: list[dict[str, Any]]) -> None:
    """Put the rows of a case in the place of those that the table has of it."""

    def of_case(row: dict[str, Any]) -> bool:
        return (*row["shape"], *(row[name] for name in Cell._fields[:4])) == (*case.shape, *case.cell(LAYOUTS[0])[:4])

    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    lines = ",\n".join(json.dumps(row) for row in [*(row for row in old if not of_case(row)), *new])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'{{"rows": [\n{lines}\n]}}\n')
    os.replace(temporary, path)
    dispatch.measured.cache_clear()


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m pam_kernels.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", choices=DEPTHWISE + CONNECT, help="this op only")
    parser.add_argument(
        "--out", type=Path, default=TABLES, help="folder of the table; default: where dispatch reads it"
    )
    parser.add_argument("--processes", type=int, default=1, help="that compile")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--compile", metavar="I/N", help="only compile a share of the cases")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU: speed is measured, never guessed")
    import triton

    chosen = [case for case in cases() if options.op in (None, case.op)]
    if options.compile:
        part, parts = map(int, options.compile.split("/"))
        _compile(chosen[part::parts], started + options.seconds)
        return
    if options.processes > 1:
        _compile_by_processes(options.op, options.processes, options.seconds / 2)
    path = options.out / f"{dispatch._architecture(torch.device('cuda'))}.json"
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for done, case in enumerate(chosen):
        if time.perf_counter() - started > options.seconds:
            _say(f"{len(chosen) - done} of {len(chosen)} cases have no new row: they did not fit into the time")
            break
        found = []
        try:
            found = rows(case, "cuda", _milliseconds)
            for row in found:
                _say(f"{case} {row['layout']}: {row['ratio']:.2f} times as fast as {row['best']}")
        except Exception as error:  # one case must not lose the others
            _say(f"{case}: no row: {_first_line(error)}")
            torch.cuda.synchronize()  # nothing runs after an error of the device
        write(path, case, [row | facts for row in found])
        torch.cuda.empty_cache()


def _milliseconds(call: Call) -> float:
    """Median; of a call that is slow beyond all comparison, the second one."""
    import triton

    call()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = (time.perf_counter() - begun) * 1e3
    if once > SLOW:
        return once
    return float(triton.testing.do_bench(call, warmup=10, rep=50, return_mode="median"))


def _compile(share: Sequence[Case], until: float) -> None:
    """Run once, of every case, what compiles, so that its code is in the caches of Triton and of PyTorch."""
    for case in share:
        if time.perf_counter() > until:
            break
        with suppress(Exception), forced("triton"):  # what fails is said when it is measured
            calls = case.calls("cuda")
            for name in (*OURS.values(), COMPILED):
                calls.get(name, torch.cuda.synchronize)()
        torch.cuda.empty_cache()


def _compile_by_processes(op: str | None, count: int, seconds: float) -> None:
    command = [sys.executable, "-m", "pam_kernels.tune", *(["--op", op] if op else []), "--seconds", str(seconds)]
    running = [subprocess.Popen([*command, "--compile", f"{part}/{count}"]) for part in range(count)]
    for process in running:
        process.wait()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
