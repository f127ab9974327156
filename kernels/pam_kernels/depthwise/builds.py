"""Every build of the depthwise kernels: each entry of configs.py, in each role, at the largest kernel size it serves."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..build import Build
from .configs import DIRECT, HANKEL, TOEPLITZ, Direct, Toeplitz, convolution_config, weight_grad_config
from .forward import Role, band_kernel, direct_kernel, toeplitz_kernel
from .grad_weight import constants, hankel_kernel

ROLES = {"forward": (1, 1), "forward stride 2": (1, 2), "input gradient stride 2": (2, 1)}
"""UP and DOWN. The gradient at stride 1 is left out: it differs from the forward in the order of taps only."""
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
INTEGERS = dict.fromkeys(("N", "C", "HI", "WI", "HO", "WO"), "i32")


def builds() -> Iterator[Build]:
    """Tensor cores: bfloat16, and once float16, which differs in one instruction."""
    direct = [(sizes[-1], torch.float32) for sizes in DIRECT]
    tensor_cores = [(sizes[-1], torch.bfloat16) for sizes in TOEPLITZ]
    for k, dtype in direct + tensor_cores:
        for name, (up, down) in ROLES.items():
            yield from _convolution(name, Role(k, up, down, up > 1), dtype)
    yield from _convolution("forward", Role(7, 1, 1, False), torch.float16)
    for k in (sizes[-1] for sizes in HANKEL):
        for stride, dtype in ((1, torch.bfloat16), (2, torch.bfloat16), (1, torch.float32)):
            config = weight_grad_config(k, dtype, False)
            yield Build(
                f"depthwise weight gradient k={k} stride {stride} {dtype}",
                hankel_kernel,
                dict.fromkeys(("x", "g"), TYPES[dtype]) | {"partial": "*fp32"} | INTEGERS,
                constants(k, stride, 2 * config.columns, config) | {"EMU": False},
                config.warps,
                3,
                ("x", "g", "partial", "WI", "WO"),
                tensor_cores=dtype != torch.float32,
            )


def _convolution(name: str, role: Role, dtype: torch.dtype) -> Iterator[Build]:
    config = convolution_config(role.k, dtype, role.up * role.down, False)
    name = f"depthwise {name} k={role.k} {dtype}"
    types = dict.fromkeys(("x", "w", "y", "band"), TYPES[dtype]) | {"bias": "*fp32"} | INTEGERS
    if isinstance(config, Direct):
        fixed = role.direct(config) | {"BIAS": True, "EMU": False}
        yield Build(name, direct_kernel, types, fixed, config.warps, 3, ("x", "w", "bias", "y", "WI", "WO"))
        return
    assert isinstance(config, Toeplitz)
    fixed = role.toeplitz(config)
    yield Build(f"{name} band", band_kernel, types, fixed | {"FLIP": role.flip}, 8, 3, ("w", "band"))
    yield Build(
        name,
        toeplitz_kernel,
        types,
        fixed | {"BIAS": True, "M": config.tiles, "STAGES": config.stages, "EMU": False},
        config.warps,
        config.stages,
        ("x", "band", "bias", "y", "WI", "WO"),
        tensor_cores=True,
        wide_loads=True,
    )
