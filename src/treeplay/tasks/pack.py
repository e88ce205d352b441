"""The starter pack: tasks written in TOML, one a file, as package data."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.task import Task, Tests, make_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TEXT = ("id", "language", "split", "instruction", "prompt", "golden", "vulnerable")
_NEEDED = (*_TEXT, "cwe", "functional", "security")
_OTHER = ("suffix", "statements", "exercise")


def pack_folder() -> Path:
    """Where the starter pack lies (``<language>/<id>.toml``)."""
    return Path(str(resources.files("treeplay.tasks"))) / "pack"


def load_pack(root: str | Path | None = None) -> list[Task]:
    """All tasks of a folder of TOML files (by default the starter pack), sorted by language and id.

    Raises :class:`TaskError` for a folder without tasks, a broken file, or an id used twice.
    """
    folder = pack_folder() if root is None else Path(root)
    paths = sorted(folder.rglob("*.toml"))
    if not paths:
        raise TaskError(f"{folder}: no task files (*.toml) here; give a folder that holds some")
    tasks = [load_task_toml(path) for path in paths]
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise TaskError(f"{folder}: two tasks are called {task.id!r}; ids must differ")
        seen.add(task.id)
    order = {"python": 0, "c": 1, "javascript": 2, "go": 3}
    return sorted(tasks, key=lambda task: (order.get(task.language, 9), task.id))


def load_task_toml(path: str | Path) -> Task:
    """One task. Raises :class:`TaskError` naming the file and the key that is wrong."""
    path = Path(path)
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{path}: no valid TOML ({error})") from None
    for key in data:
        if key not in (*_NEEDED, *_OTHER):
            raise TaskError(f"{path}: unknown key {key!r}; use {', '.join((*_NEEDED, *_OTHER))}")
    for key in _NEEDED:
        if key not in data:
            raise TaskError(f"{path}: the key {key!r} is missing")
    for key, value in data.items():
        if key == "cwe":
            good = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
            kind = "a list of CWE names"
        elif key == "statements":
            good, kind = type(value) is int, "a whole number"
        else:
            good, kind = isinstance(value, str), "a text"
        if not good:
            raise TaskError(f"{path}: {key!r} must be {kind}")
    if data["id"] != path.stem:
        raise TaskError(f"{path}: the id {data['id']!r} must be the file's name")
    try:
        return make_task(
            **{key: data[key] for key in (*_TEXT, *_OTHER) if key in data},
            cwe=tuple(data["cwe"]),
            tests=Tests(data["functional"], data["security"]),
            source="treeplay",
            license="Apache-2.0",
        )
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
