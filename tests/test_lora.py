"""The adapter: chosen layers, no backward below them, its dtype; checkpointed activations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from safetensors.torch import load_file
from test_groups import CONFIG, gradient, policy_of, same, trees
from transformers import GPT2Config, GPT2LMHeadModel

from treeplay.contrast import Contrast
from treeplay.errors import ModelError
from treeplay.groups import make_groups
from treeplay.lora import LoraSettings, Weights, check_adapter, checkpointing, with_adapter
from treeplay.opponent import score_opponent
from treeplay.policy.model import load_adapter
from treeplay.train import TrainConfig, group_loss, train

LAYERS = 6


def deep(config: LoraSettings) -> tuple[Any, Any]:
    """A base of six layers, and the same with an adapter that does something."""
    base = tiny_llama(num_hidden_layers=LAYERS)
    model = with_adapter(base, config, None)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return base, model.train()


@pytest.fixture(scope="module")
def scored() -> list[Contrast]:
    return score_opponent(policy_of(tiny_llama(num_hidden_layers=LAYERS)), trees(6, 3), CONFIG)


def trained_layers(model: Any) -> set[int]:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize(
    ("layers", "expected"), [(0, {0, 1, 2, 3, 4, 5}), (2, {4, 5}), ((5, 3), {3, 5}), ((0,), {0})]
)
def test_an_adapter_sits_on_chosen_layers(
    layers: int | tuple[int, ...], expected: set[int]
) -> None:
    _, model = deep(LoraSettings(r=2, layers=layers))
    assert trained_layers(model) == expected
    per_layer = [n for n, p in model.named_parameters() if p.requires_grad and "layers.5" in n]
    assert len(per_layer) == (14 if 5 in expected else 0)  # two matrices on seven projections


def test_other_layer_names_and_given_targets() -> None:
    shape = GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    model = with_adapter(GPT2LMHeadModel(shape), LoraSettings(r=2, layers=1), None)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(".h.2." in name for name in names)
    _, llama = deep(LoraSettings(r=2, layers=1, targets=("q_proj",)))
    names = [name for name, p in llama.named_parameters() if p.requires_grad]
    assert len(names) == 2
    assert all("layers.5.self_attn.q_proj" in name for name in names)


@pytest.mark.parametrize("layers", [7, (6,), (0, 99)])
def test_layers_that_are_not_there(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"train\.lora\.layers.*the model has 6 layers \(0 to 5\)"):
        deep(LoraSettings(layers=layers))


def test_wrong_targets_are_told_before_anything_is_put_on() -> None:
    model = tiny_llama(num_hidden_layers=LAYERS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(ModelError, match=r"train\.lora\.targets"):
        check_adapter(model, LoraSettings(targets=("nope",)))
    with pytest.raises(ModelError, match=r"train\.lora\.layers"):
        check_adapter(model, LoraSettings(layers=9))
    check_adapter(model, LoraSettings(layers=2, targets=("q_proj",)))
    check_adapter(model, LoraSettings())
    assert torch.equal(torch.rand(3), drawn)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Watch:
    """Which layers' outputs ask for a gradient in the forward pass, how many bytes the forward
    pass keeps, and in which layers a backward pass runs."""

    def __init__(self, base: Any) -> None:
        self.asks: dict[int, bool] = {}
        self.ran: set[int] = set()
        self.kept = 0
        for number, layer in enumerate(base.model.layers):
            layer.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            self.asks[number] = output.requires_grad
            if output.requires_grad:
                output.register_hook(lambda grad: self.ran.add(number))  # type: ignore[no-untyped-call]

        return hook

    def run(self, model: Any, contrasts: Sequence[Contrast], config: TrainConfig) -> None:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            self.kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = group_loss(model, contrasts, config)
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("again", [False, True])
def test_nothing_runs_backward_below_the_lowest_trained_layer(
    scored: list[Contrast], again: bool
) -> None:
    base, model = deep(LoraSettings(r=4, layers=(3, 5)))
    watch = Watch(base)
    with checkpointing(base, again):
        watch.run(model, scored, CONFIG)
    assert watch.asks == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}
    assert watch.ran == {3, 4, 5}
    if not again:
        whole, every = deep(LoraSettings(r=4))
        full = Watch(whole)
        full.run(every, scored, CONFIG)
        assert watch.kept < 0.65 * full.kept


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradient(
    scored: list[Contrast], layers: int, packed: bool, dropout: float
) -> None:
    lora = LoraSettings(r=4, layers=layers, dropout=dropout)
    config = replace(CONFIG, lora=lora, packed=packed)
    grads, kept = [], []
    for wanted in (False, True):
        base, model = deep(lora)
        with checkpointing(base, wanted):
            torch.manual_seed(5)
            grads.append(gradient(model, make_groups(scored, packed), config, 200)[0])
            assert (
                any(getattr(m, "gradient_checkpointing", False) for m in base.modules()) == wanted
            )
            watch = Watch(base)
            watch.run(model, scored[:6], config)
            kept.append(watch.kept)
        assert not any(getattr(m, "gradient_checkpointing", False) for m in base.modules())
    same(grads[1], grads[0])
    if not layers:
        assert kept[1] < 0.6 * kept[0]


def test_a_run_with_checkpointing_ends_the_same(scored: list[Contrast], tmp_path: Path) -> None:
    weights = []
    for wanted in (False, True):
        policy = policy_of(tiny_llama(num_hidden_layers=LAYERS))
        config = replace(CONFIG, checkpointing=wanted, learning_rate=1e-2)
        folder = train(policy, scored, config, 0, tmp_path / str(wanted))
        weights.append(load_file(folder / "adapter_model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=1e-3)


# The adapter's dtype --------------------------------------------------------------------------


def test_an_adapter_in_the_model_s_dtype_learns_what_bfloat16_would_round_away(
    scored: list[Contrast], tmp_path: Path
) -> None:
    """Steps far below bfloat16's resolution add up in the float32 weights, which are saved."""
    config = replace(
        CONFIG,
        epochs=8,
        groups_per_step=1,
        learning_rate=2e-5,
        warmup=0,
        schedule="constant",
        lora=LoraSettings(r=4, dtype="model"),
    )
    policy = policy_of(tiny_llama(num_hidden_layers=LAYERS).bfloat16())
    folder = train(policy, scored, config, 0, tmp_path / "bf16")
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    fresh = with_adapter(tiny_llama(num_hidden_layers=LAYERS), config.lora, None)
    assert len(weights) == sum(p.requires_grad for p in fresh.parameters())
    moved = [t.abs().max() for name, t in weights.items() if "lora_B" in name]
    assert min(moved) > 1e-4  # 24 steps of 2e-5
    assert max(moved) < 1e-3
    slow = replace(config, lora=LoraSettings(r=4))
    other = load_file(
        train(policy, scored, slow, 0, tmp_path / "float32") / "adapter_model.safetensors"
    )
    a, b = (
        torch.cat([w[n].flatten() for n in sorted(w) if "lora_B" in n]) for w in (weights, other)
    )
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.8


def test_the_adapter_computes_in_the_model_s_dtype(scored: list[Contrast]) -> None:
    base = tiny_llama().bfloat16()
    model = with_adapter(base, LoraSettings(r=4, dtype="model"), None)
    weights = Weights(model, LoraSettings(r=4, dtype="model"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in weights.masters.values()} == {torch.float32}
    for master in weights.masters.values():
        master.data.fill_(0.3)
    weights.spread()
    assert all(bool((p == torch.tensor(0.3).bfloat16()).all()) for p in weights.used)


@pytest.mark.parametrize("dtype", ["float32", "model"])
def test_resuming_restores_the_float32_weights(
    scored: list[Contrast], tmp_path: Path, dtype: Any
) -> None:
    config = replace(
        CONFIG, checkpoint_steps=1, groups_per_step=1, lora=LoraSettings(r=4, dtype=dtype)
    )
    policy = policy_of(tiny_llama(num_hidden_layers=LAYERS).bfloat16())

    class Killed(Exception):
        pass

    def kill(step: int, steps: int, row: dict[str, float]) -> None:
        if step == 4:
            raise Killed

    train(policy, scored, config, 0, tmp_path / "whole")
    with pytest.raises(Killed):
        train(policy, scored, config, 0, tmp_path / "cut", progress=kill)
    train(policy, scored, config, 0, tmp_path / "cut")
    for name in ("adapter/adapter_model.safetensors", "train.jsonl", "state/state.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_an_adapter_on_chosen_layers_is_loaded_as_it_was(
    scored: list[Contrast], tmp_path: Path
) -> None:
    policy = policy_of(tiny_llama(num_hidden_layers=LAYERS))
    config = replace(CONFIG, lora=LoraSettings(r=4, layers=2), learning_rate=1e-2)
    first = train(policy, scored, config, 0, tmp_path / "1")
    again = load_adapter(tiny_llama(num_hidden_layers=LAYERS), first, trainable=True)
    assert trained_layers(again) == {4, 5}
    second = train(policy, scored, config, 1, tmp_path / "2", start_from=first)
    shapes = [
        {n: t.shape for n, t in load_file(f / "adapter_model.safetensors").items()}
        for f in (first, second)
    ]
    assert shapes[0] == shapes[1]
    assert json.loads((second / "adapter_config.json").read_text())["layers_to_transform"] == [4, 5]
