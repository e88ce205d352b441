"""A trained prefix (PEFT's prefix tuning): keys and values that stand before every text.

Prefix tuning (Li and Liang 2021, arXiv 2101.00190) leaves the weights alone: each layer attends to
some keys and values more, which are trained, and the text begins at the position behind them. PEFT
gives them to the model as a cache that is not empty. Our own attention (:mod:`.lanes`) puts the
same ones in front of what it reads. Nothing here changes the base model, so there is nothing to
take off again.

Axes: B batch, K key heads, n virtual tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, PeftType

from treeplay.errors import ModelError


def has_prefix(model: Any) -> bool:
    """Whether ``model`` is a base model with an active prefix before it."""
    if not isinstance(model, PeftModel) or model._adapters_disabled:
        return False
    return bool(model.active_peft_config.peft_type == PeftType.PREFIX_TUNING)


def prefix_length(model: Any) -> int:
    """How many positions the prefix takes; 0 without one."""
    return int(model.active_peft_config.num_virtual_tokens) if has_prefix(model) else 0


def base_of(model: Any) -> Any:
    """The model that a prefix is put before; any other model as it is."""
    return model.get_base_model() if has_prefix(model) else model


def prefix_cache(model: Any, dropout: float = 0.0) -> Any:
    """A new cache that holds the prefix alone, with gradient where it is trained; ``None`` without
    one. ``dropout`` is applied to the keys and values."""
    if not has_prefix(model):
        return None
    cache = model.get_prompt(1)
    if dropout:
        for layer in cache.layers:
            layer.keys = torch.nn.functional.dropout(layer.keys, dropout)
            layer.values = torch.nn.functional.dropout(layer.values, dropout)
    return cache


@torch.no_grad()
def prefix_layers(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (1, K, n, D) of each layer; empty without a prefix."""
    cache = prefix_cache(model)
    return [] if cache is None else [(layer.keys, layer.values) for layer in cache.layers]


def take_off(model: Any) -> Any:
    """The base model without its adapter, as it was before."""
    return model.get_base_model() if has_prefix(model) else model.unload()


def merge(model: Any) -> Any:
    """The base model with its adapter merged into its weights.

    Raises :class:`ModelError` for a prefix, which is no change of weights.
    """
    if has_prefix(model):
        raise ModelError(
            "model.adapter is a trained prefix (method sven), which cannot be merged into the "
            "model to train on top of it; name a LoRA adapter, or only evaluate this one"
        )
    return model.merge_and_unload()
