"""Train a LoRA adapter on contrasts: one loop, packed trees.

    contrasts -> opponent's log-probs (once, no gradient) -> groups (one tree each) -> steps
        -> packed forward -> loss -> backward -> AdamW -> adapter/

A group is what is packed together: the contrasts of one task, split where they exceed the token
budget. A step takes ``groups_per_step`` groups, one backward pass each, and divides by the whole
step's weight, so the gradient does not depend on how a step is cut into groups.

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
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from treeplay.contrasts import Contrast
from treeplay.errors import ModelError, RunError
from treeplay.losses import margin, nll_loss, preference_loss
from treeplay.policy.attention import why_not_packable
from treeplay.policy.model import Policy, load_adapter, quiet
from treeplay.policy.sample import seed_of
from treeplay.policy.score import Span, packed_logps, plain_logps


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's shape. ``targets``: module names, or ``all-linear``."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)


@dataclass(frozen=True)
class TrainConfig:
    """``beta`` scales the margin; ``alpha`` the likelihood of the chosen tokens.

    ``clip``: the margin (nats) above which a contrast is left alone (0: never), so that the
    opponent's mistakes are not pushed down once they are unlikely. ``max_tokens``: unique tokens
    of one packed group. ``packed`` false computes every sequence apart: slow, the same numbers.
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
    checkpoint_steps: int = 10
    lora: LoraSettings = LoraSettings()


@dataclass(frozen=True)
class Group:
    """Contrasts packed together; ``tokens`` counts them flat (prefix and both continuations)."""

    contrasts: tuple[Contrast, ...]
    tokens: int


def check_packable(model: Any, config: TrainConfig) -> None:
    """Raises :class:`ModelError` where packed training was asked for and would be wrong."""
    reason = why_not_packable(model)
    if config.packed and reason:
        raise ModelError(f"cannot train on packed trees: {reason}; set train.packed=false")


def score_opponent(
    policy: Policy,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    progress: Callable[[int], None] | None = None,
) -> list[Contrast]:
    """Contrasts with the raw log-probs of ``policy`` (the opponent) for every token, packed."""
    out: list[Contrast] = []
    for group in make_groups(contrasts, config):
        with torch.no_grad():
            logps = _logps(policy.model, group.contrasts, config.packed)
        for contrast, (chosen, rejected) in zip(group.contrasts, logps, strict=True):
            out.append(
                replace(
                    contrast,
                    chosen_opp=tuple(round(x, 6) for x in chosen.tolist()),
                    rejected_opp=tuple(round(x, 6) for x in rejected.tolist()),
                )
            )
        if progress:
            progress(group.tokens)
    return out


def make_groups(contrasts: Sequence[Contrast], config: TrainConfig) -> list[Group]:
    """Contrasts by task, in order of first appearance, within the token budget."""
    by_task: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        by_task.setdefault(contrast.task, []).append(contrast)
    groups = []
    for members in by_task.values():
        part: list[Contrast] = []
        unique: set[tuple[int, ...]] = set()
        for contrast in members:
            fresh = unique | _prefixes(contrast)
            if part and len(fresh) > config.max_tokens:
                groups.append(_group(part))
                part, fresh = [], _prefixes(contrast)
            part.append(contrast)
            unique = fresh
        groups.append(_group(part))
    return groups


def _prefixes(contrast: Contrast) -> set[tuple[int, ...]]:
    """One item for every packed token: the token's whole path (hashed, to stay small)."""
    out: set[tuple[int, ...]] = set()
    for tail in (contrast.chosen, contrast.rejected):
        state = 0
        for token in contrast.prefix + tail:
            state = hash((state, token))
            out.add((state,))
    return out


def _group(contrasts: Sequence[Contrast]) -> Group:
    tokens = sum(2 * len(c.prefix) + len(c.chosen) + len(c.rejected) for c in contrasts)
    return Group(tuple(contrasts), tokens)


def _logps(
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
    rejected continuation has the NLL alone. The preference is DESIGN's node loss, see
    :mod:`treeplay.losses`.
    """
    logps = _logps(model, contrasts, config.packed)
    device = logps[0][0].device
    total = torch.zeros((), device=device)
    figures = {"margin": 0.0, "pairs": 0.0, "won": 0.0, "chosen_nll": 0.0, "weight": 0.0}
    for contrast, (chosen_T, rejected_T) in zip(contrasts, logps, strict=True):
        chosen = chosen_T.sum()
        length = torch.tensor(float(max(1, len(contrast.chosen))), device=device)
        nll = nll_loss(chosen, length)
        figures["chosen_nll"] += float(nll.detach())
        figures["weight"] += contrast.weight
        if not contrast.rejected:
            total = total + contrast.weight * nll
            continue
        gap = margin(
            chosen,
            rejected_T.sum(),
            torch.tensor(math.fsum(contrast.chosen_opp), device=device),
            torch.tensor(math.fsum(contrast.rejected_opp), device=device),
        )
        figures["margin"] += float(gap.detach())
        figures["won"] += float(gap.detach() > 0)
        figures["pairs"] += 1
        if config.clip:
            gap = gap.clamp(max=config.clip)
        total = total + contrast.weight * (preference_loss(gap, config.beta) + config.alpha * nll)
    return total, figures


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
    ``out/train.jsonl``. Raises :class:`RunError` when there is nothing to train on or the loss is
    not a number.
    """
    if not contrasts:
        raise RunError(
            "there are no contrasts to train on: no node has both a secure and a vulnerable "
            "branch; grow more branches (grow.branches) or raise grow.temperature"
        )
    check_packable(policy.model, config)
    final = out / "adapter"
    if (final / "adapter_model.safetensors").is_file():
        return final
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = _with_adapter(policy.model, config, start_from)
    try:
        _loop(model, contrasts, config, seed, out, progress)
        _save_adapter(model, final)
    except SafetensorError as error:  # its writer turns a full disk into an error of its own
        raise RunError(
            f"cannot write the adapter or its state in {out}: {error}; free some space, then resume"
        ) from error
    finally:
        policy.model.eval()
        model.unload()
    return final


def _with_adapter(base: Any, config: TrainConfig, start_from: Path | None) -> Any:
    if start_from is not None:
        return load_adapter(base, start_from, trainable=True)
    targets: Any = list(config.lora.targets)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            return get_peft_model(base, lora)
    except ValueError as error:
        raise ModelError(
            f"cannot put an adapter on {', '.join(targets)}: {error}; name modules of this model "
            "in train.lora.targets, or all-linear"
        ) from error


def _loop(
    model: Any,
    contrasts: Sequence[Contrast],
    config: TrainConfig,
    seed: int,
    out: Path,
    progress: Callable[[int, int, dict[str, float]], None] | None,
) -> None:
    accelerator = Accelerator(cpu=next(iter(model.parameters())).device.type == "cpu")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learning_rate, weight_decay=0.0)
    steps = _plan(make_groups(contrasts, config), config, seed)
    done = _load_state(out / "state", trained, optimizer)
    log = out / "train.jsonl"
    lines = log.read_text().splitlines()[:done] if log.is_file() else []
    model.train()
    for step in range(done, len(steps)):
        torch.manual_seed(seed_of("step", seed, step))  # dropout is the same after resuming
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, len(steps), config)
        whole = math.fsum(c.weight for g in steps[step] for c in g.contrasts)
        totals: dict[str, float] = {}
        loss_sum = 0.0
        for group_ in steps[step]:
            loss, figures = group_loss(model, group_.contrasts, config)
            accelerator.backward(loss / whole)
            loss_sum += float(loss.detach()) / whole
            for key, value in figures.items():
                totals[key] = totals.get(key, 0.0) + value
        if not math.isfinite(loss_sum):
            raise RunError(
                f"the loss is not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            )
        norm = accelerator.clip_grad_norm_(list(trained.values()), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count = sum(len(g.contrasts) for g in steps[step])
        row = {"step": step + 1, "loss": round(loss_sum, 6)}
        if pairs := totals["pairs"]:  # a step of golden answers alone has no margin
            row["margin"] = round(totals["margin"] / pairs, 4)
            row["won"] = round(totals["won"] / pairs, 4)
        row |= {
            "chosen_nll": round(totals["chosen_nll"] / count, 4),
            "grad_norm": round(float(norm), 4),
            "contrasts": count,
            "tokens": sum(g.tokens for g in steps[step]),
        }
        lines.append(json.dumps(row))
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < len(steps):
            _write_log(log, lines)
            _save_state(out / "state", trained, optimizer, step + 1)
        if progress:
            progress(step + 1, len(steps), {k: float(v) for k, v in row.items()})
    _write_log(log, lines)


def _write_log(log: Path, lines: Sequence[str]) -> None:
    part = log.with_name(log.name + ".tmp")
    part.write_text("\n".join(lines) + "\n")
    part.replace(log)


def _plan(groups: list[Group], config: TrainConfig, seed: int) -> list[list[Group]]:
    """The groups of every step of every epoch; a new order each epoch, from the seed."""
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


def _save_state(
    folder: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any, step: int
) -> None:
    """Write parameters and AdamW's moments; one file, replaced at once."""
    tensors = {"step": torch.tensor(step)}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors[f"p/{name}"] = parameter.detach().contiguous()
        tensors[f"m/{name}"] = state["exp_avg"].contiguous()
        tensors[f"v/{name}"] = state["exp_avg_sq"].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.safetensors.part"
    save_file(tensors, part)
    part.replace(folder / "state.safetensors")


def _load_state(folder: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any) -> int:
    """Restore what :func:`_save_state` wrote; returns the number of steps already taken."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    tensors = load_file(path)
    step = int(tensors["step"])
    for name, parameter in trained.items():
        device = parameter.device
        parameter.data.copy_(tensors[f"p/{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"m/{name}"].to(device),
            "exp_avg_sq": tensors[f"v/{name}"].to(device),
        }
    return step


def _save_adapter(model: Any, final: Path) -> None:
    part = final.with_name("adapter.part")
    for lora in model.peft_config.values():
        if isinstance(lora.target_modules, set):  # written in one order, whatever the hash seed
            lora.target_modules = sorted(lora.target_modules)
    # Embeddings are never trained; asking to look for them would ask the model hub.
    model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False)
    part.replace(final)
