"""What a C or C++ fragment lacks, guessed from the compiler's errors and from how names are used.

All structures share one set of members: every member that the fragment uses, with a type guessed
from its uses (called, followed, indexed...). That is wrong in detail and right enough for the
compiler, which in C only warns of pointers of another type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from treeplay.judge.complete_types import KNOWN_TYPES

_TYPE_WORDS = r"(?:static|const|inline|extern|unsigned|signed|void|char|short|int|long|float|double"
_TYPE_WORDS += r"|struct|union|enum|bool|size_t|ssize_t|u?int\d+_t)\b"
_QUOTE = "[\u2018']"
_END = "[\u2019']"
_NAME = rf"{_QUOTE}(?:struct |union |enum |class )?([A-Za-z_]\w*){_END}"
_UNKNOWN = re.compile(r"unknown type name|undeclared|was not declared|not name a type|No such file")
_ORDER = ("call", "follow2", "follow", "value", "bytes2", "bytes", "number")


@dataclass(frozen=True)
class Error:
    """One error of the compiler; ``line`` is that of the fragment, 1-based."""

    line: int
    column: int
    message: str


def read_errors(stderr: str, shift: int) -> list[Error]:
    """The errors in what gcc wrote, those in added lines with a line below 1."""
    found = re.findall(r"^[^\s:]+:(\d+):(\d+): (?:fatal )?error: (.*)$", stderr, re.MULTILINE)
    return [Error(int(line) - shift, int(column), message) for line, column, message in found]


@dataclass
class Guess:
    """What is made up so far for one fragment."""

    text: str
    types: dict[str, str] = field(default_factory=dict)  # typedef name -> "struct", "number"...
    tags: dict[str, str] = field(default_factory=dict)  # struct/union/enum tag -> keyword
    members: dict[str, str] = field(default_factory=dict)  # member -> shape
    constants: set[str] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)  # name -> shape
    functions: dict[str, str] = field(default_factory=dict)  # name -> shape of its result
    macros: dict[str, str] = field(default_factory=dict)  # name with parameters -> body
    renamed: set[str] = field(default_factory=set)  # names of libc that the fragment has its own of
    no_headers: set[str] = field(default_factory=set)
    plain: str = ""
    looked: bool = False

    def __post_init__(self) -> None:
        self.plain = _blank(self.text)

    def names(self) -> set[str]:
        """All names made up."""
        heads = {one.split("(")[0] for one in self.macros}
        return {
            *self.types,
            *self.tags,
            *self.members,
            *self.constants,
            *self.variables,
            *self.functions,
            *heads,
            *self.renamed,
            *self.no_headers,
        }

    def learn(self, errors: Sequence[Error], language: str) -> bool:
        """Take in the errors of one round; False when none of them taught anything."""
        before = repr(self)
        if not self.looked:
            # the headers alone answer most of the first errors
            self.looked = True
            self._look()
            errors = [error for error in errors if "No such file" in error.message]
        # a name that is not known brings errors of its own after it
        names = [error for error in errors if _UNKNOWN.search(error.message)]
        for error in names or errors:
            self._learn_one(error, language)
        return repr(self) != before

    def _look(self) -> None:
        """What can be seen without the compiler: tags and members."""
        for keyword, tag in re.findall(r"\b(struct|union|enum)\s+([A-Za-z_]\w*)", self.plain):
            if not re.search(rf"\b{keyword}\s+{tag}\s*\{{", self.plain):
                self.tags.setdefault(tag, keyword)
        for member in re.findall(r"(?:->|(?<=[\w\])])\s*\.)\s*([A-Za-z_]\w*)", self.plain):
            self.members.setdefault(member, self._shape(member, True))

    def _shape(self, name: str, member: bool) -> str:
        """How ``name`` is used, as the strongest of its uses."""
        head = rf"(?:->|\.)\s*{name}" if member else rf"(?<![\w.>]){name}"
        uses: set[str] = set()
        for found in re.finditer(
            rf"{head}\b(?=(\s*(?:\[[^\[\]]*\]\s*)*)(->|\.\s*[A-Za-z_]|\()?)", self.plain
        ):
            indexes, after = found[1].count("["), found[2] or ""
            if after == "(" and not indexes:
                uses.add("call")
            elif after == "->":
                uses.add(("follow", "follow2")[indexes > 0])
            elif after:
                uses.add(("value", "follow", "follow2")[min(indexes, 2)])
            elif indexes:
                uses.add(("bytes", "bytes2")[indexes > 1])
        return next((one for one in _ORDER if one in uses), "number")

    def _learn_one(self, error: Error, language: str) -> None:
        text = error.message
        if found := re.search(rf"unknown type name {_NAME}", text):
            self._type(found[1], error)
        elif found := re.search(
            rf"{_NAME} (?:undeclared|was not declared|has not been declared)", text
        ):
            self._undeclared(found[1], error, language)
        elif found := re.search(rf"has no member named {_NAME}", text):
            self.members.setdefault(found[1], self._shape(found[1], True))
        elif found := re.search(rf"{_NAME} does not name a type", text):
            self._type(found[1], error)
        elif re.search(r"incomplete type|undefined type|storage size|incomplete element", text):
            for keyword, tag in re.findall(r"(struct|union|enum) ([A-Za-z_]\w*)", text):
                self.tags[tag] = keyword
        elif found := re.search(
            rf"(?:conflicting types for|redefinition of|static declaration of"
            rf"|redeclared as different.*?|ambiguating new declaration of)"
            rf".*?{_NAME}",
            text,
        ):
            self._clash(found[1])
        elif found := re.search(r"([\w./+-]+): No such file or directory", text):
            self.no_headers.add(found[1])
        elif "invalid type argument of" in text or "request for member" in text:
            self._stronger(error, "follow" if "->" in text or "request" in text else "bytes")
        elif found := re.search(rf"{_QUOTE}(\*?)([^\s\u2019']*){_END} is a pointer; did you", text):
            self._not_a_pointer(found[2])
        elif "lvalue required" in text:
            for name in re.findall(
                r"([A-Za-z_]\w*)\s*\([^()]*\)\s*[-+|&]?=(?!=)", self._line(error)
            ):
                self.functions.pop(name, None)
                self.macros[f"{name}(...)"] = "tp_place"
        elif found := re.search(r"invalid operands to binary .*unsigned char", text):
            for one in re.findall(r"(?:->|\.)\s*([A-Za-z_]\w*)", self._line(error)):
                if self.members.get(one) == "number":
                    self.members[one] = "bytes"
        elif "subscripted value is neither" in text:
            self._stronger(error, "bytes")
        elif "is not a function" in text or "cannot be used as a function" in text:
            self._stronger(error, "call")
        elif re.search(
            r"used (?:struct type )?value where|invalid operands|incompatible types"
            r"|wrong type argument|aggregate value|cannot convert to a pointer"
            r"|switch quantity|array subscript is not an integer|invalid initializer"
            r"|conversion to non-scalar",
            text,
        ):
            self._weaker(error)
        elif found := re.search(rf"expected .*? before {_NAME}", text):
            self._expected(found[1], error)
        elif re.search(r"expected .*before (?:string|[\u2018']?\{)|expected expression", text):
            self._expected("", error)
        elif "case label does not reduce" in text:
            for name in re.findall(r"\bcase\s+([A-Za-z_]\w*)", self._line(error)):
                self.variables.pop(name, None)
                self.constants.add(name)

    def _line(self, error: Error) -> str:
        lines = self.plain.split("\n")
        return lines[error.line - 1] if 1 <= error.line <= len(lines) else ""

    def _type(self, name: str, error: Error) -> None:
        """A name stands where a type is expected: an attribute, or a type."""
        line = self._line(error)
        after = line[error.column - 1 + len(name) :]
        following = re.match(rf"\s+(?:{_TYPE_WORDS}|[A-Za-z_]\w*[\s*]+[A-Za-z_]\w*)", after)
        if following and re.match(r"\s+[A-Za-z_]", after) and "*" not in after.split("(")[0][:1]:
            self.types.pop(name, None)
            self.macros[name] = ""
            return
        if re.match(r"\s*\(", after) and name.isupper():
            self.macros[f"{name}(x, ...)"] = "x" if re.search(r"\w\s*\(", after[1:]) else ""
            return
        if name in self.macros:
            return
        self.constants.discard(name)
        self.variables.pop(name, None)
        self.types.setdefault(name, self._type_shape(name))

    def _type_shape(self, name: str) -> str:
        if name in KNOWN_TYPES:
            return "known"
        plain = self.plain
        pointers = re.findall(rf"\b{name}\s*\*+\s*(?:const\s+)?([A-Za-z_]\w*)", plain)
        values = re.findall(rf"\b{name}\s+([A-Za-z_]\w*)\s*[;,=)\[]", plain)
        if any(
            re.search(rf"(?<![\w.>]){one}\s*(?:\[[^\]]*\]\s*)*\.\s*[A-Za-z_]", plain)
            for one in values
        ):
            return "struct"
        if any(re.search(rf"(?<![\w.>]){one}\s*->", plain) for one in values):
            return "pointer"
        if any(
            re.search(rf"(?<![\w.>]){one}\s*(?:\[[^\]]*\]\s*)*(?:->|\.\s*[A-Za-z_])", plain)
            for one in pointers
        ):
            return "struct"
        if any(
            re.search(rf"(?<![\w.>]){one}\s*\[|\*\s*{one}\b", plain.replace(f"{name} *", name))
            for one in pointers
        ):
            return "number"
        return "struct" if pointers else "number"

    def _undeclared(self, name: str, error: Error, language: str) -> None:
        line = self._line(error)
        after = line[error.column - 1 + len(name) :]
        before = line[: error.column - 1]
        cast = re.search(r"(?:^|[^\w\s)\]])\s*\(\s*(?:const\s+)?$", before) or re.search(
            r"\breturn\s*\(\s*$", before
        )
        is_type = (
            (cast and re.match(r"\s*\*+\s*\)|\s*\)\s*[A-Za-z_0-9(]", after))
            or (cast and not name.islower() and re.match(r"\s*\)\s*[&*-]", after))
            or (
                re.match(r"\s*\*+\s*[A-Za-z_]\w*\s*[=;,)]", after)
                and (not before.strip() or before.rstrip()[-1] in "(,;{")
                and not name.islower()
            )
            or (
                re.search(rf"sizeof\s*\(?\s*{name}\b", line)
                and name not in self.variables
                and (name.endswith("_t") or name[:1].isupper())
            )
            or re.match(r"\s+[*\s]*[A-Za-z_]\w*\s*[=;,(\[]", after)
        )
        if is_type:
            self._type(name, error)
        elif re.match(r"\s*\(", after):
            self.functions.setdefault(name, "number")
        elif re.search(rf'["]\s*{name}\b|\b{name}\s*["]', line):
            self.macros[name] = '""'
        elif self._shape(name, False) == "number" and (name.isupper() or not name.islower()):
            if name not in self.types:
                self.constants.add(name)
        elif name not in self.types:
            self.variables.setdefault(name, self._shape(name, False))

    def _clash(self, name: str) -> None:
        if name in self.names():
            for kept in (self.types, self.variables, self.functions, self.tags):
                kept.pop(name, None)
            self.constants.discard(name)
        else:
            self.renamed.add(name)

    def _at(self, error: Error) -> tuple[str, str]:
        """The name an error points at, and whether it is a member, variable or function."""
        line = self._line(error)
        rest = line[error.column - 1 :]
        if re.match(r"->|\.|\[|\(", rest):
            before = re.sub(r"(?:\[[^\[\]]*\]\s*)+$", "", line[: error.column - 1])
            before = re.sub(r"\([^()]*\)\s*$", "()", before)
            found = re.search(r"(->|\.)?\s*([A-Za-z_]\w*)\s*(\(\))?\s*$", before)
        else:
            found = re.match(
                r"[*&(\s]*(?:[A-Za-z_]\w*\s*(?:\[[^\]]*\])*\s*(->|\.)\s*)*([A-Za-z_]\w*)(\s*\()?",
                rest,
            )
        if not found:
            return "", ""
        if found[3] and not found[1]:
            return found[2], "function"
        return found[2], "member" if found[1] else "variable"

    def _stronger(self, error: Error, shape: str) -> None:
        name, kind = self._at(error)
        if kind == "function":
            self.functions[name] = shape
        elif kind == "member" and name in self.members:
            other = "value" if self.members[name] == "follow" else shape
            self.members[name] = other
        elif name in self.variables or name in self.constants:
            self.constants.discard(name)
            self.variables[name] = shape
        else:
            declared = re.search(
                rf"\b([A-Za-z_]\w*)\s+\**\s*{name}\b" if name else r"(?!)", self.plain
            )
            if declared and self.types.get(declared[1]) in ("number", "struct"):
                self.types[declared[1]] = "pointer" if shape == "follow" else "number"

    def _not_a_pointer(self, expression: str) -> None:
        """``x.m`` on what was taken for a pointer: a member or a type becomes a structure."""
        name = re.findall(r"\w+", expression)[-1:] or [""]
        if re.search(r"->|\.", expression) and name[0] in self.members:
            self.members[name[0]] = "value"
            return
        if name[0] in self.variables:
            self.variables[name[0]] = "value"
        declared = re.search(rf"\b([A-Za-z_]\w*)\s+\**\s*{name[0]}\b", self.plain)
        if declared and self.types.get(declared[1]) == "pointer":
            self.types[declared[1]] = "struct"

    def _weaker(self, error: Error) -> None:
        """A structure stands where a number is needed."""
        line = self._line(error)
        for name in re.findall(r"struct tp_(\w+)", error.message):
            if self.types.get(name) == "struct":
                self.types[name] = "number"
                return
        for name, kind in self.types.items():
            values = re.findall(rf"\b{name}\s+([A-Za-z_]\w*)\s*[;,=)\[]", self.plain)
            if kind == "struct" and any(re.search(rf"\b{one}\b", line) for one in values):
                self.types[name] = "number"
                return
        for name, kind in self.members.items():
            if kind == "value" and re.search(rf"(?:->|\.)\s*{name}\b(?!\s*[.\[])", line):
                self.members[name] = "follow"
                return

    def _expected(self, name: str, error: Error) -> None:
        """A macro that is no expression: a loop head, an attribute, text, a type as argument."""
        line = self._line(error)
        before = line[: error.column - 1]
        if name and re.search(r'"\s*$', before):
            self.macros[name] = '""'
            return
        calls = list(re.finditer(r"(?<![\w.>])([A-Za-z_]\w*)\s*\(", line))
        calls = [
            one
            for one in calls
            if one[1]
            not in ("if", "for", "while", "switch", "return", "sizeof", "do", "else", "defined")
        ]
        inside = [one for one in calls if one.end() <= error.column]
        if inside and (re.match(r"\s*\{", line[error.column - 1 :]) or before.rstrip()[-1:] == ")"):
            loop = line.rstrip().endswith("{") and inside[0][1] not in self.functions
            self.macros[f"{inside[0][1]}(...)"] = "while (tp_some())" if loop else "tp_some();"
        elif inside:
            self.functions.pop(inside[-1][1], None)
            self.macros[f"{inside[-1][1]}(...)"] = "tp_ptr()"
        elif name and re.search(r"[A-Za-z_]\w*\s*$", before):
            found = re.search(r"([A-Za-z_]\w*)\s*$", before)
            if found and found[1] not in ("int", "void", "char", "long", "static", "const"):
                self.types.pop(found[1], None)
                self.macros[found[1]] = ""


def _blank(text: str) -> str:
    """``text`` with comments and the insides of strings as blanks, every character in its place."""

    def blank(found: re.Match[str]) -> str:
        one = found[0]
        kept: Iterable[str] = (char if char == "\n" else " " for char in one)
        if one[0] in "\"'":
            return one[0] + "".join(list(kept)[1:-1]) + one[-1]
        return "".join(kept)

    return re.sub(
        r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'",
        blank,
        text,
        flags=re.DOTALL,
    )
