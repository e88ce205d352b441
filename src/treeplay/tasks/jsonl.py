"""treeplay's own task files: one JSON object a line, one key for every field of a Task.

Reading is strict. A key nobody knows is most often a misspelt one, and a task that quietly lost
its tests or its suffix would spoil every number that follows, so each mistake is an error that
names file, line and key. Empty lines are allowed; everything else is a task.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.task import RiskNote, Task, Tests, make_task

KEYS = tuple(field.name for field in fields(Task))
_REQUIRED = ("id", "language", "cwe", "prompt")
_TEXT = ("id", "language", "prompt", "suffix", "split", "instruction", "source", "license")
_TESTS = ("functional", "security")
_TEXT_OR_NULL = ("golden", "vulnerable", "exercise")


def task_to_json(task: Task) -> dict[str, Any]:
    """The JSON object of a task, every field in it, in the order of the dataclass. Of its tests the
    two texts and what is not as it mostly is."""
    data = {**asdict(task), "cwe": list(task.cwe), "notes": [asdict(note) for note in task.notes]}
    if task.tests is not None:
        plain = asdict(Tests("", ""))
        tests = {k: v for k, v in data["tests"].items() if k in _TESTS or v != plain[k]}
        data["tests"] = {k: list(v) if isinstance(v, tuple) else v for k, v in tests.items()}
    return data


def task_from_json(data: object, where: str) -> Task:
    """The task held by one parsed JSON value. Raises TaskError, which begins with ``where``."""
    record = _checked(data, KEYS, _REQUIRED, "a task", where)
    values: dict[str, Any] = dict(record)
    for key in _TEXT:
        if key in record:
            _expect(record, key, str, "a string", where)
    for key in _TEXT_OR_NULL:
        if record.get(key) is not None:
            _expect(record, key, str, "a string or null", where)
    cwe = _expect(record, "cwe", list, "a list of strings", where)
    if not all(isinstance(name, str) for name in cwe):
        raise TaskError(f"{where}: 'cwe' must be a list of strings, like [\"CWE-89\"]")
    values["cwe"] = tuple(cwe)
    count = record.get("statements")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise TaskError(f"{where}: 'statements' must be a whole number or null, not {count!r}")
    if record.get("tests") is not None:
        known = tuple(field.name for field in fields(Tests))
        tests = _checked(record["tests"], known, _TESTS, "'tests'", where)
        for key in list(tests):
            if key == "requires":
                names = _expect(tests, key, list, "a list of strings", f"{where}: in 'tests'")
                if not all(isinstance(name, str) for name in names):
                    raise TaskError(f"{where}: in 'tests': 'requires' must be a list of strings")
                tests = {**tests, key: tuple(names)}
            elif key == "sanitize":
                _expect(tests, key, bool, "true or false", f"{where}: in 'tests'")
            else:
                _expect(tests, key, str, "a string", f"{where}: in 'tests'")
        values["tests"] = Tests(**tests)
    if "notes" in record:
        notes = _expect(record, "notes", list, "a list of objects", where)
        values["notes"] = tuple(_note(note, f"{where}: in 'notes'") for note in notes)
    if "meta" in record:
        _expect(record, "meta", dict, "an object", where)
    try:
        return make_task(**values)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from None


def _note(data: object, where: str) -> RiskNote:
    note = _checked(data, ("code", "cwe", "description"), ("code", "cwe"), "a note", where)
    _expect(note, "code", str, "a string", where)
    if note["cwe"] is not None:
        _expect(note, "cwe", str, "a string or null", where)
    if "description" in note:
        _expect(note, "description", str, "a string", where)
    return RiskNote(**note)


def _checked(
    data: object, known: tuple[str, ...], required: tuple[str, ...], what: str, where: str
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise TaskError(f"{where}: {what} must be a JSON object, not {_kind(data)}")
    for key in data:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)
            raise TaskError(
                f"{where}: unknown key {key!r} in {what}; did you mean {near[0]!r}? "
                f"Known keys: {', '.join(known)}"
            )
    for key in required:
        if key not in data:
            raise TaskError(f"{where}: {what} has no key {key!r}; add it")
    return data


def _expect(record: Mapping[str, Any], key: str, kind: type, words: str, where: str) -> Any:
    value = record[key]
    if not isinstance(value, kind):
        raise TaskError(f"{where}: {key!r} must be {words}, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true/false", int: "a number", float: "a number", str: "a string"}
    return {**names, list: "a list", dict: "an object"}.get(type(value), type(value).__name__)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [key for key, _ in pairs]
        twin = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twin!r} occurs twice")
    return data


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """Every non-empty line of a JSONL file (``.gz``: compressed) as (1-based line number, parsed
    value).

    Raises TaskError naming ``file:line`` for a line that is not UTF-8 or not strict JSON, and
    naming the file when it cannot be read.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise TaskError(f"{path}: cannot be read ({why}); check the path") from None
    values: list[tuple[int, Any]] = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            value = json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
            ) from None
        except json.JSONDecodeError as error:
            raise TaskError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
                "repair or remove this line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where}: not usable JSON ({error}); repair this line") from None
        values.append((number, value))
    return values


def read_tasks(path: str | Path) -> list[Task]:
    """All tasks of a file, in file order.

    Raises TaskError naming file, line and key for anything that is not exactly a task, for an id
    used twice and for a file without tasks.
    """
    path = Path(path)
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for number, value in read_lines(path):
        task = task_from_json(value, f"{path}:{number}")
        if task.id in seen:
            raise TaskError(
                f"{path}:{number}: the id {task.id!r} is already used in line {seen[task.id]}; "
                "give every task its own id"
            )
        seen[task.id] = number
        tasks.append(task)
    if not tasks:
        raise TaskError(f"{path}: holds no tasks; give a file with one task (JSON object) a line")
    return tasks


def write_tasks(path: str | Path, tasks: Iterable[Task]) -> None:
    """Write the tasks, one a line. The file appears whole or not at all.

    What is read back equals what was written, for every task in normal form (made by
    ``make_task``). Raises TaskError for a ``meta`` that JSON cannot hold unchanged, for an id used
    twice, and when the file cannot be written (the old file then stays as it was).
    """
    path = Path(path)
    lines: list[str] = []
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise TaskError(f"{path}: two tasks have the id {task.id!r}; give each its own")
        seen.add(task.id)
        try:
            line = json.dumps(task_to_json(task), allow_nan=False)
            same = json.loads(line)["meta"] == task.meta
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"{path}: task {task.id!r} cannot be written as JSON ({error}); keep plain "
                "strings, numbers, lists and string-keyed objects in meta"
            ) from None
        if not same:
            raise TaskError(
                f"{path}: the meta of task {task.id!r} would change in JSON; use lists instead "
                "of tuples and strings as keys"
            )
        lines.append(line + "\n")
    _write_whole(path, "".join(lines))


def _write_whole(path: Path, text: str) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a task file is ordinary data.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be written ({error.strerror}); check the folder and the free space"
        ) from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
