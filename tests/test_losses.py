"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treeplay.losses import margin, nll_loss, preference_loss

NATS = st.floats(-200, 0, allow_nan=False)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_margin_by_hand() -> None:
    # The player gained 2 nats on the chosen and lost 3 on the rejected continuation.
    out = margin(
        torch.tensor([-4.0, -1.0]),
        torch.tensor([-9.0, -1.0]),
        torch.tensor([-6.0, -1.0]),
        torch.tensor([-6.0, -1.0]),
    )
    assert out.tolist() == [5.0, 0.0]


@pytest.mark.parametrize(
    ("gap", "beta", "expected"),
    [
        (0.0, 0.1, 0.6931471805599453),  # log 2
        (5.0, 0.1, 0.47407698418010667),  # log(1 + exp(-0.5))
        (-5.0, 0.1, 0.9740769841801067),
        (1.0, 2.0, 0.1269280110429726),  # log(1 + exp(-2))
        (3.0, 1.0, 0.04858735157374196),
    ],
)
def test_preference_loss_by_hand(gap: float, beta: float, expected: float) -> None:
    assert preference_loss(one(gap), beta).item() == pytest.approx(expected, abs=1e-12)


@given(NATS, NATS, NATS, NATS, st.floats(0.01, 2))
def test_preference_loss_is_dpo(c: float, r: float, co: float, ro: float, beta: float) -> None:
    """-log sigmoid(beta log(p(c)/p_opp(c)) - beta log(p(r)/p_opp(r))), written out."""
    got = preference_loss(margin(one(c), one(r), one(co), one(ro)), beta).item()
    x = beta * (c - co) - beta * (r - ro)
    softplus = max(-x, 0.0) + math.log1p(math.exp(-abs(x)))
    assert got == pytest.approx(softplus, rel=1e-9, abs=1e-9)


def test_preference_loss_stays_finite_and_keeps_its_slope() -> None:
    gap = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    loss = preference_loss(gap, 0.5)
    assert torch.isfinite(loss).all()
    (slope,) = torch.autograd.grad(loss.sum(), gap)
    # d/dm -log sigmoid(beta m) = -beta sigmoid(-beta m)
    torch.testing.assert_close(slope, torch.tensor([-0.5, -0.25, 0.0]))


def test_nll_is_the_mean_over_tokens() -> None:
    out = nll_loss(torch.tensor([-6.0, -1.5]), torch.tensor([3.0, 1.0]))
    assert out.tolist() == [2.0, 1.5]
