"""Split, flexible and dense attention over packed trees equal plain sequences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from treeplay.errors import ModelError
from treeplay.packing import ancestor_mask, pack, subtree_ends
from treeplay.policy import tree_attention
from treeplay.policy.attention import packed_or_plain, why_not_packable
from treeplay.policy.head import gather_logps, head_of, logps_of
from treeplay.policy.lora import FusedLoraLinear, fuse_lora
from treeplay.policy.score import packed_logps, plain_logps
from treeplay.policy.tree_attention import NAME, TreeMask, tree_attention_forward
from treeplay.policy.tree_blocks import Tree, cut, flex_mask

SMALL = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {
    **SMALL,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**WIDE, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**WIDE, "num_key_value_heads": 2}),
    "gemma": (
        "GemmaConfig",
        "GemmaForCausalLM",
        {**WIDE, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {**SMALL, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", WIDE),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {**WIDE, "num_key_value_heads": 2}),
}


def tiny(shape: str, **changes: Any) -> Any:
    config_name, model_name, values = SHAPES[shape]
    torch.manual_seed(0)
    config = getattr(hf, config_name)(**{**values, **changes})
    config._attn_implementation = "sdpa"
    return getattr(hf, model_name)(config).eval()


def with_lora(model: Any) -> Any:
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(model), lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the gradient
            torch.nn.init.normal_(weight, std=0.05)
    return adapted


def forest() -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Two roots; nodes on a golden path, on a branch, at its first and its last token; a branch of
    one token, an empty one, and one equal to the golden path."""
    draw = torch.Generator().manual_seed(3)

    def some(count: int) -> list[int]:
        return torch.randint(1, 97, (count,), generator=draw).tolist()

    golden, other = [5, *some(69)], [6, *some(40)]
    deep = golden[:20] + some(30)
    sequences = [
        golden,
        *(golden[:20] + some(9) for _ in range(3)),
        *(golden[:45] + some(n) for n in (12, 1, 7)),
        golden[:1] + some(25),
        golden + some(11),
        deep,
        deep[:33] + some(14),
        golden[:30],
        other,
        other[:10] + some(6),
    ]
    starts = [10, 20, 20, 20, 45, 45, 45, 1, 70, 20, 33, 30, 4, 10]
    return sequences, [(a, len(s)) for a, s in zip(starts, sequences, strict=True)]


def loss_of(logps: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([p.sum() * (1 + i % 3) for i, p in enumerate(logps)]).sum()


def lora_gradient(model: Any, logps: list[torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    loss_of(logps).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_architecture_packed_equals_plain(shape: str) -> None:
    model = with_lora(tiny(shape))
    assert why_not_packable(model) is None
    sequences, spans = forest()
    plain = plain_logps(model, sequences, spans)
    truth = lora_gradient(model, plain)
    for mode in ("split", "dense"):
        packed = packed_logps(model, sequences, spans, attention=mode)
        for a, b in zip(packed, plain, strict=True):
            torch.testing.assert_close(a, b, atol=2.5e-5, rtol=0)
        assert (lora_gradient(model, packed) - truth).norm() < 1e-5 * truth.norm()


@pytest.mark.parametrize("shape", ["llama", "gemma", "gpt2"])
def test_flex_attention_gives_the_same_values(shape: str) -> None:
    model = tiny(shape)
    sequences, spans = forest()
    with torch.no_grad():
        plain = plain_logps(model, sequences, spans)
        flex = packed_logps(model, sequences, spans, attention="flex")
    for a, b in zip(flex, plain, strict=True):
        torch.testing.assert_close(a, b, atol=2.5e-5, rtol=0)


def test_bfloat16_split_is_as_near_the_truth_as_dense() -> None:
    sequences, spans = forest()
    truth = torch.cat(plain_logps(tiny("llama"), sequences, spans)).detach()
    model = with_lora(tiny("llama").to(torch.bfloat16))
    with model.disable_adapter(), torch.no_grad():
        errors = {
            mode: (torch.cat(packed_logps(model, sequences, spans, attention=mode)) - truth).norm()
            for mode in ("split", "dense")
        }
    assert errors["split"] < 1.5 * errors["dense"]
    gradient = lora_gradient(model, packed_logps(model, sequences, spans))
    dense = lora_gradient(model, packed_logps(model, sequences, spans, attention="dense"))
    assert (gradient - dense).norm() < 0.05 * dense.norm()


def test_weights_kept_or_computed_again_give_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_lora(tiny("qwen2"))
    sequences, spans = forest()
    kept = lora_gradient(model, packed_logps(model, sequences, spans))
    monkeypatch.setattr(tree_attention, "KEPT_BYTES", 0)
    again = lora_gradient(model, packed_logps(model, sequences, spans))
    assert torch.equal(kept, again)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most elements that any floating-point result has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_or_tokens_by_tokens() -> None:
    words = 20_011
    model = with_lora(tiny("qwen2", vocab_size=words))
    golden = [5 + i % 50 for i in range(500)]
    sequences = [golden, *(golden[:cut] + [60 + cut % 7] * 90 for cut in range(40, 440, 50))]
    spans = [(1, len(s)) for s in sequences]
    tokens = len(pack(sequences).ids)
    head_of(model)
    embeddings = words * 48
    with Largest() as largest:
        loss_of(packed_logps(model, sequences, spans)).backward()  # type: ignore[no-untyped-call]
    assert tokens > 1000
    # The largest thing is the output layer itself (a view of it, as operand), or one tile.
    assert largest.elements <= max(embeddings, 256 * 4096)
    assert 256 * 4096 < tokens * tokens < tokens * words


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_activation_checkpointing_sees_the_tree_again(shape: str, reentrant: bool) -> None:
    model = with_lora(tiny(shape, **({"attn_pdrop": 0.0} if shape == "gpt2" else {})))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    sequences, spans = forest()
    model.train()
    truth = lora_gradient(model, packed_logps(model, sequences, spans))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = lora_gradient(model, packed_logps(model, sequences, spans))
    assert (again - truth).norm() < 1e-6 * truth.norm()


FORESTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=20), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(FORESTS)
def test_random_forests_split_dense_and_plain_agree(sequences: list[list[int]]) -> None:
    model = tiny_llama()
    spans = [(1, len(s)) for s in sequences]
    with torch.no_grad():
        plain = plain_logps(model, sequences, spans)
        for mode in ("split", "dense"):
            packed = packed_logps(model, sequences, spans, attention=mode)
            for a, b in zip(packed, plain, strict=True):
                torch.testing.assert_close(a, b, atol=2.5e-5, rtol=0)


@settings(deadline=None)
@given(FORESTS, st.integers(1, 40))
def test_blocks_and_flex_blocks_are_the_ancestor_mask(sequences: list[list[int]], by: int) -> None:
    # Tokens are repeated, so that there are long runs to cut.
    packed = pack([[token for token in s for _ in range(by)] for s in sequences])
    mask, ends = ancestor_mask(packed.parents), subtree_ends(packed.parents)
    slots = torch.arange(len(ends))
    end = torch.tensor(ends)
    assert torch.equal(mask, (slots <= slots[:, None]) & (slots[:, None] < end))

    seen = torch.zeros_like(mask)
    blocks = cut(packed.parents, ends)
    assert [slot for b in blocks for slot in range(b.start, b.stop)] == slots.tolist()
    for block in blocks:
        keys = torch.cat([torch.arange(a, b) for a, b in block.keys])
        visible = torch.ones(block.stop - block.start, len(keys), dtype=torch.bool)
        visible[:, block.common :] = block.hidden == 0
        seen[block.start : block.stop, keys] = visible
    assert torch.equal(seen, mask)

    padding = -len(ends) % 128
    padded = subtree_ends((*packed.parents, *[-1] * padding))
    flexible = flex_mask(padded, torch.device("cpu")).to_dense()[0, 0]  # which blocks are computed
    whole = torch.zeros(len(padded), len(padded), dtype=torch.bool)
    whole[: len(ends), : len(ends)] = mask
    whole |= torch.eye(len(padded), dtype=torch.bool)
    by_block = whole.view(len(padded) // 128, 128, -1, 128).any(3).any(1)
    assert torch.equal(flexible.bool(), by_block)


def test_cost_is_linear_in_tokens() -> None:
    def pairs(nodes: int) -> float:
        golden = [1] * 32 * nodes
        branches = [[2 + b] * 24 for b in range(4)]
        # A window of the path is shared, so the depth of a tree stays the same as trees are added.
        sequences = [[7 + n, *golden[:128], *branch] for n in range(nodes) for branch in branches]
        packed = pack(sequences)
        blocks = cut(packed.parents, subtree_ends(packed.parents))
        return sum(block.pairs for block in blocks) / len(packed.parents)

    assert pairs(32) < 1.1 * pairs(4)


def test_a_mask_that_lost_its_tree_is_an_error_and_other_attention_gives_no_number() -> None:
    model = tiny("llama")
    sequences, _ = forest()
    packed = pack(sequences)
    mask = TreeMask.of(Tree(packed.parents, "split"), torch.device("cpu"))
    kept = mask.detach()
    assert isinstance(kept, TreeMask)
    assert kept.tree is mask.tree
    query = torch.randn(1, 6, len(packed.ids), 8)
    layer = model.model.layers[0].self_attn
    with pytest.raises(ModelError, match=r"train\.packed=false"):
        tree_attention_forward(layer, query, query[:, :2], query[:, :2], mask.clone())
    with pytest.raises(ModelError, match="softcap"):
        tree_attention_forward(layer, query, query[:, :2], query[:, :2], mask, softcap=1.0)
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, query, query, attn_mask=mask.as_subclass(torch.Tensor)
    )
    assert not (plain.isfinite() & (plain != 0)).any()


def test_plain_sequences_are_computed_as_before_under_the_tree_implementation() -> None:
    model = tiny("qwen2")
    sequences, spans = forest()
    before = plain_logps(model, sequences, spans)
    padded = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    seen = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    logits = model(input_ids=padded, attention_mask=seen).logits
    packed_logps(model, sequences, spans)
    assert model.config._attn_implementation == NAME
    for a, b in zip(plain_logps(model, sequences, spans), before, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model(input_ids=padded, attention_mask=seen).logits, logits)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sliding_window": 16}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"alibi": True}, "counts distance"),
        ({"mamba_d_state": 16}, "carry a state"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "change with the length"),
        ({"_attn_implementation": "flash_attention_2"}, "takes no custom mask"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_trained_plainly(
    changes: dict[str, Any], why: str
) -> None:
    model = tiny("llama")
    assert packed_or_plain(model, True) == (True, "")
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert why in str(why_not_packable(model))
    packed, reason = packed_or_plain(model, True)
    assert not packed
    assert why in reason
    assert packed_or_plain(model, False) == (False, "")


def test_models_without_known_positions_are_refused() -> None:
    bloom = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2))
    assert "counts distance" in str(why_not_packable(bloom))
    mamba = hf.MambaForCausalLM(hf.MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    assert "carry a state" in str(why_not_packable(mamba))


def test_a_final_softcap_and_a_logit_scale_are_honoured() -> None:
    torch.manual_seed(0)
    gemma = tiny("gemma")
    layer = gemma.get_output_embeddings()
    hidden, rows = torch.randn(5, 48, requires_grad=True), torch.tensor([0, 1, 1, 3])
    tokens = torch.tensor([3, 0, 96, 50])
    layer.weight.requires_grad_(False)
    head = type(head_of(gemma))(layer, 0.5, 2.0)  # type: ignore[misc]
    for cap in (0.0, 2.0):
        head = type(head)(layer, 0.5, cap)
        logits = layer(hidden) * 0.5
        logits = cap * torch.tanh(logits / cap) if cap else logits
        wanted = logps_of(logits, rows, tokens)
        (truth,) = torch.autograd.grad(wanted.pow(2).sum(), hidden)
        tiled = gather_logps(head, hidden, rows, tokens)
        torch.testing.assert_close(tiled, wanted)
        (gradient,) = torch.autograd.grad(tiled.pow(2).sum(), hidden)
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-6)


def test_the_final_softcap_of_gemma_2_is_found() -> None:
    torch.manual_seed(0)
    shape = {**WIDE, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0}
    model = hf.Gemma2ForCausalLM(hf.Gemma2Config(**shape)).eval()
    head = head_of(model)
    assert head is not None
    assert (head.scale, head.softcap) == (1.0, 5.0)
    assert why_not_packable(model) is not None  # its sliding window


@pytest.mark.parametrize(
    ("name", "factor", "changes"),
    [
        ("Llama", 1.0, {}),
        ("Cohere", 0.25, {"logit_scale": 0.25}),
        ("Granite", 0.125, {"logits_scaling": 8.0}),
    ],
)
def test_the_output_layer_is_recognised(name: str, factor: float, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**{**WIDE, "num_key_value_heads": 2, **changes})
    model = getattr(hf, f"{name}ForCausalLM")(config).eval()
    head = head_of(model)
    assert head is not None
    assert head.scale == factor
    sequences, spans = forest()
    packed = packed_logps(model, sequences, spans)
    for a, b in zip(packed, plain_logps(model, sequences, spans), strict=True):
        torch.testing.assert_close(a, b, atol=2.5e-5, rtol=0)


def test_tiles_of_rows_and_words_meet() -> None:
    """More rows and words than one tile holds, a row with several tokens, one with none."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 9001)
    layer.weight.data *= 20
    hidden = torch.randn(300, 16, requires_grad=True)
    rows = torch.arange(600) // 2
    rows = rows[rows != 7]
    tokens = torch.randint(0, 9001, (len(rows),))
    head_type = type(head_of(tiny("llama")))
    head = head_type(layer, 1.0, 0.0)  # type: ignore[misc]
    weights = torch.randn(len(rows))
    wanted = logps_of(layer(hidden), rows, tokens)
    truth, weight_truth = torch.autograd.grad((wanted * weights).sum(), [hidden, layer.weight])
    trained = gather_logps(head, hidden, rows, tokens)
    torch.testing.assert_close(trained, wanted)
    pieces = torch.autograd.grad((trained * weights).sum(), [hidden, layer.weight])
    torch.testing.assert_close(pieces[0], truth)
    torch.testing.assert_close(pieces[1], weight_truth)
    layer.requires_grad_(False)
    tiled = gather_logps(head, hidden, rows, tokens)
    torch.testing.assert_close(tiled, wanted)
    (gradient,) = torch.autograd.grad((tiled * weights).sum(), hidden)
    assert (gradient - truth).norm() < 1e-5 * truth.norm()


def test_fused_lora_layers_equal_the_library_and_step_aside() -> None:
    plain = with_lora(tiny("qwen2"))
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    assert any(isinstance(m, FusedLoraLinear) for m in fused.modules())
    ids = torch.arange(1, 20)[None]
    for setting in (lambda m: None, lambda m: m.merge_adapter(), lambda m: m.unmerge_adapter()):
        setting(plain)
        setting(fused)
        torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits)
    with plain.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits)
    for model in (plain, fused):
        model(input_ids=ids).logits.logsumexp(-1).sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
