"""The packed sampler: seeded, independent of its batch, and true to the plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from treeplay.errors import ModelError
from treeplay.policy import flow as flow_module
from treeplay.policy import lanes as lanes_module
from treeplay.policy import sample as sample_module
from treeplay.policy.sample import Request, Row, Sample, SampleConfig, sample, seed_of
from treeplay.policy.score import plain_logps
from treeplay.policy.trunks import Kept

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


def test_no_logits_are_made_of_a_trunk() -> None:
    """Where weights are frozen, as under an adapter, PyTorch would copy the output layer once a
    trunk for them: seconds and gigabytes."""
    seen: list[int] = []

    class Watched(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append(input.shape[:-1].numel())
            return super().forward(input)

    model = tiny_llama()
    model.get_output_embeddings().__class__ = Watched
    two = [Request(path, (Row(len(path), 1),)) for path in ((3, 1, 4, 1, 5), (2, 7, 1))]
    sample(model, two, SampleConfig(max_tokens=3), NO_STOP)
    assert seen == [2, 2, 2]


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


def test_a_row_needs_a_token_before_it() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        sample(tiny_llama(), [Request((1,), (Row(0, 1),))], SampleConfig(), NO_STOP)


def of_kind(kind: str) -> Any:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 257,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind in ("llama", "qwen2", "starcoder2", "gemma"):
        shape["num_key_value_heads"] = 2
    if kind == "gemma":
        shape["head_dim"] = 8
    if kind == "gpt2":
        del shape["intermediate_size"]
    config = AutoConfig.for_model(kind, **shape)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2", "gpt_neox", "starcoder2"])
def test_lanes_are_true_to_every_kind_of_model(
    kind: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids and log-probs of the lanes are those of one row at a time with the model's own cache."""
    model = of_kind(kind)
    config = SampleConfig(max_tokens=9, temperature=1.3)
    monkeypatch.setattr(flow_module, "STATIC", ("cpu",) if static else ())
    together = sample(model, requests(), config, NO_STOP)
    alone = slowly(model, requests(), config)
    for ours, theirs in zip(together, alone, strict=True):
        assert [s.ids for s in ours] == [s.ids for s in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logps == pytest.approx(other.logps, abs=1e-4)
    assert model.config._attn_implementation == "sdpa"


def slowly(model: Any, requests: list[Request], config: SampleConfig) -> list[list[Sample]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_module, "why_not_packable", lambda model: "for a test")
        patch.setattr(sample_module, "_told", WeakSet())  # nobody was told of this model yet
        with pytest.warns(UserWarning, match="one by one"):
            return sample(model, requests, config, NO_STOP)


def test_an_adapter_is_sampled_with() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    config = SampleConfig(max_tokens=6)
    ours = sample(model, requests(), config, NO_STOP)
    assert ours == approximately(slowly(model, requests(), config))
    assert ours != sample(model.unload(), requests(), config, NO_STOP)


def approximately(samples: list[list[Sample]]) -> list[list[Sample]]:
    def near(logps: tuple[float, ...]) -> Any:
        return pytest.approx(logps, abs=1e-4)

    return [[Sample(s.ids, near(s.logps), s.ended) for s in of_request] for of_request in samples]


def test_bfloat16_is_close_to_itself() -> None:
    model = tiny_llama().bfloat16()
    config = SampleConfig(max_tokens=12)
    ours, theirs = sample(model, requests(), config, NO_STOP), slowly(model, requests(), config)
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    same = [(a, b) for a, b in pairs if a.ids == b.ids]
    assert len(same) >= len(pairs) / 2
    for a, b in same:
        assert a.logps == pytest.approx(b.logps, abs=0.1)


@pytest.mark.parametrize("static", [False, True])
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_forks_ends_and_stems_change_nothing(static: bool, data: st.DataObject) -> None:
    """Rows that part late (a small vocabulary, low temperature), end anywhere, stand at any place
    of paths that share stems or not, in any order and batch, are sampled as if alone."""
    model = tiny_llama(vocab_size=5)
    token = st.integers(1, 4)
    stem = tuple(data.draw(st.lists(token, min_size=3, max_size=9)))
    asked = []
    for i in range(data.draw(st.integers(1, 5))):
        cut = data.draw(st.integers(0, len(stem)))
        tail = data.draw(st.lists(token, min_size=1, max_size=6))
        path = (*stem[:cut], *tail)
        nodes = data.draw(st.lists(st.integers(1, len(path)), min_size=1, max_size=3))
        own = data.draw(st.sampled_from([None, 1, 4, 14]))
        rows = tuple(Row(p, seed_of(i, p, k), own) for p in nodes for k in range(3))
        asked.append(Request(path, rows, data.draw(st.sampled_from([stem, ()]))))
    ends = {(i, r): data.draw(st.integers(1, 12)) for i, q in enumerate(asked) for r in range(9)}
    config = SampleConfig(max_tokens=10, temperature=0.7, top_p=1.0, rows_at_once=1)
    stop = frozenset({0})

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return len(ids) == ends[request, row]

    alone = [
        [
            sample(
                model,
                [Request(q.path, (row,))],
                config,
                stop,
                lambda _a, _b, ids, at=(i, r): len(ids) == ends[at],  # type: ignore[misc]
            )[0][0]
            for r, row in enumerate(q.rows)
        ]
        for i, q in enumerate(asked)
    ]
    limit = data.draw(st.integers(1, 40))
    counted: list[int] = []
    whole: dict[int, list[Sample]] = {}

    def told(tokens: int, ended: Mapping[int, list[Sample]]) -> None:
        counted.append(tokens)
        assert not whole.keys() & ended.keys()
        whole.update(ended)

    config = replace(config, rows_at_once=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_module, "STATIC", ("cpu",) if static else ())
        out = sample(model, asked, config, stop, done, told, Kept(1e-3))
    assert out == approximately(alone)
    assert sum(counted) == sum(len(s.ids) for x in out for s in x)
    assert whole == dict(enumerate(out))


def test_a_lane_is_computed_once_for_rows_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy rows of one node never part: one lane. And a lane that ended is computed no more."""
    model = tiny_llama()
    widths: list[int] = []
    before = lanes_module.forward

    def counting(model: Any, state: Any, ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
        widths.append(ids.shape[1])
        return before(model, state, ids, *rest, **more)

    monkeypatch.setattr(lanes_module, "forward", counting)
    rows = tuple(Row(p, seed) for p in (2, 4) for seed in range(8))

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return row < 8 and len(ids) == 3

    sample(
        model,
        [Request((5, 6, 7, 8), rows)],
        SampleConfig(temperature=0, max_tokens=5),
        NO_STOP,
        done,
    )
    assert widths == [3, 2, 2, 2, 1, 1]  # the trunk, then steps


def test_rows_come_in_as_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most ``rows_at_once`` at a time, and none waits for the last of those before it."""
    model = tiny_llama()
    widths: list[int] = []
    before = lanes_module.step

    def counting(model: Any, batches: Any, ids: Sequence[int], *rest: Any) -> torch.Tensor:
        widths.append(len(ids))
        return before(model, batches, ids, *rest)

    monkeypatch.setattr(flow_module, "step", counting)
    # Eight rows of three and of nine tokens by turns; the longer ones begin.
    asked = [Request((i + 1, 5), (Row(2, i, 9 if i % 2 else 3),)) for i in range(8)]
    out = sample(model, asked, SampleConfig(rows_at_once=4, top_p=1.0), NO_STOP)
    assert [len(s.ids) for (s,) in out] == [3, 9] * 4
    assert widths == [4] * 12
    whole = sample(model, asked, SampleConfig(rows_at_once=99, top_p=1.0), NO_STOP)
    assert out == approximately(whole)


def test_a_row_has_a_bound_of_its_own() -> None:
    model = tiny_llama(max_position_embeddings=16)
    asked = [Request((1, 2), (Row(2, 5), Row(2, 5, 3), Row(1, 5, 7)))]
    (out,) = sample(model, asked, SampleConfig(max_tokens=5), NO_STOP)
    assert [len(s.ids) for s in out] == [5, 3, 7]
    assert out[1].ids == out[0].ids[:3]
    with pytest.raises(ModelError, match=r"2 tokens and up to 15 more .* 16"):
        sample(model, [Request((1, 2), (Row(2, 5, 15),))], SampleConfig(max_tokens=5), NO_STOP)


def test_a_stem_is_filled_once_while_there_is_memory() -> None:
    model = tiny_llama()
    stems = [tuple(range(1 + s, 41 + s)) for s in range(3)]
    config = SampleConfig(max_tokens=2)
    kept = Kept(1)

    def ask(stem: tuple[int, ...]) -> list[list[Sample]]:
        request = Request((*stem, 5, 6), (Row(42, 1), Row(41, 2)), stem)
        return sample(model, [request], config, NO_STOP, kept=kept)

    first = ask(stems[0])
    assert (kept.hits, kept.misses) == (0, 1)
    assert ask(stems[0]) == first  # to the last bit
    assert (kept.hits, kept.misses) == (1, 1)
    one = 40 * 2 * 2 * 2 * 8 * 4 / 2**20  # tokens, layers, keys and values, heads, width, bytes
    kept = Kept(2.5 * one)
    for stem in (*stems, *stems):
        ask(stem)
    assert (kept.hits, kept.misses) == (2, 4)


def test_logits_that_are_no_numbers_name_the_task() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    asked = [Request((1, 2), (Row(2, 0),), name="py-1")]
    with pytest.raises(ModelError, match=r"task 'py-1': .*NaN.* after 2 tokens"):
        sample(model, asked, SampleConfig(), NO_STOP)


def test_a_path_longer_than_the_context_is_refused() -> None:
    model = tiny_llama(max_position_embeddings=16)
    config = SampleConfig(max_tokens=6)
    long = Request(tuple(range(1, 12)), (Row(11, 0),), name="c-2")
    with pytest.raises(ModelError, match=r"task 'c-2': 11 tokens and up to 6 more .* 16"):
        sample(model, [long], config, NO_STOP)
    (out,) = sample(model, [Request(long.path, (Row(10, 0),))], config, NO_STOP)
    assert len(out[0].ids) == 6


def test_nothing_asked_nothing_sampled() -> None:
    model = tiny_llama()
    assert sample(model, [], SampleConfig(), NO_STOP) == []
    assert sample(model, [Request((1, 2), ())], SampleConfig(), NO_STOP) == [[]]


def test_a_model_with_attention_of_its_own_is_sampled_row_by_row() -> None:
    model = tiny_llama(sliding_window=4)
    with pytest.warns(UserWarning, match="sliding window"):
        out = sample(model, requests(), SampleConfig(max_tokens=3), NO_STOP)
    assert all(len(s.ids) == 3 for x in out for s in x)


def test_attention_that_cannot_be_exchanged_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    expected = sample(model, requests(), SampleConfig(max_tokens=3), NO_STOP)
    monkeypatch.setattr(lanes_module, "NAME", "sdpa")  # as if the model did not heed its name
    with pytest.warns(UserWarning, match="cannot be exchanged"):
        out = sample(model, requests(), SampleConfig(max_tokens=3), NO_STOP)
    assert out == approximately(expected)


@pytest.mark.parametrize("static", [False, True])
def test_it_is_noticed_where_nothing_is_read_ahead(
    static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two rows have a single token before them, and the third comes in later."""
    model = tiny_llama()
    rows = [((8,), Row(1, 1, 6)), ((9,), Row(1, 2, 3)), ((2, 7, 1), Row(3, 3, 3))]
    asked = [Request(path, (row,)) for path, row in rows]
    config = SampleConfig(rows_at_once=2, top_p=1.0)
    expected = sample(model, asked, config, NO_STOP)
    monkeypatch.setattr(lanes_module, "NAME", "sdpa")
    monkeypatch.setattr(flow_module, "STATIC", ("cpu",) if static else ())
    told: list[int] = []
    with pytest.warns(UserWarning, match="cannot be exchanged"):
        out = sample(model, asked, config, NO_STOP, told=lambda _, whole: told.extend(whole))
    assert out == approximately(expected)
    assert sorted(told) == [0, 1, 2]
