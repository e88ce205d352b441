"""Cutting a pair of whole functions into one prompt and two answers."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

From = Literal["given", "signature", "common lines", "comment"]
_DEF = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)\b", re.MULTILINE)
_RUBY_DEF = re.compile(r"^[ \t]*def\b", re.MULTILINE)
_MAX_SIGNATURE = 40  # lines; what is longer is no signature, but a brace found too late


@dataclass(frozen=True)
class Cut:
    """``prompt + golden`` and ``prompt + vulnerable`` are the two versions."""

    prompt: str
    golden: str
    vulnerable: str
    prompt_from: From


def comment_sign(language: str) -> str:
    """What begins a line comment."""
    return "#" if language in ("python", "ruby") else "//"


def parse_python(code: str) -> ast.Module | None:
    """The syntax tree of Python 3 text, None when the running interpreter does not take it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parses(code: str) -> bool:
    """Whether the text is Python 3 for the parser of the running interpreter."""
    return parse_python(code) is not None


def indent_of(code: str) -> str:
    """The white space before the first line that is not blank."""
    line = next((line for line in code.split("\n") if line.strip()), "")
    return line[: len(line) - len(line.lstrip())]


def dedent(code: str, indent: str) -> str:
    """The text with ``indent`` taken from every line that begins with it.

    Unlike textwrap.dedent, a line of a long string at column 0 does not stop it.
    """
    if not indent:
        return code
    return "\n".join(line.removeprefix(indent) for line in code.split("\n"))


def cut_pair(
    secure: str,
    vulnerable: str,
    language: str,
    *,
    given: str | None = None,
    comment: str = "",
    name: str = "",
) -> Cut | None:
    """The prompt that both versions share, and what each continues it with.

    Tried in turn: the ``given`` prompt; the signature of the secure version up to the opening of
    its body; the lines both begin with; nothing but the comment (``comment``, else ``name``), with
    the whole functions as answers. A ``comment`` always stands first. None when nothing fits.
    """
    head = _comment_line(comment, language, indent_of(secure))
    candidates: list[tuple[From, str]] = []
    if given is not None:
        candidates.append(("given", given))
    candidates.append(("signature", secure[: signature_end(secure, language)]))
    candidates.append(("common lines", _common_lines(secure, vulnerable)))
    for origin, prefix in candidates:
        if not prefix.strip() or not (secure.startswith(prefix) and vulnerable.startswith(prefix)):
            continue
        golden, bad = secure[len(prefix) :], vulnerable[len(prefix) :]
        if golden.strip() and bad.strip():
            return Cut(head + prefix, golden, bad, origin)
    head = head or _comment_line(name, language, indent_of(secure))
    if head and secure.strip() and vulnerable.strip():
        return Cut(head, secure, vulnerable, "comment")
    return None


def _comment_line(text: str, language: str, indent: str) -> str:
    words = " ".join(text.split())
    return f"{indent}{comment_sign(language)} {words}\n" if words else ""


def _common_lines(left: str, right: str) -> str:
    size = 0
    for one, other in zip(left.split("\n"), right.split("\n"), strict=False):
        if one != other:
            break
        size += len(one) + 1
    return left[:size]


def signature_end(code: str, language: str) -> int:
    """Where the body of the first function begins: after the ``:`` of a Python def, the line of a
    Ruby def, the opening brace elsewhere, and the line break that follows. 0 when there is none.
    """
    if language == "python":
        end = _after_colon(code)
    elif language == "ruby":
        end = _after_ruby_def(code)
    else:
        end = _after_brace(code, language)
    if not end or code.count("\n", 0, end) > _MAX_SIGNATURE:
        return 0
    line_end = code.find("\n", end)
    line_end = len(code) if line_end < 0 else line_end + 1
    rest = code[end:line_end].strip()
    if not rest or rest.startswith(comment_sign(language)):
        return line_end
    return end


def _after_colon(code: str) -> int:
    found = _DEF.search(code)
    if not found:
        return 0
    depth = 0
    for index, char in _code_chars(code, found.end(), "python"):
        depth += (char in "([{") - (char in ")]}")
        if char == ":" and depth == 0:
            return index + 1
    return 0


def _after_ruby_def(code: str) -> int:
    found = _RUBY_DEF.search(code)
    if not found:
        return 0
    depth = 0
    for index, char in _code_chars(code, found.end(), "ruby"):
        depth += (char in "([{") - (char in ")]}")
        if char == "\n" and depth <= 0:
            return index
    return 0


def _after_brace(code: str, language: str) -> int:
    depth = 0
    for index, char in _code_chars(code, 0, language):
        depth += (char in "([") - (char in ")]")
        if char != "{":
            continue
        before = code[:index].rstrip()
        if language == "javascript":
            # Functions are handed over as arguments, and parameters are taken apart in braces.
            if before.endswith((")", "=>")):
                return index + 1
        elif depth == 0 and not before.endswith(("interface", "struct")):
            return index + 1
    return 0


def _code_chars(code: str, start: int, language: str) -> Iterator[tuple[int, str]]:
    """(index, character) of everything outside comments and strings."""
    sign = comment_sign(language)
    quotes = ('"""', "'''", '"', "'") if language == "python" else ('"', "'", "`")
    index = start
    while index < len(code):
        if code.startswith(sign, index):
            index = _until(code, "\n", index)
        elif sign == "//" and code.startswith("/*", index):
            index = _until(code, "*/", index + 2) + 2
        elif (quote := next((q for q in quotes if code.startswith(q, index)), None)) is not None:
            index += len(quote)
            while index < len(code) and not code.startswith(quote, index):
                index += 2 if code[index] == "\\" else 1
            index += len(quote)
        else:
            yield index, code[index]
            index += 1


def _until(code: str, mark: str, start: int) -> int:
    found = code.find(mark, start)
    return len(code) if found < 0 else found
