"""Which tasks a run trains on and which it is evaluated on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from treeplay.errors import TaskError
from treeplay.tasks.decision import Form, decision_form
from treeplay.tasks.jsonl import read_tasks
from treeplay.tasks.pack import load_pack, load_task_toml
from treeplay.tasks.task import Task

STARTER = "starter"


@dataclass(frozen=True)
class TaskConfig:
    """``train`` and ``eval``: ``starter`` (the pack that comes with treeplay), a JSONL file or
    a folder of TOML files; of
    the starter pack, training takes the split ``train`` and evaluation the others. Of a file,
    training takes ``train`` and evaluation everything else, or the whole file where it has no
    other split. ``languages``: empty means all. ``form``: how evaluation tasks are asked
    (:mod:`treeplay.tasks.decision`). ``limit``: at most so many training tasks (0: all), drawn
    with the run's seed. ``too_long``: a task that does not fit the model's context."""

    train: str = STARTER
    eval: tuple[str, ...] = (STARTER,)
    languages: tuple[str, ...] = ()
    form: Form = "full"
    limit: int = 0
    too_long: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class Suite:
    """Evaluation tasks under one name."""

    name: str
    tasks: tuple[Task, ...]


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


def train_tasks(config: TaskConfig, seed: int) -> list[Task]:
    """Training tasks, in file order. Raises :class:`TaskError` where none is left."""
    found = [t for t in load_tasks(config.train) if t.split == "train" and _wanted(config, t)]
    found = [t for t in found if t.golden is not None]
    if not found:
        raise TaskError(
            f"{config.train} has no training tasks (split 'train', with a golden answer) in "
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
    for source in config.eval:
        name = source if source == STARTER else Path(source).stem
        every = load_tasks(source)
        held = [t for t in every if t.split != "train"] or every
        asked = [decision_form(t, config.form) for t in held if _wanted(config, t)]
        tasks = tuple(t for t in asked if t is not None)
        if not tasks:
            raise TaskError(
                f"{source} has no task to evaluate in form {config.form!r}; "
                "check tasks.eval, tasks.languages and tasks.form"
            )
        if any(suite.name == name for suite in suites):
            raise TaskError(
                f"two sources in tasks.eval are called {name!r}; rename one, so that their results "
                "can be told apart"
            )
        suites.append(Suite(name, tasks))
    return suites


def _wanted(config: TaskConfig, task: Task) -> bool:
    return not config.languages or task.language in config.languages
