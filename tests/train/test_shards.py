"""The mean over a step's shards, against autograd on the joint loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pam_mobile.train.processes import Processes
from pam_mobile.train.shards import Shards


class Forked(nn.Module):
    """Two branches behind a batch norm; a shard uses one, both or none of them. The last parameter is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.left = nn.Conv2d(2, 3, 3)
        self.right = nn.Conv2d(2, 3, 1)
        self.never = nn.Parameter(torch.ones(4))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, uses: tuple[bool, bool]) -> Tensor:
        y = self.norm(x)
        branches = [
            branch(y).square().mean() for branch, used in zip((self.left, self.right), uses, strict=True) if used
        ]
        return sum(branches, y.pow(3).mean())


uses = st.tuples(st.booleans(), st.booleans())


@given(st.lists(uses, min_size=1, max_size=5), st.integers(0, 1000))
def test_gradients_statistics_and_numbers_are_the_means_over_all_shards(
    plan: list[tuple[bool, bool]], seed: int
) -> None:
    torch.manual_seed(seed)
    network = Forked().train()
    data = [torch.randn(3, 2, 4, 4) for _ in plan]
    wanted, mean, variance = _joint(network, data, plan)
    shards = Shards(network, len(plan), Processes())
    assert list(shards.mine()) == list(range(len(plan)))
    shards.start()
    for shard in shards.mine():
        loss = network(data[shard], plan[shard])
        shards.add(loss, [loss, float(shard)])
    numbers = shards.finish()
    for name, parameter in network.named_parameters():
        if wanted[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, wanted[name])
    torch.testing.assert_close(network.norm.running_mean, mean)
    torch.testing.assert_close(network.norm.running_var, variance)
    assert int(network.norm.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert numbers[1] == sum(range(len(plan)))


def _joint(
    network: Forked, data: list[Tensor], plan: list[tuple[bool, bool]]
) -> tuple[dict[str, Tensor | None], Tensor, Tensor]:
    """The same by plain accumulation of gradients; leaves the network as it was."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    means, variances = [], []
    for x, used in zip(data, plan, strict=True):
        network.load_state_dict(before)
        (network(x, used) / len(plan)).backward()
        means.append(network.norm.running_mean.clone())  # type: ignore[union-attr]
        variances.append(network.norm.running_var.clone())  # type: ignore[union-attr]
    gradients = {name: p.grad for name, p in network.named_parameters()}
    network.load_state_dict(before)
    network.zero_grad()
    return gradients, torch.stack(means).mean(0), torch.stack(variances).mean(0)


def test_restored_statistics_are_those_from_before_the_step() -> None:
    network = Forked().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shards = Shards(network, 1, Processes())
    shards.start()
    shards.add(network(torch.full((2, 2, 4, 4), float("nan")), (True, True)), [0.0])
    shards.finish()
    assert not torch.equal(network.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]
    shards.restore()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_statistics_are_left_alone() -> None:
    network = Forked().eval()
    before = network.norm.running_mean.clone()  # type: ignore[union-attr]
    shards = Shards(network, 3, Processes())
    shards.start()
    for _ in shards.mine():
        shards.add(network(torch.randn(2, 2, 4, 4), (True, False)), [0.0])
    shards.finish()
    assert torch.equal(network.norm.running_mean, before)  # type: ignore[arg-type]
    assert int(network.norm.num_batches_tracked) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bug", [lambda s: s.gradients[1].mul_(2), lambda s: s.used.fill_(1), lambda s: s.sums[0].add_(1)]
)
def test_a_planted_bug_would_be_noticed(bug: Callable[[Shards], object], monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Shards.finish

    def wrong(self: Shards) -> list[float]:
        bug(self)
        return finish(self)

    monkeypatch.setattr(Shards, "finish", wrong)
    check = test_gradients_statistics_and_numbers_are_the_means_over_all_shards.hypothesis.inner_test  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        check([(True, False), (True, False)], 0)
