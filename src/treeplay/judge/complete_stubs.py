"""The text that goes above a C or C++ fragment: headers, and the stubs of what was guessed."""

from __future__ import annotations

import re

from treeplay.judge.complete_c import Guess
from treeplay.judge.complete_types import KNOWN_TYPES

_C_HEADERS = (
    "stdio stdlib string stddef stdint inttypes stdbool limits errno ctype assert stdarg time "
    "math signal setjmp unistd fcntl sys/types sys/stat sys/time strings pthread dirent "
    "sys/socket netinet/in arpa/inet"
)
_CPP_HEADERS = (
    "string vector map set unordered_map memory algorithm iostream fstream sstream functional "
    "utility list deque queue regex filesystem thread mutex optional chrono random limits"
)
_SHAPES = {
    "call": "long (*{})()",
    "follow2": "struct tp_any **{}",
    "follow": "struct tp_any *{}",
    "bytes2": "unsigned char **{}",
    "bytes": "unsigned char *{}",
    "number": "long {}",
}


def prologue(guess: Guess, language: str) -> str:
    """The lines that go above the fragment: headers first, then what was made up."""
    lines = ["#define _GNU_SOURCE 1"] if language == "c" else []
    lines += [f"#include <{name}.h>" for name in _C_HEADERS.split()]
    if language == "cpp":
        lines += [f"#include <{name}>" for name in _CPP_HEADERS.split()] + ["using namespace std;"]
    lines += [f"#define {name} tp_own_{name}" for name in sorted(guess.renamed)]
    lines += [f"#define {name} {body}" for name, body in sorted(guess.macros.items())]
    lines += ["struct tp_any;", "long tp_some();", "extern long tp_place;", "void *tp_ptr();"]
    lines += [
        f"typedef {KNOWN_TYPES[name]} {name};"
        for name, kind in guess.types.items()
        if kind == "known"
    ]
    lines += [f"typedef long {name};" for name, kind in guess.types.items() if kind == "number"]
    lines += [
        f"typedef struct tp_any *{name};" for name, kind in guess.types.items() if kind == "pointer"
    ]
    if guess.constants:
        # high enough that an array of this length holds what is put into it
        lines += [
            f"enum {{ {name} = {number} }};"
            for number, name in enumerate(sorted(guess.constants), 1024)
        ]
    values = [name for name, shape in guess.members.items() if shape == "value"]
    plain = [_declare(name, shape) for name, shape in guess.members.items() if shape != "value"]
    inner = ""
    for level in range(4):
        of = [f"struct tp_in{level - 1} {name};" if level else f"long {name};" for name in values]
        inner = " ".join([*plain, *of, "long tp_pad;"])
        lines.append(f"struct tp_in{level} {{ {inner} }};")
    lines.append(f"struct tp_any {{ {inner} }};")
    for tag, keyword in guess.tags.items():
        lines.append(
            f"enum {tag} {{ tp_{tag} }};"
            if keyword == "enum"
            else f"{keyword} {tag} {{ {inner} }};"
        )
    for name, kind in guess.types.items():
        if kind == "struct" and name not in guess.tags:
            lines.append(f"typedef struct tp_{name} {{ {inner} }} {name};")
        elif kind == "struct":
            lines.append(f"typedef {guess.tags[name]} {name} {name};")
    lines += [f"extern {_declare(name, shape)}" for name, shape in guess.variables.items()]
    dots = "..." if language == "cpp" else ""
    for name, shape in guess.functions.items():
        kind = "number" if shape in ("call", "value") else shape
        lines.append(_declare(f"{name}({dots})", kind))
    return "\n".join(lines) + "\n"


def header_missing(guess: Guess) -> str:
    """The fragment with the headers that are not here made into comments, on their lines."""
    text = guess.text
    for name in guess.no_headers:
        text = re.sub(
            rf"^([ \t]*#[ \t]*include[ \t]*[<\"]{re.escape(name)}[>\"])",
            r"// \1",
            text,
            flags=re.MULTILINE,
        )
    return text


def _declare(name: str, shape: str) -> str:
    return "struct tp_in3 " + name + ";" if shape == "value" else _SHAPES[shape].format(name) + ";"
