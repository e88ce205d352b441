"""A trained prefix before a text: sampled with and scored as PEFT's own forward pass has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from test_sample import NO_STOP, of_kind, requests, slowly

from treeplay.errors import ModelError
from treeplay.policy import flow as flow_module
from treeplay.policy.attention import packed_or_plain
from treeplay.policy.model import Policy, load_adapter
from treeplay.policy.prefix import has_prefix, merge, prefix_layers, prefix_length, take_off
from treeplay.policy.sample import Request, Row, SampleConfig, sample
from treeplay.policy.score import plain_logps

N = 3


def with_prefix(base: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return get_peft_model(
        base, PrefixTuningConfig(num_virtual_tokens=N, task_type="CAUSAL_LM")
    ).eval()


def stemmed() -> list[Request]:
    """Requests that share a stem, leave it at different points, or only begin with it."""
    stem = (3, 1, 4, 1, 5, 9)
    paths = [(3, 1, 4, 1, 5, 9), (3, 1, 4, 7, 7), (3, 1), (3, 1, 4, 1, 5, 9, 2, 6)]
    return [
        Request(path, tuple(Row(p, 10 * i + k) for p in {1, len(path)} for k in range(2)), stem)
        for i, path in enumerate(paths)
    ]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lanes_equal_the_models_own_cache(
    kind: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_prefix(of_kind(kind))
    config = SampleConfig(max_tokens=7, temperature=1.3)
    monkeypatch.setattr(flow_module, "STATIC", ("cpu",) if static else ())
    for some in (requests(), stemmed()):
        together, alone = sample(model, some, config, NO_STOP), slowly(model, some, config)
        for ours, theirs in zip(together, alone, strict=True):
            assert [s.ids for s in ours] == [s.ids for s in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert one.logps == pytest.approx(other.logps, abs=1e-4)
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_sampled_log_probs_are_those_of_pefts_forward_pass() -> None:
    model = with_prefix(tiny_llama())
    bare = tiny_llama()
    out = sample(model, requests(), SampleConfig(max_tokens=8), NO_STOP)
    moved = 0.0
    for request, samples in zip(requests(), out, strict=True):
        for row, one in zip(request.rows, samples, strict=True):
            ids = request.path[: row.position] + one.ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                span = (row.position, len(ids))
                scored, without = (
                    plain_logps(model, [ids], [span]),
                    plain_logps(bare, [ids], [span]),
                )
            told = logits[range(row.position - 1, len(ids) - 1), list(one.ids)]
            torch.testing.assert_close(torch.tensor(one.logps), told, atol=1e-4, rtol=0)
            torch.testing.assert_close(scored[0], told, atol=1e-4, rtol=0)
            moved = max(moved, float((scored[0] - without[0]).abs().max()))
    assert moved > 0.1  # the prefix does something


def test_greedy_sampling_equals_generate() -> None:
    model = with_prefix(tiny_llama())
    path = (3, 1, 4, 1, 5)
    (out,) = sample(
        model, [Request(path, (Row(5, 0),))], SampleConfig(temperature=0, max_tokens=12), NO_STOP
    )
    generated = model.generate(
        input_ids=torch.tensor([path]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert list(out[0].ids) == generated[0, 5:].tolist()


def test_the_context_is_shorter_by_the_prefix(tiny_policy: Policy) -> None:
    model = with_prefix(tiny_llama(max_position_embeddings=16))
    assert prefix_length(model) == N
    assert Policy(model, tiny_policy.tokenizer, "complete", "t").max_length == 16 - N
    path = tuple(range(1, 10))
    asked = [Request(path, (Row(9, 0),))]
    sample(model, asked, SampleConfig(max_tokens=4), NO_STOP)
    with pytest.raises(ModelError, match=f"context of {16 - N}"):
        sample(model, asked, SampleConfig(max_tokens=5), NO_STOP)


def test_saved_loaded_and_taken_off(tmp_path: Path) -> None:
    base = tiny_llama()
    span = ([(1, 2, 3, 4)], [(1, 4)])
    before = plain_logps(base, *span)[0]
    model = with_prefix(base)
    under = plain_logps(model, *span)[0]
    model.save_pretrained(str(tmp_path), safe_serialization=True)
    assert take_off(model) is base
    assert torch.equal(plain_logps(base, *span)[0], before)
    again = load_adapter(tiny_llama(), tmp_path, trainable=False)
    assert has_prefix(again)
    assert torch.equal(plain_logps(again, *span)[0], under)
    assert not any(p.requires_grad for p in again.parameters())


def test_what_is_no_prefix() -> None:
    base = tiny_llama()
    assert not has_prefix(base)
    assert prefix_layers(base) == []
    model = with_prefix(base)
    with model.disable_adapter():
        assert prefix_length(model) == 0
    lora = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert not has_prefix(lora)
    assert type(merge(lora)).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match="prefix"):
        merge(model)
    assert packed_or_plain(base, True) == (True, "")
    packed, why = packed_or_plain(model, True)
    assert not packed
    assert "prefix" in why
