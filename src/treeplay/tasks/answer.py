"""Where an answer ends.

A model writes on after its answer: a second function, a main block, an explanation. The answer is
what fills the hole of the task (see :mod:`treeplay.tasks.task`): either a number of statements at
the level where the prompt ends, or everything up to the end of the enclosing function. The text
may be unfinished, so a small lexer that knows strings, comments and brackets does this; a parser
would have to guess at half a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from treeplay.tasks.task import Task

FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
DEF = re.compile(r"^[ \t]*(?:async[ \t]+)?def\b")
PY_COMPOUND = re.compile(r"(?:if|for|while|try|with|def|class|async|match|@)(?!\w)|@")
PY_CLAUSE = re.compile(r"(?:else|elif|except|finally)\b")
BRACE_CLAUSE = re.compile(r"(?:else|catch|finally)\b")
# A `/` after one of these starts a regular expression in JavaScript, not a division.
JS_REGEX_BEFORE = set("(,=:[!&|?{};+-*%<>~^\n")
JS_KEYWORD = re.compile(r"\b(?:return|typeof|case|throw|in|of|void|delete)[ \t]*$")
OPENERS, CLOSERS = "([{", ")]}"


@dataclass(frozen=True)
class Cut:
    """The answer within a sampled text, and whether its end was seen (not merely the text's)."""

    text: str
    complete: bool


def cut_answer(task: Task, text: str) -> Cut:
    """Cut ``text``, written after ``task.prompt``, where the answer of ``task`` ends."""
    fence = FENCE.search(text)
    if fence and fence.start() > 0:
        cut = cut_answer(task, text[: fence.start()])
        return Cut(cut.text, True)
    end = _end_python(task, text) if task.language == "python" else _end_braces(task, text)
    repeat = _suffix_repeated(task, text)
    if repeat is not None and (end is None or repeat < end):
        end = repeat
    return Cut(text, False) if end is None else Cut(text[:end], True)


def _suffix_repeated(task: Task, text: str) -> int | None:
    """Where ``text`` begins to repeat the suffix: a model that knows how the function goes on
    writes the lines that are already there."""
    if task.statements is None:
        return None
    lines = [line.rstrip() for line in task.suffix.splitlines() if line.strip()][:2]
    if not lines or len("".join(lines).strip()) < 4:
        return None
    # Two lines, because one alone (`return 0;`) may well be the answer's own.
    pattern = r"\n\s*".join(re.escape(line.strip()) for line in lines)
    indent = re.escape(lines[0][: len(lines[0]) - len(lines[0].lstrip())])
    found = re.search(rf"\n{indent}(?={pattern}[ \t]*(?:\n|$))", text)
    return None if found is None or not text[: found.start()].strip() else found.start() + 1


def statement_ends(task: Task, text: str) -> list[int]:
    """Offsets in ``text`` just behind each statement at the answer's own level, in order.

    An unfinished last statement ends with the text.
    """
    found = (
        _python_statements(task.prompt, text)
        if task.language == "python"
        else _brace_statements(task.prompt, text, task.language)
    )
    ends = [end for end, _ in found if end >= 0]
    if text.strip() and (not ends or text[ends[-1] :].strip()):
        ends.append(len(text))
    return ends


def _end_python(task: Task, text: str) -> int | None:
    if task.statements is not None:
        return _nth_end(_python_statements(task.prompt, text), task.statements, text)
    outer = _enclosing_def_indent(task.prompt)
    last = 0
    for line in _python_lines(task.prompt, text):
        if line.indent <= outer and line.starts_inside:
            return last
        if not line.comment:
            last = line.end
    return None


def _nth_end(statements: Iterator[tuple[int, bool]], wanted: int, text: str) -> int | None:
    """The end of statement number ``wanted``, or where the block ends before it.

    ``statements`` yields (end offset, end certain) and, where the enclosing block ends, a last
    item with a negative end that holds ``-1 - offset``.
    """
    last = 0
    for count, (end, certain) in enumerate(statements, start=1):
        if end < 0:
            return last
        last = end
        if count == wanted:
            return end if certain else None
    return None


@dataclass(frozen=True)
class _Line:
    """A logical Python line. Offsets are in the answer; ``start`` < 0 lies in the prompt."""

    start: int
    end: int
    indent: int
    body: str
    comment: bool
    finished: bool

    @property
    def starts_inside(self) -> bool:
        return self.start >= 0


def _python_lines(prompt: str, text: str) -> Iterator[_Line]:
    """Logical lines of ``prompt + text`` that end inside ``text``; blank lines left out."""
    whole, offset = prompt + text, len(prompt)
    at = start = 0
    depth, quote = 0, ""
    size = len(whole)
    while at < size:
        char = whole[at]
        if quote:
            if char == "\\":
                at += 1
            elif whole.startswith(quote, at):
                at += len(quote) - 1
                quote = ""
            elif char == "\n" and len(quote) == 1:
                quote = ""  # an unterminated string ends with its line
                continue
        elif char in "'\"":
            quote = char * 3 if whole.startswith(char * 3, at) else char
            at += len(quote) - 1
        elif char == "#":
            while at < size and whole[at] != "\n":
                at += 1
            continue
        elif char in OPENERS:
            depth += 1
        elif char in CLOSERS:
            depth = max(0, depth - 1)
        elif char == "\\" and at + 1 < size and whole[at + 1] == "\n":
            at += 1
        elif char == "\n" and depth == 0:
            line = _line(whole, start, at + 1, offset, True)
            if line is not None:
                yield line
            start = at + 1
        at += 1
    line = _line(whole, start, size, offset, False)
    if line is not None:
        yield line


def _line(whole: str, start: int, end: int, offset: int, finished: bool) -> _Line | None:
    raw = whole[start:end]
    body = raw.strip()
    if end <= offset or not body:
        return None
    # The line the prompt stops in is no line of the answer unless the answer adds to it.
    if start < offset and not whole[offset:end].strip():
        return None
    indent = len(raw.expandtabs(8)) - len(raw.expandtabs(8).lstrip())
    return _Line(start - offset, end - offset, indent, body, body.startswith("#"), finished)


def _python_statements(prompt: str, text: str) -> Iterator[tuple[int, bool]]:
    level: int | None = None
    end, simple, open_statement = 0, False, False
    for line in _python_lines(prompt, text):
        if line.comment:
            continue
        if level is None:
            level = line.indent
            if line.starts_inside and level <= _enclosing_def_indent(prompt):
                yield -1 - line.start, True
                return
        elif line.indent < level:
            if open_statement:
                yield end, True
            yield -1 - max(line.start, 0), True
            return
        elif line.indent == level and not PY_CLAUSE.match(line.body) and open_statement:
            yield end, True
            open_statement = False
        if line.indent == level and not PY_CLAUSE.match(line.body):
            simple = not PY_COMPOUND.match(line.body)
            open_statement = True
        end = line.end
        if simple and line.finished and open_statement:
            yield end, True
            open_statement = False
    if open_statement:
        yield end, False


def _enclosing_def_indent(prompt: str) -> int:
    """Indentation of the ``def`` the prompt ends in; -1 at module level."""
    lines = [line for line in prompt.expandtabs(8).splitlines() if line.strip()]
    level = len(lines[-1]) - len(lines[-1].lstrip())
    if lines[-1].rstrip().endswith(":"):
        level += 1
    for line in reversed(lines):
        indent = len(line) - len(line.lstrip())
        if indent < level and DEF.match(line):
            return indent
    return -1


def _end_braces(task: Task, text: str) -> int | None:
    if task.statements is not None:
        return _nth_end(_brace_statements(task.prompt, text, task.language), task.statements, text)
    depth, target = 0, 0
    if task.suffix and task.golden is not None:
        # The suffix closes what the golden answer leaves open.
        target = _left_open(task.prompt + task.golden, task.language)
    elif task.suffix:
        target = -_left_open(task.suffix, task.language)
    offset = len(task.prompt)
    for place, char in _code_chars(task.prompt + text, task.language):
        at = place - offset
        before = depth
        depth += (char in OPENERS) - (char in CLOSERS)
        if at >= 0 and depth <= target < before:
            end = at + 1
            while end < len(text) and text[end] == ";":
                end += 1
            return end + (text[end : end + 1] == "\n")
    return None


def _left_open(text: str, language: str) -> int:
    """How many brackets more ``text`` opens than it closes."""
    return sum((char in OPENERS) - (char in CLOSERS) for _, char in _code_chars(text, language))


def _code_chars(text: str, language: str) -> Iterator[tuple[int, str]]:
    """(offset, character) of ``text`` without strings, comments and character literals.

    A string stands as one ``"`` at its last character, so that it still counts as code.
    """
    at, size, before = 0, len(text), "\n"
    while at < size:
        char = text[at]
        two = text[at : at + 2]
        if two == "//":
            at = _find(text, "\n", at)
            continue
        if two == "/*":
            at = _find(text, "*/", at + 2) + 2
            continue
        regex = (
            char == "/"
            and language == "javascript"
            and (before in JS_REGEX_BEFORE or JS_KEYWORD.search(text[max(0, at - 12) : at]))
        )
        if char in "\"'`" or regex:
            at = _string_end(text, at, raw=char == "`" and language == "go")
            before = '"'
            if at <= size:
                yield at - 1, '"'
            continue
        yield at, char
        if char == "\n" or not char.isspace():
            before = char
        at += 1


def _find(text: str, what: str, start: int) -> int:
    at = text.find(what, start)
    return len(text) if at < 0 else at


def _string_end(text: str, start: int, *, raw: bool) -> int:
    quote, at, in_class = text[start], start + 1, False
    while at < len(text):
        char = text[at]
        if char == "\\" and not raw:
            at += 2
            continue
        if quote == "/" and char in "[]":
            in_class = char == "["
        if char == quote and not in_class:
            return at + 1
        if char == "\n" and quote != "`":
            return at  # unterminated: it ends with its line
        at += 1
    return len(text) + 1


def _brace_statements(prompt: str, text: str, language: str) -> Iterator[tuple[int, bool]]:
    """(end, certain) of each statement of ``text``; see :func:`_nth_end`.

    ``depth`` counts brackets opened since the statement began, which may lie in the prompt.
    """
    whole, offset = prompt + text, len(prompt)
    opened: list[str] = []
    depth, begun, conditional, header = 0, False, False, False
    before, inside = "", False
    for place, char in _code_chars(whole, language):
        at = place - offset
        if at < 0:
            if char in OPENERS:
                opened.append(char)
            elif char in CLOSERS and opened:
                opened.pop()
            if not begun and not char.isspace():
                begun, conditional, header = True, *_kind(whole[place:], language)
            if char in ";{}" or (char == "\n" and language == "go"):
                begun = False
            before = before if char.isspace() else char
            continue
        if not inside:
            inside = True
            while opened and opened[-1] != "{":
                depth += 1
                opened.pop()
        if not begun and not char.isspace():
            begun, conditional, header = True, *_kind(whole[place:], language)
        depth += (char in OPENERS) - (char in CLOSERS)
        if depth < 0:
            if begun and before.strip() and char != "}":
                yield at, True
            yield -1 - at, True
            return
        header = header and char != "{"
        ends = begun and depth == 0 and not header
        if ends and char == "\n" and language in ("go", "javascript"):
            ends = before not in "+-*/=,.&|<>!:?([{" and text[at:].lstrip()[:1] not in ".?"
        elif ends and char == "}":
            ends = _closes_block(text, at, language)
        else:
            ends = ends and char == ";"
        if ends:
            after = text[at + 1 :]
            before = char
            if conditional and BRACE_CLAUSE.match(after.lstrip()):
                continue
            end = at + 1 + (char != "\n" and after[:1] == "\n")
            yield end, not conditional or bool(after.strip())
            begun, before = False, ""
            continue
        if not char.isspace():
            before = char
    # What is left is an unfinished statement; the caller adds it where it counts.


def _kind(statement: str, language: str) -> tuple[bool, bool]:
    """Whether another clause may follow the statement's block, and whether it has a header with
    semicolons of its own: Go writes ``for i := 0; i < n; i++ {`` without brackets around them."""
    conditional = re.match(r"(?:if|do|try)\b", statement) is not None
    header = language == "go" and re.match(r"(?:for|if|switch)\b", statement) is not None
    return conditional, header


def _closes_block(text: str, at: int, language: str) -> bool:
    """Whether the ``}`` at ``at`` ends a statement (a block) rather than an expression."""
    after = text[at + 1 :].lstrip(" \t")
    if not after:
        return False
    if after.startswith("\n") and language in ("go", "javascript"):
        return False  # the line break will end it
    return after.lstrip()[:1] not in (";", ",", ")", "]", ".", "?", ":", "=")
