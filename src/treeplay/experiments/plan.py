"""The plan of an experiment: which runs there are, and with which recipe."""

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
from treeplay.run import write_text
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
    """What a result depends on: recipe, overrides and data; not where things lie, the model's
    file or folder among them (which weights it holds, every result tells by their digest)."""
    parts = []
    for cell in plan.cells(arm, seed):
        recipe = plan.recipe(cell)
        tasks = {
            **recipe["tasks"],
            "train": "",
            "eval": [e.rpartition("@")[2] for e in recipe["tasks"]["eval"]],
        }
        model = {**recipe["model"], "name": plan.model_name}
        settled = {**recipe, "out": "", "model": model, "tasks": tasks}
        parts.append({**settled, "data": cell.data.facts["digests"]})
    overrides = [one for one in plan.overrides if not one.startswith("model.revision=")]
    text = json.dumps([parts, overrides, plan.size], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chosen_arms(protocol: Protocol, names: Sequence[str]) -> tuple[Protocol, tuple[str, ...]]:
    """The protocol and the arms to play, the reference first. A method that the protocol has no
    arm for becomes one, without settings; ``base`` alone is no arm, as it is played with any.
    Raises :class:`ConfigError` for other names."""
    if not names:
        names = list(protocol.arms)
    names = [name for name in names if name != BASE]
    arms = dict(protocol.arms)
    for name in names:
        if name not in arms:
            if name not in get_args(Method):
                known = {BASE, *arms, *get_args(Method)}
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
