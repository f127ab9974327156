"""The public depthwise operator, its custom ops and its module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import DEPTHWISE, KERNEL_SIZES, autocasts, choose
from .reference import depthwise_conv2d_reference


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Convolve each channel with its own kernel, same padding.

    x: (N, C, H, W); weight: (C, 1, k, k) with odd k in 3..31; bias: (C,) or None; stride: 1 or 2.
    Returns (N, C, ceil(H / stride), ceil(W / stride)) in the dtype of x (under autocast: of autocast).
    Raises ValueError for other shapes, strides or mixed dtypes. The Triton kernels give NaN where the reference does, and
    for a non-finite x also up to 64 columns and 8 rows further away, because tensor cores multiply it with zeros.
    """
    if (
        weight.dim() != 4
        or weight.shape[1] != 1
        or weight.shape[2] != weight.shape[3]
        or _size(weight) not in KERNEL_SIZES
    ):
        raise ValueError(f"weight must be (C, 1, k, k) with odd k in 3..31, weight.shape = {tuple(weight.shape)}")
    channels = weight.shape[0]
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, H, W) to fit weight, x.shape = {tuple(x.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be ({channels},) to fit weight, bias.shape = {tuple(bias.shape)}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, stride = {stride}")
    lower = autocasts(x)
    dtype = torch.get_autocast_dtype(x.device.type) if lower else x.dtype
    if all(_in_torch(op, x, _size(weight), stride, dtype) for op in DEPTHWISE):
        if lower and x.device.type == "cpu":
            return _in_float32(x, weight, bias, stride)
        return depthwise_conv2d_reference(x, weight, bias, stride)
    if lower:
        x, weight = x.to(dtype), weight.to(dtype)  # the bias is added in float32 as it is
    if x.dtype != weight.dtype:
        raise ValueError(f"x and weight must share a dtype outside autocast: {x.dtype}, {weight.dtype}")
    return torch.ops.pam.depthwise_conv2d(x, weight, bias, stride)


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """What autocast would give on a CPU, from float32: there the weight gradient takes twice as long in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        y = depthwise_conv2d_reference(x.float(), weight.float(), None if bias is None else bias.float(), stride)
    return y.to(torch.get_autocast_dtype("cpu"))


class DepthwiseConv2d(nn.Conv2d):
    """Drop-in for `nn.Conv2d(c, c, k, stride, padding=k // 2, groups=c)`: same parameters, same state_dict."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, self.stride[0])


# Custom ops. Triton is imported by the first call of a kernel, so that the package needs torch only. All results are
# contiguous. Each pass has a choice of its own: a card may be measured faster in one of them only.


@torch.library.custom_op("pam::depthwise_conv2d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    if _in_torch("depthwise_conv2d", x, _size(weight), stride):
        return depthwise_conv2d_reference(x, weight, None if bias is None else bias.to(x.dtype), stride).contiguous()
    from .forward import convolve

    return convolve(x.contiguous(), weight.contiguous(), bias, stride)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, c, (h + stride - 1) // stride, (w + stride - 1) // stride))


@torch.library.custom_op("pam::depthwise_conv2d_input_grad", mutates_args=())
def _input_grad(grad: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    """dx: (N, C, height, width) from grad: (N, C, ceil(height / stride), ceil(width / stride))."""
    from .forward import input_grad

    return input_grad(grad.contiguous(), weight.contiguous(), height, width, stride)


@_input_grad.register_fake
def _(grad: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], height, width))


@torch.library.custom_op("pam::depthwise_conv2d_weight_grad", mutates_args=())
def _weight_grad(grad: Tensor, x: Tensor, k: int, stride: int) -> Tensor:
    """dW: (C, 1, k, k) in float32 (float64 for float64)."""
    from .grad_weight import weight_grad

    return weight_grad(grad.contiguous(), x.contiguous(), k, stride)


@_weight_grad.register_fake
def _(grad: Tensor, x: Tensor, k: int, stride: int) -> Tensor:
    return x.new_empty((x.shape[1], 1, k, k), dtype=_accumulator(x.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, _ = ctx.needs_input_grad
    k, stride = _size(weight), ctx.stride
    dx = dw = db = None
    if of_x and _in_torch("depthwise_conv2d_input_grad", x, k, stride):
        dx = _aten_backward(grad, x, weight, stride, 0)
    elif of_x:
        dx = torch.ops.pam.depthwise_conv2d_input_grad(grad, weight, x.shape[2], x.shape[3], stride)
    if of_weight and _in_torch("depthwise_conv2d_weight_grad", x, k, stride):
        dw = _aten_backward(grad, x, weight, stride, 1)
    elif of_weight:
        dw = torch.ops.pam.depthwise_conv2d_weight_grad(grad, x, k, stride).to(weight.dtype)
    if of_bias:
        db = _bias_grad(grad).to(ctx.bias_dtype)
    return dx, dw, db, None


_forward.register_autograd(_backward, setup_context=_setup_context)


def _aten_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, which: int) -> Tensor:
    """The reference's gradient of x (which = 0) or of weight (1)."""
    mask, padding = [which == 0, which == 1, False], _size(weight) // 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], x.shape[1], mask
    )[which]


def _bias_grad(grad: Tensor) -> Tensor:
    return grad.sum((0, 2, 3), dtype=_accumulator(grad.dtype))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _size(weight: Tensor) -> int:
    return weight.shape[-1]


def _in_torch(op: str, x: Tensor, k: int, stride: int, dtype: torch.dtype | None = None) -> bool:
    return choose(op, x, kernel=k, stride=stride, dtype=dtype).implementation == "torch"
