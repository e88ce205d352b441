"""Log-probabilities from hidden states, without ever holding a (tokens x vocabulary) tensor.

The output layer runs in tiles of rows and vocabulary. While the tiles pass by, the forward pass
collects for every row the log of the sum of exponentials and, where a gradient is wanted, the
expected output embedding under the row's distribution (both rescaled as the maximum rises, as in
the online softmax of Milakov and Gimelshein 2018). With those the gradient of a log-prob is an
embedding less the expected one, so the backward pass needs no logits at all.

Axes: R rows, U wanted (row, token) pairs, D hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from treeplay.policy.matmul import LINEAR, add_product, product

ROWS, WORDS = 256, 4096


@dataclass(frozen=True)
class Head:
    """An output layer: ``logits = cap(scale * (hidden @ weight.T + bias))``, where ``cap`` is
    ``softcap * tanh(x / softcap)``, or nothing at 0."""

    layer: torch.nn.Linear
    scale: float
    softcap: float


_heads: weakref.WeakKeyDictionary[torch.nn.Module, Head | None] = weakref.WeakKeyDictionary()


def head_of(model: Any) -> Head | None:
    """The output layer of ``model``, or ``None`` where its logits are made in a way unknown here.

    Models differ in what they do behind the layer; a forward pass of two tokens tells.
    """
    layer = model.get_output_embeddings()
    if type(layer) not in LINEAR:
        return None
    if layer not in _heads:
        _heads[layer] = _recognise(model, layer)
    return _heads[layer]


def _recognise(model: Any, layer: torch.nn.Linear) -> Head | None:
    """Put known numbers in the place of the layer's output and look at what becomes of them."""
    words = len(layer.weight)
    known_V = torch.linspace(-40, 40, words, dtype=layer.weight.dtype, device=layer.weight.device)
    hook = layer.register_forward_hook(lambda _m, _in, out: known_V.expand(out.shape).clone())
    device = layer.weight.device
    try:
        # Dropout in this pass must not take from the random numbers of whoever asked: a resumed run
        # asks at another step.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            ids = torch.zeros(1, 2, dtype=torch.long, device=layer.weight.device)
            logits_V = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    finally:
        hook.remove()
    config = model.config
    scales = [
        1.0,
        getattr(config, "logit_scale", None),
        getattr(config, "lm_head_multiplier", None),
    ]
    if divisor := getattr(config, "logits_scaling", None):
        scales.append(1 / divisor)
    for scale in (s for s in scales if s):
        for softcap in (0.0, getattr(config, "final_logit_softcapping", None) or 0.0):
            guess_V = capped(known_V.float() * scale, softcap)
            if guess_V.shape == logits_V.shape and torch.allclose(guess_V, logits_V, rtol=1e-2):
                return Head(layer, float(scale), float(softcap))
    return None


def capped(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


@contextlib.contextmanager
def without(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, the model stops before its output ``layer``; the hidden states land in the list."""
    caught: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        caught.append(hidden)
        return hidden[..., :1]

    # On the layer itself, in front of its class's method.
    vars(layer)["forward"] = keep
    try:
        yield caught
    finally:
        del vars(layer)["forward"]


def gather_logps(
    head: Head, hidden_RD: torch.Tensor, row_U: torch.Tensor, token_U: torch.Tensor
) -> torch.Tensor:
    """Float32 log-probs (U,) of token ``token_U[i]`` after row ``row_U[i]``; ``row_U`` ascends.

    With a trained output layer (its weights need a gradient) tiles of rows are computed again in
    the backward pass instead.
    """
    layer = head.layer
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in layer.parameters()):
        out: torch.Tensor = _TiledLogps.apply(  # type: ignore[no-untyped-call]
            hidden_RD, layer.weight, layer.bias, row_U, token_U, head.scale, head.softcap
        )
        return out
    parts = []
    for first in range(0, len(hidden_RD), ROWS):
        inside = (row_U >= first) & (row_U < first + ROWS)
        parts.append(
            checkpoint(
                _tile_logps,
                head,
                hidden_RD[first : first + ROWS],
                row_U[inside] - first,
                token_U[inside],
                use_reentrant=False,
            )
        )
    return torch.cat(parts)


def _tile_logps(
    head: Head, hidden_RD: torch.Tensor, row_U: torch.Tensor, token_U: torch.Tensor
) -> torch.Tensor:
    return logps_of(
        capped(head.layer(hidden_RD).float() * head.scale, head.softcap), row_U, token_U
    )


def logps_of(logits_RV: torch.Tensor, row_U: torch.Tensor, token_U: torch.Tensor) -> torch.Tensor:
    """log-softmax(logits)[row_U, token_U] in float32, without a second (R x V) tensor."""
    logits_RV = logits_RV.float()
    return logits_RV[row_U, token_U] - torch.logsumexp(logits_RV, dim=-1)[row_U]


class _TiledLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        row_U: torch.Tensor,
        token_U: torch.Tensor,
        scale: float,
        softcap: float,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        rows, width = hidden_RD.shape
        words = len(weight_VD)
        lse_R = torch.empty(rows, device=hidden_RD.device)
        mean_RD = hidden_RD.new_zeros(rows if wanted else 0, width, dtype=torch.float32)
        logit_U = torch.empty(len(row_U), device=hidden_RD.device)
        # Wanted pairs by the vocabulary tile that holds their token, once.
        pairs = [
            ((token_U >= v) & (token_U < v + WORDS)).nonzero()[:, 0] for v in range(0, words, WORDS)
        ]
        for r in range(0, rows, ROWS):
            tile = slice(r, min(r + ROWS, rows))
            top_R1 = hidden_RD.new_full((tile.stop - r, 1), -torch.inf, dtype=torch.float32)
            sum_R1 = torch.zeros_like(top_R1)
            for inside, v in zip(pairs, range(0, words, WORDS), strict=True):
                weight = weight_VD[v : v + WORDS]
                logit_RV = product(hidden_RD[tile], weight)
                if bias_V is not None:
                    logit_RV += bias_V[v : v + WORDS]
                logit_RV = logit_RV.float()
                if scale != 1:
                    logit_RV *= scale
                logit_RV = capped(logit_RV, softcap)
                here = inside[(row_U[inside] >= r) & (row_U[inside] < tile.stop)]
                logit_U[here] = logit_RV[row_U[here] - r, token_U[here] - v]
                rise_R1 = torch.maximum(top_R1, logit_RV.amax(1, keepdim=True))
                # The slope of the cap is wanted too, before the logits are overwritten.
                slope_RV = 1 - (logit_RV / softcap) ** 2 if softcap and wanted else None
                prob_RV = logit_RV.sub_(rise_R1).exp_()
                shrink_R1 = (top_R1 - rise_R1).exp_()
                sum_R1.mul_(shrink_R1).add_(prob_RV.sum(1, keepdim=True))
                if wanted:
                    if slope_RV is not None:
                        prob_RV *= slope_RV
                    mean_RD[tile].mul_(shrink_R1)
                    if weight.dtype == torch.float32:
                        add_product(mean_RD[tile], prob_RV, weight.T)
                    else:
                        mean_RD[tile] += product(prob_RV.to(weight.dtype), weight.T)
                top_R1 = rise_R1
            lse_R[tile] = (top_R1 + sum_R1.log())[:, 0]
            if wanted:
                mean_RD[tile] /= sum_R1
        ctx.save_for_backward(mean_RD, weight_VD, row_U, token_U, logit_U)
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, hidden_RD.dtype
        return logit_U - lse_R[row_U]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_U: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        mean_RD, weight_VD, row_U, token_U, logit_U = ctx.saved_tensors
        row_sum_R = grad_U.new_zeros(len(mean_RD)).index_add_(0, row_U, grad_U)
        grad_RD = mean_RD * -row_sum_R[:, None]
        if ctx.softcap:
            grad_U = grad_U * (1 - (logit_U / ctx.softcap) ** 2)
        for u in range(0, len(row_U), WORDS):
            part = slice(u, u + WORDS)
            pull_UD = weight_VD[token_U[part]].float().mul_(grad_U[part, None])
            grad_RD.index_add_(0, row_U[part], pull_UD)
        return (grad_RD.mul_(ctx.scale).to(ctx.dtype), *[None] * 6)
