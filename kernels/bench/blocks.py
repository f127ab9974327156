"""Try block sizes next to those of configs.py on this NVIDIA GPU: what a kernel takes with each of them, the fastest first.

    PYTHONPATH=kernels:. python kernels/bench/blocks.py [--out FILE] [--processes 8] [--only NAME]

One line an entry: kernel, size, milliseconds, entry; `*` marks the one that configs.py has. What fails is said. With several
processes all entries are compiled first, side by side; what is timed is timed alone. --dry: a tiny case on the CPU, interpreted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATHS = [str(path) for path in (HERE, HERE.parents[1] / "kernels", HERE.parents[1])]
sys.path[:0] = PATHS
if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from measure import measure, say  # noqa: E402

from pam_kernels.connect.backward import connect_backward  # noqa: E402
from pam_kernels.connect.configs import pick  # noqa: E402
from pam_kernels.connect.forward import connect_forward  # noqa: E402
from pam_kernels.depthwise.configs import (  # noqa: E402
    convolution_config,
    weight_grad_config,
)
from pam_kernels.depthwise.forward import convolve  # noqa: E402
from pam_kernels.depthwise.grad_weight import weight_grad  # noqa: E402

DTYPE = torch.bfloat16
IMAGES, CHANNELS, SIDE = 16, 384, 64
CONVOLUTIONS = (
    *((DTYPE, 1, k) for k in (5, 13, 31)),
    *((DTYPE, 2, k) for k in (5, 13, 31)),
    *((torch.float32, 1, k) for k in (5, 13)),
)
"""dtype, stride and kernel size."""
CONNECTS = ((64, 128), (96, 128), (128, 128), (192, 64), (256, 64), (384, 64), (512, 64))
"""Channels, height and width."""
LEAST = {"height": 1, "width": 8, "tiles": 32, "rows": 4, "columns": 16, "channels": 16, "hidden": 16, "pixels": 16}
LEAST |= {"warps": 1, "stages": 1}
"""Of the fields of an entry."""


@dataclass(frozen=True)
class Trial:
    """One kernel on one size: its entries, the one in use, and a run with an entry."""

    kernel: str
    size: int
    used: Any
    entries: tuple[Any, ...]
    run: Callable[[Any], object]


def trials(device: str, dry: bool) -> Iterator[Trial]:
    """Every kernel on the sizes that decide about its entries."""
    n, channels, side = (1, 2, 16) if dry else (IMAGES, CHANNELS, SIDE)
    for dtype, stride, k in [(DTYPE, 1, 3)] if dry else CONVOLUTIONS:
        x = torch.randn(n, channels, side, side, device=device).to(dtype)
        weight = (torch.randn(channels, 1, k, k, device=device) / k).to(dtype)
        name = f"depthwise {str(dtype)[6:]} stride {stride}"
        yield _trial(
            f"{name} forward",
            k,
            convolution_config(k, dtype, stride, dry),
            lambda entry, x=x, w=weight, s=stride: convolve(x, w, None, s, entry),
        )
        if stride == 1 and dtype == DTYPE:
            yield _trial(
                f"{name} weight_grad",
                k,
                weight_grad_config(k, dtype, dry),
                lambda entry, x=x, k=k: weight_grad(x, x, k, 1, entry),
            )
    for channels, side in ((16, 8),) if dry else CONNECTS:
        hidden = channels // 2
        x = torch.randn(n, channels, side, side, device=device).to(DTYPE)
        sizes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
        w = [(torch.randn(size, device=device) * size[-1] ** -0.5).to(DTYPE) for size in sizes]
        yield _trial(
            "connect forward",
            channels,
            pick("forward", w[0]),
            lambda entry, x=x, w=w: connect_forward(x, *w, "relu", entry),
        )
        yield _trial(
            "connect backward",
            channels,
            pick("backward", w[0]),
            lambda entry, x=x, w=w: connect_backward(x, x, *w[:3], "relu", entry),
        )


def _trial(kernel: str, size: int, used: Any, run: Callable[[Any], object]) -> Trial:
    return Trial(kernel, size, used, tuple(neighbours(used)), run)


def neighbours(used: Any) -> Iterator[Any]:
    """Entries that differ from one in one field, halved or doubled."""
    for field, least in LEAST.items():
        value = getattr(used, field, None)
        if value is None:
            continue
        for other in (value - 1, value + 1) if field == "stages" else (value // 2, value * 2):
            if other >= least:
                yield replace(used, **{field: other})


def show(trial: Trial, device: str) -> list[str]:
    """The lines of a trial."""
    found: list[tuple[float, str]] = []
    for entry in dict.fromkeys((trial.used, *trial.entries)):
        mark = "*" if entry == trial.used else " "
        try:
            cost = measure(lambda entry=entry: trial.run(entry), device, seconds=0.05)  # type: ignore[misc]
            found.append((cost.ms, f"{trial.kernel:32} {trial.size:4} {cost.ms:9.4f} {mark} {entry}"))
        except Exception as error:  # an entry that does not fit must not lose the others
            found.append(
                (float("inf"), f"{trial.kernel:32} {trial.size:4}    failed {mark} {entry}: {str(error)[:80]!r}")
            )
            if device == "cuda":
                torch.cuda.synchronize()
    return [line for _, line in sorted(found)]


def compile_share(part: int, parts: int, only: str) -> None:
    """Run every entry of this share once, so that its code is in Triton's cache."""
    count = 0
    for trial in trials("cuda", False):
        for entry in dict.fromkeys((trial.used, *trial.entries)):
            count += 1
            if count % parts == part and trial.kernel.startswith(only):
                try:
                    trial.run(entry)
                except Exception:  # `show` says it
                    continue
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="kernels whose name starts with this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--compile", metavar="I/N", help="only compile a share")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        say("there is no NVIDIA GPU here")
        return 3
    if options.compile:
        part, parts = map(int, options.compile.split("/"))
        compile_share(part, parts, options.only)
        return 0
    if options.processes > 1:
        shares = [f"{part}/{options.processes}" for part in range(options.processes)]
        command = [sys.executable, __file__, "--only", options.only, "--compile"]
        running = [subprocess.Popen([*command, share]) for share in shares]
        for process in running:
            process.wait()
    lines: list[str] = []
    for trial in trials("cpu" if options.dry else "cuda", options.dry):
        if trial.kernel.startswith(options.only):
            lines += (new := show(trial, "cpu" if options.dry else "cuda"))
            say(*new[:3])
            if options.out:
                options.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
