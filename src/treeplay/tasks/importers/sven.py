"""SVEN's training pairs (eth-sri/sven, data_train_val/*/cwe-*.jsonl) and its completion
scenarios (data_eval/*/cwe-*/*/ with info.json, file_context and func_context)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.importers.pairs import DUPLICATE, UNUSABLE, pairs_to_tasks
from treeplay.tasks.importers.reading import (
    Located,
    cwe_names,
    find_inputs,
    language_of,
    object_of,
    read_records,
    text_of,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.upstream import read_pair
from treeplay.tasks.task import Task, make_task

PATTERNS = (
    "sven*.jsonl",
    "cwe-*.jsonl",
    "*/cwe-*.jsonl",
    "data_train_val/*/cwe-*.jsonl",
    "**/cwe-*/*/info.json",
)


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Training pairs (files, or a folder with train and val) or scenarios (``data_eval``).

    The prompt of a pair is the function signature; a scenario has a prompt only, and is "eval".
    """
    pairs, scenarios = [], []
    for file in find_inputs(path, PATTERNS, "SVEN's cwe-*.jsonl files or its data_eval folder"):
        if file.name == "info.json":
            scenarios.append(_upstream_scenario(file))
            continue
        for located in read_records(file):
            if located.is_record and located.data["secure"] is None:
                scenarios.append(_converted_scenario(located))
            else:
                # Upstream gives no prompt, and the records' are the same signatures.
                pairs.append(replace(read_pair(located, "sven"), given=None))
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=False, max_chars=max_chars)
    tasks += _scenario_tasks(scenarios, lines)
    if scenarios:
        remarks.append(f"scenarios read: {len(scenarios)} (a prompt only: no golden, no tests)")
    return make_report("sven", len(pairs) + len(scenarios), tasks, lines, remarks)


Scenario = tuple[str, dict[str, Any]]  # (where, the fields of a task)


def _scenario_tasks(scenarios: list[Scenario], lines: list[ReportLine]) -> list[Task]:
    tasks: list[Task] = []
    first: dict[tuple[str, tuple[str, ...]], str] = {}
    for where, fields in scenarios:
        key = (fields["prompt"], fields["cwe"])
        if key in first:
            detail = f"of {first[key]}"
            lines.append(ReportLine(fields["id"], "dropped", DUPLICATE, where, detail))
            continue
        try:
            task = make_task(split="eval", source="sven", **fields)
        except TaskError as error:
            lines.append(ReportLine(fields["id"], "dropped", UNUSABLE, where, str(error)))
            continue
        first[key] = task.id
        tasks.append(task)
    return tasks


def _converted_scenario(located: Located) -> Scenario:
    data, where = located.data, located.where
    if not cwe_names(data.get("cwe")):
        raise TaskError(
            f"{where}: this is no scenario of SVEN's, as it names no CWE; see tasks fetch"
        )
    info = object_of(object_of(data, "meta", where), "info", where)
    fields = {
        "id": text_of(data, "id", where),
        "language": text_of(data, "language", where),
        "cwe": cwe_names(data.get("cwe")),
        "prompt": text_of(data, "prompt", where),
        "instruction": text_of(info, "description", where, ""),
        "license": text_of(data, "license", where, ""),
        "meta": {"check_ql": text_of(info, "check_ql", where, ""), "faults": []},
    }
    return where, fields


def _upstream_scenario(file: Path) -> Scenario:
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        parts = {part.stem: part for part in file.parent.glob("*_context.*")}
        contexts = [parts[name] for name in ("file_context", "func_context") if name in parts]
        prompt = "".join(part.read_text(encoding="utf-8") for part in contexts)
    except (OSError, ValueError) as error:
        raise TaskError(f"{file.parent}: cannot be read ({error}); fetch it again") from None
    if not isinstance(info, dict) or "func_context" not in parts:
        raise TaskError(f"{file.parent}: needs info.json and func_context; fetch it again")
    where = str(file)
    language = language_of(parts["func_context"].name)
    group, cwe, scenario = file.parent.parts[-3:]
    fields = {
        "id": f"sven/{group}/{cwe}/{scenario}",
        "language": language or "",
        "cwe": cwe_names(text_of(info, "cwe", where, cwe)),
        "prompt": prompt,
        "instruction": text_of(info, "description", where, ""),
        "license": "MIT",
        "meta": {"check_ql": text_of(info, "check_ql", where, ""), "faults": []},
    }
    return where, fields
