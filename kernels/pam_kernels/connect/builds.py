"""Every build of the connect kernels: each row of configs.py at the largest channel count it serves."""

from __future__ import annotations

from collections.abc import Iterator

from ..build import Build
from .backward import connect_backward_kernel
from .configs import TABLE
from .forward import connect_forward_kernel

KERNELS = {
    "forward": (connect_forward_kernel, ("x", "w1", "b1", "w2", "b2", "y")),
    "backward": (connect_backward_kernel, ("x", "w1", "b1", "w2", "g", "dx", "a", "d")),
}
TYPES = {2: "*bf16", 4: "*fp32"}


def builds() -> Iterator[Build]:
    """Hidden width C / 2 and relu, as in the networks. The larger rows read channels_last too, which takes more registers."""
    for (kernel, itemsize), rows in TABLE.items():
        function, pointers = KERNELS[kernel]
        for channels, config in rows:
            for last in (False, True) if itemsize == 2 and channels > 256 else (False,):
                yield Build(
                    f"connect {kernel} C={channels} {TYPES[itemsize][1:]}{' channels_last' if last else ''}",
                    function,
                    dict.fromkeys(pointers, TYPES[itemsize]) | {"P": "i32"},
                    {
                        "C": channels,
                        "M": channels // 2,
                        "BC": config.channels,
                        "BM": config.hidden,
                        "BP": config.pixels,
                        "ACT": "relu",
                        "LAST": last,
                        "EMU": False,
                    },
                    config.warps,
                    config.stages,
                    (*pointers, "P"),
                    tensor_cores=itemsize == 2,
                    wide_loads=itemsize == 2,
                )
