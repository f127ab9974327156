"""The alpha-free loss against a naive loop, its gradient, its memory, and what it can and cannot recover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pam_mobile.data.compose import Batch
from pam_mobile.train import alpha_free
from pam_mobile.train.alpha_free import alpha_free_loss, ddc_loss, known_loss


def naive_ddc(alpha: np.ndarray, image: np.ndarray, k: int, topk: int, border: str = "edge") -> float:
    """alpha: (H, W); image: (3, H, W)."""
    height, width = alpha.shape
    r, total = k // 2, 0.0
    alphas, colours = np.pad(alpha, r, mode=border), np.pad(image, ((0, 0), (r, r), (r, r)), mode=border)
    for y in range(height):
        for x in range(width):
            found = []
            for v in range(k):
                for u in range(k):
                    distance = np.sqrt(((colours[:, y + v, x + u] - image[:, y, x]) ** 2).sum())
                    found.append((distance, len(found), alphas[y + v, x + u]))
            for distance, _, other in sorted(found)[:topk]:
                total += abs(distance - (alpha[y, x] - other))
    return total / (height * width * topk)


def scene(n: int, height: int, width: int, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Alpha and image in float64; with few levels of colour, most distances are equal to others."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, levels, (n, 3, height, width)) / max(1, levels - 1)
    return torch.from_numpy(rng.random((n, 1, height, width))), torch.from_numpy(image)


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("size", [(12, 12), (5, 13), (1, 7)])
def test_it_equals_a_naive_double_loop(levels: int, size: tuple[int, int]) -> None:
    alpha, image = scene(2, *size, levels, 0)
    expected = np.mean([naive_ddc(a[0].numpy(), i.numpy(), 11, 11) for a, i in zip(alpha, image, strict=True)])
    assert ddc_loss(alpha, image).item() == pytest.approx(expected, rel=1e-12)


def test_black_borders_would_be_another_loss() -> None:
    """Negative control: with zeros beyond the border, dark border pixels pair with alpha 0 outside."""
    alpha, image = scene(1, 12, 12, 10_000, 1)
    loss = ddc_loss(alpha, image * 0.2).item()
    assert naive_ddc(alpha[0, 0].numpy(), image[0].numpy() * 0.2, 11, 11) == pytest.approx(loss, rel=1e-12)
    assert naive_ddc(alpha[0, 0].numpy(), image[0].numpy() * 0.2, 11, 11, "constant") != pytest.approx(loss, rel=0.02)


@settings(max_examples=20)
@given(st.sampled_from([3, 5, 7]), st.integers(1, 9), st.integers(0, 100))
def test_other_windows_and_counts(k: int, topk: int, seed: int) -> None:
    alpha, image = scene(1, 6, 7, 4, seed)
    expected = naive_ddc(alpha[0, 0].numpy(), image[0].numpy(), k, topk)
    assert ddc_loss(alpha, image, k, topk).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [(7, 6), (3, 4), (1, 5)])
def test_gradient(size: tuple[int, int]) -> None:
    alpha, image = scene(2, *size, 10_000, 3)
    assert torch.autograd.gradcheck(lambda a: ddc_loss(3 * a, image), alpha.requires_grad_(), eps=1e-7)


def test_rows_are_taken_in_any_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha, image = scene(2, 12, 9, 5, 4)
    answers = []
    for chunk in (1, 2 * 9 * 121 * 5, 2**22):
        monkeypatch.setattr(alpha_free, "CHUNK", chunk)
        a = alpha.clone().requires_grad_()
        loss = ddc_loss(a, image)
        loss.backward()
        answers.append((loss.detach(), a.grad))
    for loss, gradient in answers[1:]:
        torch.testing.assert_close(loss, answers[0][0])
        torch.testing.assert_close(gradient, answers[0][1])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def largest(function: Callable[[Tensor, Tensor], Tensor], size: int) -> int:
    alpha, image = (x.float() for x in scene(1, size, size, 256, 0))
    with Largest() as seen:
        function(alpha.requires_grad_(), image).backward()
    return seen.elements


def test_memory_does_not_grow_with_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpha_free, "CHUNK", 2**18)
    assert largest(ddc_loss, 128) <= 2**18
    monkeypatch.setattr(alpha_free, "CHUNK", 2**40)
    assert largest(ddc_loss, 128) >= 121 * 128 * 128  # negative control: all rows at once


def test_an_image_without_gradient_keeps_no_windows() -> None:
    alpha, image = scene(1, 20, 20, 256, 0)
    loss = ddc_loss(alpha.requires_grad_(), image)
    (saved,) = loss.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert saved.shape == alpha.shape


def test_known_is_l1_over_known_pixels_only() -> None:
    rng = np.random.default_rng(0)
    trimap, alpha = rng.integers(0, 3, (2, 1, 9, 9)) / 2, rng.random((2, 1, 9, 9))
    expected = np.abs(alpha - trimap)[trimap != 0.5].mean()
    assert known_loss(torch.from_numpy(alpha), torch.from_numpy(trimap)).item() == pytest.approx(expected)
    assert known_loss(torch.rand(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)).item() == 0


def test_the_loss_of_a_batch_needs_no_alpha() -> None:
    alpha, image = (x.float() for x in scene(2, 16, 16, 256, 0))
    trimap = (torch.rand(2, 1, 16, 16) * 3).floor() / 2
    nan = torch.full_like(image, torch.nan)
    parts = alpha_free_loss(alpha.bfloat16(), Batch(image, trimap, nan[:, :1], nan, nan))
    assert set(parts) == {"loss", "known", "ddc"}
    torch.testing.assert_close(parts["loss"], parts["known"] + 10 * parts["ddc"])
    assert torch.isfinite(parts["loss"])


# --- what it recovers


def recovered(image: np.ndarray, alpha: np.ndarray, trimap: np.ndarray, steps: int) -> float:
    """Error of the alpha that minimises the loss from 0.5 on, as a share of the error of 0.5 everywhere unknown."""
    target, known = (torch.from_numpy(x).float()[None, None] for x in (alpha, trimap))
    picture = torch.from_numpy(image).float()[None]
    batch = Batch(picture, known, target, picture, picture)
    unknown = known == 0.5
    guess = known.clone().requires_grad_()
    optimiser = torch.optim.Adam([guess], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        alpha_free_loss(guess, batch)["loss"].backward()
        optimiser.step()
        schedule.step()
    error = (guess.detach() - target).abs()[unknown].sum()
    return float(error / (0.5 - target).abs()[unknown].sum())


def disc(size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Alpha of a soft disc, and a wide trimap: (size, size) each."""
    radius = np.hypot(*(np.mgrid[:size, :size] - (size - 1) / 2))
    alpha = np.clip((20 - radius) / 8 + 0.5, 0, 1)
    return alpha, np.select([radius < 6, radius > 29], [1.0, 0.0], 0.5)


def smooth(rng: np.random.Generator, base: list[float], size: int = 64) -> np.ndarray:
    """(3, size, size): a colour that drifts a little."""
    y, x = np.mgrid[:size, :size] / size
    slope = rng.uniform(-0.05, 0.05, (2, 3, 1, 1))
    return np.clip(np.array(base)[:, None, None] + slope[0] * x + slope[1] * y, 0, 1)


def test_alpha_is_recovered_where_colours_are_smooth() -> None:
    rng, (alpha, trimap) = np.random.default_rng(0), disc()
    image = alpha * smooth(rng, [0.85, 0.3, 0.2]) + (1 - alpha) * smooth(rng, [0.15, 0.4, 0.8])
    assert (trimap == 0.5).sum() > 2000
    assert recovered(image, alpha, trimap, 300) < 0.15


def test_it_fails_on_textures_of_the_same_colours() -> None:
    """By design: where foreground and background look alike, pixels of equal colour say nothing about alpha."""
    rng, (alpha, trimap) = np.random.default_rng(0), disc()
    image = alpha * rng.random((3, 64, 64)) + (1 - alpha) * rng.random((3, 64, 64))
    assert recovered(image, alpha, trimap, 150) > 0.8
