"""The annotated training data of the TSP paper (Easonnoway/TSP, *_annotated.json).

SafeCoder's pairs with one more field, ``output``: risk lines of the secure version, written by a
language model as numbered blocks:

    [[1]]
    [Code_Line]  cur.execute(query)
    [CWE_ID]CWE-89
    [Description]SQL injection. ...
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from treeplay.tasks.importers.pairs import pairs_to_tasks
from treeplay.tasks.importers.reading import cwe_names, find_inputs, read_records, text_of
from treeplay.tasks.importers.report import ImportResult, make_report
from treeplay.tasks.importers.upstream import read_pair
from treeplay.tasks.task import RiskNote

PATTERNS = ("tsp*.json", "*annotated.json", "*/*annotated.json", "*/*/*annotated.json")
_NUMBER = re.compile(r"[ \t]*\[\[\s*\d+\s*\]\][ \t:.]*(.*)", re.DOTALL)
_FIELD = re.compile(
    r"[ \t]*\[(code|cwe|desc)[a-z_ -]*\](?:[ \t]*:(?=\s))?(.*)", re.IGNORECASE | re.DOTALL
)
_FENCE = re.compile(r"[ \t]*```[\w+#-]*[ \t]*")


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every pair of an annotated file, its annotations as the task's risk notes."""
    files = find_inputs(path, PATTERNS, "an annotated TSP file (*annotated.json)")
    pairs = []
    for file in files:
        stem = "" if len(files) == 1 else f"{file.stem}/"
        for located in read_records(file):
            pair = read_pair(located, "tsp", f"tsp/{stem}{located.index}")
            notes = parse_annotations(text_of(located.data, "output", located.where, ""))
            pairs.append(replace(pair, notes=tuple(notes), upstream_split=""))
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=True, max_chars=max_chars)
    empty = sum(1 for task in tasks if not task.notes)
    remarks.append(f"tasks without any risk note: {empty}")
    return make_report("tsp", len(pairs), tasks, lines, remarks)


def parse_annotations(text: str) -> list[RiskNote]:
    """The risk notes in one ``output`` text, in order.

    Forgiving, because a model wrote it: fences, missing parts, code over several lines and every
    spelling of a CWE are taken. A part begins at the start of a line only, so brackets in code and
    prose are left alone. A note keeps its first CWE; further ones are added to its description. A
    block without a code line gives a note with empty code, so that it can be counted.
    """
    notes: list[RiskNote] = []
    parts: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in _without_outer_fence(text).split("\n"):
        number = _NUMBER.fullmatch(line)
        if number:
            _finish(parts, notes)
            parts, current = {}, None
            line = number[1]  # everything may stand on one line
            if not line.strip():
                continue
        part = _FIELD.fullmatch(line)
        if part:
            name = part[1].lower()
            if name == "code" and name in parts:  # a block whose number is missing
                _finish(parts, notes)
                parts = {}
            current = parts.setdefault(name, [])
            line = part[2]
        if current is not None:
            current.append(line)
    _finish(parts, notes)
    return notes


def _finish(parts: dict[str, list[str]], notes: list[RiskNote]) -> None:
    if not parts:
        return
    code = "\n".join(line for line in parts.get("code", []) if not _FENCE.fullmatch(line))
    names = cwe_names("\n".join(parts.get("cwe", [])))
    description = "\n".join(parts.get("desc", [])).strip()
    if len(names) > 1:
        description = f"{description} (also {', '.join(names[1:])})".strip()
    notes.append(RiskNote(_bare(code), names[0] if names else None, description))


def _bare(code: str) -> str:
    """The code without the white space around it and without Markdown's code marks."""
    code = code.strip()
    if len(code) > 2 and code[0] == code[-1] == "`" and "`" not in code[1:-1]:
        code = code[1:-1].strip()
    return code


def _without_outer_fence(text: str) -> str:
    lines = text.strip().split("\n")
    if _FENCE.fullmatch(lines[0]):
        lines = lines[1:]
        if lines and _FENCE.fullmatch(lines[-1]):
            lines = lines[:-1]
    return "\n".join(lines)
