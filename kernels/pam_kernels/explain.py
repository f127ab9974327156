"""Say which implementation an operator gets on a card, and why, without the card.

python -m pam_kernels.explain --arch sm_90 --kernel 13 --dtype bf16 --shape 16,384,64,64
"""

from __future__ import annotations

import argparse
import sys

import torch

from .dispatch import CONNECT, DEPTHWISE, LAYOUTS, decide

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def main(arguments: list[str] | None = None) -> None:
    """Write one line an op: the depthwise ops if a kernel size is given, else the connect layer."""
    parser = argparse.ArgumentParser(prog="python -m pam_kernels.explain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", required=True, help="sm_80, sm_86, sm_90, ...")
    parser.add_argument("--kernel", type=int, help="kernel size of a depthwise convolution; without it: connect")
    parser.add_argument("--stride", type=int, default=1, choices=(1, 2))
    parser.add_argument("--dtype", default="bf16", choices=tuple(DTYPES))
    parser.add_argument("--layout", default=LAYOUTS[0], choices=LAYOUTS, help="memory format of the input")
    parser.add_argument("--shape", required=True, type=_shape, help="N,C,H,W of the input")
    options = parser.parse_args(arguments)
    for op in CONNECT if options.kernel is None else DEPTHWISE:
        choice = decide(
            op,
            options.arch,
            DTYPES[options.dtype],
            options.shape,
            kernel=options.kernel,
            stride=options.stride,
            layout=options.layout,
        )
        sys.stdout.write(f"{op}: {choice.implementation}, because {choice.reason}\n")


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(v) for v in text.split(","))
    if len(shape) != 4 or min(shape) < 0:
        raise argparse.ArgumentTypeError(f"needs four numbers N,C,H,W, got {text!r}")
    return shape


if __name__ == "__main__":
    main()
