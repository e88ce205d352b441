"""SVEN's losses as pure functions (He and Vechev 2023, arXiv 2302.05319, section 4.2).

A program is read under two prefixes: its own (secure for a secure program, vulnerable for a
vulnerable one) and the other one. Axes: T tokens of one program that are predicted. Inputs are
log-probs of those tokens, in nats, under either prefix; the KL divergence of each from the base
model where every token is predicted; and which tokens are the program's changed ones. Each returns
a mean over tokens, a scalar, as SVEN's released trainer takes it; over no tokens it is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def changed_likelihood(own_T: torch.Tensor, changed_T: torch.Tensor) -> torch.Tensor:
    """``mean over changed t of -log P(x_t | x_<t, own prefix)`` (its eq. 2)."""
    return _mean(-own_T, changed_T)


def prefix_contrast(
    own_T: torch.Tensor, other_T: torch.Tensor, changed_T: torch.Tensor
) -> torch.Tensor:
    """``mean over changed t of -log(P(x_t | own) / (P(x_t | own) + P(x_t | other)))`` (its eq. 3).

    Equal to ``-log sigmoid(log P(x_t | own) - log P(x_t | other))``, which stays finite where both
    probabilities vanish.
    """
    return _mean(-F.logsigmoid(own_T - other_T), changed_T)


def unchanged_kl(
    own_T: torch.Tensor, other_T: torch.Tensor, changed_T: torch.Tensor
) -> torch.Tensor:
    """``mean over unchanged t of KL(own prefix) + KL(other prefix)`` from the base (its eq. 4).

    The paper writes the divergence from the prefixed model to the base; its released trainer, from
    which its results are, computes KL(base || prefixed), and for both prefixes. So does treeplay.
    """
    return _mean(own_T + other_T, ~changed_T)


def sven_loss(
    likelihood: torch.Tensor,
    contrast: torch.Tensor,
    kl: torch.Tensor,
    contrast_weight: float,
    kl_weight: float,
) -> torch.Tensor:
    """``likelihood + w_CT * contrast + w_KL * kl`` (its eq. 5)."""
    return likelihood + contrast_weight * contrast + kl_weight * kl


def _mean(values_T: torch.Tensor, chosen_T: torch.Tensor) -> torch.Tensor:
    return (values_T * chosen_T).sum() / chosen_T.sum().clamp(min=1)
