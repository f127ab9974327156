"""The operators on a GPU against float64, at real sizes: the properties of tests/kernels without pytest and hypothesis.

    PYTHONPATH=kernels:.:tests/kernels python kernels/bench/check.py [--size large] [--share 1/4] [--seconds 120]

One line a check that fails, `WRONG <op> ...`; exit code 1 if there is one. `small` is for compute-sanitizer, which is slow, `dry`
for the CPU. The most telling checks come first; none is begun after --seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import depthwise_cases
import torch
import torch.nn.functional as F
from connect_cases import Case, check_forward, check_gradients
from measure import say
from torch import Tensor

from pam_kernels import connect, depthwise_conv2d

WRONG = "WRONG"
DEPTHWISE, CONNECT = "depthwise_conv2d", "connect"
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
SMALL = (
    Case(2, 33, 17, 5, 13),
    Case(2, 64, 32, 9, 16, torch.bfloat16, "gelu", "channels_last"),
    Case(1, 96, 48, 8, 16, torch.float16, "silu"),
)
LARGE = tuple(
    Case(2, channels, channels // 2, side, side - 3 * odd, dtype, activation, layout)
    for dtype, activation, layout, odd in (
        (torch.bfloat16, "relu", "contiguous", False),
        (torch.bfloat16, "relu", "channels_last", False),
        (torch.float32, "silu", "contiguous", False),
        (torch.float16, "gelu", "contiguous", True),
    )
    for channels, side in ((64, 256), (96, 128), (144, 64), (192, 64), (312, 32), (512, 32))
)
KERNELS = {"large": (7, 13, 5, 31, 3), "small": (3, 7, 13), "dry": (3,)}
SHAPES = {"large": (4, 96, 128, 128), "small": (1, 3, 17, 40), "dry": (1, 2, 9, 8)}
FAR = (2, 64, 4096, 4224)
"""More than 2^31 elements, 4.4 GB each of five tensors."""
FAR_BYTES = 40e9


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
    _same(*runs)


def check_depthwise(case: depthwise_cases.Case) -> None:
    """Values and gradients within their rounding errors, or exact; two runs agree bit for bit."""
    runs = [depthwise_cases.run(case) for _ in range(2)]
    depthwise_cases.check(case, runs[0])
    _same(*(list(run.values()) for run in runs))


def check_far(op: str, shape: tuple[int, int, int, int], device: str) -> None:
    """Integers at the far end of tensors of this shape, exactly."""
    random = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randint(-1, 2, size, generator=random, device=device, dtype=torch.int8).half()

    x, grad = draw(*shape).requires_grad_(), draw(*shape)
    channels = shape[1]
    if op == DEPTHWISE:
        weight = draw(channels, 1, 7, 7).requires_grad_()
        y = depthwise_conv2d(x, weight)
        results = [y.detach()[-1, -1], *torch.autograd.grad(y, (x, weight), grad)]
        results = [results[0], results[1][-1, -1], results[2][-1, 0]]
        plane, taps = (v.detach()[:, -1:].double().requires_grad_() for v in (x, weight.transpose(0, 1)))
        exact = F.conv2d(plane, taps, padding=3)
        dx, dw = torch.autograd.grad(exact, (plane, taps), grad[:, -1:].double())
        expected = [exact.detach()[-1, 0], dx[-1, 0], dw[0, 0]]
    else:
        weights = [draw(channels // 2, channels), draw(channels // 2), draw(channels, channels // 2), draw(channels)]
        y = connect(x, *weights)
        results = [y.detach()[-1, :, -1], torch.autograd.grad(y, x, grad)[0][-1, :, -1]]
        row = x.detach()[-1, :, -1].double().requires_grad_()
        w1, b1, w2, b2 = (w.double() for w in weights)
        exact = row + w2 @ (w1 @ row + b1[:, None]).relu() + b2[:, None]
        expected = [exact.detach(), *torch.autograd.grad(exact, row, grad[-1, :, -1].double())]
    _same(results, [value.half() for value in expected])


def check_compiled(op: str, device: str) -> None:
    """In one graph of torch.compile, under autocast, the same values and gradients as without."""
    run, inputs = _network(op, device)
    compiled = torch.compile(run, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    with torch.autocast(device, torch.bfloat16):
        _near(_with_gradients(compiled, inputs), _with_gradients(run, inputs), 0.01)


def check_graph(op: str, device: str) -> None:
    """A captured CUDA graph, replayed on other values, gives what the operator gives."""
    run, inputs = _network(op, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _with_gradients(run, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _with_gradients(run, inputs)
    with torch.no_grad():
        for value in inputs:
            value.copy_(torch.randn_like(value))
    graph.replay()
    _near(captured, _with_gradients(run, inputs), 1e-5)


def _network(op: str, device: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operator and inputs of a small case."""
    if op == CONNECT:
        x, weights, _ = Case(2, 64, 32, 8, 16).tensors()
        return connect, [t.to(device).requires_grad_() for t in (x, *weights)]
    x, weight, bias, _ = depthwise_cases.Case(2, 4, 12, 16, 7, dtype=torch.float32).tensors()
    assert bias is not None
    return depthwise_conv2d, [t.to(device).requires_grad_() for t in (x, weight, bias)]


def _with_gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    y = run(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]


def _near(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float) -> None:
    """Sums that PyTorch makes in another order: of weight gradients."""
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one.dtype == other.dtype
        difference = float((one - other).norm() / other.norm())
        assert difference <= tolerance, f"result {i} differs by {difference:.3g}"


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(one, other), f"result {i}: {int((one != other).sum())} of {one.numel()} elements differ"


def checks(size: str, device: str) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Operator, name and function of every check of `dry`, `small` or `large`."""
    if size != "small":
        for op in (DEPTHWISE, CONNECT):
            yield op, "compiled", partial(check_compiled, op, device)
            if device == "cuda":
                yield op, "CUDA graph", partial(check_graph, op, device)
            else:
                yield op, "far", partial(check_far, op, (2, 16, 3, 8), device)
    if device == "cuda" and size == "large" and torch.cuda.mem_get_info()[0] > FAR_BYTES:
        yield DEPTHWISE, f"{FAR}", partial(check_far, DEPTHWISE, FAR, device)
        yield CONNECT, f"{FAR}", partial(check_far, CONNECT, FAR, device)
    for case in LARGE if size == "large" else SMALL[: 1 if size == "dry" else None]:
        yield CONNECT, str(case), partial(check_connect, case, device)
    rows = [(SHAPES[size], KERNELS[size], "normal")]
    rows += [((2, 33, 61, 77), (7, 9, 21, 31, 3), "integers")] if size == "large" else []
    for dtype in DTYPES[: 1 if size == "dry" else None]:
        for shape, kernels, kind in rows:
            for k, stride in product(kernels, (1, 2)):
                layout = "channels_last" if stride == 2 else "guarded"
                case = depthwise_cases.Case(*shape, k, stride, dtype, layout=layout, kind=kind, device=device)
                yield DEPTHWISE, str(case), partial(check_depthwise, case)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="large", choices=tuple(KERNELS))
    parser.add_argument("--share", default="1/1", help="part of the checks, such as 2/4")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    os.environ["PAM_KERNELS"] = "triton"
    part, parts = map(int, options.share.split("/"))
    started, late, wrong = time.perf_counter(), 0, 0
    for op, name, check in list(checks(options.size, "cpu" if options.size == "dry" else "cuda"))[part - 1 :: parts]:
        if time.perf_counter() - started > options.seconds:
            late += 1
            continue
        try:
            check()
        except torch.OutOfMemoryError:
            say(f"{op} {name}: does not fit into memory, skipped")
            torch.cuda.empty_cache()
        except Exception as error:  # a kernel that does not compile is as wrong as one with wrong results
            wrong += 1
            say(f"{WRONG} {op} {name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    if late:
        say(f"{late} checks of share {options.share} did not fit into {options.seconds:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
