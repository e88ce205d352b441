"""Labelled records: a secure program, a vulnerable one, or both, with their weakness.

One JSON object a line: ``id, source, language, cwe, prompt, secure, vulnerable, meta``; ``secure``
and ``vulnerable`` are whole programs or functions and may be null.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treeplay.errors import TaskError
from treeplay.judge.cwe import cwe_number
from treeplay.judge.tools.base import LANGUAGES

Half = Literal["dev", "test"]


def group_of(record: Mapping[str, Any]) -> str:
    """What must not be torn apart by a split: records that share it lie in one half.

    The repository of a fix; the scenario of CWEval in all its languages; the function of
    SecCodePLT; else the record itself.
    """
    meta = record.get("meta") or {}
    link = str(meta.get("commit_link") or "")
    found = re.match(r"(?:https?://)?github\.com/([\w.-]+/[\w.-]+)/", link)
    if found:
        return f"repository {found[1].lower()}"
    name = str(record.get("id", ""))
    found = re.match(r"cweval/\w+/\w+/(cwe_\d+_\d+)_", name)
    if found and "/core/" in name:
        return f"cweval {found[1]}"
    task = meta.get("task_description")
    if isinstance(task, Mapping) and task.get("function_name"):
        return f"function {task['function_name']}"
    return f"record {name}"


def half_of(record: Mapping[str, Any]) -> Half:
    """The half a record belongs to: rules are written on "dev", "test" is for reporting.

    By the parity of a hash of :func:`group_of`, so that it depends on no order and no file.
    """
    digest = hashlib.sha256(group_of(record).encode("utf-8", "surrogatepass")).digest()
    return "dev" if digest[0] % 2 == 0 else "test"


@dataclass(frozen=True)
class Record:
    """One labelled record. ``cwe`` is None where the file names none; at least one of ``secure``
    and ``vulnerable`` is text. ``raw`` is the object as read."""

    id: str
    dataset: str
    language: str
    cwe: str | None
    secure: str | None
    vulnerable: str | None
    raw: Mapping[str, Any]


def read_labelled(path: Path) -> tuple[list[Record], int]:
    """The records of a file in languages that can be judged, and how many were left out because
    they have no program or are in another language.

    A record without a dataset's name (``source``) gets the file's. Raises :class:`TaskError` naming
    the file, the line and the key for anything else.
    """
    records: list[Record] = []
    left_out = 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error}); check the path") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            data = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where}: this line is not JSON ({error})") from error
        record = _record(data, where, path.name.split(".")[0])
        if record is None:
            left_out += 1
        else:
            records.append(record)
    if not records:
        raise TaskError(f"{path}: no record in it holds a program that can be judged")
    return records, left_out


def _record(data: Any, where: str, file: str) -> Record | None:
    if not isinstance(data, dict):
        raise TaskError(f"{where}: a record is an object with id, language, secure, vulnerable")
    if not isinstance(data.get("language"), str):
        raise TaskError(f"{where}: language must be text, not {data.get('language')!r}")
    for key in ("secure", "vulnerable", "cwe"):
        if not (data.get(key) is None or isinstance(data[key], str)):
            raise TaskError(f"{where}: {key} must be text or null, not {data[key]!r:.60}")
    if not (data.get("secure") or data.get("vulnerable")) or data["language"] not in LANGUAGES:
        return None
    cwe = data.get("cwe") or None
    number = cwe_number(cwe) if cwe else None
    if cwe and number is None:
        raise TaskError(f"{where}: cwe must look like 'CWE-89', not {cwe!r}")
    return Record(
        id=str(data.get("id") or f"{file}/{where.rpartition(':')[2]}"),
        dataset=str(data.get("source") or file),
        language=data["language"],
        cwe=f"CWE-{number}" if number is not None else None,
        secure=data.get("secure") or None,
        vulnerable=data.get("vulnerable") or None,
        raw=data,
    )
