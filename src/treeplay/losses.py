"""Losses as pure functions of log-probabilities. Nothing here knows of models or trees.

Axes: N contrasts, T tokens (padded), R rows (states), V vocabulary. Where nothing else is said,
inputs are log-probs summed over each continuation's extent, in nats, under the player (``chosen``,
``rejected``) and under the frozen opponent (``chosen_opp``, ``rejected_opp``).
Each returns one loss a contrast, (N,), so that the caller weighs and averages once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def margin(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_opp: torch.Tensor,
    rejected_opp: torch.Tensor,
) -> torch.Tensor:
    """How much more than the opponent the player prefers the chosen continuation, in nats:

    ``(log p(c) - log p_opp(c)) - (log p(r) - log p_opp(r))``
    """
    return (chosen - chosen_opp) - (rejected - rejected_opp)


def preference_loss(margin_N: torch.Tensor, beta: float) -> torch.Tensor:
    """``-log sigmoid(beta * margin)``.

    DPO's loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), with the reference policy in the
    opponent's place; SPIN's with the logistic loss (Chen et al. 2024, arXiv 2401.01335, eq. 4.7);
    at one node of a tree, TSP's (arXiv 2606.03489).
    """
    return -F.logsigmoid(beta * margin_N)


def nll_loss(chosen: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """``-log p(c) / len(c)``: mean negative log-likelihood of the chosen tokens.

    As an addition to a preference loss it keeps the chosen likelihood from sinking (RPO, Pang et
    al. 2024, arXiv 2404.19733, eq. 1); alone it is supervised fine-tuning.
    """
    return -chosen / length


def hinge_loss(margin_N: torch.Tensor, beta: float) -> torch.Tensor:
    """``max(0, 1 - beta * margin)``.

    SLiC's rank calibration loss (Zhao et al. 2023, arXiv 2305.10425) on the margin against the
    opponent, as in RSO (Liu et al. 2023, arXiv 2309.06657) and TRL's ``hinge``.
    """
    return torch.relu(1 - beta * margin_N)


def ipo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_opp: torch.Tensor,
    rejected_opp: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """``(margin - 1 / (2 * beta)) ** 2``.

    IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17), whose tau is ``beta``. Give it the *mean*
    log-prob a token of each continuation: the authors' own results are of that form, as TRL notes;
    sums would make the square grow with the length.
    """
    return (margin(chosen, rejected, chosen_opp, rejected_opp) - 1 / (2 * beta)) ** 2


def simpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """``-log sigmoid(beta * (log p(c) / len(c) - log p(r) / len(r)) - gamma)``.

    SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6). Both arguments are *mean* log-probs a token;
    there is no opponent in it. ``gamma`` is the target margin in units of the scaled reward.
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def tdpo_loss(
    margin_N: torch.Tensor,
    chosen_kl: torch.Tensor,
    rejected_kl: torch.Tensor,
    beta: float,
    weight: float,
) -> torch.Tensor:
    """``-log sigmoid(beta * margin - weight * beta * (KL(r) - stop_gradient(KL(c))))``.

    TDPO2 (Zeng et al. 2024, arXiv 2404.11999), whose alpha is ``weight``. The KL of a
    continuation is the paper's sequential one: the sum, over the states that its
    tokens are predicted from, of KL(opponent || player) between next-token distributions
    (:func:`kl_divergence`).
    """
    return -F.logsigmoid(beta * (margin_N - weight * (rejected_kl - chosen_kl.detach())))


def kl_divergence(opponent_RV: torch.Tensor, player_RV: torch.Tensor) -> torch.Tensor:
    """``sum_v p_opp(v) * (log p_opp(v) - log p(v))`` of each row, in nats, from log-probs.

    Kullback and Leibler (1951), from the opponent to the player: large where the player gives
    little to what the opponent would write. The tiled form of it is in
    :mod:`treeplay.policy.kl`.
    """
    return (opponent_RV.exp() * (opponent_RV - player_RV)).sum(-1)


# A token that the player is sure of has 1 - p = 0 in float32; so much of p is let go.
SURE = 1e-6


def safecoder_loss(
    chosen_NT: torch.Tensor,
    rejected_NT: torch.Tensor,
    chosen_mask_NT: torch.Tensor,
    rejected_mask_NT: torch.Tensor,
) -> torch.Tensor:
    """``mean over changed t of -log p(c_t)  +  mean over changed t of -log(1 - p(r_t))``.

    SafeCoder's security loss (He et al. 2024, arXiv 2402.09497): masked likelihood of
    the secure program and masked unlikelihood (Welleck et al. 2019, arXiv 1908.04319) of the
    vulnerable one. Inputs are log-probs a token, padded, and masks of 1 where the two programs
    differ, 0 elsewhere and in the padding; a side in which nothing changed adds nothing.
    """
    gain_N = _masked_mean(-chosen_NT, chosen_mask_NT)
    unlikely_NT = -torch.log1p(-(1 - SURE) * rejected_NT.exp())
    return gain_N + _masked_mean(unlikely_NT, rejected_mask_NT)


def _masked_mean(values_NT: torch.Tensor, mask_NT: torch.Tensor) -> torch.Tensor:
    return (values_NT * mask_NT).sum(1) / mask_NT.sum(1).clamp(min=1)
