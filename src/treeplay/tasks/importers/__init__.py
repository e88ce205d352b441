"""Data sets as tasks, with their faults found, counted and reported.

``preference`` reads anybody's pairs of answers, ``git`` the fixes in a repository's history. Every
other importer reads its set's upstream form and the converted record form (one JSON object a line:
id, source, license, language, cwe, task, prompt, secure, vulnerable, meta).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.tasks.importers import (
    cweval,
    git_history,
    humaneval,
    mbpp,
    preference,
    safecoder,
    seccodeplt,
    securityeval,
    sven,
    tsp,
)
from treeplay.tasks.importers.report import ImportReport, ImportResult, ReportLine

__all__ = ["KINDS", "OWN", "ImportReport", "ImportResult", "ReportLine", "import_tasks"]

_LOADERS: dict[str, Callable[[str | Path, int | None], ImportResult]] = {
    "tsp": tsp.load,
    "safecoder": safecoder.load,
    "sven": sven.load,
    "seccodeplt": seccodeplt.load,
    "securityeval": securityeval.load,
    "cweval": cweval.load,
    "humaneval": humaneval.load,
    "mbpp": mbpp.load,
    "preference": preference.load,
    "git": git_history.load,
}
KINDS = tuple(_LOADERS)
OWN = ("git", "preference")  # of data that users have: there is nothing to fetch


def import_tasks(kind: str, path: str | Path, *, max_chars: int | None = 3000) -> ImportResult:
    """The tasks of a public data set and the report of what became of every record.

    ``kind``: one of ``KINDS``. ``path``: a file, or the folder of the set. ``max_chars``: pairs
    with a longer side are flagged (None: never); nothing is dropped for its length.

    Raises TaskError for an unknown kind, a missing path, and a record that cannot be read (naming
    file and line).
    """
    if kind not in _LOADERS:
        raise TaskError(f"unknown data set {kind!r}; use one of {', '.join(KINDS)}")
    return _LOADERS[kind](path, max_chars)
