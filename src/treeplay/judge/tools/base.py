"""What every static tool is to the judge: a name, what it covers, and one function over a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox

LANGUAGES = ("python", "c", "cpp", "javascript", "go")  # those that any tool here can read


@dataclass(frozen=True)
class Program:
    """One program to look at. ``cwe``: the weaknesses asked for, all when empty."""

    language: str
    text: str
    cwe: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolResult:
    """What a tool found; ``failed`` is the reason why it could not look, "" when it did.

    ``completed``: the tool saw the program with context added (imports, stubs, a wrapper), so that
    what it says rests on guesses about the rest. Lines are those of the program as given.
    """

    findings: tuple[Finding, ...] = ()
    failed: str = ""
    completed: bool = False


@dataclass(frozen=True)
class Tool:
    """One analyser.

    ``version`` gives None when the tool is not here. ``covers(language, cwe)``: it looks for this
    weakness in this language at all. ``run`` takes programs of the tool's own languages, all in one
    batch, and gives one result each, in order; it raises nothing on account of a program or of the
    tool, both are ``failed``. Whatever program it starts, it starts in the sandbox.
    """

    name: str
    languages: tuple[str, ...]
    install: str
    version: Callable[[], str | None]
    covers: Callable[[str, str], bool]
    run: Callable[[Sequence[Program], Sandbox], list[ToolResult]]
