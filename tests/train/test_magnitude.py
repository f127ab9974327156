"""The penalty on features that grow: what it measures, when it is nothing, and that training against it makes features small."""

from __future__ import annotations

from math import log
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pam_mobile import checkpoint
from pam_mobile.commands.quickstart import OPAQUE, START
from pam_mobile.config import TrainConfig, override
from pam_mobile.cost import CostTable
from pam_mobile.errors import UsageError
from pam_mobile.evaluate.heldout import composites
from pam_mobile.model.ppm import PyramidPooling
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet
from pam_mobile.models import SHIPPED
from pam_mobile.path import Path, PathSpace
from pam_mobile.train.magnitude import LIMIT, excess, magnitudes

IMAGE, TRIMAP = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.full((2, 1, 64, 64), 0.5)


@pytest.fixture
def network() -> Supernet:
    """tiny, whose units make features much too large."""
    torch.manual_seed(0)
    found = Supernet(preset("tiny", prior=True)).train()
    for unit in found.units:
        for block in unit.blocks:
            nn.init.normal_(block.project.weight, std=24.0)
    return found


def _sizes(network: Supernet, path: Path) -> list[Tensor]:
    with magnitudes(network) as found:
        network(IMAGE, TRIMAP, path=path)
    return found


@pytest.mark.parametrize("run", [True, False])
def test_every_unit_and_the_pyramid_are_measured_where_gradients_are_asked_for(network: Supernet, run: bool) -> None:
    path = (Path.all_run if run else Path.all_bypass)(len(network.units))
    seen: list[float] = []

    def size(features: Tensor) -> None:
        seen.append(float((features.detach() ** 2).mean()))

    first = [units[0].attention for units in network.net.unit_lists() if len(units)]
    hooks = [module.register_forward_hook(lambda _, given, result: size(given[0])) for module in first]
    made = [unit.blocks if run else unit.connect for unit in network.units]
    pyramid = [module for module in network.modules() if isinstance(module, PyramidPooling)]
    hooks += [module.register_forward_hook(lambda _, given, result: size(result)) for module in (*made, *pyramid)]
    found = _sizes(network, path)
    assert [float(size.detach()) for size in found] == pytest.approx(seen)
    assert len(found) == len(first) + len(network.units) + network.preset.ppm
    assert max(seen) > (5 * LIMIT) ** 2 or not run
    with torch.no_grad():
        assert _sizes(network, path) == []
    for hook in hooks:
        hook.remove()
    assert not any(module._forward_hooks for module in network.modules())


def test_the_last_unit_of_a_level_is_seen() -> None:
    """No unit is given what it makes: the place where training went astray (docs/findings.md)."""
    torch.manual_seed(0)
    network = Supernet(preset("tiny", prior=True)).train()
    run = Path.all_run(len(network.units))
    assert float(excess(_sizes(network, run)).detach()) == 0
    last = network.net.encoder.units16[-1].blocks[-1]  # type: ignore[union-attr, index]
    nn.init.normal_(last.project.weight, std=240.0)
    sizes = _sizes(network, run)
    assert sum(float(size.detach()) > LIMIT**2 for size in sizes) == 1
    assert float(excess(sizes).detach()) > log(5)


@pytest.mark.parametrize("model", SHIPPED)
def test_training_on_from_what_is_shipped_does_not_shrink_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held at 8, what `tiny-v2` makes was shrunk, and the quickstart ended worse than it began (docs/findings.md)."""
    network = checkpoint.load(checkpoint.find(model)).supernet
    space = PathSpace(CostTable.of(network.preset, 256, 256))
    rng = np.random.default_rng(0)
    paths = [Path.all_run(space.units), Path.all_bypass(space.units), *(space.sample(rng) for _ in range(3))]
    batch = composites(2, 256, OPAQUE)[0]
    found = []
    for path in paths:
        with magnitudes(network) as sizes:
            network(batch.image, batch.trimap, path=path)
        found.append([size.detach() for size in sizes])
    assert median(float(excess(sizes)) for sizes in found) == 0
    monkeypatch.setattr("pam_mobile.train.magnitude.LIMIT", 8.0)
    assert median(float(excess(sizes)) for sizes in found) > 0.5 or model != START


def test_only_the_excess_counts_and_as_a_logarithm() -> None:
    sizes = [torch.tensor(scale * LIMIT, requires_grad=True) for scale in (0.0, 1.0, 10.0, 1000.0)]
    assert float(excess([size**2 for size in sizes]).detach()) == pytest.approx(log(10) + log(1000))
    small = excess([size**2 for size in sizes[:1]])
    assert float(small.detach()) == 0
    small.backward()
    assert [float(size.grad) for size in sizes if size.grad is not None] == [0.0]  # not NaN where features are all zero


def test_training_against_it_makes_features_small(network: Supernet) -> None:
    run = Path.all_run(len(network.units))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    before = float(excess(_sizes(network, run)).detach())
    for _ in range(100):
        optimiser.zero_grad()
        excess(_sizes(network, run)).backward()
        optimiser.step()
    assert float(excess(_sizes(network, run)).detach()) < 0.5 * before


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UsageError, match="magnitude_weight"):
        override(TrainConfig(), ["magnitude_weight=-1"])
