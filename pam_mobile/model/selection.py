"""How the network chooses its path: a selection head in every unit (PAM, equation 3), and one head that plans all units at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..cost import CostTable
from .presets import EMBEDDING, PLANNING, Preset


class ChannelAttention(nn.Module):
    """x * sigmoid(MLP(mean(x))). Part of every path.  x: (N, c, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.act = nn.ReLU()
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.excite(self.act(self.squeeze(pooled))).sigmoid()


class Semantics(nn.Module):
    """What a head sees of the features: their mean over the pixels, standardised, through one layer.

    Means differ little between images beside what they have in common; without the standardisation heads learn the budget and
    hardly anything of the image (docs/findings.md). Mean and deviation over images are measured once, when stage 3 begins.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.layer = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, c, H, W). Returns (N, c)."""
        return self.layer((x.mean((2, 3)) - self.mean) / self.deviation).relu()

    def calibrate(self, pooled: Tensor) -> None:
        """Take mean and deviation from the means over the pixels (N, c) of a few images."""
        self.mean.copy_(pooled.mean(0))
        self.deviation.copy_(pooled.std(0).clamp(min=1e-3))


class SelectionHead(nn.Module):
    """Logits (bypass, run) of one unit from its features and the embedded budget."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.semantics = Semantics(channels)
        self.hidden = nn.Linear(channels + EMBEDDING, channels // 2)
        self.logits = nn.Linear(channels // 2, 2)

    def forward(self, x: Tensor, budget: Tensor) -> Tensor:
        """x: (N, c, H, W) features; budget: (N, 64) embedding. Returns (N, 2)."""
        return self.logits(self.hidden(torch.cat([self.semantics(x), budget], 1)).relu())


class PlanningHead(nn.Module):
    """Logits (bypass, run) of all units at once, from the features that enter the first unit and the embedded budget."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.semantics = Semantics(channels)
        self.hidden = nn.Linear(channels + EMBEDDING, PLANNING)
        self.logits = nn.Linear(PLANNING, 2 * units)

    def forward(self, x: Tensor, budget: Tensor) -> Tensor:
        """x: (N, c, H, W) features; budget: (N, 64) embedding. Returns (N, units, 2)."""
        return self.logits(self.hidden(torch.cat([self.semantics(x), budget], 1)).relu()).unflatten(1, (-1, 2))


def gumbel_one_hot(logits: Tensor, temperature: float, rng: np.random.Generator) -> Tensor:
    """A choice drawn from softmax(logits) as a one-hot vector whose gradient is that of the softened choice (PAM, equation 8).

    logits: (N, 2). Returns (N, 2), exactly 0 and 1: straight-through Gumbel-max.
    """
    noise = torch.from_numpy(rng.gumbel(size=tuple(logits.shape))).to(logits)
    noisy = logits + noise
    soft = (noisy / temperature).softmax(1)
    hard = torch.nn.functional.one_hot(noisy.argmax(1), logits.shape[1]).to(soft)
    return hard + (soft - soft.detach())


class BudgetEmbedding(nn.Module):
    """One learned row per budget step between the smallest and the largest path; in between, interpolated.

    Budgets at other input sizes are scaled to the preset's reference size by the number of pixels.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        table = CostTable.of(preset, preset.reference, preset.reference)
        self.step = preset.budget_step
        self.first = -(-table.smallest // self.step)
        self.reference = table.smallest
        self.rows = nn.Embedding(-(-table.largest // self.step) - self.first + 1, EMBEDDING)
        # Neighbouring budgets begin alike: what is learned at one serves the next.
        place, wave = torch.linspace(0, 1, self.rows.num_embeddings)[:, None], torch.arange(EMBEDDING)
        self.rows.weight.data.copy_(torch.cos(torch.pi * place * wave) / (1 + wave).sqrt())

    def forward(self, macs: int, table: CostTable) -> Tensor:
        """macs: the budget at the size of `table`. Returns (1, 64)."""
        position = macs * self.reference / table.smallest / self.step - self.first
        position = min(max(position, 0.0), self.rows.num_embeddings - 1.0)
        low = min(int(position), self.rows.num_embeddings - 2)
        return torch.lerp(self.rows.weight[low], self.rows.weight[low + 1], position - low)[None]
