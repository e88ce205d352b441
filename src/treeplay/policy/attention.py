"""Hand a model a mask of our own, and know when it would not honour it.

With a custom mask, two mistakes are silent and cost whole nats: a boolean mask under eager
attention (it is added to the scores as 0 and 1), and a model that adds something of its own to the
mask (a sliding window, ALiBi). Both are ruled out here, once.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from treeplay.policy import tree_attention
from treeplay.policy.prefix import has_prefix
from treeplay.policy.tree_blocks import Tree

# Kinds of layers that compute plain softmax attention under the given mask.
PLAIN_LAYERS = ("full_attention", "attention")
# Attention that counts distance in the sequence it is given, whatever the position ids say.
ALIBI = ("bloom", "mpt")
# Layers that carry a state along the sequence: linear attention, state spaces, convolutions.
STATEFUL = (
    "layers_block_type",
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "mamba_num_heads",
    "linear_num_key_heads",
    "conv_L_cache",
    "attention_window_size",
    "attn_layer_indices",
)
DISTANCE = ("alibi", "use_alibi", "relative_attention_num_buckets", "attention_chunk_size")
POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
KINDS = ("sdpa", "eager", tree_attention.NAME)


def why_not_packable(model: Any) -> str | None:
    """Why a packed tree would be computed wrongly by ``model``; ``None`` when it is right."""
    config = model.config
    kind = getattr(config, "model_type", "") or "unknown"
    distance = [name for name in DISTANCE if getattr(config, name, None)]
    if kind in ALIBI or distance:
        return f"the attention of {kind} models counts distance in the packed sequence"
    stateful = [name for name in STATEFUL if getattr(config, name, None)]
    if stateful:
        return f"{kind} models carry a state along the sequence ({stateful[0]})"
    layers = getattr(config, "layer_types", None) or []
    odd = sorted({str(layer) for layer in layers if layer not in PLAIN_LAYERS})
    if odd:
        return f"its layers of type {odd} do not honour an ancestor mask"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"it has a sliding window of {window} tokens"
    attention = getattr(config, "_attn_implementation", None)
    if attention not in KINDS:
        return f"its attention implementation {attention!r} takes no custom mask"
    return _why_positions(model)


def _why_positions(model: Any) -> str | None:
    """Positions must come from ``position_ids``, by a rotation or a learned table."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return "its rotary positions change with the length of what is computed together"
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(core.forward).parameters:
        return "it takes no position_ids"
    for name, module in core.named_modules():
        plain_table = type(module) is torch.nn.Embedding and name.endswith(POSITION_TABLES)
        if plain_table or "Rotary" in type(module).__name__:
            return None
    return "its positions are neither rotary nor a plain learned table"


def packed_or_plain(model: Any, wanted: bool) -> tuple[bool, str]:
    """Whether to compute packed trees, and why not (empty when as ``wanted``).

    A model that cannot compute them is trained plainly: slower, the same numbers.
    """
    reason = why_not_packable(model) if wanted else None
    if wanted and has_prefix(model):
        reason = "a trained prefix stands before the tree"
    if reason is None:
        return wanted, ""
    return False, f"trees are computed branch by branch, which is much slower: {reason}"


def model_mask(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    """``allowed`` (B, Q, K) boolean, as the 4D mask (B, 1, Q, K) that ``model`` understands.

    Eager attention adds the mask to the scores, so it gets 0 and the dtype's lowest value.
    """
    allowed = allowed[:, None]
    if model.config._attn_implementation != "eager":
        return allowed
    dtype = next(iter(model.parameters())).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def tree_mask(model: Any, tree: Tree, device: torch.device) -> torch.Tensor:
    """The mask that makes ``model`` compute ``tree``; under eager attention always a dense one."""
    if model.config._attn_implementation == "eager":
        return model_mask(model, tree.dense(device)[0])
    tree_attention.use_tree_attention(model)
    return tree_attention.TreeMask.of(tree, device)
