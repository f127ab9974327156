"""The batch of a shard of a step: a pure function of (seed, stage, step, shard)."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Generator

from ..config import Crop, TrainConfig
from ..data.bank import Bank
from ..data.compose import Batch, Composer
from ..data.order import RANDOM, Order


class Batches:
    """Composes batches; in an order of its own where `data.style` asks for one."""

    def __init__(self, config: TrainConfig, bank: Bank) -> None:
        self.config, self.bank = config, bank
        self.composer = Composer(naive=config.data.style == "naive")
        self.starts: dict[int, list[int]] = {}

    def __call__(self, stage: int, step: int, shard: int) -> Batch:
        rng, crop = self._crop(stage, step, shard)
        style, seed = self.config.data.style, self.config.seed
        if style == RANDOM:
            return self.composer(self.bank, crop.batch, crop.size, rng)
        order = Order(style, len(self.bank.patches), len(self.bank.backgrounds), (seed, stage))
        rows = order.take(self._start(stage, step, shard), crop.batch)
        return self.composer.ordered(self.bank, torch.from_numpy(rows), crop.size, rng)

    def _crop(self, stage: int, step: int, shard: int) -> tuple[Generator, Crop]:
        """The generator of a batch, and the crop that it draws first."""
        rng = Generator().manual_seed(batch_seed(self.config.seed, stage, step, shard))
        shares = torch.tensor([crop.share for crop in self.config.crops])
        return rng, self.config.crops[int(torch.multinomial(shares, 1, generator=rng))]

    def _start(self, stage: int, step: int, shard: int) -> int:
        """How many composites the stage has seen before: the crops of all earlier batches are drawn again to know it."""
        shards = self.config.shards
        if stage not in self.starts:
            steps = self.config.stage(stage).steps
            sizes = [self._crop(stage, s, i)[1].batch for s in range(steps) for i in range(shards)]
            self.starts[stage] = [0, *accumulate(sizes)]
        return self.starts[stage][step * shards + shard]


def batch_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
