"""What several tool modules need: findings of the CWEs asked for, and failures in one shape."""

from __future__ import annotations

from collections.abc import Iterable

from treeplay.judge.cwe import matches_any
from treeplay.judge.tools.base import ToolResult
from treeplay.judge.verdict import Finding


def asked_for(findings: Iterable[Finding], cwe: tuple[str, ...]) -> tuple[Finding, ...]:
    """The findings of the CWEs asked for (all when ``cwe`` is empty), in line order.

    A finding without a CWE says nothing about a weakness that was named, so it is left out then.
    """
    kept = [
        one for one in findings if not cwe or (one.cwe is not None and matches_any(one.cwe, cwe))
    ]
    return tuple(sorted(dict.fromkeys(kept), key=lambda one: (one.line_start, one.rule)))


def failure(tool: str, error: BaseException) -> ToolResult:
    """The result that says a tool broke on a program, and how."""
    return ToolResult(failed=f"{tool}: {type(error).__name__}: {str(error)[:200]}")
