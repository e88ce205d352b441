"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treeplay.losses import (
    hinge_loss,
    ipo_loss,
    kl_divergence,
    margin,
    nll_loss,
    preference_loss,
    safecoder_loss,
    simpo_loss,
    tdpo_loss,
)

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


def many(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_hinge_by_hand() -> None:
    # 1 - 0.5 * 1 = 0.5; 1 - 0.5 * 3 < 0; 1 + 0.5 * 2 = 2
    assert hinge_loss(many(1.0, 3.0, -2.0), 0.5).tolist() == [0.5, 0.0, 2.0]


def test_ipo_by_hand() -> None:
    # Margin (-0.5 + 1) - (-2 + 1.5) = 1; target 1 / (2 * 0.1) = 5; (1 - 5)^2.
    out = ipo_loss(one(-0.5), one(-2.0), one(-1.0), one(-1.5), 0.1)
    assert out.item() == pytest.approx(16.0, abs=1e-12)
    # At the target there is nothing left to gain, beyond it the player is pulled back.
    at = ipo_loss(many(4.0, 6.0), many(0.0, 0.0), many(-1.0, 0.0), many(0.0, 0.0), 0.1)
    assert at.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_simpo_by_hand() -> None:
    # 2 * (-0.5 + 1.5) - 1 = 1: log(1 + exp(-1)); 2 * 0 - 1 = -1: log(1 + e)
    out = simpo_loss(many(-0.5, -1.0), many(-1.5, -1.0), 2.0, 1.0)
    assert out.tolist() == pytest.approx([0.31326168751822286, 1.3132616875182228], abs=1e-12)


def test_tdpo_by_hand() -> None:
    # 0.1 * (5 - 0.5 * (3 - 1)) = 0.4: log(1 + exp(-0.4))
    chosen_kl, rejected_kl = many(1.0).requires_grad_(), many(3.0).requires_grad_()
    gap = many(5.0).requires_grad_()
    loss = tdpo_loss(gap, chosen_kl, rejected_kl, 0.1, 0.5)
    assert loss.item() == pytest.approx(0.5130152523999526, abs=1e-12)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    slope = 0.1 / (1 + math.exp(0.4))  # beta * sigmoid(-0.4)
    assert gap.grad is not None
    assert rejected_kl.grad is not None
    assert gap.grad.item() == pytest.approx(-slope, abs=1e-12)
    assert rejected_kl.grad.item() == pytest.approx(0.5 * slope, abs=1e-12)
    assert chosen_kl.grad is None  # TDPO2 stops the gradient there


def test_tdpo_without_kl_is_dpo() -> None:
    gap = many(-3.0, 0.0, 2.0)
    zero = torch.zeros_like(gap)
    torch.testing.assert_close(tdpo_loss(gap, zero, zero, 0.3, 0.5), preference_loss(gap, 0.3))


def test_kl_by_hand() -> None:
    opponent = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    player = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64).log()
    # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75) = 0.5 log(4 / 3)
    out = kl_divergence(opponent, player)
    assert out.tolist() == pytest.approx([0.14384103622589042, 0.0], abs=1e-12)


def test_safecoder_by_hand() -> None:
    chosen = torch.tensor([[0.5, 0.25, 0.1], [0.5, 1.0, 1.0]], dtype=torch.float64).log()
    rejected = torch.tensor([[0.2, 0.75], [0.5, 1.0]], dtype=torch.float64).log()
    changed = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    gone = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    # (log 2 + log 4) / 2 + log 4; log 2 and nothing of the other side.
    out = safecoder_loss(chosen, rejected, changed, gone)
    expected = [(math.log(2) + math.log(4)) / 2 + math.log(4), math.log(2)]
    assert out.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_token_that_the_player_is_sure_of_can_be_unlearnt() -> None:
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    logp = torch.log_softmax(logits, -1)[:, :1]
    none = torch.zeros(1, 0)
    loss = safecoder_loss(none, logp, none, torch.ones(1, 1))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == pytest.approx(-math.log(1e-6), abs=0.1)
    assert torch.isfinite(slope).all()
    soft = torch.tensor([[5.0, 0.0]], requires_grad=True)
    logp = torch.log_softmax(soft, -1)[:, :1]
    (slope,) = torch.autograd.grad(safecoder_loss(none, logp, none, torch.ones(1, 1)).sum(), soft)
    # d/dz_t of -log(1 - p_t) is p_t: it does not fade where the mistake is certain.
    assert slope[0, 0].item() == pytest.approx(1 / (1 + math.exp(-5)), rel=1e-3)
