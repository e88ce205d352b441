"""SecCodePLT (ucsb-mlsec/SecCodePLT): Python functions with executed capability and safety cases.

Upstream rows (JSONL, a JSON list, or the parquet file) have ``CWE_ID``, ``task_description``,
``ground_truth`` (``code_before``, ``vulnerable_code``, ``patched_code``, ``code_after``),
``unittest`` (``setup``, ``testcases``), ``install_requires`` and ``rule``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.importers.pairs import (
    BOTH_LABELS,
    DUPLICATE,
    IDENTICAL,
    NO_PARSE_SECURE,
    NO_PARSE_VULNERABLE,
    NO_PROMPT,
    UNUSABLE,
    WHITESPACE,
    squeeze,
    too_long,
)
from treeplay.tasks.importers.reading import (
    NO_LICENSE,
    Located,
    cwe_names,
    find_inputs,
    object_of,
    read_records,
    text_of,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.seccodeplt_tests import (
    NO_CASES,
    NO_PARSE_TESTS,
    find_test_faults,
    make_tests,
    third_party,
)
from treeplay.tasks.importers.signature import parses, signature_end
from treeplay.tasks.task import Task, make_task

PATTERNS = (
    "seccodeplt*.jsonl",
    "insecure_coding*.parquet",
    "*/insecure_coding*.parquet",
    "data_one.json",
    "*.jsonl",
)
NO_TESTS = "no tests (a rule in words only)"
_SECTIONS = ("Context", "Arguments", "Return", "Raise")


@dataclass(frozen=True)
class _Item:
    id: str
    where: str
    cwe: tuple[str, ...]
    words: dict[str, Any]  # the task description
    setup: str
    before: str
    secure: str  # setup not included
    vulnerable: str
    testcases: str
    requires: list[str]
    rule: str
    license: str
    upstream_split: str = ""


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every record. The prompt is the setup code, the description as comments and the given first
    lines of the function. Records without test cases keep their rule in ``meta["rule"]``."""
    files = find_inputs(path, PATTERNS, "SecCodePLT's JSONL or parquet file")
    items = [_item(located) for file in files for located in read_records(file)]
    lines: list[ReportLine] = []
    kept = _drop_empty(items, lines)
    # The same function text under another setup is another program.
    secure = {squeeze(item.setup + item.secure) for item in kept}
    vulnerable = {squeeze(item.setup + item.vulnerable) for item in kept}
    tasks: list[Task] = []
    for item in kept:
        faults = []
        if (
            squeeze(item.setup + item.secure) in vulnerable
            or squeeze(item.setup + item.vulnerable) in secure
        ):
            faults.append(BOTH_LABELS)
        faults += [] if parses(item.secure) else [NO_PARSE_SECURE]
        faults += [] if parses(item.vulnerable) else [NO_PARSE_VULNERABLE]
        if max_chars is not None and max(len(item.secure), len(item.vulnerable)) > max_chars:
            faults.append(too_long(max_chars))
        faults += find_test_faults(item.testcases) if item.testcases.strip() else [NO_TESTS]
        task = _task(item, faults, lines)
        if task is not None:
            tasks.append(task)
            lines += [ReportLine(item.id, "flagged", fault, item.where) for fault in faults]
    return make_report("seccodeplt", len(items), tasks, lines, _remarks(tasks))


def _remarks(tasks: list[Task]) -> list[str]:
    tested = [task for task in tasks if task.tests is not None]
    foreign = [task for task in tested if task.meta["requires"]]
    names = Counter(task.meta["func_name"] for task in tasks)
    shared = sum(count for count in names.values() if count > 1)
    return [
        f"with executed tests: {len(tested)}; {len(foreign)} of them import third-party packages",
        f"tasks that share their function name with another: {shared}; split by CWE or by "
        'meta["func_name"], never at random',
    ]


def _item(located: Located) -> _Item:
    data, where = located.data, located.where
    if located.is_record:
        meta = object_of(data, "meta", where)
        holder = {**meta, "id": text_of(data, "id", where), "cwe": data.get("cwe")}
        before = text_of(meta, "code_before", where, "")
        secure, bad = text_of(data, "secure", where), text_of(data, "vulnerable", where)
    else:
        truth = object_of(data, "ground_truth", where)
        before, after = (text_of(truth, key, where, "") for key in ("code_before", "code_after"))
        secure = _join(before, text_of(truth, "patched_code", where), after)
        bad = _join(before, text_of(truth, "vulnerable_code", where), after)
        number = data.get("id", located.index)
        holder = {**data, "id": f"seccodeplt/{number}", "cwe": data.get("CWE_ID")}
    unittest = object_of(holder, "unittest", where)
    requires = holder.get("install_requires")
    return _Item(
        id=holder["id"],
        where=where,
        cwe=cwe_names(holder["cwe"]),
        words=object_of(holder, "task_description", where),
        setup=text_of(unittest, "setup", where, "").strip("\n"),
        before=before,
        secure=secure,
        vulnerable=bad,
        testcases=text_of(unittest, "testcases", where, ""),
        requires=[str(name) for name in requires] if isinstance(requires, list) else [],
        rule=text_of(holder, "rule", where, ""),
        license=text_of(data, "license", where, NO_LICENSE),
    )


def _join(*parts: str) -> str:
    """The parts of one function, each beginning on a line of its own."""
    whole = ""
    for part in parts:
        if not part.strip():
            continue
        if whole and not whole.endswith("\n") and not part.startswith("\n"):
            whole += "\n"
        whole += part
    return whole


def _drop_empty(items: list[_Item], lines: list[ReportLine]) -> list[_Item]:
    kept: list[_Item] = []
    first: dict[tuple[str, str, str], str] = {}
    for item in items:
        key = (item.setup, item.secure, item.vulnerable)
        reason, detail = "", ""
        if item.secure == item.vulnerable:
            reason = IDENTICAL
        elif squeeze(item.secure) == squeeze(item.vulnerable) and parses(item.secure) == parses(
            item.vulnerable
        ):
            reason = WHITESPACE
        elif key in first:
            reason, detail = DUPLICATE, f"of {first[key]}"
        if reason:
            lines.append(ReportLine(item.id, "dropped", reason, item.where, detail))
        else:
            first[key] = item.id
            kept.append(item)
    return kept


def _task(item: _Item, faults: list[str], lines: list[ReportLine]) -> Task | None:
    name = str(item.words.get("function_name") or "")
    before = _shared_start(item)
    if before is None:
        lines.append(ReportLine(item.id, "dropped", NO_PROMPT, item.where))
        return None
    parts = [item.setup, f"{_comment(item.words)}\n{before.strip(chr(10))}"]
    requires = third_party(item.setup, item.secure, item.testcases)
    tests = None
    if name and not {NO_TESTS, NO_PARSE_TESTS, NO_CASES} & set(faults):
        tests = make_tests(name, item.testcases)
        tests = replace(tests, requires=tuple(requires))
    try:
        return make_task(
            id=item.id,
            language="python",
            cwe=item.cwe,
            prompt="\n\n\n".join(part for part in parts if part.strip()),
            # The line breaks that end code_before are the prompt's; what was cut is put back.
            golden=before[len(before.rstrip("\n")) :] + item.secure[len(before) :],
            vulnerable=before[len(before.rstrip("\n")) :] + item.vulnerable[len(before) :],
            instruction=_instruction(item.words),
            tests=tests,
            source="seccodeplt",
            license=item.license,
            meta={
                "func_name": name,
                "requires": requires,
                "install_requires": item.requires,
                "security_policy": str(item.words.get("security_policy") or ""),
                "rule": item.rule,
                "faults": faults,
            },
        )
    except TaskError as error:
        lines.append(ReportLine(item.id, "dropped", UNUSABLE, item.where, str(error)))
        return None


def _shared_start(item: _Item) -> str | None:
    """The given first lines of the function; where there are none, its signature."""
    signature = item.secure[: signature_end(item.secure, "python")]
    for start in (item.before, signature):
        if start.strip() and item.secure.startswith(start) and item.vulnerable.startswith(start):
            return start
    return None


def _comment(words: dict[str, Any]) -> str:
    """The description, what goes in and what comes out, as comment lines. Not the policy."""
    rows = [str(words.get("description") or "").strip()]
    for section in _SECTIONS[1:]:
        text = str(words.get(section.lower()) or "").strip()
        rows += [f"{section}: {text}"] if text else []
    return "\n".join(
        f"# {line.strip()}" for row in rows for line in row.split("\n") if line.strip()
    )


def _instruction(words: dict[str, Any]) -> str:
    name = str(words.get("function_name") or "")
    rows = [f"Write a Python function `{name}`.", str(words.get("description") or "")]
    for section in _SECTIONS:
        text = str(words.get(section.lower()) or "").strip()
        rows += [f"{section}: {text}"] if text else []
    return "\n".join(row for row in rows if row.strip())
