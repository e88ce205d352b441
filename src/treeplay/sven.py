"""SVEN: steer the model by a trained prefix, and leave its weights alone.

    pairs of answers -> changed tokens -> two prefixes, each program read under both and without
        -> likelihood + contrast + KL -> backward -> AdamW -> adapter/ (and adapter/vulnerable/)

He and Vechev 2023 (arXiv 2302.05319). The player is the base model behind the secure prefix. The
vulnerable one is there for the contrastive loss; it is kept beside it, so that a later round can go
on with both. Prefixes are PEFT's, and saved as PEFT saves them. The state of the loop is written as
in :mod:`treeplay.train`, and an interrupted round ends the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from peft import PrefixTuningConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from treeplay.errors import ModelError, RunError, TaskError
from treeplay.policy.head import gather_logps, head_of, logps_of, without
from treeplay.policy.kl import gather_logps_and_kl, logits_to_both
from treeplay.policy.model import Policy, encode_path, quiet
from treeplay.policy.prefix import base_of, prefix_cache, take_off
from treeplay.policy.sample import seed_of
from treeplay.sven_loss import changed_likelihood, prefix_contrast, sven_loss, unchanged_kl
from treeplay.tasks.task import Task
from treeplay.tokens_changed import Level, changed_mask, changed_spans
from treeplay.train import TrainConfig
from treeplay.train_plan import learning_rate_at
from treeplay.train_state import load_state, save_adapter, save_state, write_log

SECURE, VULNERABLE = "default", "vulnerable"  # "default" is what PEFT saves at a folder's top
# As finely as SVEN marks its data: what a fix wrote by words, what it replaced by lines.
LEVELS: dict[str, tuple[Level, Level]] = {
    "mix": ("word", "line"),
    "word": ("word", "word"),
    "line": ("line", "line"),
    "all": ("all", "all"),
}


@dataclass(frozen=True)
class SvenConfig:
    """``tokens``: length of each prefix. ``contrast`` and ``kl`` weigh those losses against the
    likelihood. ``changed``: how finely the answers of a pair are compared: ``word``, ``line``,
    ``mix`` (the golden one by words, the vulnerable one by lines) or ``all`` tokens. ``dropout`` is
    on the prefix. Steps, learning rate and the rest are those of ``train``; ``train.lora``,
    ``train.packed`` and what belongs to other losses have no meaning here."""

    tokens: int = 8
    contrast: float = 4.0
    kl: float = 1.6
    changed: Literal["mix", "word", "line", "all"] = "mix"
    dropout: float = 0.1
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Program:
    """One answer behind its prompt, as token ids; ``changed[i]``: token ``i`` is what makes it
    secure (or vulnerable)."""

    task: str
    secure: bool
    ids: tuple[int, ...]
    changed: tuple[bool, ...]


def programs_of(policy: Policy, tasks: Sequence[Task], config: SvenConfig) -> list[list[Program]]:
    """The programs of each task with a pair; an answer with no changed tokens is left out, as is a
    pair where both are so.

    Raises :class:`TaskError` where nothing is left, :class:`RunError` for a program that does not
    fit into the model's context behind the prefix.
    """
    fine, coarse = LEVELS[config.changed]
    out = []
    for task in tasks:
        if task.golden is None or task.vulnerable is None:
            continue
        pair = []
        for secure, text, other, level in (
            (True, task.golden, task.vulnerable, fine),
            (False, task.vulnerable, task.golden, coarse),
        ):
            path = encode_path(policy, task, text)
            changed = changed_mask(path.starts, len(text), changed_spans(text, other, level))
            if len(path.ids) + config.tokens > policy.max_length:
                raise RunError(
                    f"task {task.id!r} has {len(path.ids)} tokens and the prefix {config.tokens}, "
                    f"but the model reads {policy.max_length}; shorten the task, or lower "
                    "sven.tokens"
                )
            # Nothing predicts the first token.
            if any(changed[1:]):
                pair.append(Program(task.id, secure, path.ids, changed))
        if pair:
            out.append(pair)
    if not out:
        raise TaskError(
            "method sven learns from what golden and vulnerable answers differ in, but no training "
            "task has a pair that differs; give tasks with vulnerable answers (tasks.train), or "
            "choose a method that makes its own mistakes, such as tsp"
        )
    return out


def with_prefixes(base: Any, tokens: int, start_from: Path | None) -> Any:
    """``base`` behind two new prefixes, or those in ``start_from``, trainable; the secure one is
    active. New ones begin at zero, as SVEN's do. Raises :class:`ModelError`."""

    def shape() -> PrefixTuningConfig:
        return PrefixTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM")

    try:
        with quiet():
            model = get_peft_model(base, shape(), SECURE)
            model.add_adapter(VULNERABLE, shape())
    except ValueError as error:
        raise ModelError(
            f"cannot put a prefix before a {base.config.model_type} model: {error}; use another "
            "model, or a method that trains LoRA"
        ) from error
    for name, encoder in model.prompt_encoder.items():
        torch.nn.init.zeros_(encoder.embedding.weight)
        if start_from is not None:  # PEFT itself loads a prefix for use alone, not to train it
            encoder.load_state_dict({"embedding.weight": _saved(start_from, name, encoder)})
    model.set_adapter(SECURE)
    return model


def _saved(folder: Path, name: str, encoder: Any) -> torch.Tensor:
    """The prefix ``name`` as PEFT saved it in ``folder``."""
    path = (folder if name == SECURE else folder / name) / "adapter_model.safetensors"
    found = load_file(path).get("prompt_embeddings") if path.is_file() else None
    if found is None or found.shape != encoder.embedding.weight.shape:
        raise ModelError(
            f"{folder} does not hold the two prefixes of method sven for this model; remove its "
            "round's folder to have it trained again"
        )
    return found


def program_loss(
    model: Any, program: Program, config: SvenConfig, dropout: float = 0.0
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one program and its parts; ``dropout`` is on the prefixes.

    Axes: T tokens from the second on. Leaves the secure prefix active.
    """
    device = next(iter(model.parameters())).device
    ids_T = torch.tensor(program.ids, device=device)
    changed_T = torch.tensor(program.changed[1:], device=device)
    own, other = (SECURE, VULNERABLE) if program.secure else (VULNERABLE, SECURE)
    base = base_of(model)
    with torch.no_grad():
        base_TD = _outputs(base, ids_T, None)
    scores = []
    for name in (own, other):
        model.set_adapter(name)
        out_TD = _outputs(base, ids_T, prefix_cache(model, dropout))
        scores.append(_scores(base, out_TD, base_TD, ids_T, with_kl=bool(config.kl)))
    model.set_adapter(SECURE)
    (own_T, own_kl_T), (other_T, other_kl_T) = scores
    likelihood = changed_likelihood(own_T, changed_T)
    contrast = prefix_contrast(own_T, other_T, changed_T)
    kl = unchanged_kl(own_kl_T, other_kl_T, changed_T)
    loss = sven_loss(likelihood, contrast, kl, config.contrast, config.kl)
    parts = {"likelihood": likelihood, "contrast": contrast, "kl": kl}
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def _outputs(base: Any, ids_T: torch.Tensor, cache: Any) -> torch.Tensor:
    """Hidden states (T - 1, D) that predict every token but the first, behind ``cache``; logits
    (T - 1, V) where the output layer is not known."""
    head = head_of(base)
    given = {"input_ids": ids_T[None, :-1], "past_key_values": cache, "use_cache": False}
    if head is None:
        logits: torch.Tensor = base(**given).logits[0]
        return logits
    with without(head.layer) as caught:
        base(**given)
    return caught[-1].reshape(-1, caught[-1].shape[-1])


def _scores(
    base: Any, out_TD: torch.Tensor, base_TD: torch.Tensor, ids_T: torch.Tensor, *, with_kl: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the tokens after the first, and the KL from the base where they are predicted
    (zeros where it is not asked for)."""
    head, token_T = head_of(base), ids_T[1:]
    row_T = torch.arange(len(token_T), device=token_T.device)
    if with_kl and head is None:
        return logits_to_both(out_TD, base_TD, row_T, token_T)
    if with_kl and head is not None:
        return gather_logps_and_kl(head, out_TD, base_TD, row_T, token_T)
    if head is None:
        logp_T = logps_of(out_TD, row_T, token_T)
    else:
        logp_T = gather_logps(head, out_TD, row_T, token_T)
    return logp_T, torch.zeros_like(logp_T)


def train_prefixes(
    policy: Policy,
    tasks: Sequence[Task],
    config: SvenConfig,
    train: TrainConfig,
    seed: int,
    out: Path,
    start_from: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Path:
    """Train both prefixes (new, or those in ``start_from``) and write them to ``out/adapter``.

    ``policy`` must hold the base model without an adapter; it is as it was afterwards. Figures of
    every step are lines of ``out/train.jsonl`` and go to ``progress``. Raises :class:`TaskError`
    for tasks without pairs, :class:`RunError` for programs too long and for a loss that is not a
    number, and :class:`ModelError` for a model that takes no prefix.
    """
    final = out / "adapter"
    if (final / "adapter_model.safetensors").is_file():
        return final
    pairs = programs_of(policy, tasks, config)
    out.mkdir(parents=True, exist_ok=True)
    model = with_prefixes(policy.model, config.tokens, start_from)
    try:
        _loop(model, pairs, config, train, seed, out, progress)
        save_adapter(model, policy.tokenizer, final)
    except SafetensorError as error:  # its writer turns a full disk into an error of its own
        raise RunError(
            f"cannot write the prefixes or their state in {out}: {error}; free some space, then "
            "resume"
        ) from error
    finally:
        take_off(model).eval()
    return final


def _loop(
    model: Any,
    pairs: Sequence[list[Program]],
    config: SvenConfig,
    train: TrainConfig,
    seed: int,
    out: Path,
    progress: Callable[[int, int, dict[str, float]], None] | None,
) -> None:
    accelerator = Accelerator(cpu=next(iter(model.parameters())).device.type == "cpu")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=train.learning_rate, weight_decay=config.weight_decay
    )
    steps = _plan(pairs, train, seed)
    done = load_state(out / "state", trained, optimizer)
    log = out / "train.jsonl"
    lines = log.read_text().splitlines()[:done] if log.is_file() else []
    guessing = math.log(model.get_input_embeddings().weight.shape[0])
    first: float | None = json.loads(lines[0])["likelihood"] if lines else None
    for step in range(done, len(steps)):
        torch.manual_seed(seed_of("step", seed, step))  # dropout is the same after resuming
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * learning_rate_at(step, len(steps), train)
        row = _step(model, steps[step], config, accelerator, step + 1)
        first = row["likelihood"] if first is None else first
        _check_likelihood(row["likelihood"], first, guessing, f"at step {step + 1}")
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), train.max_grad_norm))
        if not math.isfinite(norm):
            raise RunError(
                f"the gradient is not a number at step {step + 1}; lower train.learning_rate, "
                "or use model.dtype=float32"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        row = {"step": step + 1, **row, "grad_norm": round(norm, 4)}
        lines.append(json.dumps(row))
        if (step + 1) % train.checkpoint_steps == 0 and step + 1 < len(steps):
            write_log(log, lines)
            save_state(out / "state", trained, optimizer, step + 1)
        if progress:
            progress(step + 1, len(steps), {k: float(v) for k, v in row.items()})
    if len(steps) > done and first is not None:  # no step looks at what the last update did
        with torch.no_grad():
            _, parts = program_loss(model, steps[-1][0], config)
        when = f"at the last step, {len(steps)}"
        _check_likelihood(parts["likelihood"], first, guessing, when)
    write_log(log, lines)


def _check_likelihood(now: float, first: float, guessing: float, when: str) -> None:
    """Raises :class:`RunError` where changed tokens became less likely than by guessing."""
    if not now <= first + guessing:
        raise RunError(
            f"the loss exploded {when}: {now:.0f} nats a changed token, where the first step had "
            f"{first:.0f}; lower train.learning_rate or train.max_grad_norm"
        )


def _step(
    model: Any, programs: Sequence[Program], config: SvenConfig, accelerator: Any, number: int
) -> dict[str, Any]:
    """Leave the gradient of the mean loss of ``programs`` on the prefixes; returns figures."""
    totals: dict[str, float] = {}
    for program in programs:
        loss, parts = program_loss(model, program, config, config.dropout)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(
                f"the loss of task {program.task!r} is not a number at step {number}; lower "
                "train.learning_rate, or use model.dtype=float32"
            )
        accelerator.backward(loss / len(programs))
        for name, part in {"loss": value, **parts}.items():
            totals[name] = totals.get(name, 0.0) + part / len(programs)
    tokens = sum(len(program.ids) for program in programs)
    return {name: round(value, 6) for name, value in totals.items()} | {
        "programs": len(programs),
        "tokens": 3 * tokens,  # read under each prefix, and without
        "learnt": 2 * tokens,
    }


def _plan(pairs: Sequence[list[Program]], train: TrainConfig, seed: int) -> list[list[Program]]:
    """The programs of every step; a new order of tasks each epoch. With ``train.budget``, up to
    the step that uses it up: a program costs its tokens once for each prefix."""
    steps: list[list[Program]] = []
    used = 0
    for epoch in count() if train.budget else range(train.epochs):
        order = list(pairs)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        size = train.groups_per_step
        for i in range(0, len(order), size):
            steps.append([program for pair in order[i : i + size] for program in pair])
            used += 2 * sum(len(program.ids) for program in steps[-1])
            if train.budget and used >= train.budget:
                return steps
    return steps
