"""Losses as pure functions of log-probabilities. Nothing here knows of models or trees.

Axes: N contrasts. Inputs are log-probs summed over each continuation's extent, in nats, under the
player (``chosen``, ``rejected``) and under the frozen opponent (``chosen_opp``, ``rejected_opp``).
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
