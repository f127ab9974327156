"""Stage 3: who gets which gradient, the ablations, and a toy whose right path is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pam_mobile.config import PathLearningSettings
from pam_mobile.cost import CostTable
from pam_mobile.data.compose import Batch
from pam_mobile.model.presets import preset
from pam_mobile.model.supernet import Supernet, margin
from pam_mobile.path import Path, PathSpace
from pam_mobile.train import labels
from pam_mobile.train.labels import Label, sample
from pam_mobile.train.losses import charbonnier, matting_loss, unknown_mask
from pam_mobile.train.pathlearning import WORTH, PathLearning, calibrate_heads, worth_loss
from pam_mobile.train.pathprior import PathPrior

TINY = preset("tiny")
SPACE = PathSpace(CostTable.of(TINY, 512, 512))
PRIOR = PathPrior.flat(TINY, SPACE)


def network(seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    net = Supernet(TINY)
    torch.nn.init.normal_(net.net.decoder.head.weight, std=0.1)
    return net.eval()


def batch(count: int = 2, size: int = 32, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    alpha, foreground, background = torch.rand(count, 1, size, size), *torch.rand(2, count, 3, size, size)
    image = alpha * foreground + (1 - alpha) * background
    return Batch(image, torch.full_like(alpha, 0.5), alpha, foreground, background)


def objective(**settings: float | bool) -> PathLearning:
    chosen = replace(PathLearningSettings(candidates=3), **settings)  # type: ignore[arg-type]
    return PathLearning(SPACE, matting_loss, chosen, network(7), PRIOR, [])


def gradients(losses: dict[str, Tensor], net: Supernet, name: str = "loss") -> dict[str, bool]:
    """Which parts of the network a loss reaches."""
    net.zero_grad()
    losses[name].backward(retain_graph=True)
    parts = {
        "trunk": net.net.encoder.stem,
        "head of the network": net.net.decoder.head,
        "selection": torch.nn.ModuleList(unit.head for unit in net.units),
        "planning": net.planning,
        "embedding": net.embedding,
    }
    return {
        part: any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())
        for part, module in parts.items()
    }


def test_weights_take_the_matting_losses_and_heads_the_cross_entropy() -> None:
    net = network()
    losses = objective()(net, batch(), np.random.default_rng(0))
    weights = {"trunk": True, "head of the network": True, "selection": False, "planning": False, "embedding": False}
    assert gradients(losses, net, "l1") == weights
    assert gradients(losses, net, "distillation") == weights
    heads = {"trunk": False, "head of the network": False, "selection": True, "planning": False, "embedding": True}
    assert gradients(losses, net, "choose") == heads
    assert gradients(losses, net, "plan") == heads | {"selection": False, "planning": True}
    assert all(gradients(losses, net).values())


def worths(worth: Sequence[float], paths: Sequence[str], base: float) -> Label:
    """A label whose paths save exactly the sum of the units' worth of an error of 1; their mean error is `base`."""
    saved = [WORTH * sum(w for w, bit in zip(worth, path, strict=True) if bit == "1") for path in paths]
    errors = [base + sum(saved) / len(saved) - s for s in saved]
    return Label(
        Path.parse(paths[0]), 0.0, 0.0, own=False, tried=tuple(zip(map(Path.parse, paths), errors, strict=True))
    )


def test_scores_are_what_units_save() -> None:
    """Descending the loss finds the worth of every unit that differs between paths, in units of the batch's mean error of 1."""
    worth = [0.5, -0.3, 0.0]
    paths = ["1001", "0101", "0011", "1111", "0111", "1011"]
    found = [worths([*worth, 9.0], paths, base=0.4), worths([*(-w for w in worth), 9.0], paths, base=1.6)]
    scores = torch.full((2, 4), 0.1, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-9, tolerance_change=0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = worth_loss(scores, found)
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert worth_loss(scores, found).item() == pytest.approx(0, abs=1e-6)
    want = torch.tensor([worth, [-w for w in worth]])
    torch.testing.assert_close(scores[:, :3].detach(), want, atol=1e-3, rtol=0)
    assert scores[:, 3].tolist() == pytest.approx([0.1, 0.1])  # runs on every path: nothing is known of it


def test_paths_that_are_alike_teach_nothing() -> None:
    scores = torch.zeros(2, 3, requires_grad=True)
    alike = Label(
        Path.parse("111"), 0.3, 0.0, own=False, tried=tuple((Path.parse(p), 0.3) for p in ("111", "010", "001"))
    )
    alone = alike._replace(tried=alike.tried[:1])
    loss = worth_loss(scores, [alike, alone])
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_the_loss_is_the_weighted_sum() -> None:
    losses = objective(path_weight=0.3, distillation_weight=0.5)(network(), batch(), np.random.default_rng(0))
    parts = losses["l1"] + losses["composition"] + 0.1 * losses["laplacian"]
    parts = parts + 0.5 * losses["distillation"] + 0.3 * (losses["choose"] + losses["plan"])
    torch.testing.assert_close(losses["loss"], parts)


def test_distillation_is_the_distance_to_the_frozen_whole_network_on_unknown_pixels() -> None:
    step, net, data = objective(), network(), batch()
    data = data._replace(trimap=(data.alpha > 0.3).float() * 0.5)
    drawn: list[list[Path]] = []
    find = labels.find_labels

    def remember(*args: object) -> list[Label]:
        found = find(*args)  # type: ignore[arg-type]
        drawn.append([label.path for label in found])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pam_mobile.train.pathlearning.find_labels", remember)
        losses = step(net, data, np.random.default_rng(1))
    with torch.no_grad():
        taught = network(7)(data.image, data.trimap, path=Path.all_run(9))
        alpha = net(data.image, data.trimap, path=drawn[0])
    expected = charbonnier(alpha - taught, unknown_mask(data.trimap))
    torch.testing.assert_close(losses["distillation"].detach(), expected)
    before = {k: v.clone() for k, v in step.teacher.state_dict().items()}
    losses["loss"].backward()
    assert all(p.grad is None for p in step.teacher.parameters())
    assert all(torch.equal(v, step.teacher.state_dict()[k]) for k, v in before.items())


def test_charbonnier_is_the_absolute_difference_with_a_round_corner() -> None:
    x = torch.tensor([0.0, -0.5, 2.0, 9.0], requires_grad=True)
    loss = charbonnier(x, torch.tensor([1.0, 1, 1, 0]))
    assert loss.item() == pytest.approx(2.5 / 3, abs=1e-6)
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0, -1 / 3, 1 / 3, 0], abs=1e-6)


def test_without_distillation_there_is_none() -> None:
    assert "distillation" not in objective(distillation_weight=0)(network(), batch(), np.random.default_rng(0))


def test_gumbel_only_reaches_the_heads_through_the_matting_loss() -> None:
    net = network()
    losses = objective(gumbel_only=True)(net, batch(), np.random.default_rng(0))
    assert "choose" not in losses
    assert gradients(losses, net, "l1") == {
        "trunk": True,
        "head of the network": True,
        "selection": True,
        "planning": False,
        "embedding": True,
    }
    assert 0 <= float(losses["run_share"]) <= 1


def test_blended_branches_are_those_of_the_choice() -> None:
    unit = network().units[0]
    x = torch.randn(2, 64, 8, 8)
    choice = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(unit.blend(x, choice), unit(x, [False, True]))


# The toy: two kinds of image, and one group of units that matters for one kind only.

GROUP = range(2)
BUDGET_ROW = 4


def kinds(count: int, seed: int) -> tuple[Batch, Tensor]:
    """Half of the images are smooth, half are textured; (N,) bool says which."""
    rng = torch.Generator().manual_seed(seed)
    textured = torch.rand(count, generator=rng) < 0.5
    smooth = torch.nn.functional.interpolate(
        torch.rand(count, 3, 3, 3, generator=rng), 32, mode="bilinear", align_corners=True
    )
    noise = torch.rand(count, 3, 32, 32, generator=rng)
    image = torch.where(textured[:, None, None, None], 0.5 * smooth + 0.5 * noise, smooth)
    alpha = torch.rand(count, 1, 32, 32, generator=rng)
    return Batch(image, torch.full_like(alpha, 0.5), alpha, image, 1 - image), textured


def known_errors(textured: Tensor, paths: Sequence[Sequence[Path]]) -> list[list[float]]:
    """Textured images need the group, smooth ones any other units."""

    def error(path: Path, group: bool) -> float:
        inside = sum(path.bits[u] for u in GROUP)
        return 1.0 - 0.1 * (inside if group else sum(path) - inside)

    return [[error(path, bool(t)) for path in own] for t, own in zip(textured, paths, strict=True)]


def accuracy(shuffled: bool) -> tuple[float, float]:
    """Train the heads on the toy; how often do (selection heads, planning head) prefer what the image's kind needs?"""
    net = network(3)
    step = objective(candidates=24, distillation_weight=0)
    optimiser = torch.optim.RAdam(
        [p for n, p in net.named_parameters() if "head." in n or "planning" in n or "embedding" in n], lr=2e-2
    )
    rng = np.random.default_rng(0)
    calibrate_heads(net, [kinds(32, 20_000)[0]], SPACE, rng)
    row = slice(BUDGET_ROW, BUDGET_ROW + 1)
    only = replace(PRIOR, budgets=PRIOR.budgets[row], votes=PRIOR.votes[:, row])
    step.prior = only
    for i in range(100):
        data, textured = kinds(24, i)
        if shuffled:
            textured = textured[torch.randperm(24, generator=torch.Generator().manual_seed(i))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(labels, "path_errors", lambda net, data, paths, t=textured: known_errors(t, paths))
            losses = step(net, data, rng)
        optimiser.zero_grad()
        (losses["choose"] + losses["plan"]).backward()
        optimiser.step()
    data, textured = kinds(80, 10_000)
    with torch.no_grad():
        wish = net.embedding(only.budgets[0], SPACE.table)
        drawn = sample(net, data, wish, rng)
    return tuple(  # type: ignore[return-value]
        float(((scores[:, list(GROUP)].mean(1) > scores[:, len(GROUP) :].mean(1)) == textured).float().mean())
        for scores in (margin(drawn.steps), margin(drawn.plans))
    )


def test_the_heads_separate_two_kinds_of_image_at_equal_budget() -> None:
    assert min(accuracy(shuffled=False)) > 0.9


def test_the_heads_cannot_separate_them_when_features_and_labels_are_shuffled() -> None:
    assert max(accuracy(shuffled=True)) < 0.75
