"""Composites are what they claim to be, on every draw."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_mobile.data.augment import colour_jitter, degrade, gaussian_blur, random_affine, warp
from pam_mobile.data.bank import Bank
from pam_mobile.data.compose import Composer, Layer, put_over, soft_point
from pam_mobile.data.order import STYLES, Order
from pam_mobile.data.patch import DISTANCE_ZERO, make_patch, signed_distance
from pam_mobile.data.synthetic import make_background, make_matte


@cache
def bank() -> Bank:
    mattes = [make_matte(seed, 128) for seed in range(12)]
    patches = np.stack([make_patch(m.foreground, m.alpha) for m in mattes])
    backgrounds = np.stack([make_background(seed, 128).transpose(2, 0, 1) for seed in range(6)])
    return Bank(torch.from_numpy(patches), torch.from_numpy(np.ascontiguousarray(backgrounds)))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([64, 96]))
def test_a_batch_keeps_its_promises(seed: int, crop: int) -> None:
    b = Composer()(bank(), 4, crop, generator(seed))
    assert b.image.shape == b.foreground.shape == b.background.shape == (4, 3, crop, crop)
    assert b.alpha.shape == b.trimap.shape == (4, 1, crop, crop)
    for x in b:
        assert torch.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1
    assert set(b.trimap.unique().tolist()) <= {0.0, 0.5, 1.0}
    soft = (b.alpha > 0.5 / 255) & (b.alpha < 254.5 / 255)
    assert (b.trimap[soft] == 0.5).all()
    assert (b.alpha[b.trimap == 1] > 254.4 / 255).all()
    assert (b.alpha[b.trimap == 0] < 0.6 / 255).all()
    assert ((b.trimap == 0.5).flatten(1).sum(1) > 0).all()


def test_the_image_is_the_composite_where_nothing_was_degraded() -> None:
    b = Composer()(bank(), 16, 64, generator(0))
    error = (b.image - (b.alpha * b.foreground + (1 - b.alpha) * b.background)).abs().amax((1, 2, 3))
    assert (error < 0.6 / 255).sum() >= 3
    assert (error > 0.6 / 255).sum() >= 3


def test_a_seed_determines_every_byte_and_another_seed_changes_them() -> None:
    first, again, other = (Composer()(bank(), 4, 64, generator(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.image, other.image)


def test_crops_that_no_trimap_could_describe_are_passed_over() -> None:
    def rarest(composer: Composer) -> torch.Tensor:
        batches = [composer(bank(), 8, 64, generator(seed)) for seed in range(6)]
        shares = [torch.stack([(b.trimap == v).float().mean((1, 2, 3)) for v in (0, 0.5, 1)]).amin(0) for b in batches]
        return torch.cat(shares)

    assert (rarest(Composer(known=0)) < 0.01).sum() > 2 * (rarest(Composer()) < 0.01).sum()


def test_crops_are_judged_by_what_is_rendered() -> None:
    """The small view of a crop shows, on every fourth row and column, what lies there."""
    composer, rng = Composer(), generator(3)
    views = composer._views(bank(), torch.arange(12), 64, rng)
    small, crop = composer._shapes(bank(), views, 64), composer._crops(bank(), views, 64, rng)
    for name, far in (("alpha", 0.1), ("depth", 5.0)):
        there = F.avg_pool2d(getattr(crop, name)[..., 1:, 1:], 2, stride=4)
        seen = getattr(small, name)
        assert seen.shape == there.shape
        assert (seen - there).abs().mean() < far / 10
        assert (seen.roll(1, 0) - there).abs().mean() > far  # negative control: another crop's


def test_a_second_foreground_comes_only_where_the_trimap_stays_usable() -> None:
    added = refused = 0
    for seed in range(6):
        one, two = (Composer(second=share, hard=1)(bank(), 8, 64, generator(seed)) for share in (0, 1))
        shares = torch.stack([(two.trimap == v).float().mean((1, 2, 3)) for v in (0, 0.5, 1)]).amin(0)
        changed = (one.alpha != two.alpha).any(-1).any(-1)[:, 0]
        assert (shares[changed] >= Composer.known).all()
        assert torch.equal(one.trimap[~changed], two.trimap[~changed])
        added, refused = added + int(changed.sum()), refused + int((~changed).sum())
    assert added >= 10
    assert refused >= 3


def test_a_whole_composite_shows_every_patch_as_it_is() -> None:
    b = Composer(second=0, known=0).whole(bank(), 3, 5, generator(0))
    assert torch.equal(b.alpha, bank().patches[3:8, 3:4].float() / 255)
    assert b.image.shape == (5, 3, 128, 128)
    last = Composer(second=0, known=0).whole(bank(), 8, 8, generator(0))
    assert torch.equal(last.alpha, bank().patches[8:, 3:4].float() / 255)


@pytest.mark.parametrize("crop", [32, 33])
def test_a_sharp_crop_holds_the_patch_s_own_alphas_and_a_warped_one_does_not(crop: int) -> None:
    noise = torch.randint(0, 256, (1, 5, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bank, index = Bank(noise, noise[:, :3]), torch.zeros(6, dtype=torch.int64)

    def misses(sharp: float) -> float:
        composer, rng = Composer(sharp=sharp), generator(1)
        alpha = composer._crops(bank, composer._views(bank, index, crop, rng), crop, rng).alpha * 255
        return float((alpha - alpha.round()).abs().mean())

    assert misses(1.0) < 1e-2
    assert misses(0.0) > 0.1


def test_low_contrast_backgrounds_are_replaced() -> None:
    def contrast(composer: Composer) -> torch.Tensor:
        b = composer(bank(), 32, 64, generator(1))
        unknown = b.trimap == 0.5
        return ((b.foreground - b.background).abs().mean(1, keepdim=True) * unknown).sum((1, 2, 3)) / unknown.sum(
            (1, 2, 3)
        )

    low = Composer.contrast
    assert (contrast(Composer(hard=0)) < low).sum() < (contrast(Composer(hard=1)) < low).sum()


def test_two_foregrounds_compose_like_layers() -> None:
    one, two = (Composer(second=share, hard=1, known=0)(bank(), 8, 64, generator(2)) for share in (0, 1))
    expected = one.alpha + one.alpha.roll(1, 0) * (1 - one.alpha)
    torch.testing.assert_close(two.alpha, expected)


# --- two foregrounds, by an order


def layers(n: int, seed: int) -> tuple[Layer, Layer]:
    """Random layers in float64, with exact zeros and ones in their alphas."""
    rng = np.random.default_rng(seed)

    def layer() -> Layer:
        alpha = np.clip(rng.uniform(-0.3, 1.3, (n, 1, 6, 6)), 0, 1)
        alpha = np.where((alpha > 0) & (alpha < 1e-3), 1e-3, alpha)
        colours, depth = rng.random((n, 3, 6, 6)), rng.normal(size=(n, 1, 6, 6))
        return Layer(*(torch.from_numpy(x) for x in (colours, alpha, depth)))

    return layer(), layer()


def distance_to_two_layers(seed: int, naive: bool) -> float:
    """Largest |a' F' + (1 - a') B - (a1 F1 + (1 - a1) (a2 F2 + (1 - a2) B))|."""
    front, back = layers(4, seed)
    background = torch.from_numpy(np.random.default_rng(seed + 1).random((4, 3, 6, 6)))
    both = put_over(front, back, naive)
    merged = both.alpha * both.foreground + (1 - both.alpha) * background
    behind = back.alpha * back.foreground + (1 - back.alpha) * background
    in_turn = front.alpha * front.foreground + (1 - front.alpha) * behind
    return float((merged - in_turn).abs().max())


@given(st.integers(0, 1000))
def test_a_layer_put_over_another_is_exact_over_any_background(seed: int) -> None:
    assert distance_to_two_layers(seed, naive=False) < 1e-12
    assert distance_to_two_layers(seed, naive=True) > 0.05  # negative control


def test_colours_of_ordered_composites_follow_the_style() -> None:
    """The hidden colour of the layer behind shows in the naive composite only."""
    rows = torch.from_numpy(Order("rcf", 12, 6, (0,)).take(0, 8))
    exact, naive = (Composer(naive=wish, hard=1).ordered(bank(), rows, 64, generator(0)) for wish in (False, True))
    assert torch.equal(exact.alpha, naive.alpha)
    two = rows[:, 1] >= 0
    assert torch.equal(exact.foreground[~two], naive.foreground[~two])
    assert (exact.foreground - naive.foreground)[two].abs().amax((1, 2, 3)).min() > 0.01


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(STYLES))
def test_an_ordered_batch_keeps_its_promises(seed: int, style: str) -> None:
    rows = torch.from_numpy(Order(style, 12, 6, (seed,)).take(seed, 5))
    b = Composer().ordered(bank(), rows, 64, generator(seed))
    again = Composer().ordered(bank(), rows, 64, generator(seed))
    assert all(torch.equal(x, y) for x, y in zip(b, again, strict=True))
    assert b.image.shape == (5, 3, 64, 64)
    soft = (b.alpha > 0.5 / 255) & (b.alpha < 254.5 / 255)
    assert (b.trimap[soft] == 0.5).all()
    assert (b.alpha[b.trimap == 1] > 254.4 / 255).all()
    assert (b.alpha[b.trimap == 0] < 0.6 / 255).all()


def test_an_ordered_composite_shows_the_patches_of_its_row() -> None:
    """Patches and backgrounds of one flat colour each, no jitter: the picture says which were taken."""

    def flat(level: int) -> np.ndarray:
        return np.full((128, 128, 3), level, np.uint8)

    alpha = make_matte(3, 128, "hair").alpha
    tones = (20, 60, 100)
    own = Bank(
        torch.from_numpy(np.stack([make_patch(flat(tone), alpha) for tone in tones])),
        torch.from_numpy(np.stack([flat(tone).transpose(2, 0, 1).copy() for tone in (180, 240)])),
    )
    composer = Composer(foreground_jitter=0, background_jitter=0, hard=1)
    rows = torch.tensor([[0, -1, 1], [1, 2, 0], [2, 1, 1]])
    b = composer.ordered(own, rows, 64, generator(4))
    colours = (b.foreground * 255).round()
    assert (colours[0] == 20).all()
    assert set(colours[1].unique().tolist()) <= set(range(60, 101))
    assert {60.0, 100.0} <= set(colours[1].unique().tolist())
    assert [float(x) for x in (b.background * 255).round().amax((1, 2, 3))] == [240, 180, 240]


def test_a_crop_without_unknown_pixels_is_drawn_again() -> None:
    rows = torch.from_numpy(Order("single", 12, 6, (0,)).take(0, 48))

    def bad(composer: Composer) -> int:
        b = composer.ordered(bank(), rows, 64, generator(1))
        shares = torch.stack([(b.trimap == v).float().mean((1, 2, 3)) for v in (0, 0.5, 1)]).amin(0)
        return int((shares < Composer.known).sum())

    assert bad(Composer()) < 0.7 * bad(Composer(known=0))


def test_signed_distance_of_a_half_plane() -> None:
    alpha = np.zeros((21, 40), np.uint8)
    alpha[:, 20:] = 255
    row = signed_distance(alpha)[10].astype(int) - DISTANCE_ZERO
    assert row[19] == -1
    assert row[20] == 1
    assert row[30] == pytest.approx(11, abs=1)
    assert row[9] == pytest.approx(-11, abs=1)


def test_warp_by_the_identity_returns_the_centre() -> None:
    x = torch.rand(1, 2, 16, 16)
    y = warp(x, torch.eye(2)[None], torch.tensor([[7.5, 7.5]]), 16)
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)
    shifted = warp(x, torch.eye(2)[None], torch.tensor([[8.5, 7.5]]), 8)
    torch.testing.assert_close(shifted, x[:, :, 4:12, 5:13], atol=1e-5, rtol=0)


def test_affine_scale_is_within_its_range() -> None:
    scales = random_affine(500, (0.5, 2.0), generator(0)).det().abs().sqrt()
    assert scales.min() > 0.4
    assert scales.max() < 2.4
    assert scales.std() > 0.2


def test_blur_keeps_constants_and_leaves_sigma_zero_alone() -> None:
    x = torch.rand(3, 3, 20, 20)
    y = gaussian_blur(x, torch.tensor([0.0, 1.0, 2.0]), 5)
    assert torch.equal(y[0], x[0])
    assert y[2].std() < y[1].std() < x[1].std()
    flat = torch.full((2, 3, 20, 20), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([1.0, 2.0]), 5), flat)


def test_blur_is_a_gaussian() -> None:
    x = torch.zeros(1, 1, 31, 31)
    x[0, 0, 15, 15] = 1
    y = gaussian_blur(x, torch.tensor([2.0]), 10)[0, 0]
    assert (y[15, 17] / y[15, 15]).item() == pytest.approx(np.exp(-0.5), rel=1e-3)


def test_jitter_of_strength_zero_changes_nothing_and_greys_keep_their_order() -> None:
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(colour_jitter(255 * x, 0.0, generator(0)), x.clamp(1e-4, 1), atol=1e-5, rtol=0)
    assert not torch.allclose(colour_jitter(255 * x, 1.0, generator(0)), x, atol=0.02)


def test_degrade_leaves_about_half_of_the_images() -> None:
    x = (torch.rand(200, 3, 12, 12) * 255).round() / 255
    same = (degrade(x, generator(0)) - x).abs().amax((1, 2, 3)) < 1e-6
    assert 60 < same.sum() < 140


def test_soft_point_lies_near_the_soft_region() -> None:
    depth = torch.full((50, 64, 64), 250.0)
    depth[:, 20:30, 40:50] = DISTANCE_ZERO
    at = soft_point(depth, generator(0))
    inside = (at[:, 0] >= 40) & (at[:, 0] < 50) & (at[:, 1] >= 20) & (at[:, 1] < 30)
    assert inside.float().mean() > 0.3
