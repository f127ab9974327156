"""The budget embedding, the channel attention and the selection heads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.cost import CostTable
from pam_mobile.model.presets import EMBEDDING, preset
from pam_mobile.model.selection import BudgetEmbedding, ChannelAttention, SelectionHead, gumbel_one_hot


def _numbered(name: str, prior: bool = False) -> tuple[BudgetEmbedding, CostTable]:
    """An embedding whose row i holds i, so that it returns its position; the table at the preset's reference size."""
    chosen = preset(name, prior)
    embedding = BudgetEmbedding(chosen)
    rows = embedding.rows.num_embeddings
    with torch.no_grad():
        embedding.rows.weight.copy_(torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, EMBEDDING))
    return embedding, CostTable.of(chosen, chosen.reference, chosen.reference)


def _position(embedding: BudgetEmbedding, macs: int, table: CostTable) -> float:
    out = embedding(macs, table).detach()
    assert out.shape == (1, EMBEDDING)
    assert (out == out[0, 0]).all()
    return float(out[0, 0])


@pytest.mark.parametrize(("name", "first", "last"), [("full", 55, 75), ("phone", 38, 57), ("tiny", 19, 28)])
def test_rows_are_the_whole_steps_between_smallest_and_largest_path(name: str, first: int, last: int) -> None:
    embedding, table = _numbered(name)
    assert (embedding.first, embedding.rows.num_embeddings) == (first, last - first + 1)
    for row in range(last - first + 1):
        macs = (first + row) * preset(name).budget_step
        assert _position(embedding, macs, table) == pytest.approx(row, abs=1e-5)


@given(st.floats(0, 9))
def test_between_two_rows_it_interpolates(row: float) -> None:
    embedding, table = _numbered("tiny")
    assert _position(embedding, round((19 + row) * 1e8), table) == pytest.approx(row, abs=1e-5)


def test_beyond_the_rows_it_clamps() -> None:
    embedding, table = _numbered("tiny")
    assert _position(embedding, 0, table) == 0
    assert _position(embedding, table.smallest, table) == 0
    assert _position(embedding, 28 * 10**8 + 1, table) == 9
    assert _position(embedding, 10**15, table) == 9


@given(st.lists(st.integers(18 * 10**8, 29 * 10**8), min_size=2, max_size=6), st.booleans())
def test_a_larger_budget_is_never_placed_lower(budgets: list[int], prior: bool) -> None:
    embedding, table = _numbered("tiny", prior)
    places = [_position(embedding, macs, table) for macs in sorted(budgets)]
    assert all(a <= b for a, b in pairwise(places))


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 8.9))
def test_a_budget_at_another_size_is_scaled_by_the_number_of_pixels(height: int, width: int, row: float) -> None:
    embedding, _ = _numbered("tiny")
    table = CostTable.of(preset("tiny"), 32 * height, 32 * width)
    macs = (19 + row) * 1e8 * (1024 * height * width) / 512**2
    assert _position(embedding, round(macs), table) == pytest.approx(row, abs=0.6 / (height * width) ** 0.5)


def test_an_embedding_gets_gradients_at_the_two_rows_around_the_budget() -> None:
    embedding, table = _numbered("tiny")
    embedding(2_225_000_000, table).sum().backward()
    grad = embedding.rows.weight.grad
    assert grad is not None
    assert grad[:, 0].tolist() == pytest.approx([0, 0, 0, 0.75, 0.25, 0, 0, 0, 0, 0], abs=1e-5)


def test_attention_scales_each_channel_by_its_literal_gate() -> None:
    attention = ChannelAttention(8)
    x = torch.randn(2, 8, 5, 3)
    pooled = x.numpy().astype(np.float64).mean((2, 3))
    w1, b1, w2, b2 = (p.detach().numpy().astype(np.float64) for p in attention.parameters())
    hidden = np.maximum(pooled @ w1[:, :, 0, 0].T + b1, 0)
    gate = 1 / (1 + np.exp(-(hidden @ w2[:, :, 0, 0].T + b2)))
    expected = x.numpy() * gate[:, :, None, None]
    np.testing.assert_allclose(attention(x).detach(), expected, atol=1e-6)


def test_a_head_reads_the_mean_features_and_the_budget() -> None:
    head = SelectionHead(8)
    x, wish = torch.randn(3, 8, 4, 6), torch.randn(3, EMBEDDING)
    logits = head(x, wish)
    assert logits.shape == (3, 2)
    shuffled = x.flatten(2)[:, :, torch.randperm(24)].view_as(x)
    torch.testing.assert_close(head(shuffled, wish), logits)
    assert (head(x, wish + 1) - logits).abs().min() > 1e-6
    assert (head(x + 1, wish) - logits).abs().min() > 1e-6


# Straight-through Gumbel-max


def test_a_drawn_choice_is_exactly_one_hot_and_drawn_as_the_softmax_says() -> None:
    logits = torch.tensor([[0.4, -0.7]]).expand(100_000, 2)
    drawn = gumbel_one_hot(logits, 1.0, np.random.default_rng(0))
    assert ((drawn == 0) | (drawn == 1)).all()
    assert (drawn.sum(1) == 1).all()
    share, expected = float(drawn[:, 1].mean()), float(logits[0].softmax(0)[1])
    assert abs(share - expected) < 3 * (expected * (1 - expected) / 100_000) ** 0.5


def test_the_gradient_of_a_choice_is_that_of_the_softened_one() -> None:
    logits = torch.tensor([[0.4, -0.7], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    noise = torch.from_numpy(np.random.default_rng(5).gumbel(size=(2, 2)))
    weights = torch.tensor([[1.0, 3.0], [-2.0, 0.5]], dtype=torch.float64)
    (got,) = torch.autograd.grad((gumbel_one_hot(logits, 0.7, np.random.default_rng(5)) * weights).sum(), logits)
    (expected,) = torch.autograd.grad((((logits + noise) / 0.7).softmax(1) * weights).sum(), logits)
    torch.testing.assert_close(got, expected)
    assert got.abs().min() > 1e-3


def test_a_large_margin_decides_whatever_the_noise() -> None:
    drawn = gumbel_one_hot(torch.tensor([[0.0, 40.0]]).expand(1000, 2), 0.01, np.random.default_rng(0))
    assert (drawn[:, 1] == 1).all()
