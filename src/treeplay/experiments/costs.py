"""What an experiment will cost, told before it starts (``--dry-run``)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from treeplay.config import Config
from treeplay.errors import ConfigError
from treeplay.experiments.budget import budget_of
from treeplay.experiments.kept import made_with_other, weights_here
from treeplay.experiments.plan import BASE, Cell, Plan
from treeplay.ordinary.anchors import ASKED
from treeplay.play_grow import WITHOUT_BRANCHES
from treeplay.play_train import learns_from_contrasts
from treeplay.tasks.select import eval_suites


@dataclass(frozen=True)
class Cost:
    """Upper bounds of one run."""

    eval_samples: int
    eval_tokens: int
    grow_tokens: int
    train_tokens: int | None


def cost(plan: Plan, cell: Cell) -> Cost:
    """What the run samples and learns from at most, as far as the reference's tokens are known;
    ``train_tokens`` is None where epochs decide (they depend on what is grown)."""
    config = plan.config(cell, budget_of(plan, cell))
    facts = cell.data.facts
    samples = tokens = 0
    for suite in eval_suites(config.tasks):
        count = len(suite.tasks) * (suite.samples or config.eval.samples)
        samples += count
        tokens += count * (suite.max_tokens or config.eval.max_tokens)
    trained = sum(facts["train"].values())
    grown = 0 if cell.arm == BASE else trained * _task_tokens(config) * config.rounds
    if config.grow.budget:  # a wave may begin within it; golden paths and rollouts are beside it
        beside = trained * _task_tokens(_branches(config, 0))
        wave = trained * _task_tokens(_branches(config, config.grow.wave)) - beside
        grown = min(grown, (beside + config.grow.budget + wave) * config.rounds)
    if cell.arm != BASE and config.contrasts.ordinary_text == "own":
        grown += config.contrasts.ordinary * ASKED.max_tokens * config.rounds
    if cell.arm != BASE and config.method == "grpo" and config.grpo.budget:
        grown = config.grpo.budget * config.rounds
    learnt = 0 if cell.arm == BASE else (config.train.budget or None)
    return Cost(samples, tokens, grown, learnt)


def _branches(config: Config, number: int) -> Config:
    return replace(config, grow=replace(config.grow, branches=number))


def _task_tokens(config: Config) -> int:
    """Tokens that are sampled for a training task in a round, at most."""
    if config.method == "grpo":
        return config.train.epochs * config.grpo.generations * config.grpo.max_tokens
    golden, grow, probe = config.golden, config.grow, config.nodes.probe
    tokens = 0
    if config.golden.source != "reference":
        mends = golden.attempts * golden.mends if golden.source == "repair" else 0
        tokens += (golden.samples + mends) * golden.max_tokens
    if not learns_from_contrasts(config.method) or config.method in WITHOUT_BRANCHES:
        return tokens
    nodes = 1 if config.nodes.sources == ("root",) else config.nodes.per_task
    if "probe" in config.nodes.sources:
        tokens += probe.states * probe.rollouts * grow.max_tokens
    # Each branch may have a node of its own on the next level.
    rows, level = 0, 1
    for _ in range(grow.depth):
        level *= grow.branches
        rows += level
    return tokens + nodes * rows * grow.max_tokens


def lines(plan: Plan) -> list[str]:
    """The plan in words, for ``--dry-run``."""
    protocol = plan.protocol
    out = [
        f"experiment {protocol.name}: {protocol.title}",
        f"model {plan.model}, size {plan.size}, seeds {', '.join(map(str, plan.seeds))}",
    ]
    for number, data in enumerate(plan.folds, start=1):
        facts = data.facts
        if len(plan.folds) > 1:
            out.append(f"fold {number}: held out {', '.join(facts['held_out'])}")
        parts = ", ".join(f"{name} {count}" for name, count in facts["train"].items())
        out.append(f"  train on {sum(facts['train'].values())} tasks: {parts}")
        for suite, told in facts["suites"].items():
            shared = len(facts["contamination"][suite])
            out.append(
                f"  evaluate {suite:<24} {told['tasks']:>4} tasks, {told['tested']:>4} with tests"
                + (f", {shared} share a tenth of their 13-grams with training" if shared else "")
            )
    total = [0, 0, 0]
    out.append(f"{'run':<28} {'samples':>8} {'eval tokens':>12} {'grow tokens':>12}  trains on")
    model = weights_here(plan)
    for arm, seed in plan.units():
        for cell in plan.cells(arm, seed):
            if (fault := cell.data.facts.get("fault")) and arm != BASE:
                out.append(f"{cell.title():<28} cannot run: {fault}")
                continue
            try:
                state = _state(plan, arm, seed, model)
                found = cost(plan, cell)
            except ConfigError as error:
                out.append(f"{cell.title():<28} cannot run: {error}")
                continue
            learnt = "nothing" if found.train_tokens == 0 else f"{found.train_tokens or 0:,} tokens"
            if found.train_tokens is None:
                learnt = "as many tokens as the reference, else its epochs"
            out.append(
                f"{cell.title():<28} {found.eval_samples:>8,} {found.eval_tokens:>12,} "
                f"{found.grow_tokens:>12,}  {learnt}{state}"
            )
            if not state:
                total[0] += found.eval_samples
                total[1] += found.eval_tokens
                total[2] += found.grow_tokens
    out.append(
        f"to do, at most: {total[0]:,} samples of {total[1]:,} tokens to evaluate, "
        f"{total[2]:,} tokens to grow"
    )
    return out


def _state(plan: Plan, arm: str, seed: int, model: str) -> str:
    path = plan.result(arm, seed)
    if not path.is_file():
        return ""
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["faults"]:
        return ""
    other = made_with_other(plan, arm, seed, told, model)
    return f"  (there is a result of {other})" if other else "  (done)"
