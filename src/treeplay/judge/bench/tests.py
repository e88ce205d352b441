"""The executed tests that labelled records bring along, through the importer of their data set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from treeplay.errors import TreeplayError
from treeplay.judge.bench.records import Record
from treeplay.tasks.importers import import_tasks
from treeplay.tasks.task import Task

# importer -> the key of ``meta`` by which its records are known, whatever their data set is called
TESTED = {"cweval": "test_file", "seccodeplt": "unittest"}
NO_TESTS = "the record has no tests"


def tests_for(records: Sequence[Record]) -> dict[str, Task | str]:
    """By record: a task whose answer is one whole side of it, or why it cannot be run.

    The task's references are left out: its tests are all that may speak.
    """
    found: dict[str, Task | str] = {record.id: NO_TESTS for record in records}
    for kind, key in TESTED.items():
        mine = {record.id: record for record in records if (record.raw.get("meta") or {}).get(key)}
        if not mine:
            continue
        with tempfile.TemporaryDirectory(prefix="treeplay-") as folder:
            path = Path(folder, f"{kind}.jsonl")
            lines = [json.dumps(record.raw) for record in mine.values()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            try:
                tasks = import_tasks(kind, path).tasks
            except TreeplayError as error:
                found.update(dict.fromkeys(mine, f"the record cannot be read: {error}"))
                continue
        for task in tasks:
            if task.id in mine and task.tests is not None:
                head = _setup(mine[task.id])
                found[task.id] = replace(
                    task, prompt=head, suffix="", golden=None, vulnerable=None, exercise=None
                )
    return found


def runnable_sides(record: Record, task: Task) -> dict[bool, str]:
    """Whole programs, the vulnerable one under True: the importer's, which has mended what the
    record left out (CWEval's unsafe functions use constants of their test file), else as given."""
    mended = {True: task.meta.get("vulnerable_program"), False: task.meta.get("secure_program")}
    given = {True: record.vulnerable, False: record.secure}
    return {bad: mended[bad] or text for bad, text in given.items() if text is not None}


def _setup(record: Record) -> str:
    """What SecCodePLT's tests run before either side; the sides of other sets are whole."""
    unittest = (record.raw.get("meta") or {}).get("unittest")
    setup = unittest.get("setup") if isinstance(unittest, dict) else None
    return f"{setup.strip()}\n\n" if isinstance(setup, str) and setup.strip() else ""
