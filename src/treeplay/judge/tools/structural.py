"""The structural rules of :mod:`treeplay.judge.rules` as a tool; ast-grep matches in process."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from treeplay.judge.rules import TOOL, covers, find_vulnerable, rules_digest
from treeplay.judge.tools.base import LANGUAGES, Program, Tool, ToolResult
from treeplay.judge.tools.common import failure
from treeplay.sandbox import Sandbox


def _version() -> str | None:
    """ast-grep's version and the digest of the rules; None when ast-grep is not installed."""
    try:
        return f"{importlib.metadata.version('ast-grep-py')}, rules {rules_digest()}"
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    """The rules only read; nothing is started, so the sandbox is not needed."""
    del sandbox
    return [_look(program) for program in programs]


def _look(program: Program) -> ToolResult:
    try:
        return ToolResult(tuple(find_vulnerable(program.language, program.text, program.cwe)))
    except (RuntimeError, ValueError) as error:
        return failure(TOOL, error)


RULES = Tool(TOOL, LANGUAGES, "pip install ast-grep-py", _version, covers, _run)
