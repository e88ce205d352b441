"""Draws from logits: the nucleus, ties, and the same token in every batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.policy import draw as draw_module
from treeplay.policy.draw import draw


def test_draws_follow_the_nucleus() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    keys = [(seed, step) for seed in range(200) for step in range(100)]
    tokens, _ = draw(logits, keys, 1.0, 0.9, [0] * len(keys))
    share = torch.bincount(torch.tensor(tokens), minlength=4) / len(keys)
    torch.testing.assert_close(
        share, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.012, rtol=0
    )


def test_draws_follow_a_wide_distribution() -> None:
    """Of the whole vocabulary, more of it than is looked through first; Pearson's chi-squared."""
    torch.manual_seed(0)
    logits = torch.randn(1, 9000) * 0.3
    keys = [(seed, 7) for seed in range(20_000)]
    tokens, _ = draw(logits, keys, 1.0, 1.0, [0] * len(keys))
    groups = 30
    expected = logits.softmax(-1).view(groups, -1).sum(-1) * len(keys)
    found = torch.bincount(torch.tensor(tokens) // (9000 // groups), minlength=groups)
    chi = float(((found - expected) ** 2 / expected).sum())
    assert chi < 60  # 29 degrees of freedom: exceeded with a chance of 6e-4


def test_temperature_flattens_and_zero_is_greedy() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    keys = [(seed, 0) for seed in range(20_000)]
    for temperature in (0.5, 2.0):
        tokens, _ = draw(logits, keys, temperature, 1.0, [0] * len(keys))
        share = torch.bincount(torch.tensor(tokens), minlength=3) / len(keys)
        expected = (logits[0] / temperature).softmax(-1)
        torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
    assert draw(logits, [(1, 1)], 0.0, 1.0)[0] == [0]


def test_log_probs_are_raw() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 300) * 3
    tokens, logps = draw(logits, [(s, 0) for s in range(5)], 0.7, 0.5)
    expected = logits.log_softmax(-1)[range(5), tokens]
    torch.testing.assert_close(torch.tensor(logps), expected, atol=1e-5, rtol=0)


def test_a_token_too_unlikely_for_a_float_has_a_log_prob() -> None:
    logits = torch.tensor([[0.0, -200.0]])
    found = set()
    for seed in range(50):
        (token,), (logp,) = draw(logits, [(seed, 0)], 1000.0, 1.0)
        found.add(token)
        assert logp == pytest.approx(float(logits[0, token]), abs=1e-6)
    assert found == {0, 1}


def logits_of(seed: int, rows: int, size: int, coarse: bool, scale: float) -> torch.Tensor:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * scale
    return logits.bfloat16().float() if coarse else logits  # coarse ones have many ties


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 7, 300, 8193, 20_000]),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 1.0, 4.0]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
)
def test_both_ways_draw_the_same(
    seed: int, size: int, coarse: bool, scale: float, top_p: float
) -> None:
    """The one for the CPU and the one for any device, ties and nuclei of any width."""
    prob = logits_of(seed, 3, size, coarse, scale).softmax(-1)
    lanes = [0, 2, 2, 1]
    keys = [(seed + i, i) for i in range(4)]
    assert draw_module._sample_cpu(prob.numpy(), lanes, keys, top_p) == draw_module._sample(
        prob, lanes, keys, top_p
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)), st.sampled_from([0.3, 0.95, 1.0]))
def test_a_draw_knows_no_neighbours(seed: int, order: list[int], top_p: float) -> None:
    logits = logits_of(seed, 5, 9000, True, 2.0)
    logits[4] = 0  # this one's nucleus is most of the vocabulary
    keys = [(seed + i, i) for i in range(5)]
    alone = [draw(logits[i : i + 1], [keys[i]], 1.0, top_p) for i in range(5)]
    tokens, logps = draw(logits[order], [keys[i] for i in order], 1.0, top_p)
    assert tokens == [alone[i][0][0] for i in order]
    assert logps == pytest.approx([alone[i][1][0] for i in order], abs=1e-6)


def test_of_equal_tokens_the_smaller_ids_are_in_the_nucleus() -> None:
    logits = torch.zeros(1, 10)
    keys = [(seed, 0) for seed in range(2000)]
    tokens, _ = draw(logits, keys, 1.0, 0.45, [0] * len(keys))
    assert set(tokens) == {0, 1, 2, 3, 4}


def test_rounding_changes_a_draw_only_at_a_tie() -> None:
    """Move the logits by what float32 rounding moves them: hardly a draw changes, and where one
    does, the two tokens were as close as that. Even with bfloat16's error few draws change."""
    logits = logits_of(3, 1, 5000, False, 1.5)
    keys = [(seed, 0) for seed in range(4000)]
    lanes = [0] * len(keys)
    before, _ = draw(logits, keys, 1.0, 0.95, lanes)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    logp = logits[0].double().log_softmax(-1)
    falling = logp.sort(descending=True)[0]
    border = falling[int((falling.exp().cumsum(0) < 0.95).sum())]
    for size, most in ((1e-5, 0.001), (0.01, 0.03)):
        moved = logits + size * noise
        after, _ = draw(moved, keys, 1.0, 0.95, lanes)
        changed = [r for r in range(len(keys)) if before[r] != after[r]]
        assert len(changed) <= most * len(keys)
        for r in changed:
            pair = torch.tensor([before[r], after[r]])
            luck = torch.from_numpy(draw_module._gumbel(pair.numpy(), keys[r]))
            gap = float((logp[pair] + luck).diff())
            to_border = float((logp[pair] - border).abs().min())  # of the nucleus
            assert min(abs(gap), to_border) < 12 * size
    same, _ = draw(logits, keys, 1.0, 0.95, lanes)
    assert same == before


def test_logits_that_are_no_numbers_give_a_log_prob_that_is_none() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = math.nan
    for temperature in (0.0, 1.0, 0.5):
        _, logps = draw(logits, [(0, 0), (1, 0)], temperature, 0.95)
        assert logps[0] == pytest.approx(-math.log(5))
        assert math.isnan(logps[1])
