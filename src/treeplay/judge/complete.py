"""Making a fragment whole: what a bare function, a method or a body needs to be parsed or compiled.

Stubs are guesses. Whoever looks at a completed program must not trust what is said of the stubs,
and must say that the program was completed. Added text stands above the fragment only, so that a
line of the fragment is ``line_shift`` lines further down.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from treeplay.judge.complete_c import Guess, read_errors
from treeplay.judge.complete_stubs import header_missing, prologue
from treeplay.judge.each import run_each
from treeplay.sandbox import Sandbox

ROUNDS = 8
EACH_S = 10
# where Debian keeps the headers of a library that programs include without a folder
INCLUDES = "-I/usr/include/libxml2"
_COMPILERS = {
    "c": f"gcc -x c -std=gnu11 {INCLUDES} -w -fsyntax-only -fmax-errors=300"
    " -fno-diagnostics-show-caret -fdiagnostics-color=never -fdiagnostics-column-unit=byte",
    "cpp": f"g++ -x c++ -std=gnu++17 -fpermissive {INCLUDES} -w -fsyntax-only -fmax-errors=300"
    " -fno-diagnostics-show-caret -fdiagnostics-color=never -fdiagnostics-column-unit=byte",
}
_KEPT = 4000
_known: OrderedDict[str, Completed] = OrderedDict()


@dataclass(frozen=True)
class Completed:
    """A fragment with what it lacked.

    ``added``: the names stubbed or the wrapper, empty when nothing was needed. ``failed``: why the
    program still cannot be read, "" when it can; then ``text`` is the fragment as given.
    """

    text: str
    line_shift: int = 0
    added: tuple[str, ...] = ()
    failed: str = ""


_PRAGMA = re.compile(
    r"^[ \t]*#[ \t]*pragma[ \t]+(?:GCC|clang)[ \t]+(?:diagnostic|system_header).*"
    r"|\b_Pragma\s*\(\s*L?\"(?:[^\"\\\n]|\\.)*\"\s*\)",
    re.MULTILINE,
)


def unsuppressed(text: str) -> str:
    """C or C++ without what silences an analyser, which a model could learn to write: ``NOLINT``
    and pragmas about diagnostics. Every character that is left stays where it was."""
    text = _PRAGMA.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text.replace("NOLINT", "nolint")


def complete(language: str, text: str, sandbox: Sandbox | None = None) -> Completed:
    """One fragment; see :func:`complete_many`."""
    return complete_many(language, [text], sandbox or Sandbox())[0]


def complete_many(language: str, texts: Sequence[str], sandbox: Sandbox) -> list[Completed]:
    """Each of ``texts`` with what it lacks, in order.

    C and C++ are compiled, and the compiler's errors say which types, members, constants, variables
    and macros to make up (up to ``ROUNDS`` rounds, all texts of a round in one start of the
    sandbox). Python, JavaScript and Go are wrapped by their looks alone. Raises
    :class:`~treeplay.errors.SandboxError` when a compiler is needed and no sandbox can be had.
    """
    if language in _COMPILERS:
        return _complete_compiled(language, texts, sandbox)
    wrap = {"python": _python, "javascript": _javascript, "go": _go}.get(language)
    return [wrap(text) if wrap else Completed(text) for text in texts]


def _complete_compiled(language: str, texts: Sequence[str], sandbox: Sandbox) -> list[Completed]:
    keys = [
        hashlib.sha256(f"{language}\0{text}".encode(errors="replace")).hexdigest() for text in texts
    ]
    open_texts = {
        key: Guess(text) for key, text in zip(keys, texts, strict=True) if key not in _known
    }
    done: dict[str, Completed] = {}
    current = {key: Completed(guess.text) for key, guess in open_texts.items()}
    for _ in range(ROUNDS + 1):
        if not current:
            break
        names = {f"f{at}.x": key for at, key in enumerate(current)}
        files = {name: current[key].text for name, key in names.items()}
        outcomes = run_each(sandbox, _COMPILERS[language], files, each_s=EACH_S)
        following: dict[str, Completed] = {}
        for name, key in names.items():
            outcome, tried, guess = outcomes[name], current[key], open_texts[key]
            if not outcome.failed and outcome.status == 0:
                done[key] = tried
                continue
            errors = read_errors(outcome.stderr, tried.line_shift)
            done[key] = Completed(guess.text, failed=_why(outcome.failed, outcome.stderr))
            grew = guess.learn(errors, language)
            if not outcome.failed and errors and (grew or tried.line_shift == 0):
                head = prologue(guess, language)
                following[key] = Completed(
                    head + header_missing(guess),
                    head.count("\n"),
                    tuple(sorted(guess.names())) or ("headers",),
                )
        current = following
    for key, one in done.items():
        _known[key] = one
    found = [done.get(key) or _known[key] for key in keys]
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return found


def _why(failed: str, stderr: str) -> str:
    if failed:
        return f"the compiler: {failed}"
    first = re.search(r"^.*?error: (.*)$", stderr, re.MULTILINE)
    return f"it does not compile, even with stubs: {first[1][:160] if first else 'no reason given'}"


def _python(text: str) -> Completed:
    """A method without its class is moved to the left margin; lines stay where they are."""
    body = text.lstrip("\n")
    if not body[:1].isspace():
        return Completed(text)
    return Completed(textwrap.dedent(text), 0, ("dedent",))


_JS_METHOD = re.compile(
    r"^\s*(?:(?:static|async|get|set)\s+)*\*?\s*(?!(?:function|if|for|while|switch|catch|with)\b)"
    r"[\w$#]+\s*\([^)]*\)\s*\{"
)
_JS_FUNCTION = re.compile(r"^\s*(?:async\s+)?function\s*\*?\s*\(")


def _javascript(text: str) -> Completed:
    """A method is put in a class, a function without a name is given one."""
    if _JS_METHOD.match(text):
        return Completed(f"class Fragment {{\n{text.rstrip().rstrip(',')}\n}}\n", 1, ("class",))
    if _JS_FUNCTION.match(text):
        return Completed(f"const fragment =\n{text}", 1, ("const",))
    return Completed(text)


_GO_STANDARD = (
    "bufio bytes context errors fmt html io log math net os path regexp sort strconv strings "
    "sync time unicode reflect crypto/aes crypto/cipher crypto/des crypto/hmac crypto/md5 "
    "crypto/rc4 crypto/rsa crypto/sha1 crypto/sha256 crypto/sha512 crypto/tls crypto/x509 "
    "crypto/subtle database/sql encoding/base64 encoding/binary encoding/hex encoding/json "
    "encoding/xml net/http net/url net/mail os/exec os/user path/filepath io/ioutil archive/tar "
    "archive/zip compress/gzip html/template math/big"
)
_GO_PACKAGES = {path.rpartition("/")[2]: path for path in _GO_STANDARD.split()} | {
    "rand": "crypto/rand"
}


def _go(text: str) -> Completed:
    """``package main`` and the standard packages that the fragment names."""
    if re.search(r"^\s*package\s+\w+", text, re.MULTILINE):
        return Completed(text)
    used = sorted(
        {
            _GO_PACKAGES[name]
            for name in re.findall(r"(?<![\w.\"])(\w+)\.[A-Z]", text)
            if name in _GO_PACKAGES
        }
    )
    has_imports = re.search(r"^import\b", text, re.MULTILINE)
    lines = [] if has_imports or not used else ["import (", *(f'\t"{one}"' for one in used), ")"]
    head = "\n".join(["package main", "", *lines, ""])
    return Completed(f"{head}\n{text}", head.count("\n") + 1, ("package", *used))
