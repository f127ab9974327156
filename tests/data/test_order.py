"""The order of composites: counts are exact, pairs are not repeated, and a number always means the same composite."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.config import Data
from pam_mobile.data.order import NONE, STYLES, Order
from pam_mobile.errors import UsageError

COUNTS = st.integers(2, 60)
SEEDS = st.integers(0, 1000)


def split(rows: np.ndarray) -> tuple[list[int], list[tuple[int, int]]]:
    """Foregrounds alone, and (front, back) of the combined ones."""
    alone = rows[rows[:, 1] == NONE, 0].tolist()
    return alone, [tuple(row) for row in rows[rows[:, 1] != NONE, :2].tolist()]


@given(COUNTS, COUNTS, SEEDS, st.integers(0, 5))
def test_a_triplet_epoch_has_two_sources_to_a_combination(n: int, backgrounds: int, seed: int, epoch: int) -> None:
    rows = Order("triplet", n, backgrounds, (seed,)).epoch(epoch)
    alone, combined = split(rows)
    assert len(alone) == 2 * len(combined) == 2 * (n // 2)
    assert sorted(alone) == sorted(x for pair in combined for x in pair)
    assert len(set(alone)) == len(alone)
    first = {front: background for front, back, background in rows.tolist() if back == NONE}
    assert all(background == first[front] for front, back, background in rows.tolist() if back != NONE)


@given(COUNTS, COUNTS, SEEDS, st.integers(0, 5))
def test_a_quadruplet_epoch_has_both_orders_of_every_pair(n: int, backgrounds: int, seed: int, epoch: int) -> None:
    rows = Order("quadruplet", n, backgrounds, (seed,)).epoch(epoch)
    alone, combined = split(rows)
    assert len(alone) == len(combined) == 2 * (n // 2)
    assert len(set(alone)) == len(alone)
    assert {(back, front) for front, back in combined} == set(combined)
    assert len({frozenset(pair) for pair in combined}) == n // 2


@given(COUNTS, SEEDS, st.sampled_from(["single", "naive", "rcf"]))
def test_an_epoch_of_the_other_styles_shows_every_foreground_once_in_front(n: int, seed: int, style: str) -> None:
    rows = Order(style, n, 3, (seed,)).epoch(1)
    alone, combined = split(rows)
    assert sorted([*alone, *(front for front, _ in combined)]) == list(range(n))
    assert len(combined) == (0 if style == "single" else n // 2)
    assert all(front != back for front, back in combined)


@given(COUNTS, COUNTS, SEEDS, st.sampled_from(STYLES))
def test_backgrounds_come_again_only_after_all_were_used(n: int, backgrounds: int, seed: int, style: str) -> None:
    order = Order(style, n, backgrounds, (seed,))
    rows = order.epoch(0)
    if style in ("triplet", "quadruplet"):
        rows = rows[rows[:, 1] == NONE]
    uses = Counter(rows[:, 2].tolist())
    assert max(uses.values()) - min(uses.values() if len(uses) == backgrounds else [0]) <= 1


@given(COUNTS, SEEDS, st.sampled_from(STYLES), st.lists(st.integers(1, 17), min_size=1, max_size=12))
def test_batches_of_any_size_read_the_list_without_gap_or_repetition(
    n: int, seed: int, style: str, sizes: list[int]
) -> None:
    order = Order(style, n, 4, (seed, 2))
    starts = np.cumsum([0, *sizes])
    rows = np.concatenate([order.take(int(start), size) for start, size in zip(starts, sizes, strict=False)])
    epochs = np.concatenate([order.epoch(e) for e in range(len(rows) // order.length + 1)])
    assert np.array_equal(rows, epochs[: len(rows)])
    assert order.length == len(order.epoch(0))


def test_batches_that_end_with_the_epoch_would_lose_the_counts() -> None:
    """Negative control: an epoch of 15 triplets read in whole batches of 4, its rest dropped."""
    order = Order("triplet", 31, 9, (0,))
    dropped = np.concatenate([order.epoch(e)[: order.length // 4 * 4] for e in range(8)])
    alone, combined = split(dropped)
    assert len(alone) != 2 * len(combined)
    alone, combined = split(order.take(0, 8 * order.length))
    assert len(alone) == 2 * len(combined)


def test_the_order_is_spread_over_the_epoch() -> None:
    """Tuples are not left together, and a batch in the middle holds sources and combinations."""
    rows = Order("triplet", 90, 10, (0,)).epoch(0)
    combined = rows[:, 1] != NONE
    thirds = [float(part.mean()) for part in np.split(combined, 3)]
    assert all(0.15 < share < 0.55 for share in thirds)
    assert not combined[-45:].all()


def test_seeds_and_epochs_differ_and_repeat() -> None:
    order = Order("quadruplet", 20, 10, (3, 1))
    assert np.array_equal(order.epoch(4), Order("quadruplet", 20, 10, (3, 1)).epoch(4))
    assert not np.array_equal(order.epoch(4), order.epoch(5))
    assert not np.array_equal(order.epoch(4), Order("quadruplet", 20, 10, (3, 2)).epoch(4))
    pairs = [{frozenset(pair) for pair in split(order.epoch(e))[1]} for e in range(6)]
    assert len(set().union(*pairs)) > 40  # the matching is drawn anew in each epoch


def test_an_odd_foreground_takes_its_turn() -> None:
    left_out = {next(iter(set(range(7)) - set(split(Order("triplet", 7, 3, (0,)).epoch(e))[0]))) for e in range(60)}
    assert left_out == set(range(7))


@pytest.mark.parametrize("style", ["", "quad", "RCF"])
def test_unknown_styles_and_too_few_images_are_refused(style: str) -> None:
    with pytest.raises(ValueError, match="known are single, naive, rcf"):
        Order(style, 5, 5, (0,))
    with pytest.raises(ValueError, match="too few"):
        Order("rcf", 1, 5, (0,))
    with pytest.raises(ValueError, match="too few"):
        Order("single", 1, 0, (0,))
    with pytest.raises(UsageError, match=r"data\.style"):
        Data(style=style)
