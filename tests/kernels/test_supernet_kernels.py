"""A small supernet trained for 20 steps with the interpreted kernels follows the run on PyTorch's operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")
from pam_kernels.connect import backward, forward
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

STEPS = 20
SMALL = replace(
    preset("tiny"),
    kernel=3,
    stem=4,
    channels=(4, 4, 4, 4, 4),
    encoder_units=(0, 0, 0),
    decoder_units=(0, 1, 1),
    decoder_channels=(4, 4),
)
"""Two units: the first is bypassed by its connect layer, the second runs its only depthwise block."""


def _train() -> tuple[list[float], list[Tensor]]:
    """The loss of each step, and the weights at the end."""
    torch.manual_seed(0)
    net = Supernet(SMALL)
    image, target = torch.rand(2, 3, 32, 32), 0.8 + 0.2 * torch.rand(2, 1, 32, 32)
    trimap = torch.randint(0, 3, (2, 1, 32, 32)) / 2
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = F.mse_loss(net(image, trimap, path=Path((False, True))), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in net.parameters()]


def test_twenty_steps_with_the_kernels_follow_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "torch")
    losses, weights = _train()
    assert losses[-1] < 0.9 * losses[0]

    launches, launch = [], forward.launch
    for module in (forward, backward):
        monkeypatch.setattr(module, "launch", lambda *given: launches.append(given[0]) or launch(*given))
    monkeypatch.setenv("PAM_KERNELS", "triton")
    kernel_losses, kernel_weights = _train()
    assert len(launches) == 2 * STEPS
    torch.testing.assert_close(kernel_losses, losses, rtol=1e-4, atol=0)
    for ours, theirs in zip(kernel_weights, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
