"""How whole answers end when they are learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import CHAT, byte_tokenizer, tiny_llama
from hand import GOLDEN, hand_task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from treeplay.closing import closed
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.tasks.answer import cut_answer

TASK = hand_task()
END = 0


def joining_tokenizer() -> Any:
    """Bytes, but ``)`` and a line break behind it are one token, as they are to many models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": END, **{char: i + 1 for i, char in enumerate(alphabet)}, ")Ċ": 257}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(")", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")


def policy_of(style: str, tokenizer: Any = None) -> Policy:
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.chat_template = CHAT
    return Policy(tiny_llama(vocab_size=258), tokenizer, style, "tiny")  # type: ignore[arg-type]


def ids_of(policy: Policy, answer: str) -> tuple[int, ...]:
    path = encode_path(policy, TASK, answer)
    return path.ids[path.n_prompt :]


@pytest.mark.parametrize("answer", [GOLDEN, GOLDEN.rstrip("\n")])
@pytest.mark.parametrize("style", ["complete", "chat"])
def test_a_whole_answer_is_closed_as_the_model_would(style: str, answer: str) -> None:
    policy = policy_of(style)
    ids = ids_of(policy, answer)
    found = closed(policy, TASK, ids)
    assert found[: len(ids)] == ids
    assert found[-1] == END
    text = decode(policy, found)
    assert text == (GOLDEN + "```" if style == "chat" else answer)
    # What evaluation reads of it is the answer.
    assert cut_answer(TASK, text).text.rstrip() == GOLDEN.rstrip()


def test_a_fence_may_join_the_last_token() -> None:
    policy = policy_of("chat", joining_tokenizer())
    answer = GOLDEN.rstrip("\n")
    ids = ids_of(policy, answer)
    found = closed(policy, TASK, ids)
    assert found == (*ids[:-1], 257, *ids_of(policy, "```"), END)
    assert decode(policy, found) == GOLDEN + "```"
    # Sampled ids that the tokenizer would not have written stay as they are.
    sampled = (*ids[:-3], 99, *ids[-2:])
    assert closed(policy, TASK, sampled)[: len(ids)] == sampled
    # Nor is a last token that says more than the answer does.
    longer = (*ids[:-1], ids_of(policy, "\n")[0])
    assert closed(policy, TASK, longer)[: len(ids)] == longer


def test_what_the_program_goes_on_behind_stays_open() -> None:
    policy = policy_of("chat")
    ids = ids_of(policy, GOLDEN)
    assert closed(policy, replace(TASK, suffix="    print(1)\n"), ids) == ids
    assert closed(policy, replace(TASK, suffix="\n\n"), ids)[-1] == END


def test_no_answer_and_no_end_mark() -> None:
    policy = policy_of("complete")
    assert closed(policy, TASK, ()) == ()
    policy.tokenizer.eos_token = None
    ids = ids_of(policy, GOLDEN)
    assert closed(policy, TASK, ids) == ids
