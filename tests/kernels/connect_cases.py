"""Cases, exact values and error bounds of the connect layer: what the tests of its kernels have in common.

Everything is compared with float64 sums of the same (rounded) inputs. An element may be wrong by as much as its own rounding
errors add up to: u for each rounding to the working type, 2^-24 for each term of a sum, in the values that reach it.
Needs torch only: `make gpu` uses it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 2.0**-24
U = {torch.float64: 2.0**-53, torch.float32: EPS, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TINY = {torch.float64: 0.0, torch.float32: 1e-37, torch.float16: 2.0**-24, torch.bfloat16: 1e-37}

# Largest slopes of the activations and of their derivatives.
SLOPE = {"relu": 1.0, "gelu": 1.13, "silu": 1.1, "identity": 1.0}
CURVATURE = {"relu": 0.0, "gelu": 0.8, "silu": 0.5, "identity": 0.0}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda h: h,
}


@dataclass(frozen=True)
class Case:
    """One set of inputs. kind: `normal`, `integers` (every sum exact in float32), `offset` (all values near 100)."""

    images: int = 2
    channels: int = 5
    hidden: int = 3
    height: int = 4
    width: int = 7
    dtype: torch.dtype = torch.float32
    activation: str = "relu"
    layout: str = "contiguous"
    kind: str = "normal"
    seed: int = 0

    def tensors(self) -> tuple[Tensor, list[Tensor], Tensor]:
        """x: (N, C, H, W), [w1, b1, w2, b2], and a gradient like x."""
        random = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            if self.kind == "integers":
                return torch.randint(-2, 3, shape, generator=random).to(self.dtype)
            return (torch.randn(shape, generator=random) * scale).to(self.dtype)

        shape = (self.images, self.channels, self.height, self.width)
        x = draw(*shape) + (100 if self.kind == "offset" else 0)
        weights = [
            draw(self.hidden, self.channels, scale=self.channels**-0.5),
            draw(self.hidden),
            draw(self.channels, self.hidden, scale=self.hidden**-0.5),
            draw(self.channels),
        ]
        return laid_out(x, self.layout), weights, laid_out(draw(*shape), self.layout)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout, with NaN in every gap."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((x.shape[0], x.shape[1] + 1, 2 * x.shape[2], x.shape[3] + 3), float("nan"), dtype=x.dtype)
        wide[:, 1:, ::2, 1:-2] = x
        return wide[:, 1:, ::2, 1:-2]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


@dataclass(frozen=True)
class Hidden:
    """What both directions share, in float64: (N, C or M, P). Names of bounds start with `e_`."""

    x: Tensor
    h: Tensor
    e_h: Tensor
    a: Tensor
    e_a: Tensor


def _hidden(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Hidden:
    w1, b1 = (w.double() for w in weights[:2])
    x = x.to(case.dtype).double().flatten(2)
    u = U[case.dtype]
    h = w1 @ x + b1[:, None]
    e_h = (case.channels + 2) * EPS * (w1.abs() @ x.abs() + b1.abs()[:, None]) * (case.kind != "integers")
    a = ACTIVATIONS[case.activation](h)
    e_a = SLOPE[case.activation] * e_h + 8 * EPS * h.abs()
    return Hidden(x, h, e_h, a, e_a + u * (a.abs() + e_a) + TINY[case.dtype])


def check_forward(case: Case, y: Tensor, x: Tensor, weights: Sequence[Tensor]) -> None:
    """y is x + W2 act(W1 x + b1) + b2 within its rounding errors, in each element and in the norm."""
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    w2, b2 = (w.double() for w in weights[2:])
    given = _hidden(case, x, weights)
    residual = x.double().flatten(2)

    def exact(a: Tensor) -> Tensor:
        return residual + w2 @ a + b2[:, None]

    size = residual.abs() + w2.abs() @ given.a.abs() + b2.abs()[:, None]
    bound = w2.abs() @ given.e_a + (case.hidden + 4) * EPS * size
    assert_within(y, exact(given.a), bound, "y")
    assert_unbiased(y, exact(given.a.to(case.dtype).double()), 2.0**-17 * size, "y")


def check_gradients(
    case: Case, gradients: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], grad: Tensor
) -> None:
    """[dx, dw1, db1, dw2, db2] are the derivatives of the sum of grad * y within their rounding errors."""
    w1, w2 = weights[0].double(), weights[2].double()
    u = U[case.dtype]
    given = _hidden(case, x, weights)
    g = grad.to(case.dtype).double().flatten(2)

    da = w2.mT @ g
    e_da = (case.channels + 2) * EPS * (w2.abs().mT @ g.abs())
    h = given.h.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ACTIVATIONS[case.activation](h).sum(), h)
    d = slope * da
    e_slope = CURVATURE[case.activation] * given.e_h + 16 * EPS * (1 + given.h.abs())
    if case.activation == "relu":
        e_slope = (given.h.abs() < given.e_h).double()
    e_d = e_slope * da.abs() + (slope.abs() + e_slope) * e_da
    e_d = e_d + u * (d.abs() + e_d) + TINY[case.dtype]

    dx, dw1, db1, dw2, db2 = gradients
    size = grad.double().flatten(2).abs() + w1.abs().mT @ d.abs()
    assert dx.shape == x.shape
    assert dx.dtype == x.dtype
    exact = grad.double().flatten(2) + w1.mT @ d
    assert_within(dx, exact, w1.abs().mT @ e_d + (case.hidden + 4) * EPS * size, "dx")

    # Each image's part of a weight gradient is rounded before the images are added.
    steps = (case.images * case.height * case.width + 4) * EPS + u
    for name, value, rows, e_rows, columns, e_columns in (
        ("dw1", dw1, d, e_d, given.x, torch.zeros_like(given.x)),
        ("dw2", dw2, g, torch.zeros_like(g), given.a, given.e_a),
    ):
        size = (rows.abs() @ columns.abs().mT).sum(0)
        error = (e_rows @ (columns.abs() + e_columns).mT + rows.abs() @ e_columns.mT).sum(0)
        assert_within(value, (rows @ columns.mT).sum(0), error + steps * (size + error), name)
    for name, value, rows, e_rows in (("db1", db1, d, e_d), ("db2", db2, grad.double().flatten(2), 0 * g)):
        assert_within(value, rows.sum((0, 2)), (e_rows + steps * (rows.abs() + e_rows)).sum((0, 2)), name)


def assert_within(value: Tensor, exact: Tensor, bound: Tensor, name: str) -> None:
    """|value - exact| <= bound and the rounding of the result, in every element."""
    bound = bound + U[value.dtype] * (exact.abs() + bound) + TINY[value.dtype]
    value = value.double().reshape(exact.shape)
    wrong = ~((value - exact).abs() <= bound)
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, first {at}: "
            f"{value[at]:.9g} is not {exact[at]:.9g} within {bound[at]:.3g}"
        )


def assert_unbiased(value: Tensor, exact: Tensor, slack: Tensor, name: str) -> None:
    """Together, errors of rounding to nearest are 0.29 units of the last place; 0.58 is what cutting digits off leaves."""
    if value.numel() >= 64:
        units = torch.ldexp(torch.full_like(exact, U[value.dtype]), torch.frexp(exact)[1])
        error = (value.double().reshape(exact.shape) - exact).norm()
        assert error <= 0.4 * units.norm() + slack.norm(), f"{name} is biased: {error / units.norm():.3g} units"
