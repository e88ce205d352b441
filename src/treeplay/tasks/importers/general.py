"""What the importers of general ability share: Python functions with functional tests alone.

Such tasks have no CWE, and are all of the split "eval"; what they are judged by says
:attr:`treeplay.tasks.task.Task.general`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.importers.pairs import DUPLICATE, UNUSABLE
from treeplay.tasks.importers.reading import Located, find_inputs, read_records
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.signature import parses
from treeplay.tasks.task import Task, make_task

NO_PARSE_REFERENCE = "the reference does not parse"
CUT_REFERENCE = "the reference goes on behind the end of its function"
# What the tests call may be in the prompt (helpers) or in the answer: run them in its names, one
# of which may well be `solution`.
IN_ITS_NAMES = (
    "import solution as __program\n"
    "globals().update({k: v for k, v in vars(__program).items() if not k.startswith('__')})\n"
)

# make(record, lines) -> its task; None, told in the lines, where it cannot be one
Make = Callable[[Located, list[ReportLine]], Task | None]


def load_general(
    kind: str, path: str | Path, patterns: tuple[str, ...], what: str, make: Make
) -> ImportResult:
    """The tasks of every record below ``path``, each once, with what is wrong with references."""
    read = 0
    tasks: dict[str, Task] = {}
    lines: list[ReportLine] = []
    for file in find_inputs(path, patterns, what):
        for located in read_records(file):
            read += 1
            task = make(located, lines)
            if task is None:
                continue
            if task.id in tasks:
                lines.append(ReportLine(task.id, "dropped", DUPLICATE, located.where))
                continue
            tasks[task.id] = task
            lines += _flag_reference(task, located.where)
    bare = sum(task.golden is None for task in tasks.values())
    notes = [f"without a reference: {bare}"] if bare else []
    return make_report(kind, read, list(tasks.values()), lines, notes)


def general_task(lines: list[ReportLine], where: str, **fields: object) -> Task | None:
    """A Python task of general ability, split "eval"; None, told in ``lines``, where it cannot
    be one."""
    try:
        return make_task(language="python", cwe=(), split="eval", **fields)
    except TaskError as error:
        name = str(fields.get("id", ""))
        lines.append(ReportLine(name, "dropped", UNUSABLE, where, str(error)))
        return None


def _flag_reference(task: Task, where: str) -> list[ReportLine]:
    """What is wrong with the reference of ``task``, if it has one."""
    if task.golden is None:
        return []
    faults = [] if parses(task.program(task.golden)) else [NO_PARSE_REFERENCE]
    if cut_answer(task, task.golden).text.rstrip() != task.golden.rstrip():
        faults.append(CUT_REFERENCE)
    return [ReportLine(task.id, "flagged", fault, where) for fault in faults]
