"""The plan of an experiment: which runs there are, with which recipe, and what they will cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from treeplay.config import Config, Method, load_config
from treeplay.errors import ConfigError
from treeplay.experiments.data import Prepared
from treeplay.experiments.protocol import SIZES, Protocol, Size
from treeplay.ordinary.anchors import ASKED
from treeplay.play_grow import WITHOUT_BRANCHES
from treeplay.play_train import learns_from_contrasts
from treeplay.run import write_text
from treeplay.tasks.select import eval_suites
from treeplay.words import nearest

BASE = "base"
# A smoke run: a few tokens of everything, two steps of training.
SMOKE: dict[str, Any] = {
    "nodes": {"per_task": 1},
    "grow": {"branches": 2, "max_tokens": 8},
    "train": {"epochs": 2, "groups_per_step": 64, "budget": 0},
    "grpo": {"generations": 2, "max_tokens": 8},
    "eval": {"samples": 1, "max_tokens": 8},
}


@dataclass(frozen=True)
class Cell:
    """One run: an arm, a seed, and a fold (counted from 1; 0 where there are none)."""

    arm: str
    seed: int
    fold: int
    data: Prepared
    folder: Path

    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}" + (f", fold {self.fold}" if self.fold else "")


@dataclass(frozen=True)
class Plan:
    """An experiment with everything chosen. ``overrides`` are ``key=value`` for every arm."""

    protocol: Protocol
    size: Size
    model: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[Prepared, ...]
    out: Path
    results: Path
    overrides: tuple[str, ...]

    @property
    def model_name(self) -> str:
        """What the model is called in results: the last part of its name."""
        return Path(self.model).stem if self.model.endswith(".gguf") else Path(self.model).name

    def units(self) -> list[tuple[str, int]]:
        """(arm, seed) in the order of play: seed by seed, the base model and the reference first,
        because the others share what they made and are given their budget."""
        return [(arm, seed) for seed in self.seeds for arm in (BASE, *self.arms)]

    def cells(self, arm: str, seed: int) -> list[Cell]:
        """The runs of an arm and a seed, one a fold."""
        root = self.out / self.protocol.name / self.size / self.model_name / arm
        return [
            Cell(
                arm,
                seed,
                number if len(self.folds) > 1 else 0,
                data,
                root / (f"{seed}-fold-{number}" if len(self.folds) > 1 else str(seed)),
            )
            for number, data in enumerate(self.folds, start=1)
        ]

    def result(self, arm: str, seed: int) -> Path:
        return self.results / self.protocol.name / self.model_name / arm / f"{seed}.json"

    def config(self, cell: Cell, more: Sequence[str] = ()) -> Config:
        """The configuration of a run; its recipe is written beside its folder. ``more`` are
        settings beneath the command line's. Raises :class:`ConfigError`."""
        path = cell.folder.with_name(cell.folder.name + ".yaml")
        recipe = self.recipe(cell)
        write_text(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        return load_config(path, [*more, *self.overrides])

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """Layers, later ones win: the protocol's settings, its size's, the arm's, smoke's."""
        protocol = self.protocol
        arm = dict(protocol.arms.get(cell.arm, {}))
        if cell.arm == BASE:
            arm = {"method": "sft"}
        sized = {size: arm.pop(size, {}) for size in SIZES}
        found: dict[str, Any] = {"method": cell.arm}
        layers = [protocol.settings, protocol.sizes.get(self.size, {}), arm, sized[self.size]]
        if self.size == "smoke":
            layers.append(SMOKE)
        for layer in layers:
            found = merged(found, layer)
        own = {
            "seed": cell.seed,
            "out": str(cell.folder),
            "model": {"name": self.model},
            "tasks": {"train": str(cell.data.train), "eval": list(self.suites(cell))},
        }
        return merged(found, own)

    def suites(self, cell: Cell) -> tuple[str, ...]:
        """Entries for ``tasks.eval``; a smoke run samples alike in all of them."""
        entries = cell.data.eval
        return tuple(e.split(",")[0] for e in entries) if self.size == "smoke" else entries


def plan_digest(plan: Plan, arm: str, seed: int) -> str:
    """What a result depends on: recipe, overrides and data; not where things lie."""
    parts = []
    for cell in plan.cells(arm, seed):
        recipe = plan.recipe(cell)
        tasks = {
            **recipe["tasks"],
            "train": "",
            "eval": [e.rpartition("@")[2] for e in recipe["tasks"]["eval"]],
        }
        parts.append({**recipe, "out": "", "tasks": tasks, "data": cell.data.facts["digests"]})
    text = json.dumps([parts, plan.overrides, plan.size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chosen_arms(protocol: Protocol, names: Sequence[str]) -> tuple[Protocol, tuple[str, ...]]:
    """The protocol and the arms to play, the reference first. A method that the protocol has no
    arm for becomes one, without settings. Raises :class:`ConfigError` for other names."""
    if not names:
        names = list(protocol.arms)
    arms = dict(protocol.arms)
    for name in names:
        if name not in arms:
            if name not in get_args(Method):
                known = {*arms, *get_args(Method)}
                raise ConfigError(
                    f"experiment {protocol.name} has no arm {name!r}; {nearest(name, known)}"
                )
            arms[name] = {}
    order = sorted(dict.fromkeys(names), key=lambda name: name != protocol.reference)
    return replace(protocol, arms=arms), tuple(order)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on it, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        out[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return out


@dataclass(frozen=True)
class Cost:
    """Upper bounds of one run."""

    eval_samples: int
    eval_tokens: int
    grow_tokens: int
    train_tokens: int | None


def cost(plan: Plan, cell: Cell) -> Cost:
    """What the run samples and learns from at most; ``train_tokens`` is None where epochs decide
    (they depend on what is grown)."""
    config = plan.config(cell)
    facts = cell.data.facts
    samples = tokens = 0
    for suite in eval_suites(config.tasks):
        count = len(suite.tasks) * (suite.samples or config.eval.samples)
        samples += count
        tokens += count * (suite.max_tokens or config.eval.max_tokens)
    trained = sum(facts["train"].values())
    grown = 0 if cell.arm == BASE else trained * _task_tokens(config) * config.rounds
    if cell.arm != BASE and config.contrasts.ordinary_text == "own":
        grown += config.contrasts.ordinary * ASKED.max_tokens * config.rounds
    if cell.arm != BASE and config.method == "grpo" and config.grpo.budget:
        grown = config.grpo.budget * config.rounds
    learnt = 0 if cell.arm == BASE else (config.train.budget or None)
    return Cost(samples, tokens, grown, learnt)


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
    for arm, seed in plan.units():
        for cell in plan.cells(arm, seed):
            state = _state(plan, arm, seed)
            try:
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


def _state(plan: Plan, arm: str, seed: int) -> str:
    path = plan.result(arm, seed)
    if not path.is_file():
        return ""
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["faults"]:
        return ""
    same = told["digest"] == plan_digest(plan, arm, seed)
    return "  (done)" if same else "  (there is a result of other settings or data)"
