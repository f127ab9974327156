"""A whole training step of the network `full`: the kernels against plain PyTorch operators, both under torch.compile.

In the row, `torch_compile` is the plain network in NCHW and `cudnn_channels_last` the same in channels_last, compiled too.
Started as a program it measures all of it for nothing, so that what torch.compile made is in its cache.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cases
import torch
import torch.nn.functional as F
from measure import Measured, failed, measure, say

from pam_kernels.dispatch import forced

PATHS = ("every_second_unit", "all_units")


def measure_step(which: str, device: str, dry: bool) -> Iterator[Measured]:
    """The row of the path that runs all units, or every second one (the connect layers stand in for the others).

    It is given again with each implementation that was measured; one that fails is said and left out. Raises what ours raises.
    """
    try:
        from pam_mobile.model.presets import preset
        from pam_mobile.model.supernet import Supernet
        from pam_mobile.path import Path
    except ImportError as error:
        say(f"no row of a training step: {error}")
        return
    numbers, batch, crop = preset("full"), 16, 512
    if dry:
        small: dict[str, Any] = {
            "kernel": 3,
            "stem": 4,
            "channels": (4, 4, 4, 4, 4),
            "encoder_units": (1, 1, 1),
            "decoder_units": (1, 0, 0),
        }
        numbers, batch, crop = replace(numbers, name="dry", decoder_channels=(4, 4), ppm=1, **small), 2, 32
    units = len(numbers.units)
    path = Path.all_run(units) if which == "all_units" else Path(tuple(unit % 2 == 0 for unit in range(units)))
    image = torch.rand(batch, 3, crop, crop, device=device)
    trimap = torch.randint(0, 3, (batch, 1, crop, crop), device=device) / 2
    target = torch.rand(batch, 1, crop, crop, device=device)

    def step_of(mode: str, layout: torch.memory_format) -> Callable[[], object]:
        torch.manual_seed(0)
        net = Supernet(numbers).to(device, memory_format=layout)  # type: ignore[call-overload]
        images = image.contiguous(memory_format=layout)
        compiled = torch.compile(net, backend=cases.BACKEND, dynamic=False)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def step() -> None:
            with forced(mode):
                with torch.autocast(device, torch.bfloat16):
                    loss = F.l1_loss(compiled(images, trimap, path=path).float(), target)
                loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    costs = {}
    for implementation, mode, layout in (
        (cases.OURS, "triton", torch.contiguous_format),
        (cases.COMPILED, "torch", torch.contiguous_format),
        (cases.CUDNN_LAST, "torch", torch.channels_last),
    ):
        torch.compiler.reset()
        gc.collect()
        try:
            costs[implementation] = measure(step_of(mode, layout), device)
        except Exception as error:  # of whichever library
            if implementation == cases.OURS:
                raise
            failed(f"{implementation} cannot run the training step", error)
        yield Measured(f"training_step_{numbers.name}", which, units, f"{batch}x3x{crop}x{crop}", "bfloat16", costs)


if __name__ == "__main__":
    for which in PATHS:
        for _ in measure_step(which, "cuda", dry=False):
            pass
