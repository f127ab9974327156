"""The operators on a GPU against float64, at real sizes: the properties of tests/kernels without pytest and hypothesis.

    PYTHONPATH=kernels:.:tests/kernels PAM_KERNELS=triton python kernels/bench/check.py [--small]

--small is for compute-sanitizer, which is slow. Exit code 1 and the first wrong element if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import depthwise_cases
import torch
from connect_cases import Case, check_forward, check_gradients
from torch import Tensor

from pam_kernels import connect

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALL = (
    Case(2, 33, 17, 5, 13),
    Case(2, 64, 32, 9, 16, torch.bfloat16, "gelu", "channels_last"),
    Case(1, 96, 48, 8, 16, torch.float16, "silu"),
)
LARGE = tuple(
    Case(4, channels, channels // 2, side, side - 3 * odd, dtype, activation, layout)
    for channels, side in ((64, 256), (96, 128), (144, 64), (192, 64), (312, 32), (512, 32))
    for dtype, activation, layout, odd in (
        (torch.bfloat16, "relu", "contiguous", False),
        (torch.bfloat16, "relu", "channels_last", False),
        (torch.float16, "gelu", "contiguous", True),
        (torch.float32, "silu", "contiguous", False),
    )
)


def check_connect(case: Case, device: str) -> None:
    """Values and gradients within their rounding errors; two runs agree bit for bit."""
    x, weights, grad = case.tensors()
    x, grad = x.to(device), grad.to(device)
    weights = [w.to(device) for w in weights]
    runs = []
    for _ in range(2):
        inputs = [t.detach().requires_grad_() for t in (x, *weights)]
        y = connect(*inputs, case.activation)
        runs.append((y.detach(), *torch.autograd.grad(y, inputs, grad)))
    check_forward(case, runs[0][0], x, weights)
    check_gradients(case, runs[0][1:], x, weights, grad)
    _same(runs)


def check_depthwise(case: depthwise_cases.Case) -> None:
    """Values and gradients within their rounding errors; two runs agree bit for bit."""
    runs = [depthwise_cases.run(case) for _ in range(2)]
    depthwise_cases.check(case, runs[0])
    _same([list(run.values()) for run in runs])


def _same(runs: Sequence[Sequence[Tensor]]) -> None:
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second), "two runs differ"


def checks(size: str, device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and function of every check of `dry`, `small` or `large`."""
    for case in LARGE if size == "large" else SMALL[: 1 if size == "dry" else None]:
        yield f"connect {case}", partial(check_connect, case, device)
    shapes = {
        "large": (((4, 96, 128, 128), (3, 5, 7, 13, 31)), ((2, 33, 61, 77), (3, 9, 21, 31))),
        "small": (((1, 3, 17, 40), (3, 7, 13)),),
        "dry": (((1, 2, 9, 8), (3,)),),
    }
    for shape, kernels in shapes[size]:
        for k, stride, dtype in product(kernels, (1, 2), DTYPES[: 1 if size == "dry" else None]):
            layout = "channels_last" if stride == 2 else "guarded"
            case = depthwise_cases.Case(*shape, k, stride, dtype, layout=layout, device=device)
            yield f"depthwise {case}", partial(check_depthwise, case)


def run(size: str, device: str) -> list[str]:
    """What is wrong, one line each."""
    wrong = []
    for name, check in checks(size, device):
        try:
            check()
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true")
    wrong = run("small" if parser.parse_args().small else "large", "cuda")
    sys.stdout.write("\n".join(wrong or ["all checks pass"]) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
