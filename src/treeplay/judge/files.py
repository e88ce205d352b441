"""Files, folders and standard input as programs to judge; what cannot be read says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.judge.panel import Panel
from treeplay.judge.programs import judge_programs
from treeplay.judge.tools.base import LANGUAGES, Program
from treeplay.judge.verdict import Verdict
from treeplay.words import nearest

STDIN = "-"
ENDINGS = {
    ".py": "python",
    ".c": "c",
    ".h": "c",
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hh", ".hpp"), "cpp"),
    **dict.fromkeys((".js", ".mjs", ".cjs"), "javascript"),
    ".go": "go",
}
# others' code, and what tools write
SKIPPED = frozenset({"node_modules", "vendor", "venv", "site-packages", "__pycache__", "build"})
LARGEST = 4_000_000  # bytes that are read of one file
BATCH = 50  # programs that go to the tools at once


@dataclass(frozen=True)
class Source:
    """A program with its name; ``problem``: why it cannot be read, "" when it was."""

    name: str
    program: Program
    problem: str = ""


def read_sources(
    paths: Sequence[str], language: str = "", cwe: tuple[str, ...] = ()
) -> list[Source]:
    """Every program under ``paths`` in name order; ``-`` is standard input.

    ``language`` is that of standard input and of files whose name does not tell; folders are
    searched for files whose name does, without hidden ones and :data:`SKIPPED`. Raises
    :class:`TaskError` for a path that is not there, a language that cannot be told or is unknown,
    and when nothing was found.
    """
    if language and language not in LANGUAGES:
        raise TaskError(
            f"--language: {language!r} cannot be judged; {nearest(language, LANGUAGES)}"
        )
    sources: list[Source] = []
    for given in paths:
        path = Path(given)
        if given == STDIN:
            if not language:
                raise TaskError(
                    f"standard input: say its language with --language ({', '.join(LANGUAGES)})"
                )
            sources.append(_source("stdin", sys.stdin.buffer.read(LARGEST + 1), language, cwe))
        elif path.is_dir():
            for file in _walk(path):
                sources.append(_read(file, ENDINGS[file.suffix], cwe))
        elif path.is_file():
            spoken = ENDINGS.get(path.suffix, language)
            if not spoken:
                raise TaskError(
                    f"{path}: its name does not tell the language; say it with --language "
                    f"({', '.join(LANGUAGES)})"
                )
            sources.append(_read(path, spoken, cwe))
        else:
            raise TaskError(f"{path}: there is no such file or folder; check the path")
    if not sources:
        known = " ".join(sorted(ENDINGS))
        raise TaskError(f"nothing to judge in {', '.join(paths)}: no files named {known}")
    return sources


def judge_sources(
    sources: Sequence[Source], panel: Panel, progress: Callable[[int], None] | None = None
) -> list[Verdict]:
    """A verdict on each source, in order; one that could not be read is unknown.

    ``progress`` is called with the number of programs judged since its last call.
    """
    readable = [one.program for one in sources if not one.problem]
    judged: list[Verdict] = []
    for first in range(0, len(readable), BATCH):
        chunk = readable[first : first + BATCH]
        judged += judge_programs(chunk, panel)
        if progress is not None:
            progress(len(chunk))
    verdicts = iter(judged)
    return [
        Verdict("unknown", reason=one.problem) if one.problem else next(verdicts) for one in sources
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED and not name.startswith(".")
        )
        for name in sorted(files):
            path = Path(where, name)
            # a link may lead anywhere, a pipe would be waited for
            if path.suffix in ENDINGS and path.is_file() and not path.is_symlink():
                yield path


def _read(path: Path, language: str, cwe: tuple[str, ...]) -> Source:
    try:
        with path.open("rb") as handle:
            data = handle.read(LARGEST + 1)
    except OSError as error:
        empty = Program(language, "", cwe)
        return Source(str(path), empty, f"it cannot be read ({error.strerror})")
    return _source(str(path), data, language, cwe)


def _source(name: str, data: bytes, language: str, cwe: tuple[str, ...]) -> Source:
    problem, text = "", ""
    if len(data) > LARGEST:
        problem = f"it is larger than {LARGEST:,} bytes"
    elif b"\0" in data:
        problem = "it is binary (null bytes)"
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problem = f"it is not UTF-8 text (byte {error.start:,}); convert it first"
    return Source(name, Program(language, text.replace("\r\n", "\n"), cwe), problem)
