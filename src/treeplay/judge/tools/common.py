"""What several tool modules need: findings of the CWEs asked for, failures in one shape, and what
a program from outside the system's folders needs to be shown in the sandbox."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from treeplay.judge.cwe import matches_any
from treeplay.judge.tools.base import ToolResult
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Completed, outside_system

T = TypeVar("T")
R = TypeVar("R")
SUFFIXES = {"python": ".py", "c": ".c", "cpp": ".cpp", "javascript": ".js", "go": ".go"}


class BrokenToolError(Exception):
    """A tool did not do its work on a batch; the text says how it ended. Never shown as such."""


class StoppedToolError(BrokenToolError):
    """It met a limit of the sandbox; to try the same again would cost as much."""


def isolate(
    items: Sequence[T],
    run: Callable[[Sequence[T]], list[R]],
    works: Callable[[], bool],
    broken: Callable[[str], R],
) -> list[R]:
    """``run(items)``; when that raises :class:`BrokenToolError`, the batch is halved until those
    items are found that break the tool, and only these get ``broken(reason)``. A tool that breaks
    on anything (``works`` says so, asked once at most) is not tried again."""
    try:
        return run(items)
    except BrokenToolError as error:
        reason = str(error)
    if len(items) < 2 or not works():
        return [broken(reason)] * len(items)
    half = len(items) // 2
    parts = (items[:half], items[half:])
    return [one for part in parts for one in isolate(part, run, lambda: True, broken)]


def asked_for(findings: Iterable[Finding], cwe: tuple[str, ...]) -> tuple[Finding, ...]:
    """The findings of the CWEs asked for (all when ``cwe`` is empty), in line order.

    A finding without a CWE says nothing about a weakness that was named, so it is left out then.
    """
    kept = [
        one for one in findings if not cwe or (one.cwe is not None and matches_any(one.cwe, cwe))
    ]
    return tuple(sorted(dict.fromkeys(kept), key=lambda one: (one.line_start, one.rule)))


def named_cwe(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The CWE a finding names: the first that matches what is asked for, else the first."""
    names = tuple(names)
    matching = (name for name in names if matches_any(name, wanted))
    return next(matching, names[0] if names else None)


def failure(tool: str, error: BaseException) -> ToolResult:
    """The result that says a tool broke on a program, and how."""
    return ToolResult(failed=f"{tool}: {type(error).__name__}: {str(error)[:200]}")


def ending(done: Completed) -> str:
    """How a run ended badly, in a few words: the limit it met, or its status and last line."""
    if done.stopped:
        return f"it was stopped for its {done.stopped}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = " ".join(said[-1].split())[:200] if said else ""
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return f"{how}: {last}" if last else how


def program_folders(executable: str) -> tuple[str, ...]:
    """The folders outside the system's own that ``executable`` (an absolute path) lives in.

    For a script, those of its interpreter too: a Python script needs its virtual environment and
    the Python that this was made from. Paths as the program names them, links not followed, so
    that it finds them in the sandbox.
    """
    real = Path(os.path.realpath(executable))
    folders = [*_home(Path(executable)), *_home(real)]
    interpreter = _interpreter(real)
    if interpreter:
        folders += [*_home(Path(interpreter)), *_home(Path(os.path.realpath(interpreter)))]
    kept: list[str] = []
    for folder in sorted(dict.fromkeys(map(str, folders)), key=len):
        inside = any(folder == one or folder.startswith(one + "/") for one in kept)
        if not inside and outside_system(folder):
            kept.append(folder)
    return tuple(kept)


def _home(executable: Path) -> list[Path]:
    """The folder of a program, with the libraries that lie beside a ``bin``."""
    folder = executable.parent
    if folder.name != "bin" or not outside_system(str(folder)):
        return [folder]  # the system's own are sorted out later
    above = folder.parent
    if (above / "pyvenv.cfg").exists() or any(above.glob("lib/python3*/os.py")):
        return [above]
    return [folder, *(one for one in (above / "lib", above / "share") if one.is_dir())]


def _interpreter(script: Path) -> str:
    try:
        with script.open("rb") as file:
            first = file.readline(512)
    except OSError:
        return ""
    words = first[2:].decode("utf-8", "replace").split() if first.startswith(b"#!") else []
    return words[0] if words and words[0].startswith("/") else ""
