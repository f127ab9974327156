"""The colour prior against a literal float64 version of its description, and its promises about exotic inputs."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pam_mobile.model.presets import preset
from pam_mobile.model.prior import CONFIDENT, EPS_COVARIANCE, EPS_DISTANCE, EPS_WEIGHT, ColourPrior, exact_convolutions
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

# A literal version: per-cell loops, full 3x3 matrices, np.linalg.inv


def _averaged(x: np.ndarray, size: int) -> np.ndarray:
    """Means of size x size cells of (H, W, C), whose sides are multiples of the size."""
    h, w, c = x.shape
    return np.array(
        [[x[i : i + size, j : j + size].reshape(-1, c).mean(0) for j in range(0, w, size)] for i in range(0, h, size)]
    )


def _enlarged(x: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear, pixel centres at halves, the edge repeated."""
    h, w, _ = x.shape
    out = np.empty((h * factor, w * factor, x.shape[2]))
    for i in range(h * factor):
        y = min(max((i + 0.5) / factor - 0.5, 0), h - 1)
        top = min(int(y), h - 1)
        below = min(top + 1, h - 1)
        row = x[top] * (1 - (y - top)) + x[below] * (y - top)
        for j in range(w * factor):
            z = min(max((j + 0.5) / factor - 0.5, 0), w - 1)
            left = min(int(z), w - 1)
            right = min(left + 1, w - 1)
            out[i, j] = row[left] * (1 - (z - left)) + row[right] * (z - left)
    return out


def _filled(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Push: halve until a side is at most 2. Pull: a cell is its own value by its weight, the rest is the coarser level's."""
    mean = values.mean((0, 1)) / (weight.mean() + 1e-6)

    def at(values: np.ndarray, weight: np.ndarray, level: int) -> np.ndarray:
        h, w, _ = values.shape
        if min(h, w) <= 2 or level == 10:
            return (values + EPS_WEIGHT * mean) / (weight + EPS_WEIGHT)
        padding = ((0, h % 2), (0, w % 2), (0, 0))
        halved, cover = _averaged(np.pad(values, padding), 2), _averaged(np.pad(weight, padding), 2)
        enough = np.minimum(2 * cover, 1) / (cover + 1e-6)
        coarse = _enlarged(at(halved * enough, cover * enough, level + 1), 2)[:h, :w]
        return values + (1 - weight) * coarse

    return at(values, weight, 1)


def _gaussian(x: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (h, w, 3) and covariance (h, w, 3, 3) near every cell, of cells x (h, w, 3) that count as far as they are covered."""
    moments = np.concatenate([x, np.einsum("hwi,hwj->hwij", x, x).reshape(*x.shape[:2], 9)], 2)
    weight = cover * np.minimum(2 * cover, 1) / (cover + 1e-6)
    filled = _filled(moments * weight, weight)
    mean, second = filled[..., :3], filled[..., 3:].reshape(*filled.shape[:2], 3, 3)
    return mean, second - np.einsum("hwi,hwj->hwij", mean, mean)


def _lines(x: np.ndarray, fg: np.ndarray, bg: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha = colour . slope - intercept, the colour in [0, 1], and separability, for every cell."""
    mean_fg, cov_fg = _gaussian(x, fg)
    mean_bg, cov_bg = _gaussian(x, bg)
    slope, intercept, separable = np.empty_like(x), np.empty_like(fg), np.empty_like(fg)
    for i, j in np.ndindex(*x.shape[:2]):
        cov = (cov_fg[i, j] + cov_bg[i, j]) / 2
        for k in range(3):
            cov[k, k] = max(cov[k, k], 0) + EPS_COVARIANCE
        gap = mean_fg[i, j] - mean_bg[i, j]
        direction = np.linalg.inv(cov) @ gap
        distance = gap @ direction
        # The colours of the moments are 4 times those of the image, from -2 to 2.
        slope[i, j] = 4 * direction / (distance + EPS_DISTANCE)
        intercept[i, j] = (mean_bg[i, j] + 2) @ direction / (distance + EPS_DISTANCE)
        separable[i, j] = distance / (distance + 4)
    return slope, intercept, separable


def _on(colours: np.ndarray, slope: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    return np.clip((colours * slope).sum(2, keepdims=True) - intercept, 0, 1)


def _literal(image: Tensor, fg: Tensor, bg: Tensor, stride: int = 2) -> np.ndarray:
    """(3, H, W) of image (3, H, W) and masks (1, H, W)."""
    colours, f, b = (t.double().numpy().transpose(1, 2, 0) for t in (image, fg, bg))
    unknown = 1 - f - b
    cells, some_f, some_b = (_averaged(plane, stride) for plane in (colours, f, b))
    x = 4 * cells - 2
    slope, intercept, separable = _lines(x, some_f, some_b)
    first = _on(cells, slope, intercept)
    trust = separable * (1 - some_f - some_b) * 0.5
    more_f = some_f + trust * np.clip((first - CONFIDENT) / (1 - CONFIDENT), 0, 1)
    more_b = some_b + trust * np.clip((1 - CONFIDENT - first) / (1 - CONFIDENT), 0, 1)
    slope, intercept, separable = (_enlarged(plane, stride) for plane in _lines(x, more_f, more_b))
    first, second = _enlarged(first, stride), _on(colours, slope, intercept)
    return np.concatenate([first * unknown + f, second * unknown + f, separable], 2).transpose(2, 0, 1)


# Inputs


def _noise(height: int, width: int, seed: int, unknown: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth colours with noise, and scattered known pixels."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    image = (0.7 * smooth + 0.3 * torch.rand(1, 3, height, width, generator=random)).clamp(0, 1)
    kind = torch.rand(1, 1, height, width, generator=random)
    return image, (kind > (1 + unknown) / 2).float(), (kind < (1 - unknown) / 2).float()


def _edge(colour_noise: float, size: int = 128) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The self-check of the specification: a wavy soft edge between two colours, known far from it. Also returns alpha."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    alpha = torch.sigmoid((x - size / 2 + 12 * torch.sin(y / 6)) / 2.5)[None, None]
    random = torch.Generator().manual_seed(0)
    colours = [
        torch.tensor(c)[None, :, None, None] + colour_noise * torch.randn(1, 3, size, size, generator=random)
        for c in ((0.8, 0.3, 0.2), (0.2, 0.5, 0.6))
    ]
    image = alpha * colours[0] + (1 - alpha) * colours[1]
    fg, bg = ((x > 0.75 * size).float(), (x < 0.25 * size).float())
    return image, fg[None, None], bg[None, None], alpha


# The formulas


@example((6, 4), 8998, 0.6)
@settings(max_examples=12)
@given(
    st.sampled_from([(2, 2), (2, 10), (6, 4), (8, 8), (14, 18), (18, 10), (22, 26), (32, 32)]),
    st.integers(0, 10**6),
    st.sampled_from([0.2, 0.6, 0.95]),
)
def test_it_is_the_literal_formula(size: tuple[int, int], seed: int, unknown: float) -> None:
    image, fg, bg = _noise(*size, seed, unknown)
    expected = _literal(image[0], fg[0], bg[0])
    exact = ColourPrior().double()(image.double(), fg.double(), bg.double())
    np.testing.assert_allclose(exact[0].numpy(), expected, atol=1e-8)
    # Noise of a few cells makes covariances that float32 inverts badly: of 4000 such images the worst differed by 9e-4.
    np.testing.assert_allclose(ColourPrior()(image, fg, bg)[0].numpy(), expected, atol=5e-3)


@pytest.mark.parametrize("colour_noise", [0.0, 0.02, 0.05, 0.1])
def test_float32_is_enough_for_an_image(colour_noise: float) -> None:
    image, fg, bg, _ = _edge(colour_noise)
    exact = ColourPrior().double()(image.double(), fg.double(), bg.double())
    torch.testing.assert_close(ColourPrior()(image, fg, bg).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 4])
def test_it_is_the_literal_formula_at_other_strides(stride: int) -> None:
    image, fg, bg = _noise(20, 12, 3)
    expected = _literal(image[0], fg[0], bg[0], stride)
    np.testing.assert_allclose(ColourPrior(stride)(image, fg, bg)[0].numpy(), expected, atol=1e-4)


def test_each_image_of_a_batch_is_on_its_own() -> None:
    images, fgs, bgs = (torch.cat(parts) for parts in zip(*(_noise(18, 10, seed) for seed in range(3)), strict=True))
    together = ColourPrior()(images, fgs, bgs)
    for i in range(3):
        alone = ColourPrior()(images[i : i + 1], fgs[i : i + 1], bgs[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_with_constant_colours_the_first_alpha_is_that_of_the_cells(stride: int) -> None:
    image, fg, bg, alpha = _edge(colour_noise=0.0)
    first, second, separable = ColourPrior(stride)(image, fg, bg)[0]
    cells = torch.from_numpy(_enlarged(_averaged(alpha[0].permute(1, 2, 0).numpy(), stride), stride))[..., 0]
    unknown = (1 - fg - bg)[0, 0] == 1
    assert (first - cells).abs()[unknown].max() < 1e-3
    assert (second - alpha[0, 0]).abs()[unknown].mean() < 0.02
    assert separable.min() > 0.95


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_self_check_is_five_times_better_than_a_guess_of_one_half(stride: int) -> None:
    image, fg, bg, alpha = _edge(colour_noise=0.05)
    unknown = (1 - fg - bg) == 1
    half = (0.5 - alpha).abs()[unknown].mean()
    out = ColourPrior(stride)(image, fg, bg)
    assert (out[:, 1:2] - alpha).abs()[unknown].mean() < half / 5


def test_the_self_check_fails_when_the_two_masks_are_swapped() -> None:
    image, fg, bg, alpha = _edge(colour_noise=0.05)
    unknown = (1 - fg - bg) == 1
    half = (0.5 - alpha).abs()[unknown].mean()
    assert (ColourPrior()(image, bg, fg)[:, 1:2] - alpha).abs()[unknown].mean() > half


def test_colours_that_do_not_differ_are_not_separable() -> None:
    _, fg, bg, _ = _edge(0.0, 32)
    out = ColourPrior()(torch.full((1, 3, 32, 32), 0.3), fg, bg)
    assert out[:, 2].max() < 0.01


# Exotic inputs


def _degenerate(height: int, width: int) -> dict[str, tuple[Tensor, Tensor]]:
    zero, one, dot = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width), torch.zeros(1, 1, height, width)
    dot[..., height // 2, width // 2] = 1
    return {
        "all unknown": (zero, zero),
        "all foreground": (one, zero),
        "all background": (zero, one),
        "one foreground pixel": (dot, zero),
        "one background pixel": (zero, dot),
        "one unknown pixel": (one - dot, zero),
        "one of each": (dot, dot.roll(1, 3)),
    }


@pytest.mark.parametrize("size", [(32, 32), (34, 50), (2, 2), (2, 64), (66, 6)])
@pytest.mark.parametrize("image", ["noise", "black", "white", "grey noise"])
def test_degenerate_trimaps_give_finite_numbers_in_range(size: tuple[int, int], image: str) -> None:
    noise = torch.rand(1, 3, *size)
    pictures = {
        "noise": noise,
        "black": 0 * noise,
        "white": 0 * noise + 1,
        "grey noise": noise[:, :1].expand(1, 3, *size),
    }
    for fg, bg in _degenerate(*size).values():
        out = ColourPrior()(pictures[image], fg, bg)
        assert out.shape == (1, 3, *size)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1
        assert (out[:, :2][fg.expand(1, 2, -1, -1) == 1] == 1).all()
        assert (out[:, :2][bg.expand(1, 2, -1, -1) == 1] == 0).all()


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_any_even_size_is_finite_and_in_range(half_height: int, half_width: int, seed: int) -> None:
    image, fg, bg = _noise(2 * half_height, 2 * half_width, seed, 0.97)
    out = ColourPrior()(image, fg, bg)
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


def test_autocast_does_not_change_it() -> None:
    image, fg, bg = _noise(34, 50, 1)
    plain = ColourPrior()(image, fg, bg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ColourPrior()(image, fg, bg), plain)
        half = ColourPrior()(image.bfloat16(), fg.bfloat16(), bg.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, ColourPrior()(image.bfloat16().float(), fg, bg))


def test_a_network_under_autocast_sees_the_same_prior() -> None:
    net = Supernet(preset("tiny", prior=True)).eval()
    seen: list[Tensor] = []
    net.net.prior.register_forward_hook(lambda module, inputs, out: seen.append(out))
    image, trimap = torch.rand(1, 3, 32, 32), torch.randint(0, 3, (1, 1, 32, 32)) / 2
    with torch.no_grad():
        net(image, trimap, path=Path.all_bypass(9))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(image, trimap, path=Path.all_bypass(9))
    assert torch.equal(seen[0], seen[1])


@settings(max_examples=10)
@given(st.sampled_from(list(permutations(range(3)))), st.integers(0, 10**6))
def test_the_order_of_the_colour_channels_does_not_matter(order: tuple[int, ...], seed: int) -> None:
    image, fg, bg = (t.double() for t in _noise(18, 22, seed))
    prior = ColourPrior().double()
    torch.testing.assert_close(prior(image[:, list(order)], fg, bg), prior(image, fg, bg), rtol=0, atol=1e-9)


@settings(max_examples=10)
@given(st.sampled_from([(2,), (3,), (2, 3)]), st.integers(0, 10**6))
def test_a_mirrored_image_gives_the_mirrored_prior(sides: tuple[int, ...], seed: int) -> None:
    tensors = [t.double() for t in _noise(16, 32, seed)]
    prior = ColourPrior().double()
    mirrored = prior(*(t.flip(sides) for t in tensors))
    torch.testing.assert_close(mirrored, prior(*tensors).flip(sides), rtol=0, atol=1e-9)


def test_it_adds_nothing_to_a_checkpoint() -> None:
    assert ColourPrior().state_dict() == {}
    assert list(ColourPrior().parameters()) == []


def test_tf32_is_off_inside_and_as_it_was_after() -> None:
    """PyTorch's default on GPUs would round the products of the turns to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    with exact_convolutions():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    image, trimap = torch.rand(2, 3, 64, 96), torch.randint(0, 3, (2, 1, 64, 96)) / 2
    fg, bg = (trimap == 1).float(), (trimap == 0).float()
    on_gpu = ColourPrior().cuda()(image.cuda(), fg.cuda(), bg.cuda())
    torch.testing.assert_close(on_gpu.cpu(), ColourPrior()(image, fg, bg), rtol=0, atol=1e-4)
