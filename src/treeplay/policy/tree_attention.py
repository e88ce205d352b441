"""Attention over a packed tree, as an attention implementation of Transformers.

The tree travels in the attention mask (:class:`TreeMask`): the one argument that every layer of
every model hands on and that activation checkpointing records for its second forward pass. A
model whose implementation is :data:`NAME` computes such masks here and all others as ``sdpa``.
Were a tree's mask ever to reach another implementation, it hides everything, and the result is
not a number instead of silently wrong.

Axes: L packed tokens, H heads, K key heads, G = H / K, D head width, m queries and n keys of a
block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treeplay.errors import ModelError
from treeplay.policy.matmul import widen
from treeplay.policy.tree_blocks import Block, Tree

NAME = "treeplay_tree"
# Attention weights of one layer that are worth keeping between forward and backward.
KEPT_BYTES = 8 << 20


class TreeMask(torch.Tensor):
    """A mask (1, 1, L, L) that takes no room, hides everything, and carries its ``tree``."""

    tree: Tree | None = None

    @staticmethod
    def of(tree: Tree, device: torch.device) -> TreeMask:
        size = len(tree.parents)
        nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
        mask = nothing.expand(1, 1, size, size).as_subclass(TreeMask)
        mask.tree = tree
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        same = func in (torch.Tensor.detach, torch.Tensor.to)
        if same and isinstance(out, TreeMask) and isinstance(args[0], TreeMask):
            out.tree = args[0].tree
        return out


def use_tree_attention(model: Any) -> None:
    """Make ``model`` understand :class:`TreeMask`; nothing else about it changes.

    It stays so: activation checkpointing computes layers anew after the forward pass is over.
    """
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = NAME


def tree_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention (1, L, H, D) of ``query`` (1, H, L, D) over ``key`` and ``value`` (1, K, L, D).

    Raises :class:`ModelError` where the model adds something to attention that is not known here,
    or the mask has lost its tree on the way.
    """
    if not isinstance(attention_mask, TreeMask):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return out, None
    tree = attention_mask.tree
    odd = [
        name
        for name in ("softcap", "position_bias", "s_aux", "sliding_window")
        if kwargs.get(name) is not None
    ]
    if tree is None or odd or query.shape[0] != 1 or query.shape[2] != len(tree.parents):
        raise ModelError(
            f"{type(module).__name__} does not compute packed trees "
            f"({', '.join(odd) or 'its mask or shapes are its own'}); set train.packed=false"
        )
    if tree.mode == "dense" or dropout:  # dropout is drawn for the whole matrix at once
        out, _ = sdpa_attention_forward(
            module, query, key, value, tree.dense(query.device), dropout, scaling
        )
        return out, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tree.mode == "flex":
        return flex_attention_of(query, key, value, tree, scale), None
    return _SplitAttention.apply(query, key, value, tree.blocks, scale), None  # type: ignore[no-untyped-call]


AttentionInterface.register(NAME, tree_attention_forward)
# Without an entry here, a model would get no mask at all for its plain sequences.
AttentionMaskInterface.register(NAME, sdpa_mask)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


def flex_attention_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: Tree, scale: float
) -> torch.Tensor:
    """FlexAttention with the tree's ancestor mask, compiled on GPU; on CPU forward only."""
    from torch.nn.attention.flex_attention import flex_attention

    run: Any = _compiled_flex() if query.is_cuda else flex_attention
    heads = query.shape[1]
    if heads & (heads - 1):  # its kernels group query heads by powers of two only
        group = heads // key.shape[1]
        key, value = repeat_kv(key, group), repeat_kv(value, group)
    out = run(
        query,
        key,
        value,
        block_mask=tree.flex(query.device),
        scale=scale,
        enable_gqa=key.shape[1] != heads,
    )
    result: torch.Tensor = out.transpose(1, 2).contiguous()
    return result


class _SplitAttention(torch.autograd.Function):
    """Softmax attention block by block; scores and softmax are float32.

    The weights are kept for the backward pass where they are small beside a layer's activations,
    and computed again where they are not.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: Sequence[Block],
        scale: float,
    ) -> torch.Tensor:
        ctx.blocks, ctx.scale = blocks, scale
        given = (query, key, value)
        query, key, value = (widen(part) for part in given)
        heads, size = query.shape[1:3]
        kept: list[torch.Tensor] = []
        keep = heads * sum(b.pairs for b in blocks) * query.element_size() <= KEPT_BYTES
        out = query.new_empty(size, heads, value.shape[-1])
        for block in blocks:
            query_KRD = _queries(query, key.shape[1], block)
            weights_KRN = _weights(query_KRD, _gather(key, block), block, scale)
            _store(out, torch.bmm(weights_KRN, _gather(value, block)), block)
            if keep and any(ctx.needs_input_grad):
                kept.append(weights_KRN)
        ctx.save_for_backward(*given, *kept)
        return out[None].to(given[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    # In the numbers of the forward pass.
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        dtype = query.dtype
        query, key, value, grad = (widen(part) for part in (query, key, value, grad))
        heads, size = query.shape[1:3]
        groups = key.shape[1]
        grad_query = torch.empty(size, heads, query.shape[-1], dtype=query.dtype)
        # Many blocks add to the same keys: float32, whatever the model's own dtype.
        grad_key = torch.zeros(size, groups, key.shape[-1])
        grad_value = torch.zeros(size, groups, value.shape[-1])
        for i, block in enumerate(ctx.blocks):
            query_KRD = _queries(query, groups, block)
            key_KND, value_KND = _gather(key, block), _gather(value, block)
            weights_KRN = kept[i] if kept else _weights(query_KRD, key_KND, block, ctx.scale)
            grad_KRD = _queries(grad.transpose(1, 2), groups, block)
            _scatter(grad_value, torch.bmm(weights_KRN.mT, grad_KRD), block)
            score_KRN = torch.ops.aten._softmax_backward_data(
                torch.bmm(grad_KRD, value_KND.mT), weights_KRN, -1, weights_KRN.dtype
            )
            _store(grad_query, torch.bmm(score_KRN, key_KND).mul_(ctx.scale), block)
            _scatter(grad_key, torch.bmm(score_KRN.mT, query_KRD).mul_(ctx.scale), block)
        return (
            grad_query.to(dtype).transpose(0, 1)[None],
            grad_key.to(dtype).transpose(0, 1)[None],
            grad_value.to(dtype).transpose(0, 1)[None],
            None,
            None,
        )


def _queries(states: torch.Tensor, groups: int, block: Block) -> torch.Tensor:
    """(1, H, L, D) -> (K, G * m, D): the block's queries, those of one key head together."""
    piece = states[0, :, block.start : block.stop]
    return piece.reshape(groups, -1, piece.shape[-1])


def _gather(states: torch.Tensor, block: Block) -> torch.Tensor:
    """(1, K, L, D) -> (K, n, D): the block's keys."""
    pieces = [states[0, :, a:b] for a, b in block.keys]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _weights(
    query_KRD: torch.Tensor, key_KND: torch.Tensor, block: Block, scale: float
) -> torch.Tensor:
    """Attention weights (K, G * m, n), rounded to the model's dtype at the end."""
    score_KRN = torch.bmm(query_KRD.float() * scale, key_KND.float().mT)
    groups, _, keys = score_KRN.shape
    by_head = score_KRN.view(groups, -1, block.stop - block.start, keys)
    by_head[..., block.common :] += block.hidden
    return torch.softmax(score_KRN, -1).to(key_KND.dtype)


def _store(out_LHD: torch.Tensor, part_KRD: torch.Tensor, block: Block) -> None:
    """Write (K, G * m, D) to the block's rows of (L, H, D)."""
    groups, _, width = part_KRD.shape
    rows = out_LHD[block.start : block.stop].view(block.stop - block.start, groups, -1, width)
    rows.permute(1, 2, 0, 3).copy_(part_KRD.view(groups, -1, block.stop - block.start, width))


def _scatter(sum_LKD: torch.Tensor, part_KND: torch.Tensor, block: Block) -> None:
    """Add (K, n, D) to the rows of the block's keys in (L, K, D)."""
    at = 0
    for a, b in block.keys:
        sum_LKD[a:b] += part_KND[:, at : at + b - a].transpose(0, 1)
        at += b - a
