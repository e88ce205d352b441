"""Canaries: known-bad programs that a tool must flag and known-good ones that it must not.

``canaries/*.toml`` beside this module, one language a file, entries ``[[canary]]`` with ``cwe``,
``tools`` (who must pass it), ``bad`` and ``good``. A tool that says nothing of a bad one would
otherwise pass for a tool that found nothing wrong. Tools that no entry names (a user's own) have no
canary here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from treeplay.errors import ConfigError
from treeplay.judge.cwe import matches_any
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.sandbox import Sandbox

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("canaries")
KEYS = {"cwe", "tools", "bad", "good"}


@dataclass(frozen=True)
class Canary:
    """A pair of programs; ``tools`` must flag ``bad`` for ``cwe`` and leave ``good`` alone."""

    language: str
    cwe: str
    tools: tuple[str, ...]
    bad: str
    good: str


@cache
def load_canaries(folder: Path = FOLDER) -> tuple[Canary, ...]:
    """All canaries. Raises :class:`ConfigError` naming the file for a broken one."""
    found: list[Canary] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
        for number, entry in enumerate(data.get("canary", ()), 1):
            if set(entry) != KEYS:
                wanted = ", ".join(sorted(KEYS))
                raise ConfigError(f"{path}: canary {number} must hold {wanted} and nothing else")
            found.append(
                Canary(path.stem, entry["cwe"], tuple(entry["tools"]), entry["bad"], entry["good"])
            )
    return tuple(found)


def sing(tool: Tool, language: str, sandbox: Sandbox) -> str:
    """Why ``tool`` must not be trusted with ``language``, "" when it passes its canaries.

    All of a tool's canaries go through in one batch.
    """
    mine = [one for one in load_canaries() if one.language == language and tool.name in one.tools]
    if not mine:
        return ""
    programs = [Program(language, text, (one.cwe,)) for one in mine for text in (one.bad, one.good)]
    results = tool.run(programs, sandbox)
    bad, good = results[::2], results[1::2]
    failed = next((one.failed for one in results if one.failed), "")
    if failed:
        return f"it failed on its canary: {failed}"
    missed = [one.cwe for one, result in zip(mine, bad, strict=True) if not _flags(result, one)]
    if missed:
        return f"it does not flag known-bad {language} ({', '.join(missed)})"
    wrong = [one.cwe for one, result in zip(mine, good, strict=True) if _flags(result, one)]
    if wrong:
        return f"it flags known-good {language} ({', '.join(wrong)})"
    return ""


def _flags(result: ToolResult, canary: Canary) -> bool:
    return any(one.cwe and matches_any(one.cwe, (canary.cwe,)) for one in result.findings)
