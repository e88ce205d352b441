"""gcc's static analyser (``-fanalyzer``) and those of its warnings that name a weakness.

The analyser of gcc 12 reads C only. A program must compile; one that does not is completed with
stubs first, see :mod:`treeplay.judge.complete`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from treeplay.errors import SandboxError
from treeplay.judge.complete import INCLUDES, Completed, complete_many, unsuppressed
from treeplay.judge.cwe import matches_any
from treeplay.judge.each import Outcome, run_each
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import asked_for, failure
from treeplay.judge.tools.process import all_failed, first_version
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox

TOOL = "gcc"
EACH_S = 30
INSTALL = "apt-get install gcc"
WARNINGS = "-Wformat -Wformat-security -Wformat-overflow=1 -Warray-bounds -Wstringop-overflow=2"
WARNINGS += " -Wreturn-local-addr -Wfree-nonheap-object -Wuse-after-free=2 -Wdangling-pointer=2"
WARNINGS += " -Wsizeof-pointer-memaccess -Wstringop-truncation -Wdiv-by-zero -Wmaybe-uninitialized"
COMMAND = (
    f"gcc -x c -std=gnu11 -O1 -fkeep-static-functions {INCLUDES} -fanalyzer {WARNINGS}"
    " -fdiagnostics-format=json -S -o /dev/null"
)
# plain warnings carry no CWE
CWE_OF: dict[str, str] = {
    "-Wformat-security": "CWE-134",
    "-Wformat-overflow=": "CWE-787",
    "-Warray-bounds": "CWE-787",
    "-Wstringop-overflow=": "CWE-787",
    "-Wstringop-overread": "CWE-125",
    "-Wstringop-truncation": "CWE-170",
    "-Wreturn-local-addr": "CWE-562",
    "-Wfree-nonheap-object": "CWE-590",
    "-Wuse-after-free": "CWE-416",
    "-Wuse-after-free=": "CWE-416",
    "-Wdangling-pointer=": "CWE-562",
    "-Wsizeof-pointer-memaccess": "CWE-467",
    "-Wdiv-by-zero": "CWE-369",
    "-Wmaybe-uninitialized": "CWE-457",
    "-Wuninitialized": "CWE-457",
}
# what the analyser itself names (its metadata says so for each finding)
_ANALYSER: tuple[str, ...] = (
    "CWE-401",
    "CWE-415",
    "CWE-416",
    "CWE-457",
    "CWE-476",
    "CWE-690",
    "CWE-775",
)
_ANALYSER += ("CWE-590", "CWE-479", "CWE-688", "CWE-126", "CWE-131")
# findings that are about style, or that stubs alone bring about
_IGNORED = frozenset({"-Wanalyzer-too-complex", "-Wanalyzer-use-of-uninitialized-value"})


def gcc_version() -> str | None:
    """The installed version; None without one, or with one older than 12."""
    return first_version(("gcc", "-dumpfullversion"), (12, 0))


@cache
def gcc_covers(language: str, cwe: str) -> bool:
    """Does the analyser or a warning that counts look for this CWE?"""
    return language == "c" and any(
        matches_any(one, (cwe,)) for one in (*_ANALYSER, *CWE_OF.values())
    )


def run_gcc(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    """The analyser's findings in each program; raises nothing."""
    if gcc_version() is None:
        return all_failed(len(programs), f"gcc 12 or later is not installed; mend: {INSTALL}")
    try:
        whole = complete_many("c", [one.text for one in programs], sandbox)
        files = {
            f"p{at}.c": unsuppressed(one.text) for at, one in enumerate(whole) if not one.failed
        }
        outcomes = run_each(sandbox, COMMAND, files, each_s=EACH_S)
    except (SandboxError, OSError) as error:
        return [failure(TOOL, error)] * len(programs)
    return [
        _one(outcomes.get(f"p{at}.c"), one, text)
        for at, (one, text) in enumerate(zip(programs, whole, strict=True))
    ]


def _one(outcome: Outcome | None, program: Program, whole: Completed) -> ToolResult:
    if outcome is None:
        return ToolResult(failed=f"gcc: {whole.failed}")
    if outcome.failed:
        return ToolResult(failed=f"gcc: {outcome.failed}")
    try:
        # notes of the driver may stand before the list
        start = outcome.stderr.index("[")
        items = json.JSONDecoder().raw_decode(outcome.stderr[start:])[0]
        if outcome.status != 0 or any(item["kind"] in ("error", "fatal error") for item in items):
            said = next((i["message"] for i in items if "error" in i["kind"]), outcome.stderr[:200])
            return ToolResult(failed=f"gcc: the program does not compile: {said[:200]}")
        findings = asked_for(_findings(items, program, whole.line_shift), program.cwe)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return ToolResult(failed=f"gcc: its output is not whole JSON ({error})")
    return ToolResult(findings, completed=bool(whole.added))


def _findings(items: Sequence[Any], program: Program, shift: int) -> Iterable[Finding]:
    last = program.text.count("\n") + 1
    for item in items:
        rule = str(item.get("option", ""))
        metadata = item.get("metadata") or {}
        cwe = f"CWE-{metadata['cwe']}" if "cwe" in metadata else CWE_OF.get(rule)
        if cwe is None or rule in _IGNORED or not item["locations"]:
            continue
        line = int(item["locations"][0]["caret"]["line"]) - shift
        if 1 <= line <= last:
            yield Finding(cwe, line, line, rule.removeprefix("-W"), TOOL, str(item["message"]))


GCC = Tool(
    name=TOOL,
    languages=("c",),
    install=INSTALL,
    version=gcc_version,
    covers=gcc_covers,
    run=run_gcc,
)
