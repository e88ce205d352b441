"""How far a player is from its opponent at every state, without a (rows x vocabulary) tensor.

    KL(opponent || player) = sum_v q_v (log q_v - log p_v)
                           = sum_v q_v (y_v - z_v) - log sum exp y + log sum exp z

for the opponent's logits y and the player's z. The output layer, which the two share, runs in tiles
of rows and vocabulary over both hidden states; every sum is kept rescaled as the maximum rises, as
in :mod:`treeplay.policy.head`. The gradient with regard to z is p - q, hence that of a hidden state
is the expected output embedding under the player less that under the opponent: both are collected
in the forward pass, and the backward pass needs no logits. The log-probs of wanted tokens come out
of the same tiles.

Axes: R rows, U wanted (row, token) pairs, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from treeplay.losses import kl_divergence
from treeplay.policy.head import ROWS, WORDS, Head, capped, logps_of
from treeplay.policy.matmul import add_product, product

Both = tuple[torch.Tensor, torch.Tensor]


def gather_logps_and_kl(
    head: Head,
    hidden_RD: torch.Tensor,
    opponent_RD: torch.Tensor,
    row_U: torch.Tensor,
    token_U: torch.Tensor,
) -> Both:
    """Float32 log-probs (U,) of token ``token_U[i]`` after row ``row_U[i]``, and the KL (R,) of the
    player (``hidden_RD``) from the opponent (``opponent_RD``) at every row, in nats.

    ``row_U`` ascends. No gradient goes to the opponent. With a trained output layer (its weights
    need a gradient) tiles of rows are computed again in the backward pass instead.
    """
    layer = head.layer
    opponent_RD = opponent_RD.detach()
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in layer.parameters()):
        out: Both = _TiledBoth.apply(  # type: ignore[no-untyped-call]
            hidden_RD,
            opponent_RD,
            layer.weight,
            layer.bias,
            row_U,
            token_U,
            head.scale,
            head.softcap,
        )
        return out
    parts = []
    for first in range(0, len(hidden_RD), ROWS):
        inside = (row_U >= first) & (row_U < first + ROWS)
        parts.append(
            checkpoint(
                _tile,
                head,
                hidden_RD[first : first + ROWS],
                opponent_RD[first : first + ROWS],
                row_U[inside] - first,
                token_U[inside],
                use_reentrant=False,
            )
        )
    logps, kls = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(kls)


def _tile(
    head: Head,
    hidden_RD: torch.Tensor,
    opponent_RD: torch.Tensor,
    row_U: torch.Tensor,
    token_U: torch.Tensor,
) -> Both:
    logits = capped(head.layer(hidden_RD).float() * head.scale, head.softcap)
    with torch.no_grad():
        other = capped(head.layer(opponent_RD).float() * head.scale, head.softcap)
    return logits_to_both(logits, other, row_U, token_U)


def logits_to_both(
    logits_RV: torch.Tensor, opponent_RV: torch.Tensor, row_U: torch.Tensor, token_U: torch.Tensor
) -> Both:
    """The same from whole logits, for models whose output layer is not known: the oracle."""
    kl_R = kl_divergence(
        torch.log_softmax(opponent_RV.detach().float(), -1),
        torch.log_softmax(logits_RV.float(), -1),
    )
    return logps_of(logits_RV, row_U, token_U), kl_R


class _TiledBoth(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: torch.Tensor,
        opponent_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        row_U: torch.Tensor,
        token_U: torch.Tensor,
        scale: float,
        softcap: float,
    ) -> Both:
        wanted = ctx.needs_input_grad[0]
        rows, width = hidden_RD.shape
        words = len(weight_VD)
        lse_R = torch.empty(rows, device=hidden_RD.device)
        kl_R = torch.empty_like(lse_R)
        # Expected output embeddings: under the player, under the opponent.
        mean_RD = hidden_RD.new_zeros(rows if wanted else 0, width, dtype=torch.float32)
        theirs_RD = torch.zeros_like(mean_RD)
        logit_U = torch.empty(len(row_U), device=hidden_RD.device)
        pairs = [
            ((token_U >= v) & (token_U < v + WORDS)).nonzero()[:, 0] for v in range(0, words, WORDS)
        ]

        def logits(hidden: torch.Tensor, v: int) -> torch.Tensor:
            out = product(hidden, weight_VD[v : v + WORDS])
            if bias_V is not None:
                out += bias_V[v : v + WORDS]
            out = out.float()
            if scale != 1:
                out *= scale
            return capped(out, softcap)

        for r in range(0, rows, ROWS):
            tile = slice(r, min(r + ROWS, rows))
            top_R1 = hidden_RD.new_full((tile.stop - r, 1), -torch.inf, dtype=torch.float32)
            their_top_R1 = top_R1.clone()
            sum_R1, their_sum_R1 = torch.zeros_like(top_R1), torch.zeros_like(top_R1)
            gap_R1 = torch.zeros_like(top_R1)  # of opponent's logits over the player's, expected
            for inside, v in zip(pairs, range(0, words, WORDS), strict=True):
                weight = weight_VD[v : v + WORDS]
                mine_RV, other_RV = logits(hidden_RD[tile], v), logits(opponent_RD[tile], v)
                here = inside[(row_U[inside] >= r) & (row_U[inside] < tile.stop)]
                logit_U[here] = mine_RV[row_U[here] - r, token_U[here] - v]
                slope_RV = 1 - (mine_RV / softcap) ** 2 if softcap and wanted else None
                ahead_RV = other_RV - mine_RV

                rise_R1 = torch.maximum(their_top_R1, other_RV.amax(1, keepdim=True))
                q_RV = other_RV.sub_(rise_R1).exp_()
                shrink_R1 = (their_top_R1 - rise_R1).exp_()
                their_sum_R1.mul_(shrink_R1).add_(q_RV.sum(1, keepdim=True))
                gap_R1.mul_(shrink_R1).add_(ahead_RV.mul_(q_RV).sum(1, keepdim=True))
                their_top_R1 = rise_R1
                if wanted:
                    _add_mean(theirs_RD[tile], shrink_R1, q_RV, slope_RV, weight)

                rise_R1 = torch.maximum(top_R1, mine_RV.amax(1, keepdim=True))
                p_RV = mine_RV.sub_(rise_R1).exp_()
                shrink_R1 = (top_R1 - rise_R1).exp_()
                sum_R1.mul_(shrink_R1).add_(p_RV.sum(1, keepdim=True))
                top_R1 = rise_R1
                if wanted:
                    _add_mean(mean_RD[tile], shrink_R1, p_RV, slope_RV, weight)
            lse_R1, their_lse_R1 = top_R1 + sum_R1.log(), their_top_R1 + their_sum_R1.log()
            lse_R[tile] = lse_R1[:, 0]
            # Rounding may leave a KL of nothing a little below zero.
            kl_R1 = gap_R1 / their_sum_R1 - their_lse_R1 + lse_R1
            kl_R[tile] = kl_R1[:, 0].clamp(min=0)
            if wanted:
                mean_RD[tile] /= sum_R1
                theirs_RD[tile] /= their_sum_R1
        if wanted:
            theirs_RD.neg_().add_(mean_RD)  # from here on: the gradient of the KL
        ctx.save_for_backward(mean_RD, theirs_RD, weight_VD, row_U, token_U, logit_U)
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, hidden_RD.dtype
        return logit_U - lse_R[row_U], kl_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_U: torch.Tensor, grad_R: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        mean_RD, toward_RD, weight_VD, row_U, token_U, logit_U = ctx.saved_tensors
        row_sum_R = grad_U.new_zeros(len(mean_RD)).index_add_(0, row_U, grad_U)
        grad_RD = mean_RD * -row_sum_R[:, None]
        grad_RD.addcmul_(toward_RD, grad_R[:, None])
        if ctx.softcap:
            grad_U = grad_U * (1 - (logit_U / ctx.softcap) ** 2)
        for u in range(0, len(row_U), WORDS):
            part = slice(u, u + WORDS)
            pull_UD = weight_VD[token_U[part]].float().mul_(grad_U[part, None])
            grad_RD.index_add_(0, row_U[part], pull_UD)
        return (grad_RD.mul_(ctx.scale).to(ctx.dtype), *[None] * 7)


def _add_mean(
    mean_RD: torch.Tensor,
    shrink_R1: torch.Tensor,
    prob_RV: torch.Tensor,
    slope_RV: torch.Tensor | None,
    weight_VD: torch.Tensor,
) -> None:
    """Add a tile of the vocabulary to an expected embedding; the cap's slope belongs to it."""
    mean_RD.mul_(shrink_R1)
    if slope_RV is not None:
        prob_RV = prob_RV * slope_RV
    if weight_VD.dtype == torch.float32:
        add_product(mean_RD, prob_RV, weight_VD.T)
    else:
        mean_RD += product(prob_RV.to(weight_VD.dtype), weight_VD.T)
