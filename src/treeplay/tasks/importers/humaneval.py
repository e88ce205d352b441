"""HumanEval (openai/human-eval, MIT): Python functions to complete, general ability.

Upstream records (``HumanEval.jsonl``, the same gzipped, or a parquet file) have ``task_id``,
``prompt``, ``canonical_solution``, ``test`` (which defines ``check(candidate)``) and
``entry_point``; Chen et al. 2021, arXiv 2107.03374. The tasks have no CWE and no security tests, so
they are judged by the functional tests alone (:attr:`treeplay.tasks.task.Task.general`).
"""

from __future__ import annotations

from pathlib import Path

from treeplay.errors import TaskError
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.importers.pairs import DUPLICATE, UNUSABLE
from treeplay.tasks.importers.reading import (
    Located,
    find_inputs,
    object_of,
    read_records,
    text_of,
    text_or_none,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.signature import parses
from treeplay.tasks.task import Task, Tests, make_task

PATTERNS = ("HumanEval*.jsonl", "HumanEval*.jsonl.gz", "humaneval*.jsonl", "*.parquet", "*.jsonl")
NO_PARSE_REFERENCE = "the reference does not parse"
CUT_REFERENCE = "the reference goes on behind the end of its function"
# What the tests call may be in the prompt (helpers) or in the answer: run them in its names, one
# of which may well be `solution`.
IN_ITS_NAMES = (
    "import solution as __program\n"
    "globals().update({k: v for k, v in vars(__program).items() if not k.startswith('__')})\n"
)


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every record, split "eval", the canonical solution as ``golden``."""
    del max_chars  # the set has no long items
    read = 0
    tasks: list[Task] = []
    lines: list[ReportLine] = []
    seen: set[str] = set()
    for file in find_inputs(path, PATTERNS, "HumanEval.jsonl"):
        for located in read_records(file):
            read += 1
            task = _task(located, lines)
            if task is None:
                continue
            if task.id in seen:
                lines.append(ReportLine(task.id, "dropped", DUPLICATE, located.where))
                continue
            seen.add(task.id)
            tasks.append(task)
            lines += flag_reference(task, located.where)
    return make_report("humaneval", read, tasks, lines)


def _task(located: Located, lines: list[ReportLine]) -> Task | None:
    where = located.where
    data = object_of(located.data, "meta", where) if located.is_record else located.data
    name = text_of(data, "task_id", where)
    entry = text_of(data, "entry_point", where)
    test = text_of(data, "test", where)
    return general_task(
        lines,
        where,
        id=f"humaneval/{name.rpartition('/')[2]}",
        prompt=text_of(located.data, "prompt", where),
        golden=text_or_none(data, "canonical_solution", where),
        tests=Tests(f"{IN_ITS_NAMES}{test.strip()}\n\ncheck(__program.{entry})\n", ""),
        source="humaneval",
        license="MIT",
        meta={"entry_point": entry},
    )


def general_task(lines: list[ReportLine], where: str, **fields: object) -> Task | None:
    """A Python task of general ability, split "eval"; None, told in ``lines``, where it cannot
    be one."""
    try:
        return make_task(language="python", cwe=(), split="eval", **fields)
    except TaskError as error:
        name = str(fields.get("id", ""))
        lines.append(ReportLine(name, "dropped", UNUSABLE, where, str(error)))
        return None


def flag_reference(task: Task, where: str) -> list[ReportLine]:
    """What is wrong with the reference of ``task``, if it has one."""
    if task.golden is None:
        return []
    faults = [] if parses(task.program(task.golden)) else [NO_PARSE_REFERENCE]
    if cut_answer(task, task.golden).text.rstrip() != task.golden.rstrip():
        faults.append(CUT_REFERENCE)
    return [ReportLine(task.id, "flagged", fault, where) for fault in faults]
