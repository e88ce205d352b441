"""Train a LoRA adapter on contrasts: one loop, packed trees.

    contrasts -> trees -> steps -> bins (see :mod:`treeplay.groups`)
        -> packed forward -> loss -> backward -> AdamW -> adapter/

A step learns from ``groups_per_step`` trees, one backward pass a bin, and divides by the whole
step's weight, so the gradient does not depend on how its trees are arranged in bins.

The state of the loop (adapter, optimizer, step) is written as safetensors every
``checkpoint_steps`` steps; a run that was interrupted goes on from there to the same result.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence

from treeplay.contrasts import Contrast
from treeplay.errors import RunError
from treeplay.groups import Budget, Group, check_contrasts, each_bin, make_groups
from treeplay.lora import LoraSettings, Weights, checkpointing, with_adapter
from treeplay.losses import margin, nll_loss, preference_loss
from treeplay.policy.attention import packed_or_plain
from treeplay.policy.model import Policy
from treeplay.policy.sample import seed_of
from treeplay.policy.score import Span, packed_logps, plain_logps
from treeplay.train_state import load_state, save_adapter, save_state, write_log


@dataclass(frozen=True)
class TrainConfig:
    """``beta`` scales the margin; ``alpha`` the likelihood of the chosen tokens.

    ``clip``: the margin (nats) above which a contrast is left alone (0: never), so that the
    opponent's mistakes are not pushed down once they are unlikely. ``max_tokens``: unique tokens
    of one forward pass, which bounds the memory and changes nothing else: small trees share a
    pass, larger ones are split. ``packed`` false computes every sequence apart: slow, the same
    numbers. ``checkpointing`` computes activations twice instead of keeping them. ``reference``:
    the opponent's log-probs are scored in a pass of their own, or those it had while it sampled
    are used again where there are any (float32 only).
    """

    epochs: int = 2
    learning_rate: float = 1e-4
    warmup: float = 0.1
    schedule: Literal["linear", "constant"] = "linear"
    groups_per_step: int = 4
    max_grad_norm: float = 1.0
    beta: float = 0.1
    alpha: float = 0.2
    clip: float = 0.0
    max_tokens: int = 1024
    packed: bool = True
    checkpointing: bool = False
    reference: Literal["score", "reuse"] = "score"
    checkpoint_steps: int = 10
    lora: LoraSettings = LoraSettings()


def packed_where_right(
    model: Any, config: TrainConfig, say: Callable[[str], None] | None = None
) -> TrainConfig:
    """``config``, with ``packed`` off where ``model`` would compute a packed tree wrongly; then
    ``say`` is told why."""
    packed, why = packed_or_plain(model, config.packed)
    if why and say:
        say(f"warning: {why}")
    return replace(config, packed=packed)


def contrast_logps(
    model: Any, contrasts: Sequence[Contrast], packed: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(chosen, rejected) token log-probs of each contrast; an empty tensor for no rejected."""
    sequences: list[tuple[int, ...]] = []
    spans: list[Span] = []
    for contrast in contrasts:
        for tail in (contrast.chosen, contrast.rejected):
            sequences.append(contrast.prefix + tail)
            spans.append((len(contrast.prefix), len(contrast.prefix) + len(tail)))
    flat = (packed_logps if packed else plain_logps)(model, sequences, spans)
    return list(zip(flat[::2], flat[1::2], strict=True))


def group_loss(
    model: Any, contrasts: Sequence[Contrast], config: TrainConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted *sum* of the losses of ``contrasts`` (one packed forward pass), and figures.

    Per contrast: ``weight * (preference + alpha * NLL(chosen)/len)``; a contrast without a
    rejected continuation has the NLL alone. The preference is the design's node loss, see
    :mod:`treeplay.losses`. Raises ``FloatingPointError`` naming the tasks whose loss is not a
    number.
    """
    logps = contrast_logps(model, contrasts, config.packed)
    chosen_N = pad_sequence([chosen for chosen, _ in logps], batch_first=True).sum(1)
    rejected_N = pad_sequence([rejected for _, rejected in logps], batch_first=True).sum(1)

    def constant(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=chosen_N.device, dtype=torch.float32)

    weight_N = constant([c.weight for c in contrasts])
    pair_N = constant([bool(c.rejected) for c in contrasts])
    nll_N = nll_loss(chosen_N, constant([max(1, len(c.chosen)) for c in contrasts]))
    gap_N = margin(
        chosen_N,
        rejected_N,
        constant([math.fsum(c.chosen_opp) for c in contrasts]),
        constant([math.fsum(c.rejected_opp) for c in contrasts]),
    )
    pushed_N = gap_N.clamp(max=config.clip) if config.clip else gap_N
    pair_loss_N = preference_loss(pushed_N, config.beta) + config.alpha * nll_N
    loss_N = torch.where(pair_N > 0, pair_loss_N, nll_N)
    # One transfer from the device for everything that is looked at.
    table = torch.stack([loss_N, gap_N, nll_N]).detach().tolist()
    bad = {c.task: None for c, loss in zip(contrasts, table[0], strict=True) if loss - loss != 0}
    if bad:
        raise FloatingPointError(", ".join(repr(task) for task in bad))
    gaps = [gap for c, gap in zip(contrasts, table[1], strict=True) if c.rejected]
    figures = {
        "margin": math.fsum(gaps),
        "pairs": float(len(gaps)),
        "won": float(sum(gap > 0 for gap in gaps)),
        "chosen_nll": math.fsum(table[2]),
    }
    return (weight_N * loss_N).sum(), figures


def train(
    policy: Policy,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    seed: int,
    out: Path,
    start_from: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Path:
    """Train an adapter (new, or the one in ``start_from``) and write it to ``out/adapter``.

    ``policy`` must hold the base model without an adapter; it is wrapped, trained and unwrapped.
    ``progress(step, steps, figures)`` is called after every step; the same figures are lines of
    ``out/train.jsonl``. Raises :class:`RunError` when there is nothing to train on, a contrast
    cannot be read by the model, memory is too small for a single contrast, or the loss is not a
    number.
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
            _loop(model, contrasts, config, seed, out, progress)
        save_adapter(model, policy.tokenizer, final)
    except SafetensorError as error:  # its writer turns a full disk into an error of its own
        raise RunError(
            f"cannot write the adapter or its state in {out}: {error}; free some space, then resume"
        ) from error
    finally:
        policy.model.eval()
        model.unload()
    return final


def _loop(
    model: Any,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    seed: int,
    out: Path,
    progress: Callable[[int, int, dict[str, float]], None] | None,
) -> None:
    accelerator = Accelerator(cpu=next(iter(model.parameters())).device.type == "cpu")
    weights = Weights(model, config.lora)
    trained = weights.masters
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learning_rate, weight_decay=0.0)
    steps = _plan(make_groups(contrasts, config.packed), config, seed)
    budget = Budget(config.max_tokens)
    done = load_state(out / "state", trained, optimizer)
    weights.spread()
    log = out / "train.jsonl"
    lines = log.read_text().splitlines()[:done] if log.is_file() else []
    model.train()
    for step in range(done, len(steps)):
        torch.manual_seed(seed_of("step", seed, step))  # dropout is the same after resuming
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, len(steps), config)
        try:
            row = step_gradient(model, weights, steps[step], config, budget, accelerator)
        except FloatingPointError as error:
            raise RunError(
                f"{error} not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            ) from error
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), config.max_grad_norm))
        if not math.isfinite(norm):
            raise RunError(
                f"the gradient is not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.spread()
        row = {"step": step + 1, **row, "grad_norm": round(norm, 4)}
        lines.append(json.dumps(row))
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < len(steps):
            write_log(log, lines)
            save_state(out / "state", trained, optimizer, step + 1)
        if progress:
            progress(step + 1, len(steps), {k: float(v) for k, v in row.items()})
    write_log(log, lines)
    weights.whole()


def step_gradient(
    model: Any,
    weights: Weights,
    groups: Sequence[Group],
    config: TrainConfig,
    budget: Budget,
    accelerator: Any,
) -> dict[str, Any]:
    """Leave the gradient of one step over ``groups`` in ``weights.masters``; returns its figures.

    The same, up to rounding, however small ``budget`` is. Raises ``FloatingPointError`` naming the
    tasks whose loss is not a number.
    """
    whole = math.fsum(c.weight for g in groups for c in g.contrasts) or 1.0

    def work(group: Group) -> tuple[float, dict[str, float]]:
        try:
            loss, figures = group_loss(model, group.contrasts, config)
            if loss.requires_grad:  # not where every continuation is empty
                accelerator.backward(loss / whole)
        except FloatingPointError as error:
            raise FloatingPointError(_blamed(model, group, config, str(error))) from error
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
    count = sum(len(group.contrasts) for group in groups)
    row: dict[str, Any] = {"loss": round(loss_sum, 6)}
    if pairs := totals["pairs"]:  # a step of golden answers alone has no margin
        row["margin"] = round(totals["margin"] / pairs, 4)
        row["won"] = round(totals["won"] / pairs, 4)
    return row | {
        "chosen_nll": round(totals["chosen_nll"] / count, 4),
        "contrasts": count,
        "tokens": sum(group.tokens for group in groups),
    }


def _blamed(model: Any, group: Group, config: TrainConfig, suspects: str) -> str:
    """Which tasks' loss is not a number. Attention carries one tree's to the others of a bin, so
    they are computed again one by one."""
    guilty = []
    for one in make_groups(group.contrasts, config.packed):
        try:
            with torch.no_grad():
                group_loss(model, one.contrasts, config)
        except FloatingPointError as error:
            guilty.append(str(error))
    return f"the loss of task {', '.join(guilty) or suspects} is"


def _plan(groups: list[Group], config: TrainConfig, seed: int) -> list[list[Group]]:
    """The trees of every step of every epoch; a new order each epoch, from the seed."""
    steps = []
    for epoch in range(config.epochs):
        order = list(groups)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        size = config.groups_per_step
        steps += [order[i : i + size] for i in range(0, len(order), size)]
    return steps


def _rate(step: int, steps: int, config: TrainConfig) -> float:
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    return (steps - step) / max(1, steps - warm)
