"""From token log-probs to one loss a contrast: which of :mod:`treeplay.losses`, on which tokens.

Axes: N contrasts, T tokens of a continuation (padded).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from treeplay.contrast import Contrast
from treeplay.losses import (
    hinge_loss,
    ipo_loss,
    margin,
    nll_loss,
    preference_loss,
    safecoder_loss,
    simpo_loss,
    tdpo_loss,
)

if TYPE_CHECKING:
    from treeplay.train import TrainConfig

Loss = Literal["sigmoid", "ipo", "simpo", "hinge", "tdpo", "safecoder"]
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Losses:
    """Each (N,). ``gap``: the margin in nats, whatever the loss makes of it; ``gain``: how much
    likelier than for the opponent a chosen token has become, in nats, or for a KL anchor minus its
    KL; ``kl``: of the player from the opponent, a state, where it was asked for."""

    loss: torch.Tensor
    gap: torch.Tensor
    nll: torch.Tensor
    gain: torch.Tensor
    kl: torch.Tensor


def needs_kl(contrast: Contrast, config: TrainConfig) -> bool:
    """Whether the loss of ``contrast`` looks at the opponent's whole distributions."""
    return contrast.kl or (config.loss == "tdpo" and bool(contrast.rejected))


def contrast_losses(
    contrasts: Sequence[Contrast], logps: Pairs, kls: Pairs, config: TrainConfig
) -> Losses:
    """The loss of each contrast, its weight left out.

    ``logps`` and ``kls``: what each token of the chosen and of the rejected continuation has, as
    :func:`treeplay.train.contrast_scores` gives it; ``kls`` may be empty where nothing needs it.
    A pair has ``config.loss + alpha * NLL(chosen)/len``; a contrast without a rejected continuation
    the NLL alone, or as an anchor the mean KL.
    """
    chosen_N = pad_sequence([chosen for chosen, _ in logps], batch_first=True).sum(1)
    rejected_N = pad_sequence([rejected for _, rejected in logps], batch_first=True).sum(1)

    def constant(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=chosen_N.device, dtype=torch.float32)

    pair_N = constant([bool(c.rejected) for c in contrasts])
    length_N = constant([max(1, len(c.chosen)) for c in contrasts])
    chosen_opp_N = constant([math.fsum(c.chosen_opp) for c in contrasts])
    rejected_opp_N = constant([math.fsum(c.rejected_opp) for c in contrasts])
    nll_N = nll_loss(chosen_N, length_N)
    gap_N = margin(chosen_N, rejected_N, chosen_opp_N, rejected_opp_N)
    kl_N, chosen_kl_N, rejected_kl_N = _kls(contrasts, kls, constant([0.0] * len(contrasts)))

    # Where a mistake is unlikely enough already, what the loss sees of it is a constant.
    held_N, pushed_N = rejected_N, gap_N
    if config.bound:
        held_N = torch.maximum(rejected_N, rejected_opp_N - config.bound)
        pushed_N = margin(chosen_N, held_N, chosen_opp_N, rejected_opp_N)
    if config.clip:
        pushed_N = pushed_N.clamp(max=config.clip)
    if config.loss == "sigmoid":
        push_N = preference_loss(pushed_N, config.beta)
    elif config.loss == "hinge":
        push_N = hinge_loss(pushed_N, config.beta)
    elif config.loss == "tdpo":
        push_N = tdpo_loss(pushed_N, chosen_kl_N, rejected_kl_N, config.beta, config.kl)
    elif config.loss == "safecoder":
        push_N = _safecoder(contrasts, logps)
    else:  # of means over tokens; the margin does not occur in them
        other_N = constant([max(1, len(c.rejected)) for c in contrasts])
        mean_N, held_mean_N = chosen_N / length_N, held_N / other_N
        if config.loss == "simpo":
            push_N = simpo_loss(mean_N, held_mean_N, config.beta, config.gamma)
        else:
            opp_N = chosen_opp_N / length_N, rejected_opp_N / other_N
            push_N = ipo_loss(mean_N, held_mean_N, *opp_N, config.beta)
    if config.clip and config.loss not in ("sigmoid", "hinge"):
        push_N = torch.where(gap_N > config.clip, push_N.detach(), push_N)

    loss_N = torch.where(pair_N > 0, push_N + config.alpha * nll_N, nll_N)
    anchors = [c.kl for c in contrasts]
    gain_N = (chosen_N - chosen_opp_N) / length_N
    if any(anchors):
        anchor_N = constant(anchors) > 0
        loss_N = torch.where(anchor_N, kl_N, loss_N)
        gain_N = torch.where(anchor_N, -kl_N, gain_N)
    return Losses(loss_N, gap_N, nll_N, gain_N, kl_N)


def _kls(
    contrasts: Sequence[Contrast], kls: Pairs, zero_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean KL a state that counts (both sides of a pair); and the sums over each side's states."""
    if not kls:
        return zero_N, zero_N, zero_N
    chosen_N = torch.stack([chosen.sum() for chosen, _ in kls])
    rejected_N = torch.stack([rejected.sum() for _, rejected in kls])
    means = []
    for contrast, (chosen, rejected) in zip(contrasts, kls, strict=True):
        if contrast.kl and contrast.chosen_mask:
            mask = torch.tensor(contrast.chosen_mask, device=chosen.device, dtype=chosen.dtype)
            means.append((chosen * mask).sum() / mask.sum().clamp(min=1))
        else:
            means.append(torch.cat([chosen, rejected]).sum() / max(1, len(chosen) + len(rejected)))
    return torch.stack(means), chosen_N, rejected_N


def _safecoder(contrasts: Sequence[Contrast], logps: Pairs) -> torch.Tensor:
    def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return pad_sequence(list(rows), batch_first=True)

    def masks(given: Sequence[tuple[int, ...]], sides: Sequence[torch.Tensor]) -> torch.Tensor:
        return padded(
            [
                torch.tensor(mask or [1] * len(side), device=side.device, dtype=side.dtype)
                for mask, side in zip(given, sides, strict=True)
            ]
        )

    chosen, rejected = [c for c, _ in logps], [r for _, r in logps]
    return safecoder_loss(
        padded(chosen),
        padded(rejected),
        masks([c.chosen_mask for c in contrasts], chosen),
        masks([c.rejected_mask for c in contrasts], rejected),
    )
