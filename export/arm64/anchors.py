"""Count the instructions of the networks by which phone estimates are calibrated (pam_export/device.py). Needs torchvision.

    python export/arm64/anchors.py [--cpu cortex-a73,cortex-a75]

Four MobileNets at 224x224 with random weights, because the instructions do not depend on them, and the colour prior alone at 256x256,
which explains why matting networks with it take more; rows go to export/results/anchors.csv. Exit codes as run.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import torch
from emulate import emulate
from run import MILLION, ended, environment, merge, parser_of, say
from toolchain import set_up
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pam_export.artifact import FORWARD
from pam_export.device import NETWORKS
from pam_export.executorch import open_program
from pam_export.parity import cases
from pam_export.quiet import quiet
from pam_export.rewrite import for_xnnpack
from pam_export.rows import Row
from pam_export.scalars import lift_scalars
from pam_export.wrapper import PriorAlone
from pam_mobile.errors import SetupError

RESULTS = FilePath(__file__).resolve().parents[1] / "results" / "anchors.csv"
SIZE, PRIOR_SIZE = 224, 256
BOUND = 1e-4
"""Largest difference to this machine's ExecuTorch, relative to the largest output."""


class MobileNetV1(nn.Module):
    """Howard et al., MobileNets, 2017, table 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        layers, channels = [*_layer(3, 32, 3, 2)], 32
        for width, stride in widths:
            layers += [*_layer(channels, channels, 3, stride, channels), *_layer(channels, width, 1, 1)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1001)

    def forward(self, image: Tensor) -> Tensor:
        """image: (1, 3, H, W). Returns (1, 1001)."""
        scores: Tensor = self.classifier(self.features(image).mean((2, 3), keepdim=True).flatten(1))
        return scores


def _layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]


def networks() -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Name, network and inputs; names as in pam_export/device.py. Raises SetupError without torchvision."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise SetupError(f"the anchors need torchvision: {error}", "pip install torchvision") from error
    makers = (MobileNetV1, models.mobilenet_v2, models.mobilenet_v3_large, models.mobilenet_v3_small)
    for name, make in zip(NETWORKS, makers, strict=True):
        torch.manual_seed(0)
        yield name, make().eval(), (torch.randn(1, 3, SIZE, SIZE),)
    yield f"colour prior {PRIOR_SIZE}", for_xnnpack(PriorAlone()), cases(PRIOR_SIZE)[0].inputs()


def main() -> int:
    options = parser_of("Count the instructions of four MobileNets and of the colour prior.", RESULTS).parse_args()

    def run() -> list[str]:
        rows: list[Row] = []
        for row in count(options.cache, options.cpu):
            say(f"{row['file']} on {row['cpu']}: {row['m_total']} M instructions, {row['m_macs']} M multiply-adds")
            rows.append(row)
            merge(options.out, rows)
        wrong = [row["file"] for row in rows if not float(row["relative_difference"]) <= BOUND]
        return [f"{name} differs from this machine's ExecuTorch" for name in wrong]

    return ended(run, "all outputs agree")


def count(cache: FilePath, cpus: list[str]) -> Iterator[Row]:
    """One row per network and processor."""
    toolchain, facts = set_up(cache, say), environment()
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder) / "network.pte"
        for name, network, inputs in networks():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(*inputs)
            with quiet("lowering"), open(file, "wb") as stream:
                _lower(network, inputs).to_executorch().write_to_file(stream)
            with quiet("running ExecuTorch"):
                expected = open_program(file).load_method(FORWARD).execute(inputs)[0].flatten()
            for cpu in cpus:
                emulated = emulate(toolchain, cpu, file, FORWARD, inputs)
                difference = float((emulated.output - expected).abs().max() / expected.abs().max())
                yield {
                    "file": name,
                    "method": FORWARD,
                    "cpu": cpu,
                    "m_macs": f"{counter.get_total_flops() / 2 / MILLION:.2f}",
                    **{f"m_{key}": f"{value / MILLION:.3f}" for key, value in emulated.instructions.items()},
                    "relative_difference": f"{difference:.1e}",
                } | facts


def _lower(network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(network, inputs)
    program = torch.export.export(lift_scalars(program.module(check_guards=False)), inputs)
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


if __name__ == "__main__":
    sys.exit(main())
