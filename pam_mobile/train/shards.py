"""A step consists of equal micro-batches, its shards. Whoever computes them, the step sees the mean over all of them.

One flat buffer holds what is averaged: gradients, which parameters had one, batch norm statistics and losses. It is summed over the
shards of this process, then over the processes by one all-reduce. A parameter that a shard did not use counts as zeros there and keeps
no gradient if no shard used it, so random paths need no special care. Two processes with one shard each compute bit for bit what one
process with two shards computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .processes import Processes

NUMBERS = 32
"""Room for the scalars of a step: losses by name, crops, signals."""


class Shards:
    """Mean of gradients, statistics and numbers over the shards of a step."""

    def __init__(self, network: nn.Module, count: int, processes: Processes) -> None:
        self.count, self.processes = count, processes
        self.parameters = list(network.parameters())
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
        self.statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
        self.counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        sizes = [tensor.numel() for tensor in (*self.parameters, *self.statistics)]
        device = self.parameters[0].device
        self.flat = torch.zeros(sum(sizes) + len(self.parameters) + NUMBERS, device=device)
        views, at = [], 0
        for tensor, size in zip((*self.parameters, *self.statistics), sizes, strict=True):
            views.append(self.flat.as_strided(tensor.shape, tensor.stride(), at))
            at += size
        self.gradients, self.sums = views[: len(self.parameters)], views[len(self.parameters) :]
        self.used, self.numbers = self.flat[at:-NUMBERS], self.flat[-NUMBERS:]
        groups = [group for group in (self.statistics, self.counters) if group]
        self.kept = [(group, [tensor.clone() for tensor in group]) for group in groups]

    def mine(self) -> range:
        """The shards that this process computes."""
        return range(self.processes.rank, self.count, self.processes.count)

    @torch.no_grad()
    def start(self) -> None:
        """Begin a step."""
        self.flat.zero_()
        for live, before in self.kept:
            torch._foreach_copy_(before, live)

    @torch.no_grad()
    def add(self, loss: Tensor, numbers: Sequence[Tensor | float]) -> None:
        """Add a shard: runs the backward pass of its loss."""
        for parameter in self.parameters:
            parameter.grad = None
        with torch.enable_grad():
            (loss / self.count).backward()
        used = torch.tensor([float(parameter.grad is not None) for parameter in self.parameters])
        pairs = [(view, p.grad) for view, p in zip(self.gradients, self.parameters, strict=True) if p.grad is not None]
        torch._foreach_add_([view for view, _ in pairs], [gradient for _, gradient in pairs])
        self.used += used.to(self.used)
        self.numbers[: len(numbers)] += torch.stack([torch.as_tensor(n).to(self.numbers).detach() for n in numbers])
        if self.statistics:
            torch._foreach_add_(self.sums, self.statistics)
            self.restore()

    @torch.no_grad()
    def finish(self) -> list[float]:
        """Give every parameter its mean gradient and the norms their mean statistics; returns the sums of the numbers."""
        self.processes.sum(self.flat)
        scalars = self.flat[-NUMBERS - len(self.parameters) :].tolist()
        for parameter, view, users in zip(self.parameters, self.gradients, scalars[:-NUMBERS], strict=True):
            parameter.grad = view if users else None
        if self.statistics:
            torch._foreach_copy_(self.statistics, torch._foreach_div(self.sums, self.count))
            torch._foreach_add_(self.counters, 1)
        return [float(number) for number in scalars[-NUMBERS:]]

    @torch.no_grad()
    def restore(self) -> None:
        """The statistics from before the step."""
        for live, before in self.kept:
            torch._foreach_copy_(live, before)
