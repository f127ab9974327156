"""A small network with lively random weights, for the export tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from pam_export import BudgetPath
from pam_export.artifact import FORWARD, Load, Pair, Part, Request
from pam_export.parity import Case, cases
from pam_export.quiet import quiet
from pam_mobile.budget import Budget
from pam_mobile.model.presets import Preset, preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

SIZE = 64
PTE, MLPACKAGE = "executorch/single/fp32", "coreml/single/fp16"
MODEL = {
    "name": "random",
    "weights_version": 3,
    "weights_sha256": "ab" * 32,
    "licence": "CC0-1.0",
    "data_licence": "none",
}
CHOICES = [
    BudgetPath(Budget.parse("100%"), Path.parse("111")),
    BudgetPath(Budget.parse("97.5%"), Path.parse("010")),
    BudgetPath(Budget.parse("96%"), Path.parse("000")),
]


def mini(prior: bool = False) -> Preset:
    """`tiny` with three units and few channels: every kind of layer, seconds to export."""
    return replace(
        preset("tiny", prior),
        name="mini",
        stem=4,
        channels=(8, 8, 16, 16, 24),
        encoder_convs=(0, 0),
        encoder_units=(1, 0, 1),
        decoder_units=(0, 1, 0),
        decoder_channels=(8, 8),
    )


def single(module: nn.Module, inputs: Pair) -> list[Part]:
    """The parts of an artifact with one network."""
    return [Part(FORWARD, module, inputs)]


def alphas_of(load: Load, path: FilePath, inputs: Sequence[Case], request: Request | None = None) -> list[Tensor]:
    """What an artifact answers to every case."""
    with quiet("running"):
        run = load(path)
        return [run(case.image, case.trimap, request or Request()).alpha for case in inputs]


@torch.no_grad()
def lively(numbers: Preset, size: int, seed: int = 0) -> Supernet:
    """A random supernet whose batch norms have statistics near the true ones and whose alpha spreads around 0.5."""
    torch.manual_seed(seed)
    net = Supernet(numbers)
    inputs = [torch.cat(parts) for parts in zip(*(case.inputs() for case in cases(size)), strict=True)]
    paths = [Path.all_run(len(net.units)), Path.all_bypass(len(net.units))]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
    for path in paths:
        net.train()(*inputs, path=path)
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt())
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
    _spread(net.eval(), inputs, paths)
    return net


def _spread(net: Supernet, inputs: list[torch.Tensor], paths: list[Path]) -> None:
    head, logits = net.net.decoder.head, []
    handle = head.register_forward_hook(lambda module, args, out: logits.append(out))
    for path in paths:
        net(*inputs, path=path)
    handle.remove()
    assert head.bias is not None
    values = torch.cat(logits) - head.bias
    factor = float(0.1 / values.std())
    head.weight.mul_(factor)
    head.bias.fill_((0.0 if net.preset.prior else 0.5) - factor * float(values.mean()))
