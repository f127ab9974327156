"""What the benchmark measures: cases, the work they do, and the implementations to compare.

A case makes its tensors, and for each implementation a function without arguments that does one pass. An implementation that
cannot do a pass (PyTorch has no entry to cuDNN's NCHW weight gradient, for example) is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pam_kernels import connect, depthwise_conv2d
from pam_kernels.connect.reference import connect_reference

Passes = dict[str, Callable[[], object]]
OURS, CUDNN_NCHW, CUDNN_LAST, ATEN, COMPILED = "triton", "cudnn_nchw", "cudnn_channels_last", "aten", "torch_compile"
BACKEND = "inductor"
GRADIENTS = ("forward", "input_grad", "weight_grad")
PASSES = ("forward", "forward_for_training", "training")
KERNELS = (5, 7, 9, 13, 21, 31)
HALF = torch.bfloat16


@dataclass(frozen=True)
class Depthwise:
    """One pass of the depthwise convolution: `forward`, `input_grad` or `weight_grad`."""

    shape: tuple[int, int, int, int]
    kernel: int
    dtype: torch.dtype
    pass_: str
    compiled: bool = False
    op: str = "depthwise_conv2d"

    @property
    def size(self) -> int:
        return self.kernel

    @property
    def bytes(self) -> int:
        """The least that must move: each tensor of the size of x once."""
        n, c, h, w = self.shape
        return (2 * n * c * h * w + c * self.kernel**2) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        n, c, h, w = self.shape
        return 2 * n * c * h * w * self.kernel**2

    def passes(self, device: str) -> Passes:
        """Implementations by name."""
        torch.manual_seed(0)
        k, pad = self.kernel, self.kernel // 2
        x = torch.randn(self.shape, device=device).to(self.dtype)
        weight = (torch.randn(self.shape[1], 1, k, k, device=device) / k).to(self.dtype)
        grad = torch.randn_like(x)
        groups = self.shape[1]

        def plain(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, 1, pad, groups=groups)

        def aten(x: Tensor, weight: Tensor, grad: Tensor, cudnn: bool) -> Callable[[], object]:
            """The pass by PyTorch's own choice, or without cuDNN."""
            if self.pass_ == "forward":
                return _cudnn(lambda: plain(x, weight), cudnn)
            mask = [self.pass_ == "input_grad", self.pass_ == "weight_grad", False]
            arguments = (grad, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], groups, mask)
            return _cudnn(lambda: torch.ops.aten.convolution_backward(*arguments), cudnn)

        def last(t: Tensor) -> Tensor:
            return t.contiguous(memory_format=torch.channels_last)

        passes: Passes = {OURS: self._ours(x, weight, grad)}
        passes[ATEN] = aten(x, weight, grad, cudnn=False)
        if device == "cuda":
            passes[CUDNN_LAST] = aten(last(x), last(weight), last(grad), cudnn=True)
            geometry = (1, 1), (1, 1), groups, True, False, True
            if self.pass_ == "forward":
                arguments = (x, weight, (pad, pad), *geometry)
                passes[CUDNN_NCHW] = lambda: torch.ops.aten.cudnn_convolution(*arguments)
            elif self.pass_ == "input_grad":
                # The transposed convolution of cuDNN is its input gradient.
                transposed = (grad, weight, (pad, pad), (0, 0), *geometry)
                passes[CUDNN_NCHW] = lambda: torch.ops.aten.cudnn_convolution_transpose(*transposed)
        if self.compiled and self.pass_ == "forward":
            function = _compiled(plain)
            passes[COMPILED] = lambda: function(x, weight)
        return passes

    def _ours(self, x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], object]:
        if self.pass_ == "forward":
            return lambda: depthwise_conv2d(x, weight)
        ops, size = torch.ops.pam, self.shape[2:]
        if self.pass_ == "input_grad":
            return lambda: ops.depthwise_conv2d_input_grad(grad, weight, *size, 1)
        return lambda: ops.depthwise_conv2d_weight_grad(grad, x, self.kernel, 1).to(self.dtype)


@dataclass(frozen=True)
class Connect:
    """The connect layer with a hidden width of C / 2.

    Passes: `forward`; `forward_for_training`, which holds what backward needs; `training` = forward and all gradients.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    pass_: str
    compiled: bool = True
    op: str = "connect"

    @property
    def size(self) -> int:
        return self.shape[1]

    @property
    def bytes(self) -> int:
        """The least that must move: x and y; in training x and grad again, and dx."""
        return (5 if self.pass_ == "training" else 2) * torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Products without recomputation: two forward, four more for the gradients."""
        return (6 if self.pass_ == "training" else 2) * torch.Size(self.shape).numel() * self.shape[1]

    def passes(self, device: str) -> Passes:
        """Implementations by name."""
        torch.manual_seed(0)
        channels, hidden = self.shape[1], self.shape[1] // 2
        x = torch.randn(self.shape, device=device).to(self.dtype)
        grad = torch.randn_like(x)
        sizes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
        weights = [(torch.randn(size, device=device) * size[-1] ** -0.5).to(self.dtype) for size in sizes]

        def run(function: Callable[..., Tensor], x: Tensor, grad: Tensor) -> Callable[[], object]:
            inputs = [t.detach().requires_grad_("training" in self.pass_) for t in (x, *weights)]
            if self.pass_ == "training":
                return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
            return lambda: function(*inputs)

        passes: Passes = {OURS: run(connect, x, grad), ATEN: _cudnn(run(connect_reference, x, grad), False)}
        if device == "cuda":
            last = [t.contiguous(memory_format=torch.channels_last) for t in (x, grad)]
            passes[CUDNN_NCHW] = run(connect_reference, x, grad)
            passes[CUDNN_LAST] = run(connect_reference, *last)
        if self.compiled:
            passes[COMPILED] = run(_compiled(connect_reference), x, grad)
        return passes


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled for the shapes of this case alone: earlier cases would make them dynamic, and soon reach the recompile limit."""
    torch.compiler.reset()
    return torch.compile(function, backend=BACKEND, dynamic=False)


def _cudnn(function: Callable[[], object], enabled: bool) -> Callable[[], object]:
    def run() -> object:
        with torch.backends.cudnn.flags(enabled=enabled, benchmark=enabled, deterministic=False):
            return function()

    return run


Case = Depthwise | Connect


def cases() -> Iterator[Case]:
    """All cases of the benchmark, the most telling first; the shapes are those of the networks and around them."""
    yield from (Depthwise((16, 384, 64, 64), k, HALF, pass_, compiled=True) for k in KERNELS for pass_ in GRADIENTS)
    for images, side, widths in ((16, 256, (64, 96, 128)), (16, 128, (64, 128, 192, 256, 312, 512))):
        yield from (Connect((images, c, side, side), HALF, pass_) for c in widths for pass_ in PASSES)
    for shape in ((8, 192, 128, 128), (4, 96, 256, 256), (16, 192, 64, 64)):
        yield from (Depthwise(shape, k, HALF, pass_) for k in KERNELS for pass_ in GRADIENTS)
    for dtype in (torch.float16, torch.float32):
        yield from (Depthwise((16, 192, 64, 64), k, dtype, pass_) for k in (7, 13, 31) for pass_ in GRADIENTS)
        yield from (Connect((16, 128, 128, 128), dtype, pass_, compiled=False) for pass_ in PASSES)


def dry_cases() -> Iterator[Case]:
    """One tiny case of every pass, for a machine without a GPU."""
    for pass_ in GRADIENTS:
        yield Depthwise((1, 2, 9, 8), 3, torch.float32, pass_, compiled=True)
    for pass_ in PASSES:
        yield Connect((1, 4, 5, 6), torch.float32, pass_)
