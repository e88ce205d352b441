"""Preference pairs in the form of TRL's preference datasets: ``prompt``, ``chosen``, ``rejected``.

The chosen answer is the secure one. Strings and messages are read, with the prompt in a field of
its own or at the head of both answers. Beside them a record may have ``language`` (or ``lang``),
``cwe`` (any spelling, one or a list), ``id`` and ``license``.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.judge.rules import parses
from treeplay.tasks.importers.pairs import NO_CWE, NO_LANGUAGE, Pair, pairs_to_tasks
from treeplay.tasks.importers.reading import (
    Located,
    cwe_names,
    find_inputs,
    language_of,
    read_records,
    text_of,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.signature import parses as parses_python
from treeplay.tasks.task import LANGUAGES

PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.parquet")
SEVERAL_TURNS = "a conversation of several turns"
OTHER_QUESTION = "the two answers are to different questions"
ONE_FENCED = "one answer has a code block, the other has none"
OPEN_FENCE = "a code block has no end"
TWO_LANGUAGES = "the two answers are in different languages"
SEVERAL_BLOCKS = "an answer has several code blocks, of which the longest is taken"
_OTHER_NAMES = {"c++": "cpp", "golang": "go", "node": "javascript", "python3": "python"}
_MARK = re.compile(r"^[ \t]*```", re.MULTILINE)
_SENTENCE = re.compile(r"([\w'-]+[,:]?\s+){3,}[\w'-]+[.?!]?")
_Messages = list[tuple[str, str]]  # (role, text)
_FENCE = re.compile(r"^[ \t]*```([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every pair of a file, or of a folder's files.

    An answer with a code block answers an instruction, which then stands as a comment above the
    code, and so does one that a parser reads alone where the prompt is a sentence, or where it
    does not read it behind the prompt. Any other continues the prompt; where no parser reads it
    right behind it, on a line of its own.

    Raises TaskError naming file and line for a record without two answers, and for one whose
    prompt or answers are neither text nor messages.
    """
    files = find_inputs(path, PATTERNS, "preference pairs (prompt, chosen, rejected)")
    made: list[Pair | ReportLine] = []
    seen: Counter[str] = Counter()
    for file in files:
        for located in read_records(file):
            name = located.data.get("id")
            stem = file.name.removesuffix(".gz").rpartition(".")[0]
            item = f"preference/{f'{stem}/{located.index}' if name is None else name}"
            seen[item] += 1
            made.append(_read(located, item if seen[item] == 1 else f"{item}-{seen[item]}"))
    pairs = [pair for pair in made if isinstance(pair, Pair)]
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=True, max_chars=max_chars)
    dropped = [line for line in made if isinstance(line, ReportLine)]
    return make_report("preference", len(made), tasks, [*dropped, *lines], remarks)


def _read(located: Located, item: str) -> Pair | ReportLine:
    data, where = located.data, located.where
    asked = _messages(data, "prompt", "user", where) if data.get("prompt") else []
    chosen = _messages(data, "chosen", "assistant", where)
    rejected = _messages(data, "rejected", "assistant", where)
    questions = _questions(asked, chosen)
    if len(questions) > 1:
        return ReportLine(item, "dropped", SEVERAL_TURNS, where)
    if questions != _questions(asked, rejected):
        return ReportLine(item, "dropped", OTHER_QUESTION, where)
    prompt = questions[0] if questions else ""
    secure, vulnerable = chosen[-1][1], rejected[-1][1]
    blocks, others = _FENCE.findall(secure), _FENCE.findall(vulnerable)
    if bool(blocks) != bool(others):
        return ReportLine(item, "dropped", ONE_FENCED, where)
    if not blocks and _MARK.search(secure + "\n" + vulnerable):
        return ReportLine(item, "dropped", OPEN_FENCE, where)
    name = text_of(data, "language", where, "") or text_of(data, "lang", where, "")
    if blocks:
        (tag, secure), (other, vulnerable) = _longest(blocks), _longest(others)
        if tag and other and _named(tag) != _named(other):
            return ReportLine(item, "dropped", TWO_LANGUAGES, where, f"{tag} and {other}")
        name = name or tag or other
    language = _named(name)
    if language is None:
        told = name or "none is named; add a field 'language'"
        return ReportLine(item, "dropped", NO_LANGUAGE, where, told)
    instructed = bool(blocks) or not prompt or _instructs(language, prompt, secure)
    if not instructed and not _parses(language, prompt + secure):
        prompt += "\n" if _parses(language, f"{prompt}\n{secure}") else ""
    cwe = cwe_names(data.get("cwe"))
    faults = () if cwe else (NO_CWE,)
    return Pair(
        id=item,
        where=where,
        language=language,
        cwe=cwe,
        secure=secure if instructed else prompt + secure,
        vulnerable=vulnerable if instructed else prompt + vulnerable,
        given=None if instructed else prompt,
        description=prompt if instructed else "",
        upstream_split="",
        source=text_of(data, "source", where, "preference"),
        license=text_of(data, "license", where, ""),
        faults=faults + ((SEVERAL_BLOCKS,) if max(len(blocks), len(others)) > 1 else ()),
    )


def _questions(asked: _Messages, answered: _Messages) -> list[str]:
    """What the user says. The prompt may stand in its own field, at the head of an answer, or in
    both."""
    first, again = ([text for role, text in part if role == "user"] for part in (asked, answered))
    return again if first == again[: len(first)] else first + again


def _instructs(language: str, prompt: str, answer: str) -> bool:
    """Whether ``answer`` is a program of its own, and the prompt no code that it goes on from."""
    if not _parses(language, answer):
        return False
    if _SENTENCE.fullmatch(prompt.strip()):  # which Ruby reads as calls
        return True
    return not any(_parses(language, prompt + between + answer) for between in ("", "\n"))


def _parses(language: str, program: str) -> bool:
    """By Python's own parser where it is Python: the other one minds no indentation."""
    return parses_python(program) if language == "python" else parses(language, program)


def _messages(data: dict[str, Any], key: str, role: str, where: str) -> _Messages:
    """(role, text) of every message; text alone is one message of ``role``. An answer ends in a
    message of the assistant's. Raises TaskError for anything else."""
    value = data.get(key)
    if not isinstance(value, list):
        return [(role, text_of(data, key, where))]
    form = 'write [{"role": "user", "content": "..."}, ...] or text'
    if not all(isinstance(part, dict) for part in value):
        raise TaskError(f"{where}: {key!r} is a list, but not of messages; {form}")
    read = [(text_of(part, "role", where), text_of(part, "content", where)) for part in value]
    if role not in {spoken for spoken, _ in read[-1:]}:
        raise TaskError(f"{where}: {key!r} does not end in a message of the {role}'s; {form}")
    return read


def _longest(blocks: list[tuple[str, str]]) -> tuple[str, str]:
    return max(blocks, key=lambda block: len(block[1]))


def _named(name: str) -> str | None:
    """The language that a record or a code block calls by its name or a file's ending."""
    name = name.strip().lower()
    name = _OTHER_NAMES.get(name, name)
    return name if name in LANGUAGES else language_of(f"a.{name}")
