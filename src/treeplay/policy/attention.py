"""Hand a model a mask of our own, and know when it would not honour it.

With a custom mask, two mistakes are silent and cost whole nats: a boolean mask under eager
attention (it is added to the scores as 0 and 1), and a model that adds something of its own to the
mask (a sliding window, ALiBi). Both are ruled out here, once.
"""

from __future__ import annotations

from typing import Any

import torch

# Model families whose attention depends on distance in the sequence rather than on position ids.
ALIBI = ("bloom", "mpt")


def why_not_packable(model: Any) -> str | None:
    """Why a packed tree would be computed wrongly by ``model``; ``None`` when it is right."""
    config = model.config
    kind = getattr(config, "model_type", "")
    if kind in ALIBI or getattr(config, "alibi", False):
        return f"{kind} models use ALiBi, which counts distance in the packed sequence"
    layers = getattr(config, "layer_types", None) or []
    odd = sorted({layer for layer in layers if layer != "full_attention"})
    if odd:
        return f"its layers of type {odd} do not honour an ancestor mask"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"it has a sliding window of {window} tokens"
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"its attention implementation {attention!r} takes no custom mask"
    return None


def model_mask(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    """``allowed`` (B, Q, K) boolean, as the 4D mask (B, 1, Q, K) that ``model`` understands.

    Eager attention adds the mask to the scores, so it gets 0 and the dtype's lowest value.
    """
    allowed = allowed[:, None]
    if model.config._attn_implementation == "sdpa":
        return allowed
    dtype = next(iter(model.parameters())).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)
