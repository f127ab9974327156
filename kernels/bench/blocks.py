"""Try other block sizes than those of configs.py on this NVIDIA GPU: what a kernel takes with each of them, the fastest first.

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
from itertools import product
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
from pam_kernels.connect.configs import Config, pick  # noqa: E402
from pam_kernels.connect.forward import connect_forward  # noqa: E402
from pam_kernels.depthwise.configs import (  # noqa: E402
    Direct,
    Hankel,
    Toeplitz,
    convolution_config,
    weight_grad_config,
)
from pam_kernels.depthwise.forward import convolve, input_grad  # noqa: E402
from pam_kernels.depthwise.grad_weight import weight_grad  # noqa: E402

DTYPE = torch.bfloat16
IMAGES, CHANNELS, SIDE = 16, 384, 64


@dataclass(frozen=True)
class Trial:
    """One kernel on one size: its entries, the one in use, and a run with an entry."""

    kernel: str
    size: int
    used: Any
    entries: tuple[Any, ...]
    run: Callable[[Any], object]


def trials(device: str, dry: bool) -> Iterator[Trial]:
    n, channels, side = (1, 2, 16) if dry else (IMAGES, CHANNELS, SIDE)
    for k in (3,) if dry else (5, 7, 13, 31):
        x = torch.randn(n, channels, side, side, device=device).to(DTYPE)
        weight = (torch.randn(channels, 1, k, k, device=device) / k).to(DTYPE)
        used: Any = convolution_config(k, DTYPE, 1, dry)
        entries = tuple(_convolutions(k))
        yield Trial("depthwise forward", k, used, entries, lambda c, x=x, w=weight: convolve(x, w, None, 1, c))
        if k < 7:  # beyond, both are the same kernel
            yield Trial(
                "depthwise input_grad", k, used, entries, lambda c, x=x, w=weight: input_grad(x, w, side, side, 1, c)
            )
        used = weight_grad_config(k, dry)
        entries = tuple(_weight_grads(k))
        yield Trial("depthwise weight_grad", k, used, entries, lambda c, x=x, k=k: weight_grad(x, x, k, 1, c))
    for channels, side in ((16, 8),) if dry else ((64, 256), (96, 128), (128, 128), (224, 64)):
        hidden = channels // 2
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(n, channels, side, side, device=device).to(DTYPE).contiguous(memory_format=layout)
            sizes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
            w = [(torch.randn(size, device=device) * size[-1] ** -0.5).to(DTYPE) for size in sizes]
            name = "channels_last" if layout == torch.channels_last else "contiguous"
            for kernel in ("forward", "backward"):
                used = pick(kernel, w[0])

                def run(config: Any, kernel: str = kernel, x: torch.Tensor = x, w: list[torch.Tensor] = w) -> object:
                    if kernel == "forward":
                        return connect_forward(x, *w, "relu", config)
                    return connect_backward(x, x, *w[:3], "relu", config)

                yield Trial(f"connect {kernel} {name}", channels, used, tuple(_connects(used)), run)


def _convolutions(k: int) -> Iterator[Direct | Toeplitz]:
    if k <= 7:
        yield from (Direct(rows, 1, columns, warps) for rows, columns, warps in product((8, 16), (64, 128), (2, 4)))
    shapes = ((4, 16), (8, 16), (4, 32)) if k < 19 else ((4, 32), (8, 32), (2, 32))
    for (height, width), (tiles, warps), stages in product(shapes, ((64, 4), (128, 4), (128, 8)), (2, 3)):
        yield Toeplitz(height, width, tiles, warps, stages)


def _weight_grads(k: int) -> Iterator[Hankel]:
    for rows, (columns, warps) in product((16, 32, 64), ((64, 4), (128, 8)) if k < 31 else ((64, 8),)):
        yield Hankel(rows, columns, warps)


def _connects(used: Config) -> Iterator[Config]:
    for pixels, warps in product((used.pixels, 2 * used.pixels, 4 * used.pixels), (4, 8)):
        yield replace(used, pixels=pixels, warps=warps)


def show(trial: Trial, device: str) -> list[str]:
    """The lines of a trial."""
    found: list[tuple[float, str]] = []
    for entry in dict.fromkeys((trial.used, *trial.entries)):
        mark = "*" if entry == trial.used else " "
        try:
            cost = measure(lambda entry=entry: trial.run(entry), device, seconds=0.05)  # type: ignore[misc]
            found.append((cost.ms, f"{trial.kernel:24} {trial.size:4} {cost.ms:9.4f} {mark} {entry}"))
        except Exception as error:  # an entry that does not fit must not lose the others
            found.append(
                (float("inf"), f"{trial.kernel:24} {trial.size:4}    failed {mark} {entry}: {str(error)[:80]!r}")
            )
            if device == "cuda":
                torch.cuda.synchronize()
    return [line for _, line in sorted(found)]


def compile_share(part: int, parts: int, device: str, only: str) -> None:
    """Run every entry of this share once, so that its code is in Triton's cache."""
    count = 0
    for trial in trials(device, False):
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
        compile_share(part, parts, "cuda", options.only)
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
