"""Both operators under DistributedDataParallel, which takes the gradients as they are made."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("triton")
from pam_kernels import Connect, DepthwiseConv2d


@pytest.fixture
def _group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
def test_gradients_are_those_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_KERNELS", "triton")
    net = nn.Sequential(DepthwiseConv2d(4, 3), Connect(4), DepthwiseConv2d(4, 3, 2))
    wrapped = DistributedDataParallel(copy.deepcopy(net))
    x = torch.randn(2, 4, 5, 6)
    for module in (net, wrapped):
        module(x).square().sum().backward()
    for ours, theirs in zip(wrapped.module.parameters(), net.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
