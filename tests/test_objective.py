"""Every loss on contrasts: by its formula, packed as plain, bounded where that is asked for."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kl import player
from test_train import SMALL, Killed, files, killer, some_contrasts

from treeplay.anchors import kl_anchor
from treeplay.contrast import Contrast
from treeplay.errors import RunError
from treeplay.groups import Group
from treeplay.lora import LoraSettings
from treeplay.losses import margin, nll_loss, preference_loss
from treeplay.objective import Loss, contrast_losses
from treeplay.opponent import score_opponent
from treeplay.policy.model import Policy, load_adapter
from treeplay.policy.score import plain_logps, plain_scores
from treeplay.train import TrainConfig, group_loss, train

LOSSES: tuple[Loss, ...] = get_args(Loss)
CONFIG = TrainConfig(beta=0.3, alpha=0.2, gamma=0.4, kl=0.7)
BASE = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")


def drawn(seed: int, masks: bool = True) -> list[Contrast]:
    """The contrasts of one tree, some with masks, a KL anchor over its path, all scored."""
    rng = random.Random(seed)
    out = some_contrasts(seed, tasks=1)
    longest = max(out, key=lambda c: len(c.prefix))
    path = longest.prefix + longest.chosen
    for i, one in enumerate(out):
        if masks and one.rejected and i % 2:
            sides = (one.chosen, one.rejected)
            mask, other = (tuple(rng.randrange(2) for _ in side) for side in sides)
            out[i] = replace(one, chosen_mask=mask, rejected_mask=other)
    out.append(kl_anchor("t0", path, 0.8, out))
    return score_opponent(BASE, out, SMALL)


@lru_cache
def learner() -> Any:
    return player(1)


def gradient(contrasts: Sequence[Contrast], config: TrainConfig) -> tuple[float, torch.Tensor]:
    model = learner()
    model.zero_grad()
    loss, _ = group_loss(model, contrasts, config, model.disable_adapter)
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


@settings(max_examples=18, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    loss=st.sampled_from(LOSSES),
    clip=st.sampled_from([0.0, 1.0]),
    bound=st.sampled_from([0.0, 2.0]),
)
def test_packed_equals_plain_for_every_loss(
    seed: int, loss: Loss, clip: float, bound: float
) -> None:
    contrasts = drawn(seed)
    config = replace(CONFIG, loss=loss, clip=clip, bound=bound)
    packed = gradient(contrasts, config)
    plain = gradient(contrasts, replace(config, packed=False))
    assert packed[0] == pytest.approx(plain[0], rel=1e-4, abs=1e-4)
    assert packed[1].norm() > 1e-3
    assert (packed[1] - plain[1]).norm() < 1e-3 * plain[1].norm() + 1e-5


def by_hand(c: Contrast, loss: Loss) -> float:
    """The loss of one contrast, in Python's own numbers."""
    model = learner()
    start = len(c.prefix)
    with torch.no_grad():
        logps, kls = plain_scores(
            model,
            [c.prefix + side for side in (c.chosen, c.rejected)],
            [(start, start + len(side)) for side in (c.chosen, c.rejected)],
            model.disable_adapter,
        )
    chosen, rejected = (x.tolist() for x in logps)
    kl_c, kl_r = (x.tolist() for x in kls)
    if c.kl:
        kept = [x for x, m in zip(kl_c, c.chosen_mask, strict=True) if m]
        return float(sum(kept) / max(1, len(kept)))
    nll = -sum(chosen) / len(chosen)
    if not c.rejected:
        return float(nll)
    up, down = sum(chosen) - sum(c.chosen_opp), sum(rejected) - sum(c.rejected_opp)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(-x))

    if loss == "sigmoid":
        out = softplus(0.3 * (up - down))
    elif loss == "hinge":
        out = max(0.0, 1 - 0.3 * (up - down))
    elif loss == "ipo":
        out = (up / len(chosen) - down / len(rejected) - 1 / 0.6) ** 2
    elif loss == "simpo":
        out = softplus(0.3 * (sum(chosen) / len(chosen) - sum(rejected) / len(rejected)) - 0.4)
    elif loss == "tdpo":
        out = softplus(0.3 * (up - down - 0.7 * (sum(kl_r) - sum(kl_c))))
    else:
        gain = [-x for x, m in zip(chosen, c.chosen_mask or [1] * len(chosen), strict=True) if m]
        pairs = zip(rejected, c.rejected_mask or [1] * len(rejected), strict=True)
        pain = [-math.log(1 - math.exp(x)) for x, m in pairs if m]
        out = sum(gain) / max(1, len(gain)) + sum(pain) / max(1, len(pain))
    return float(out + 0.2 * nll)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_its_formula(loss: Loss) -> None:
    model = learner()
    contrasts = drawn(4)
    assert any(c.chosen_mask and not c.kl for c in contrasts)
    assert any(c.kl and 0 < sum(c.chosen_mask) < len(c.chosen) for c in contrasts)
    with torch.no_grad():
        got, figures = group_loss(
            model, contrasts, replace(CONFIG, loss=loss), model.disable_adapter
        )
    assert got.item() == pytest.approx(
        sum(c.weight * by_hand(c, loss) for c in contrasts), abs=1e-3
    )
    assert figures["near"] == (4 if loss == "tdpo" else 1)


def test_the_default_is_the_old_loss_to_the_last_bit() -> None:
    contrasts = [c for c in drawn(2, masks=False) if not c.kl]
    config = TrainConfig(clip=3.0)
    logps = []
    for c in contrasts:
        spans = [(len(c.prefix), len(c.prefix) + len(side)) for side in (c.chosen, c.rejected)]
        with torch.no_grad():
            one, two = plain_logps(learner(), [c.prefix + c.chosen, c.prefix + c.rejected], spans)
        logps.append((one, two))
    got = contrast_losses(contrasts, logps, [], config).loss

    def numbers(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    pad = torch.nn.utils.rnn.pad_sequence
    chosen = pad([a for a, _ in logps], batch_first=True).sum(1)
    rejected = pad([b for _, b in logps], batch_first=True).sum(1)
    gap = margin(
        chosen,
        rejected,
        numbers([math.fsum(c.chosen_opp) for c in contrasts]),
        numbers([math.fsum(c.rejected_opp) for c in contrasts]),
    )
    nll = nll_loss(chosen, numbers([len(c.chosen) for c in contrasts]))
    pair = preference_loss(gap.clamp(max=3.0), 0.1) + 0.2 * nll
    old = torch.where(numbers([bool(c.rejected) for c in contrasts]) > 0, pair, nll)
    assert torch.equal(got, old)


def sides(loss: Loss, chosen: float, rejected: float, **changes: Any) -> tuple[float, float]:
    """Slopes of a pair's loss by its chosen and rejected log-prob, the opponent's being -4, -4."""
    contrast = Contrast("t", 0, (1,), (2,), (3,), 1.0, (-4.0,), (-4.0,))
    logps = [(torch.tensor([chosen]).requires_grad_(), torch.tensor([rejected]).requires_grad_())]
    kls = [(torch.tensor([0.1]), torch.tensor([0.2]))]
    config = replace(CONFIG, loss=loss, alpha=0.0, beta=0.1, **changes)
    loss_N = contrast_losses([contrast], logps, kls, config).loss
    up, down = torch.autograd.grad(loss_N.sum(), list(logps[0]), allow_unused=True)
    return (0.0 if up is None else float(up)), (0.0 if down is None else float(down))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "safecoder"])
def test_a_bounded_mistake_is_pushed_no_further(loss: Loss) -> None:
    up, down = sides(loss, -4.0, -6.0, bound=3.0)
    assert up < 0 < down
    up, down = sides(loss, -4.0, -8.0, bound=3.0)  # 4 nats less likely than it was
    assert up < 0 == down
    assert sides(loss, -4.0, -8.0)[1] > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_beyond_the_clip_a_contrast_is_left_alone(loss: Loss) -> None:
    up, down = sides(loss, -3.0, -5.0, clip=3.0)
    assert up < 0 < down
    assert sides(loss, -2.0, -6.0, clip=3.0) == (0.0, 0.0)


@pytest.mark.parametrize("added", [True, False])
def test_a_fix_that_only_adds_or_takes_away_teaches_by_one_side(added: bool) -> None:
    masks = ((1,), (0,)) if added else ((0,), (1,))
    contrast = Contrast("t", 0, (1,), (2,), (3,), 1.0, (-4.0,), (-4.0,), False, *masks)
    logps = [(torch.tensor([-2.0], requires_grad=True), torch.tensor([-0.5], requires_grad=True))]
    config = replace(CONFIG, loss="safecoder", alpha=0.0)
    (loss,) = contrast_losses([contrast], logps, [], config).loss
    assert loss.item() == pytest.approx(2.0 if added else -math.log(1 - math.exp(-0.5)), abs=1e-4)
    up, down = torch.autograd.grad(loss, list(logps[0]))
    assert (bool(up.any()), bool(down.any())) == (added, not added)


def test_a_kl_needs_an_opponent() -> None:
    with pytest.raises(ValueError, match="need the opponent's distributions"):
        group_loss(learner(), drawn(0), CONFIG)


# Training with them.


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def policy() -> Policy:
    return Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")


def sure() -> Policy:
    """The tiny model is never sure of anything: its logits stay close to zero. This one is."""
    made = policy()
    made.model.lm_head.weight.data *= 50
    return made


def anchored(weight: float = 1.0) -> list[Contrast]:
    """Trees of three tasks, each with an anchor on a path of its own."""
    out = [c for c in some_contrasts(tasks=3) if c.rejected]
    rng = random.Random(5)
    for t in range(3):
        ids = tuple(rng.randrange(1, 257) for _ in range(12))
        out.append(kl_anchor(f"t{t}", ids, weight))
    return score_opponent(policy(), out, SMALL)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_widens_the_margin(loss: Loss, tmp_path: Path) -> None:
    contrasts = [c for c in score_opponent(policy(), some_contrasts(), SMALL) if c.rejected]
    config = replace(SMALL, loss=loss, alpha=0.0, clip=0.0, epochs=6, learning_rate=0.03, beta=0.5)
    train(policy(), contrasts, config, 0, tmp_path)
    seen = rows(tmp_path)
    assert seen[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert seen[-1]["margin"] > 0.2
    assert ("kl" in seen[0]) == (loss == "tdpo")
    if loss == "tdpo":
        assert seen[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert seen[-1]["kl"] > 1e-3


def test_an_anchor_keeps_the_player_close(tmp_path: Path) -> None:
    last = []
    for weight in (1e-6, 5.0):
        config = replace(SMALL, epochs=4, learning_rate=0.03, alpha=0.0)
        contrasts = score_opponent(sure(), anchored(weight), SMALL)
        train(sure(), contrasts, config, 0, tmp_path / str(weight))
        seen = rows(tmp_path / str(weight))
        assert seen[0]["kl"] == pytest.approx(0, abs=1e-5)
        last.append(seen[-1]["kl"])
    assert last[1] < last[0] / 2, last


def test_in_a_later_round_the_opponent_is_the_player_before(tmp_path: Path) -> None:
    config = replace(SMALL, learning_rate=0.03, loss="tdpo")
    first = train(policy(), anchored(), config, 1, tmp_path / "1")
    found = {}
    for source in ("opponent", "base"):
        train(
            policy(),
            anchored(),
            replace(config, kl_from=source),
            2,
            tmp_path / source,
            start_from=first,
        )
        found[source] = rows(tmp_path / source)[0]["kl"]
    assert found["opponent"] == pytest.approx(0, abs=1e-5)
    assert found["base"] > 1e-3
    # The adapter itself went on, and is whole.
    model = load_adapter(tiny_llama(), tmp_path / "opponent/adapter", trainable=False)
    before = load_adapter(tiny_llama(), first, trainable=False)
    assert any(
        not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_budget_ends_training_and_survives_interruption(tmp_path: Path, at: int) -> None:
    contrasts = anchored()
    each = Group(tuple(contrasts), 0).learnt
    budget = 2 * each + each // 2
    lora = LoraSettings(r=4, dropout=0.2)
    config = replace(SMALL, epochs=1, budget=budget, checkpoint_steps=2, lora=lora, loss="tdpo")
    first = train(policy(), contrasts, replace(config, budget=0), 6, tmp_path / "first")
    train(policy(), contrasts, config, 7, tmp_path / "whole", first)
    seen = rows(tmp_path / "whole")
    used = [row["learnt"] for row in seen]
    assert sum(used[:-1]) < budget <= sum(used)  # to the step, whatever epochs says
    assert len(seen) > at
    with pytest.raises(Killed):
        train(policy(), contrasts, config, 7, tmp_path / "cut", first, progress=killer(at))
    train(policy(), contrasts, config, 7, tmp_path / "cut", first)
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_the_schedule_spans_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    contrasts = anchored()
    config = replace(SMALL, warmup=0, budget=3 * Group(tuple(contrasts), 0).learnt)
    train(policy(), contrasts, config, 0, tmp_path)
    count = len(rows(tmp_path))
    assert count > 4
    assert rates[0] == pytest.approx(SMALL.learning_rate)
    assert rates[-1] == pytest.approx(SMALL.learning_rate / (count - 1))


def test_tokens_that_learn_are_counted_flat() -> None:
    pair = Contrast("t", 0, (1, 2, 3), (4, 5), (6,), 1.0)
    alone = Contrast("t", 0, (1, 2, 3), (4, 5), (), 1.0)
    assert Group((pair, alone), 0).learnt == (5 + 4) + 5


def test_an_exploding_loss_is_named(tmp_path: Path) -> None:
    contrasts = score_opponent(sure(), some_contrasts(), SMALL)
    config = replace(SMALL, learning_rate=10.0, epochs=4, warmup=0, clip=0.0)
    with pytest.raises(RunError, match=r"loss exploded at step \d+: .* lower train\.learning_rate"):
        train(sure(), contrasts, config, 0, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_last_step_that_explodes_is_named(tmp_path: Path) -> None:
    """No step comes behind it that would see."""
    contrasts = score_opponent(sure(), some_contrasts(), SMALL)
    once = replace(SMALL, learning_rate=10.0, epochs=2, groups_per_step=99, warmup=0, clip=0.0)
    with pytest.raises(RunError, match=r"loss exploded at the last step, 2: .* lower train"):
        train(sure(), contrasts, once, 0, tmp_path / "much")
    assert not (tmp_path / "much" / "adapter").exists()
    train(sure(), contrasts, replace(once, learning_rate=1e-4), 0, tmp_path / "little")
    assert (tmp_path / "little" / "adapter").is_dir()
