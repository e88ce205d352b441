"""Labelled records: a secure program, a vulnerable one, or both, with their weakness.

One JSON object a line: ``id, source, language, cwe, prompt, secure, vulnerable, meta``; ``secure``
and ``vulnerable`` are whole programs or functions and may be null.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal

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
