"""Packed equals plain: layout, log-probs, gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.packing import ancestor_mask, pack
from treeplay.policy.attention import model_mask, why_not_packable
from treeplay.policy.score import packed_logps, plain_logps

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=8)


@given(SEQUENCES)
def test_every_sequence_is_a_walk_in_the_trie(sequences: list[list[int]]) -> None:
    packed = pack(sequences)
    for sequence, walk in zip(sequences, packed.slots, strict=True):
        assert [packed.ids[slot] for slot in walk] == sequence
        assert [packed.positions[slot] for slot in walk] == list(range(len(sequence)))
        assert [packed.parents[slot] for slot in walk] == [-1, *walk[:-1]]


@given(SEQUENCES)
def test_each_distinct_prefix_stands_once(sequences: list[list[int]]) -> None:
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert len(pack(sequences).ids) == len(prefixes)


@given(SEQUENCES)
def test_layout_is_depth_first_and_the_mask_shows_ancestors(sequences: list[list[int]]) -> None:
    packed = pack(sequences)
    mask = ancestor_mask(packed.parents)
    for slot, parent in enumerate(packed.parents):
        assert parent < slot
        seen, at = set(), slot
        while at >= 0:
            seen.add(at)
            at = packed.parents[at]
        assert set(mask[slot].nonzero()[:, 0].tolist()) == seen


@settings(max_examples=25, deadline=None)
@given(SEQUENCES, st.data())
def test_packed_log_probs_equal_plain(sequences: list[list[int]], data: st.DataObject) -> None:
    sequences = [[5, *s] for s in sequences]
    spans = [(data.draw(st.integers(1, len(s))), len(s)) for s in sequences]
    model = tiny_llama()
    with torch.no_grad():
        packed = packed_logps(model, sequences, spans)
        plain = plain_logps(model, sequences, spans)
    for a, b, (start, end) in zip(packed, plain, spans, strict=True):
        assert a.shape == (end - start,)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_gradients_equal_plain(attention: str) -> None:
    sequences = [[7, 1, 2, 3, 4], [7, 1, 2, 9, 9, 8], [7, 1, 5]]
    spans = [(2, 5), (2, 6), (1, 3)]
    grads = []
    for form in (packed_logps, plain_logps):
        model = tiny_llama()
        model.config._attn_implementation = attention
        loss = sum((logp.sum() * (i + 1) for i, logp in enumerate(form(model, sequences, spans))))
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    difference = (grads[0] - grads[1]).norm() / grads[1].norm()
    assert difference < 1e-5


def test_eager_attention_gets_an_additive_mask() -> None:
    model = tiny_llama()
    allowed = torch.tensor([[[True, False]]])
    assert model_mask(model, allowed).dtype == torch.bool
    model.config._attn_implementation = "eager"
    mask = model_mask(model, allowed)
    assert mask.shape == (1, 1, 1, 2)
    assert mask[0, 0, 0, 0] == 0
    assert mask[0, 0, 0, 1] == torch.finfo(torch.float32).min


def test_a_sliding_window_is_refused() -> None:
    model = tiny_llama()
    assert why_not_packable(model) is None
    model.config.sliding_window = 16
    assert "sliding window" in str(why_not_packable(model))


def test_a_span_from_the_first_token_is_refused() -> None:
    with pytest.raises(ValueError, match="span 0:2"):
        packed_logps(tiny_llama(), [[1, 2]], [(0, 2)])
