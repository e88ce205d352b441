"""Our losses are TRL's, where TRL has them: the same numbers for the same log-probs.

TRL's trainers are asked for their loss alone: instances without a model, given what the loss reads
of them. DPO's has no function of log-probs, so what stands in for the model hands it random ones.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from treeplay.losses import (
    hinge_loss,
    ipo_loss,
    margin,
    nll_loss,
    preference_loss,
    simpo_loss,
)

pytest.importorskip("trl", reason="TRL is not installed")

from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer

COUNT, WIDTH = 6, 12
Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
ONE_PROCESS = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
)


class Pairs:
    """Random log-probs a token of N chosen and rejected continuations of random lengths, the
    player's and the opponent's, 0 in the padding: (2N, T), the chosen half first."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        length = torch.randint(1, WIDTH, (2 * COUNT,), generator=source)
        self.mask = (torch.arange(WIDTH) < length[:, None]).long()
        self.player, self.opponent = (
            torch.log(torch.rand(2 * COUNT, WIDTH, generator=source) * 0.98 + 0.01) * self.mask
            for _ in range(2)
        )
        self.length_N, self.rejected_length_N = length.float().chunk(2)

    @property
    def sums(self) -> Four:
        """Chosen and rejected under the player, then under the opponent: (N,) each."""
        chosen, rejected = self.player.sum(1).chunk(2)
        chosen_opp, rejected_opp = self.opponent.sum(1).chunk(2)
        return chosen, rejected, chosen_opp, rejected_opp

    @property
    def means(self) -> Four:
        chosen, rejected, chosen_opp, rejected_opp = self.sums
        c_N, r_N = self.length_N, self.rejected_length_N
        return chosen / c_N, rejected / r_N, chosen_opp / c_N, rejected_opp / r_N


@pytest.fixture
def pairs() -> Pairs:
    return Pairs()


def dpo(kind: str, beta: float, pairs: Pairs) -> torch.Tensor:
    """The losses of TRL's DPO trainer, a pair each (it returns means): (N,)."""
    trainer: Any = DPOTrainer.__new__(DPOTrainer)
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator, trainer._metrics = ONE_PROCESS, {"train": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer.aux_loss_enabled, trainer.precompute_ref_logps = False, True
    trainer.ld_alpha, trainer.f_divergence_type = None, "reverse_kl"
    trainer.loss_types, trainer.loss_weights = [kind], [1.0]
    trainer.beta, trainer.label_smoothing, trainer.use_weighting = beta, 0.0, False
    losses = []
    for number in range(COUNT):
        rows = [number, COUNT + number]
        ref_chosen, ref_rejected = pairs.opponent[rows].sum(1).chunk(2)
        # Nothing predicts the first token of a sequence, so TRL's ids and masks are one longer.
        mask = torch.cat([torch.zeros(2, 1, dtype=torch.long), pairs.mask[rows]], 1)
        inputs = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        zeros = torch.zeros(2, WIDTH)
        outputs = SimpleNamespace(
            log_probs=pairs.player[rows], entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )
        losses.append(trainer._compute_loss(lambda out=outputs, **_: out, inputs, False))
    return torch.stack(losses)


def cpo(kind: str, beta: float, gamma: float, *logps: torch.Tensor) -> torch.Tensor:
    """The losses of TRL's CPO trainer, which has no opponent: (N,)."""
    trainer: Any = CPOTrainer.__new__(CPOTrainer)
    trainer.accelerator, trainer.loss_type = ONE_PROCESS, kind
    trainer.beta, trainer.simpo_gamma = beta, gamma
    trainer.alpha, trainer.label_smoothing = 0.0, 0.0
    losses: torch.Tensor = trainer.cpo_loss(*logps)[0]
    return losses


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_sigmoid_loss_is_trls(beta: float, pairs: Pairs) -> None:
    ours = preference_loss(margin(*pairs.sums), beta)
    torch.testing.assert_close(ours, dpo("sigmoid", beta, pairs))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_hinge_loss_is_trls(beta: float, pairs: Pairs) -> None:
    ours = hinge_loss(margin(*pairs.sums), beta)
    torch.testing.assert_close(ours, dpo("hinge", beta, pairs))
    assert 0 < int((ours > 0).sum()) < COUNT  # both sides of its corner


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_ipo_loss_is_trls_on_means(beta: float, pairs: Pairs) -> None:
    torch.testing.assert_close(ipo_loss(*pairs.means, beta), dpo("ipo", beta, pairs))


def test_the_likelihood_is_trls_sft_term(pairs: Pairs) -> None:
    ours = nll_loss(pairs.sums[0], pairs.length_N)
    torch.testing.assert_close(ours, dpo("sft", 0.1, pairs))


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (2.5, 1.4)])
def test_the_simpo_loss_is_trls(beta: float, gamma: float, pairs: Pairs) -> None:
    chosen, rejected = pairs.means[:2]
    ours = simpo_loss(chosen, rejected, beta, gamma)
    torch.testing.assert_close(ours, cpo("simpo", beta, gamma, chosen, rejected))


def test_without_an_opponent_the_sigmoid_loss_is_trls_cpo(pairs: Pairs) -> None:
    chosen, rejected = pairs.sums[:2]
    nothing = torch.zeros_like(chosen)
    ours = preference_loss(margin(chosen, rejected, nothing, nothing), 0.1)
    torch.testing.assert_close(ours, cpo("sigmoid", 0.1, 0.0, chosen, rejected))
