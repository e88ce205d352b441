"""Which tasks a run trains on and which it is evaluated on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from treeplay.errors import TaskError
from treeplay.tasks.decision import Form, decision_form
from treeplay.tasks.jsonl import read_tasks
from treeplay.tasks.pack import load_pack, load_task_toml
from treeplay.tasks.task import Task
from treeplay.words import nearest

STARTER = "starter"


@dataclass(frozen=True)
class TaskConfig:
    """``train`` and ``eval``: ``starter`` (the pack that comes with treeplay), a JSONL file or
    a folder of TOML files; of
    the starter pack, training takes the split ``train`` and evaluation the others. Of a file,
    training takes ``train`` and evaluation everything else, or the whole file where it has no
    other split. ``languages``: empty means all. ``form``: how evaluation tasks are asked
    (:mod:`treeplay.tasks.decision`); one of ``eval`` may name its own, and how much is sampled:
    ``FILE@token`` or ``FILE@full,max_tokens=256,samples=2``. ``limit``: at most so many training
    tasks (0: all), drawn with the run's seed. ``hold_out``: the share of them that is kept out of
    training, to choose a snapshot by (:mod:`treeplay.keep`). ``too_long``: a task that does not fit
    the model's context. ``pick``: after the first, a round plays ``all``
    training tasks, or ``hard``: a ``share`` of them, drawn by the vulnerable rates last measured,
    none of which counts as less than ``floor``."""

    train: str = STARTER
    eval: tuple[str, ...] = (STARTER,)
    languages: tuple[str, ...] = ()
    form: Form = "full"
    limit: int = 0
    hold_out: float = 0.0
    too_long: Literal["error", "skip"] = "error"
    pick: Literal["all", "hard"] = "all"
    share: float = 0.5
    floor: float = 0.05


@dataclass(frozen=True)
class Suite:
    """Evaluation tasks under one name. ``samples`` a task and ``max_tokens`` of each are the
    suite's own, or 0 for those of the section ``eval``."""

    name: str
    tasks: tuple[Task, ...]
    samples: int = 0
    max_tokens: int = 0


def load_tasks(source: str) -> list[Task]:
    """Tasks of the starter pack, of a folder of TOML files, of one, or of a JSONL file.

    Raises :class:`TaskError`.
    """
    path = Path(source)
    if source == STARTER:
        return load_pack()
    if path.is_dir():
        return load_pack(path)
    return [load_task_toml(path)] if path.suffix == ".toml" else read_tasks(path)


def train_tasks(config: TaskConfig, seed: int, references: bool = True) -> list[Task]:
    """Training tasks, in file order; without ``references``, also those that have no golden answer.
    Raises :class:`TaskError` where none is left."""
    found = [t for t in load_tasks(config.train) if t.split == "train" and _wanted(config, t)]
    if references:
        found = [t for t in found if t.golden is not None]
    if not found:
        needed = ", with a golden answer; or set golden.source=self" if references else ""
        raise TaskError(
            f"{config.train} has no training tasks (split 'train'{needed}) in "
            f"{', '.join(config.languages) or 'any language'}; check tasks.train and "
            "tasks.languages"
        )
    if config.limit and config.limit < len(found):
        keep = set(random.Random(f"limit/{seed}").sample(range(len(found)), config.limit))
        found = [task for i, task in enumerate(found) if i in keep]
    return found


def eval_suites(config: TaskConfig) -> list[Suite]:
    """Evaluation suites in the form asked for; tasks that have no such form are left out."""
    suites: list[Suite] = []
    for entry in config.eval:
        source, form, sampling = _entry(entry, config.form)
        name = source if source == STARTER else Path(source).stem
        if source != entry:
            name += f"@{form}"
        every = load_tasks(source)
        held = [t for t in every if t.split != "train"] or every
        asked = [decision_form(t, form) for t in held if _wanted(config, t)]
        tasks = tuple(t for t in asked if t is not None)
        if not tasks:
            raise TaskError(
                f"{source} has no task to evaluate in form {form!r}; "
                "check tasks.eval, tasks.languages and tasks.form"
            )
        if any(suite.name == name for suite in suites):
            raise TaskError(
                f"two sources in tasks.eval are called {name!r}; rename one, so that their results "
                "can be told apart"
            )
        suites.append(Suite(name, tasks, **sampling))
    return suites


def _entry(entry: str, form: Form) -> tuple[str, Form, dict[str, int]]:
    """(source, form, settings of its own) of one of ``tasks.eval``."""
    source, at, told = entry.rpartition("@")
    first, *settings = told.split(",")
    named = next((known for known in get_args(Form) if known == first), None)
    if not at or Path(entry).exists():
        return entry, form, {}
    if named is None:
        if source != STARTER and not Path(source).exists():
            return entry, form, {}
        raise TaskError(
            f"tasks.eval: {entry!r}: there is no form {first!r}; " + nearest(first, get_args(Form))
        )
    found: dict[str, int] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in ("samples", "max_tokens") or not value.isdigit() or int(value) < 1:
            raise TaskError(
                f"tasks.eval: {setting!r} in {entry!r} is no setting; write samples=N or "
                "max_tokens=N, N at least 1"
            )
        found[key] = int(value)
    return source, named, found


def _wanted(config: TaskConfig, task: Task) -> bool:
    return not config.languages or task.language in config.languages
