"""Train a LoRA adapter on contrasts: one loop, packed trees.

    contrasts -> trees -> steps -> bins (see :mod:`treeplay.groups`)
        -> packed forward -> loss -> backward -> AdamW -> adapter/

A step learns from several trees (:mod:`treeplay.train_plan`), one backward pass a bin, and divides
by the number of its contrasts and their mean weight over the whole training set, so the gradient
does not depend on how its trees are arranged in bins, and a weight counts against those of all
steps.

The state of the loop (adapter, optimizer, step) is written as safetensors every
``checkpoint_steps`` steps; a run that was interrupted goes on from there to the same result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from treeplay.contrast import Contrast
from treeplay.errors import LearningError, RunError
from treeplay.groups import Budget, Group, check_contrasts, each_bin, make_groups
from treeplay.keep import Keeper
from treeplay.lora import LoraSettings, Weights, checkpointing, with_adapter
from treeplay.objective import Loss, Pairs, contrast_losses, needs_kl
from treeplay.policy.attention import packed_or_plain
from treeplay.policy.heap import give_back
from treeplay.policy.model import Policy
from treeplay.policy.sample import seed_of, told_slow
from treeplay.policy.score import Opponent, Span, packed_scores, plain_scores
from treeplay.train_plan import learning_rate_at, plan_steps
from treeplay.train_state import load_state, save_adapter, save_state, write_log


@dataclass(frozen=True)
class TrainConfig:
    """``beta`` scales the margin; ``alpha`` the likelihood of the chosen tokens.

    ``loss``: what a pair's loss is (:mod:`treeplay.losses`); ``gamma`` is the target margin of
    ``simpo``, ``kl`` the weight of the KL terms in ``tdpo``. ``kl_from``: the distributions that KL
    is counted from, in ``tdpo`` and in anchors: the opponent's (the player as the round began) or
    the base model's.

    ``clip``: the margin (nats) above which a contrast is left alone (0: never), so that the
    opponent's mistakes are not pushed down once they are unlikely. ``bound``: a mistake is pushed
    down no further once it is so many nats less likely than it was for the opponent (0: always),
    while its contrast still makes the chosen continuation likelier.

    ``epochs``: how often every contrast is met. ``budget``: instead, go on epoch after epoch until
    so many tokens have had a gradient (:attr:`treeplay.groups.Group.learnt`, 0: epochs decide).

    A step learns from ``groups_per_step`` trees; with ``tokens_per_step`` above 0 instead from as
    many as come nearest to so many gradient tokens, so that methods whose trees differ in size make
    as many steps of as many tokens.

    ``max_tokens``: unique tokens of one forward pass, which bounds the memory and changes nothing
    else: small trees share a pass, larger ones are split. ``packed`` false computes every sequence
    apart: slow, the same numbers. ``checkpointing`` computes activations twice instead of keeping
    them. ``reference``: the opponent's log-probs are scored in a pass of their own, or those it had
    while it sampled are used again where there are any (float32 only).

    ``keep``: the adapter as it is at the end, or that of the epoch which did ``best`` on the
    held-out tasks (``tasks.hold_out``, ``keep_samples`` answers a task; :mod:`treeplay.keep`).
    ``max_drop``: training ends early once the player is so much less able on them than the base
    model (0: never). ``rates``: learning rates to try one after the other instead of
    ``learning_rate``, the best being kept.
    """

    epochs: int = 2
    budget: int = 0
    learning_rate: float = 1e-4
    warmup: float = 0.1
    schedule: Literal["linear", "constant"] = "linear"
    groups_per_step: int = 4
    tokens_per_step: int = 0
    max_grad_norm: float = 1.0
    loss: Loss = "sigmoid"
    beta: float = 0.1
    alpha: float = 0.2
    gamma: float = 1.0
    kl: float = 0.5
    kl_from: Literal["opponent", "base"] = "opponent"
    clip: float = 0.0
    bound: float = 0.0
    max_tokens: int = 1024
    packed: bool = True
    checkpointing: bool = False
    reference: Literal["score", "reuse"] = "score"
    checkpoint_steps: int = 10
    keep: Literal["last", "best"] = "last"
    keep_samples: int = 4
    max_drop: float = 0.0
    rates: tuple[float, ...] = ()
    lora: LoraSettings = LoraSettings()


def packed_where_right(
    model: Any, config: TrainConfig, say: Callable[[str], None] | None = None
) -> TrainConfig:
    """``config``, with ``packed`` off where ``model`` would compute a packed tree wrongly; then
    ``say`` is told why."""
    packed, why = packed_or_plain(model, config.packed)
    if why and say:
        say(f"warning: {why}")
        told_slow(model)  # the sampler says it no more
    return replace(config, packed=packed)


def contrast_logps(
    model: Any, contrasts: Sequence[Contrast], packed: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(chosen, rejected) token log-probs of each contrast; an empty tensor for no rejected."""
    return contrast_scores(model, contrasts, packed, None)[0]


def contrast_scores(
    model: Any, contrasts: Sequence[Contrast], packed: bool, opponent: Opponent | None
) -> tuple[Pairs, Pairs]:
    """(chosen, rejected) token log-probs of each contrast, and the KL from the opponent at the
    states that the tokens are predicted from; no KL without an opponent."""
    sequences: list[tuple[int, ...]] = []
    spans: list[Span] = []
    for contrast in contrasts:
        for tail in (contrast.chosen, contrast.rejected):
            sequences.append(contrast.prefix + tail)
            spans.append((len(contrast.prefix), len(contrast.prefix) + len(tail)))
    logps, kls = (packed_scores if packed else plain_scores)(model, sequences, spans, opponent)
    return (
        list(zip(logps[::2], logps[1::2], strict=True)),
        list(zip(kls[::2], kls[1::2], strict=True)),
    )


def group_loss(
    model: Any,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    opponent: Opponent | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted *sum* of the losses of ``contrasts`` (one packed forward pass), and figures.

    Per contrast ``weight * loss``, see :func:`treeplay.objective.contrast_losses`. ``opponent``
    makes the model its own opponent; only contrasts that ask for a KL need it (``ValueError``
    without). Raises ``FloatingPointError`` naming the tasks whose loss is not a number.
    """
    asked = any(needs_kl(contrast, config) for contrast in contrasts)
    if asked and opponent is None:
        raise ValueError("these contrasts need the opponent's distributions")
    logps, kls = contrast_scores(model, contrasts, config.packed, opponent if asked else None)
    found = contrast_losses(contrasts, logps, kls, config)
    weight_N = torch.tensor(
        [c.weight for c in contrasts], device=found.loss.device, dtype=torch.float32
    )
    # One transfer from the device for everything that is looked at.
    table = torch.stack([found.loss, found.gap, found.nll, found.gain, found.kl]).detach().tolist()
    bad = {c.task: None for c, loss in zip(contrasts, table[0], strict=True) if loss - loss != 0}
    if bad:
        raise FloatingPointError(", ".join(repr(task) for task in bad))
    gaps = [gap for c, gap in zip(contrasts, table[1], strict=True) if c.rejected]
    gains = [gain for c, gain in zip(contrasts, table[3], strict=True) if c.chosen_opp or c.kl]
    near = [kl for c, kl in zip(contrasts, table[4], strict=True) if needs_kl(c, config)]
    figures = {
        "margin": math.fsum(gaps),
        "pairs": float(len(gaps)),
        "won": float(sum(gap > 0 for gap in gaps)),
        "chosen_nll": math.fsum(table[2]),
        "gain": math.fsum(gains),
        "compared": float(len(gains)),
        "kl": math.fsum(near),
        "near": float(len(near)),
    }
    return (weight_N * found.loss).sum(), figures


def train(
    policy: Policy,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    seed: int,
    out: Path,
    start_from: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    keeper: Keeper | None = None,
) -> Path:
    """Train an adapter (new, or the one in ``start_from``) and write it to ``out/adapter``.

    ``policy`` must hold the base model without an adapter; it is wrapped, trained and unwrapped.
    ``progress(step, steps, figures)`` is called after every step; the same figures are lines of
    ``out/train.jsonl``. With a ``keeper``, every epoch leaves a snapshot for it, it may end the
    training, and it tells which snapshot is the adapter. Raises :class:`RunError` when there is
    nothing to train on, a contrast cannot be read by the model, memory is too small for a single
    contrast, or the loss is not a number.
    """
    if not contrasts:
        raise RunError(
            "there are no contrasts to train on: no node has both a secure and a vulnerable "
            "branch; grow more branches (grow.branches) or raise grow.temperature"
        )
    config = packed_where_right(policy.model, config)
    final = out / "adapter"
    if (final / "adapter_model.safetensors").is_file():
        return final
    check_contrasts(policy, contrasts)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = with_adapter(policy.model, config.lora, start_from)
    try:
        with checkpointing(policy.model, config.checkpointing):
            fresh = start_from is None
            after_epoch = keeper.watch(model, policy.tokenizer) if keeper else None

            def kept(epoch: int) -> bool:
                return keeper is None or keeper.best().epoch == epoch

            _loop(model, contrasts, config, seed, out, progress, after_epoch, kept, fresh=fresh)
        if keeper:
            keeper.put(final)
        else:
            save_adapter(model, policy.tokenizer, final)
    except SafetensorError as error:  # its writer turns a full disk into an error of its own
        raise RunError(
            f"cannot write the adapter or its state in {out}: {error}; free some space, then resume"
        ) from error
    finally:
        policy.model.eval()
        model.unload()
        give_back()
    return final


def _loop(
    model: Any,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    seed: int,
    out: Path,
    progress: Callable[[int, int, dict[str, float]], None] | None,
    after_epoch: Callable[[Weights, int], bool] | None,
    kept: Callable[[int], bool],
    *,
    fresh: bool,
) -> None:
    """``kept``: whether the adapter after so many epochs, the last, is to be the player."""
    accelerator = Accelerator(cpu=next(iter(model.parameters())).device.type == "cpu")
    weights = Weights(model, config.lora)
    opponent = None
    if any(needs_kl(contrast, config) for contrast in contrasts):
        opponent = weights.opponent(model, base=fresh or config.kl_from == "base")
    trained = weights.masters
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learning_rate, weight_decay=0.0)
    groups = make_groups(contrasts, config.packed)
    steps, ends = plan_steps(groups, config, seed)
    budget = Budget(config.max_tokens)
    done = load_state(out / "state", trained, optimizer)
    weights.spread()
    log = out / "train.jsonl"
    lines = log.read_text().splitlines()[:done] if log.is_file() else []
    worst = -math.log(model.get_input_embeddings().weight.shape[0])
    unit = math.fsum(contrast.weight for contrast in contrasts) / len(contrasts) or 1.0
    epoch = 0
    model.train()
    for step in range(done, len(steps)):
        torch.manual_seed(seed_of("step", seed, step))  # dropout is the same after resuming
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_at(step, len(steps), config)
        try:
            row = step_gradient(
                model, weights, steps[step], config, budget, accelerator, opponent, unit
            )
        except FloatingPointError as error:
            raise LearningError(
                f"{error} not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            ) from error
        _check_gain(row.get("chosen_gain"), worst, f"at step {step + 1}")
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), config.max_grad_norm))
        if not math.isfinite(norm):
            raise LearningError(
                f"the gradient is not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.spread()
        row = {"step": step + 1, **row, "grad_norm": round(norm, 4)}
        lines.append(json.dumps(row))
        # Before the state is saved: who is killed here comes by again.
        if after_epoch and step + 1 in ends:
            write_log(log, lines)
            epoch = ends.index(step + 1) + 1
            over = after_epoch(weights, epoch)
            model.train()
            if over:
                break
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < len(steps):
            write_log(log, lines)
            save_state(out / "state", trained, optimizer, step + 1)
        if progress:
            progress(step + 1, len(steps), {k: float(v) for k, v in row.items()})
    # No step looks at what the last update did; nor does it matter where another epoch is kept.
    if len(steps) > done and kept(epoch):
        gain = _gain_now(model, steps[-1], config, budget, opponent)
        _check_gain(gain, worst, f"at the last step, {len(steps)}")
    write_log(log, lines)
    weights.whole()


def _check_gain(gain: float | None, worst: float, when: str) -> None:
    """Raises :class:`LearningError` where chosen tokens became less likely than by guessing."""
    if gain is not None and not gain >= worst:
        raise LearningError(
            f"the loss exploded {when}: the player gives a chosen token {-gain:.0f} nats less "
            "than the opponent, which is worse than guessing; lower train.learning_rate or "
            "train.max_grad_norm, or raise train.alpha"
        )


def _gain_now(
    model: Any,
    groups: Sequence[Group],
    config: TrainConfig,
    budget: Budget,
    opponent: Opponent | None,
) -> float | None:
    """``chosen_gain`` of a part of a step's trees once more. None where there is nothing to
    compare."""
    model.eval()

    def work(group: Group) -> dict[str, float]:
        with torch.no_grad():
            return group_loss(model, group.contrasts, config, opponent)[1]

    try:
        for _, figures in each_bin(groups, budget, config.packed, work):
            if figures["compared"]:
                return figures["gain"] / figures["compared"]
    except FloatingPointError:
        return -math.inf
    return None


def step_gradient(
    model: Any,
    weights: Weights,
    groups: Sequence[Group],
    config: TrainConfig,
    budget: Budget,
    accelerator: Any,
    opponent: Opponent | None = None,
    unit: float = 1.0,
) -> dict[str, Any]:
    """Leave the gradient of one step over ``groups`` in ``weights.masters``; returns its figures.

    The loss is the sum of the contrasts' weighted losses over their number times ``unit``: the
    same, up to rounding, however small ``budget`` is. Raises ``FloatingPointError`` naming the
    tasks whose loss is not a number.
    """
    whole = unit * sum(len(group.contrasts) for group in groups)

    def work(group: Group) -> tuple[float, dict[str, float]]:
        try:
            loss, figures = group_loss(model, group.contrasts, config, opponent)
            if loss.requires_grad:  # not where every continuation is empty
                accelerator.backward(loss / whole)
        except FloatingPointError as error:
            raise FloatingPointError(_blamed(model, group, config, opponent, str(error))) from error
        except BaseException:
            weights.drop()
            raise
        weights.keep()
        return float(loss.detach()) / whole, figures

    weights.drop()
    loss_sum = 0.0
    totals: dict[str, float] = {}
    for _, (loss, figures) in each_bin(groups, budget, config.packed, work):
        loss_sum += loss
        for key, value in figures.items():
            totals[key] = totals.get(key, 0.0) + value
    weights.ready()
    contrasts = sum(len(group.contrasts) for group in groups)
    row: dict[str, Any] = {"loss": round(loss_sum, 6)}
    if pairs := totals["pairs"]:  # a step of golden answers alone has no margin
        row["margin"] = round(totals["margin"] / pairs, 4)
        row["won"] = round(totals["won"] / pairs, 4)
    if near := totals["near"]:
        row["kl"] = round(totals["kl"] / near, 6)
    if compared := totals["compared"]:
        row["chosen_gain"] = round(totals["gain"] / compared, 4)
    return row | {
        "chosen_nll": round(totals["chosen_nll"] / contrasts, 4),
        "contrasts": contrasts,
        "tokens": sum(group.tokens for group in groups),
        "learnt": sum(group.learnt for group in groups),
    }


def _blamed(
    model: Any, group: Group, config: TrainConfig, opponent: Opponent | None, suspects: str
) -> str:
    """Which tasks' loss is not a number. Attention carries one tree's to the others of a bin, so
    they are computed again one by one."""
    guilty = []
    for one in make_groups(group.contrasts, config.packed):
        try:
            with torch.no_grad():
                group_loss(model, one.contrasts, config, opponent)
        except FloatingPointError as error:
            guilty.append(str(error))
    return f"the loss of task {', '.join(guilty) or suspects} is"
