"""Training for int8: what is rounded, by how much, and that gradients and the network stay as they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pam_mobile.config import TrainConfig, override
from pam_mobile.errors import UsageError
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path
from pam_mobile.train.engine import Trainer
from pam_mobile.train.rounding import LEVELS, _round, round_to_steps, rounded


@given(st.integers(0, 999), st.floats(1e-6, 1e6), st.floats(-3, 3))
def test_rounding_moves_by_half_a_step_at_most_and_leaves_zero_alone(seed: int, scale: float, shift: float) -> None:
    x = (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) + shift) * scale
    x[0, 0, 0] = 0
    step = float(x.max().clamp(min=0) - x.min().clamp(max=0)) / LEVELS
    y = round_to_steps(x)
    assert float((y - x).abs().max()) <= 0.51 * step
    assert abs(float(y[0, 0, 0])) <= 0.51 * step
    assert len(y.unique()) <= LEVELS + 1
    torch.testing.assert_close(round_to_steps(y), y, rtol=0, atol=0.01 * step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_features_and_dtypes_stay(dtype: torch.dtype) -> None:
    for value in (0.0, 2.0, -2.0):
        x = torch.full((2, 3), value, dtype=dtype)
        y = round_to_steps(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, x)


def _tiny() -> tuple[Supernet, Tensor, Tensor]:
    torch.manual_seed(0)
    network = Supernet(preset("tiny", prior=True)).eval()
    for unit in network.units:  # fresh blocks do next to nothing
        for block in unit.blocks:
            nn.init.normal_(block.project.weight, std=0.1)
    nn.init.normal_(network.net.decoder.head.weight, std=0.1)
    return network, torch.rand(1, 3, 64, 64), torch.full((1, 1, 64, 64), 0.5)


@torch.no_grad()
def test_the_network_is_rounded_inside_only_and_on_every_path() -> None:
    network, image, trimap = _tiny()
    for path in (Path.all_run(len(network.units)), Path.all_bypass(len(network.units))):
        before = network(image, trimap, path=path)
        with rounded(network):
            inside = network(image, trimap, path=path)
        assert 1e-5 < float((inside - before).abs().mean()) < 0.2
        assert torch.equal(network(image, trimap, path=path), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = _round(layer, (), x)
        assert not torch.equal(y, x)
        (y * torch.arange(12.0).reshape(3, 4)).sum().backward()
        assert x.grad is not None
        return x.grad

    torch.testing.assert_close(gradient(torch.randn(3, 4)), torch.arange(12.0).reshape(3, 4))
    with rounded(layer):  # nothing of the network's own: no hook
        assert not any(module._forward_hooks for module in layer.modules())


def test_every_weight_of_the_path_still_learns() -> None:
    network, image, trimap = _tiny()
    with rounded(network):
        network(image, trimap, path=Path.all_run(len(network.units))).sum().backward()
    for name, parameter in network.net.named_parameters():
        wanted = ".head." not in name.replace("decoder.head", "") and ".connect." not in name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == wanted, name


def test_the_share_of_steps_is_a_share() -> None:
    with pytest.raises(UsageError, match=r"rounding=1\.5 is not a share of its steps"):
        override(TrainConfig(), ["stage2.rounding=1.5"])
    for share in (0.0, 0.3, 1.0):
        trainer: Any = SimpleNamespace(config=override(TrainConfig(), [f"stage2.rounding={share}"]))
        steps = [Trainer._rounds(trainer, 2, step) for step in range(400)]
        assert abs(sum(steps) / 400 - share) < 0.08
        assert steps == [Trainer._rounds(trainer, 2, step) for step in range(400)]
