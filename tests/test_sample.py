"""The packed sampler: seeded, independent of its batch, and true to the plain model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.policy.sample import Request, Row, SampleConfig, draw, sample, seed_of
from treeplay.policy.score import plain_logps

NO_STOP: frozenset[int] = frozenset()


def requests() -> list[Request]:
    paths = [(3, 1, 4, 1, 5, 9, 2, 6), (2, 7), (8,), (2, 8, 1, 8, 2, 8)]
    return [
        Request(path, tuple(Row(p, seed_of(i, p, k)) for p in (1, len(path)) for k in range(2)))
        for i, path in enumerate(paths)
    ]


def test_sampled_log_probs_are_the_plain_models() -> None:
    model = tiny_llama()
    out = sample(model, requests(), SampleConfig(max_tokens=9, rows_at_once=7), NO_STOP)
    for request, samples in zip(requests(), out, strict=True):
        sequences = [
            request.path[: row.position] + s.ids
            for row, s in zip(request.rows, samples, strict=True)
        ]
        spans = [
            (row.position, row.position + len(s.ids))
            for row, s in zip(request.rows, samples, strict=True)
        ]
        with torch.no_grad():
            plain = plain_logps(model, sequences, spans)
        for one, logp in zip(samples, plain, strict=True):
            torch.testing.assert_close(torch.tensor(one.logps), logp, atol=1e-4, rtol=0)


def test_greedy_sampling_equals_generate() -> None:
    model = tiny_llama()
    path = (3, 1, 4, 1, 5)
    (out,) = sample(
        model, [Request(path, (Row(5, 0),))], SampleConfig(temperature=0, max_tokens=12), NO_STOP
    )
    model.generation_config.eos_token_id = None
    expected = model.generate(
        torch.tensor([path]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert list(out[0].ids) == expected[0, 5:].tolist()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 20), st.permutations(range(4)))
def test_samples_do_not_depend_on_the_batch(rows_at_once: int, order: list[int]) -> None:
    model = tiny_llama()
    alone = [
        sample(model, [request], SampleConfig(max_tokens=6), NO_STOP)[0] for request in requests()
    ]
    mixed = sample(
        model,
        [requests()[i] for i in order],
        SampleConfig(max_tokens=6, rows_at_once=rows_at_once),
        NO_STOP,
    )
    for i, samples in zip(order, mixed, strict=True):
        assert [s.ids for s in samples] == [s.ids for s in alone[i]]


def test_rows_end_by_answer_end_mark_or_length() -> None:
    model = tiny_llama()

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return row == 0 and len(ids) == 2

    free = sample(
        model, [Request((1, 2), (Row(2, 5), Row(2, 6)))], SampleConfig(max_tokens=5), NO_STOP
    )
    stop = frozenset({free[0][1].ids[3]})
    (out,) = sample(
        model, [Request((1, 2), (Row(2, 5), Row(2, 6)))], SampleConfig(max_tokens=5), stop, done
    )
    assert (out[0].ended, len(out[0].ids)) == ("answer", 2)
    assert out[1].ended == "eos"
    assert out[1].ids == free[0][1].ids[: len(out[1].ids)]
    assert free[0][0].ended == "length"


def test_draw_follows_the_nucleus() -> None:
    prob = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = prob.log().expand(10_000, 4)
    uniform = torch.linspace(0, 0.99999, 10_000)
    drawn = draw(logits, uniform, SampleConfig(temperature=1.0, top_p=0.9))
    share = torch.bincount(drawn, minlength=4) / 10_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=2e-3, rtol=0)


def test_a_row_needs_a_token_before_it() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        sample(tiny_llama(), [Request((1,), (Row(0, 1),))], SampleConfig(), NO_STOP)
