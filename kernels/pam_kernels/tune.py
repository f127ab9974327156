"""Measure the kernels on this card and write the table that dispatch reads: tables/sm_<architecture>.json.

python -m pam_kernels.tune [--op NAME] [--out FOLDER]      on an idle NVIDIA GPU, torch and triton installed

A row compares one op with the fastest existing implementation of it: cuDNN and ATen in NCHW, cuDNN in channels_last, and for
the connect layer also torch.compile. Rows of ops that are not asked for stay. Block sizes are those of configs.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .connect.reference import connect_reference
from .depthwise.reference import depthwise_conv2d_reference
from .dispatch import CONNECT, DEPTHWISE, TABLES, cell_of, forced

Call = Callable[[], object]
OURS = "triton"
HALF = (torch.bfloat16, torch.float16)
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

    def calls(self, device: str) -> dict[str, Call]:
        """What to time, by name; OURS is the kernel of this package."""
        random = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device).to(self.dtype)

        return self._connect(draw) if self.kernel is None else self._depthwise(draw, self.kernel)

    def _depthwise(self, draw: Callable[..., Tensor], k: int) -> dict[str, Call]:
        x, weight, stride = draw(*self.shape), draw(self.shape[1], 1, k, k), self.stride
        height, width = self.shape[2:]
        grad = draw(*self.shape[:2], -(-height // stride), -(-width // stride))
        ops = torch.ops.pam
        ours: dict[str, Call] = {
            DEPTHWISE[0]: lambda: ops.depthwise_conv2d(x, weight, None, stride),
            DEPTHWISE[1]: lambda: ops.depthwise_conv2d_input_grad(grad, weight, height, width, stride),
            DEPTHWISE[2]: lambda: ops.depthwise_conv2d_weight_grad(grad, x, k, stride),
        }

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

        return {
            OURS: ours[self.op],
            "pytorch": existing(torch.contiguous_format, True),
            "aten": existing(torch.contiguous_format, False),
            "channels_last": existing(torch.channels_last, True),
        }

    def _connect(self, draw: Callable[..., Tensor]) -> dict[str, Call]:
        channels, hidden = self.shape[1], self.shape[1] // 2
        x, grad = draw(*self.shape), draw(*self.shape)
        weights = [draw(hidden, channels), draw(hidden), draw(channels, hidden), draw(channels)]

        def call(function: Callable[..., Tensor], layout: torch.memory_format) -> Call:
            inputs = [v.detach() for v in (x.contiguous(memory_format=layout), *weights)]
            if self.op == CONNECT[0]:
                return lambda: function(*inputs, "relu")
            upstream = grad.contiguous(memory_format=layout)
            inputs = [v.requires_grad_() for v in inputs]
            y = function(*inputs, "relu")
            return lambda: torch.autograd.grad(y, inputs, upstream, retain_graph=True)

        torch.compiler.reset()  # or the shapes of earlier cases make this one dynamic, and the recompile limit is soon reached
        return {
            OURS: call(torch.ops.pam.connect, torch.contiguous_format),
            "pytorch": call(connect_reference, torch.contiguous_format),
            "channels_last": call(connect_reference, torch.channels_last),
            "torch_compile": call(torch.compile(connect_reference), torch.contiguous_format),
        }


def cases() -> Iterator[Case]:
    """Every cell that a network of this project needs."""
    for op in DEPTHWISE:
        for k in (3, 5, 7, 9, 13, 21, 31):
            for stride in (1, 2):
                yield from (Case(op, dtype, shape, k, stride) for dtype in HALF for shape in SHAPES)
            yield from (Case(op, torch.float32, shape, k) for shape in SHAPES)
    for op in CONNECT:
        for n, c, side in ((4, 32, 128), (4, 64, 128), (16, 64, 128), (16, 128, 128), (16, 256, 64), (16, 512, 64)):
            yield from (Case(op, dtype, (n, c, side, side)) for dtype in (*HALF, torch.float32))


def row(case: Case, device: str, milliseconds: Callable[[Call], float]) -> dict[str, Any]:
    """The cell of a case, the times in ms, and the ratio of the fastest existing implementation to ours."""
    with forced("triton"):
        times = {name: milliseconds(call) for name, call in case.calls(device).items()}
    best = min((name for name in times if name != OURS), key=times.__getitem__)
    cell = cell_of(case.op, case.dtype, case.shape, kernel=case.kernel, stride=case.stride)
    return cell._asdict() | {"shape": case.shape, "ms": times, "best": best, "ratio": times[best] / times[OURS]}


def write(path: Path, rows: list[dict[str, Any]], facts: dict[str, str]) -> None:
    """Write the table; rows of other ops that it already has are kept."""
    ops = {new["op"] for new in rows}
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    kept = [known for known in old if known["op"] not in ops]
    lines = ",\n".join(json.dumps(value | ({} if value in kept else facts)) for value in kept + rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"rows": [\n{lines}\n]}}\n')
    dispatch.measured.cache_clear()


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m pam_kernels.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", choices=DEPTHWISE + CONNECT, help="this op only")
    parser.add_argument(
        "--out", type=Path, default=TABLES, help="folder of the table; default: where dispatch reads it"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU: speed is measured, never guessed")
    import triton

    major, minor = torch.cuda.get_device_capability()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    rows = []
    for case in cases():
        if options.op in (None, case.op):
            rows.append(row(case, "cuda", lambda call: triton.testing.do_bench(call, return_mode="median")))
            sys.stdout.write(f"{case}: {rows[-1]['ratio']:.2f} times as fast as {rows[-1]['best']}\n")
    write(options.out / f"sm_{major}{minor}.json", rows, facts)


if __name__ == "__main__":
    main()
