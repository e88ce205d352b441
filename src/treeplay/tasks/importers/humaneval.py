"""HumanEval (openai/human-eval, MIT): Python functions to complete, general ability.

Upstream records (``HumanEval.jsonl``, the same gzipped, or a parquet file) have ``task_id``,
``prompt``, ``canonical_solution``, ``test`` (which defines ``check(candidate)``) and
``entry_point``; Chen et al. 2021, arXiv 2107.03374. The tasks have no CWE and no security tests, so
they are judged by the functional tests alone (:attr:`treeplay.tasks.task.Task.general`).
"""

from __future__ import annotations

from pathlib import Path

from treeplay.tasks.importers.general import IN_ITS_NAMES, general_task, load_general
from treeplay.tasks.importers.reading import Located, object_of, text_of, text_or_none
from treeplay.tasks.importers.report import ImportResult, ReportLine
from treeplay.tasks.task import Task, Tests

PATTERNS = ("HumanEval*.jsonl", "HumanEval*.jsonl.gz", "humaneval*.jsonl", "*.parquet", "*.jsonl")


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every record, split "eval", the canonical solution as ``golden``."""
    del max_chars  # the set has no long items
    return load_general("humaneval", path, PATTERNS, "HumanEval.jsonl", _task)


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
