"""Cases, error bounds and checks of the depthwise convolution: what the tests of its kernels have in common.

The oracle is the float64 convolution of the same (rounded) inputs. A sum of n products may be off by n + 4 roundings of
float32, relative to the sum of the products' magnitudes, and a result by one rounding to its dtype. Integers and impulses leave
no room for error: all their sums are exact in float32. Needs torch only: `make gpu` uses it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from pam_kernels import depthwise_conv2d

EPS = 2.0**-24
U = {torch.float64: 2.0**-53, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float64: 0.0, torch.float32: 1e-37, torch.float16: 2.0**-24, torch.bfloat16: 1e-37}
GUARD = 64


@dataclass(frozen=True)
class Case:
    """One set of inputs. kind: `normal`, `integers`, `impulse` (one pixel of x is not zero), `offset` (x near 100)."""

    images: int = 2
    channels: int = 3
    height: int = 9
    width: int = 17
    k: int = 7
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    bias: bool = True
    layout: str = "guarded"
    kind: str = "normal"
    seed: int = 0
    device: str = "cpu"

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """x: (N, C, H, W); weight: (C, 1, k, k); bias: (C,) float32 or None; a gradient like the output."""
        random = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            if self.kind in ("integers", "impulse"):
                return torch.randint(-8, 9, shape, generator=random).double()
            return torch.randn(shape, generator=random, dtype=torch.float64) * scale

        x = draw(self.images, self.channels, self.height, self.width)
        if self.kind == "impulse":
            hot = torch.zeros_like(x).view(-1)
            hot[int(torch.randint(hot.numel(), (), generator=random))] = 1
            x = hot.view(x.shape)
        elif self.kind == "offset":
            x = x + 100
        grad = draw(self.images, self.channels, -(-self.height // self.stride), -(-self.width // self.stride))
        weight = draw(self.channels, 1, self.k, self.k, scale=1 / self.k).to(self.dtype)
        bias = draw(self.channels).float().to(self.device) if self.bias else None
        x, grad = (laid_out(v.to(self.dtype).to(self.device), self.layout) for v in (x, grad))
        return x, laid_out(weight.to(self.device), "guarded"), bias, grad


def guarded(x: Tensor) -> Tensor:
    """A contiguous copy of x with NaN before and behind it in memory."""
    buffer = torch.full((x.numel() + 2 * GUARD,), float("nan"), dtype=x.dtype, device=x.device)
    inner = buffer[GUARD:-GUARD].view(x.shape)
    return inner.copy_(x)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values (`expanded`: the first image's) in another memory layout, with NaN in every gap."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((*x.shape[:2], 2 * x.shape[2], x.shape[3] + 3), float("nan"), dtype=x.dtype, device=x.device)
        wide[:, :, ::2, 1:-2] = x
        return wide[:, :, ::2, 1:-2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return guarded(x)


@contextmanager
def guarded_results() -> Iterator[None]:
    """What the kernels allocate lies between NaN, starts as NaN, and is checked for writes outside when the block ends."""
    buffers = []

    plain = Tensor.new_empty

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        inner = plain(self, *size, **options)
        if not inner.is_floating_point():
            return inner
        inner = guarded(inner.fill_(float("nan")))
        buffers.append(inner._base)
        return inner

    with mock.patch.object(Tensor, "new_empty", new_empty):
        yield
    assert buffers, "no kernel allocated a result"
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all(), "a kernel wrote before its result"
        assert buffer[-GUARD:].isnan().all(), "a kernel wrote behind its result"


def run(case: Case) -> dict[str, Tensor]:
    """The output and the gradients of x, weight and bias as the dispatched implementation computes them."""
    x, weight, bias, grad = case.tensors()
    leaves = {"x": x.requires_grad_(), "weight": weight.requires_grad_()}
    if bias is not None:
        leaves["bias"] = bias.requires_grad_()
    with guarded_results():
        y = depthwise_conv2d(x, weight, bias, case.stride)
        gradients = torch.autograd.grad(y, list(leaves.values()), grad)
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def check(case: Case, results: dict[str, Tensor] | None = None) -> None:
    """Every result is the exact one within its rounding errors; of integers and impulses, bit for bit."""
    x, weight, bias, grad = case.tensors()
    exact, size = _sums(case, x, weight, bias, grad), _sums(case, x, weight, bias, grad, magnitudes=True)
    window, pixels = case.k**2 + 1, grad.numel() // case.channels
    terms = {"y": window, "x": window, "weight": pixels, "bias": pixels}
    dtypes = {"y": x.dtype, "x": x.dtype, "weight": weight.dtype, "bias": torch.float32}
    results = results or run(case)
    assert results.keys() == exact.keys()
    for name, result in results.items():
        dtype, expected = dtypes[name], exact[name]
        assert result.shape == expected.shape, name
        assert result.dtype == dtype, name
        if case.kind in ("integers", "impulse"):
            wrong = result != expected.to(dtype)
        else:
            summing = (terms[name] + 4) * EPS * size[name]
            bound = summing + U[dtype] * (expected.abs() + summing) + TINY[dtype]
            wrong = ~((result.double() - expected).abs() <= bound)
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} wrong, first at {wrong.nonzero()[0].tolist()}"
        )


def _sums(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, magnitudes: bool = False
) -> dict[str, Tensor]:
    """The float64 results, or the sums of the magnitudes of their terms."""
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    leaves = {name: (v.abs() if magnitudes else v).double().detach().requires_grad_() for name, v in given.items()}
    y = F.conv2d(leaves["x"], leaves["weight"], leaves.get("bias"), case.stride, case.k // 2, groups=case.channels)
    gradients = torch.autograd.grad(y, list(leaves.values()), (grad.abs() if magnitudes else grad).double())
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))
