"""Does a program parse or compile? Nothing is run here.

Python is compiled in process (compiling runs no code); C and C++ by ``gcc -fsyntax-only``,
JavaScript by ``node --check``, Go by ``gofmt -e``, all of a batch in one start of the sandbox. A
missing tool, a time-out or a crash of the tool is None: not known, never a guess.
"""

from __future__ import annotations

import ast
import re
import secrets
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from treeplay.sandbox import Completed, Limits, Sandbox

BATCH = 40  # programs in one start of the sandbox
EACH_S = 10  # time limit for one program
_DETAIL = 400
_MARK = "@@validity"


@dataclass(frozen=True)
class Validity:
    """``valid`` is None when it is not known; ``detail`` says why it is False or None."""

    valid: bool | None
    detail: str = ""


@dataclass(frozen=True)
class _Checker:
    tool: str
    command: str  # shell words; the file follows
    suffix: str


_CHECKERS = {
    "c": _Checker("gcc", "gcc -x c -fsyntax-only -w -fdiagnostics-color=never", ".c"),
    "cpp": _Checker("g++", "g++ -x c++ -fsyntax-only -w -fdiagnostics-color=never", ".cpp"),
    "javascript": _Checker("node", "node --check", ".js"),
    "go": _Checker("gofmt", "gofmt -e -l", ".go"),
}
# what a compiler says when it is broken itself, rather than the program
_BROKEN = re.compile(
    r"internal compiler error|cannot execute|out of memory|virtual memory exhausted|"
    r"error while loading shared libraries"
)
_MODULE = re.compile(r"^[ \t]*(import\s+[\w{*\"']|export\s)", re.MULTILINE)


def check_valid(language: str, program: str, sandbox: Sandbox) -> Validity:
    """Whether one program parses or compiles; see :func:`check_valid_many`."""
    return check_valid_many(language, [program], sandbox)[0]


def check_valid_many(language: str, programs: Sequence[str], sandbox: Sandbox) -> list[Validity]:
    """Whether each program parses or compiles, in order.

    Raises :class:`~treeplay.errors.SandboxError` when a compiler is needed and no sandbox can be
    had. Languages without a checker here give None.
    """
    if language == "python":
        return [_check_python(program) for program in programs]
    checker = _CHECKERS.get(language)
    if checker is None:
        return [Validity(None, f"no checker for {language}")] * len(programs)
    if shutil.which(checker.tool) is None:
        return [Validity(None, f"{checker.tool} is not installed")] * len(programs)
    results: list[Validity] = []
    for start in range(0, len(programs), BATCH):
        results += _check_batch(checker, programs[start : start + BATCH], sandbox)
    return results


def python_alone(program: str) -> tuple[str, int]:
    """``program``, and how many lines were put before it: an indented piece, such as a method
    without its class, gets a line on which it can hang."""
    body = program.lstrip()
    first = program[: len(program) - len(body)].rpartition("\n")[2]
    return (f"if 1:\n{program}", 1) if first else (program, 0)


def _check_python(program: str) -> Validity:
    text, shift = python_alone(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # the whole compiler, not only the parser: it also refuses `return` outside a function
            compile(ast.parse(text), "<answer>", "exec", dont_inherit=True)
    except (SyntaxError, UnicodeError) as error:
        line = (getattr(error, "lineno", None) or shift) - shift
        message = getattr(error, "msg", None) or str(error)
        return Validity(False, f"line {line}: {message}" if line else message)
    except ValueError as error:  # null bytes (up to 3.11), numbers with too many digits
        return Validity(False, str(error))
    except (RecursionError, MemoryError) as error:
        return Validity(None, f"too deeply nested for the parser ({type(error).__name__})")
    return Validity(True)


def _check_batch(checker: _Checker, programs: Sequence[str], sandbox: Sandbox) -> list[Validity]:
    names = []
    # Compilers show the source, which must not be able to tell a result itself.
    mark = f"{_MARK} {secrets.token_hex(12)}"
    files: dict[str, str | bytes] = {}
    for number, program in enumerate(programs):
        module = checker.suffix == ".js" and _MODULE.search(program)
        names.append(f"p{number}{'.mjs' if module else checker.suffix}")
        files[names[-1]] = program.encode("utf-8", "replace")
    script = (
        f"for f in {' '.join(names)}; do timeout -s KILL {EACH_S} {checker.command} $f "
        f'>log 2>&1; echo "{mark} $f $?"; head -c {_DETAIL} log | tr -d "\\000"; echo; done'
    )
    wall = EACH_S + 2.0 * len(programs)
    limits = replace(Limits(), wall_s=wall, cpu_s=EACH_S)
    done = sandbox.run(["/bin/sh", "-c", script], files, limits=limits)
    return _read(done, names, mark)


def _read(done: Completed, names: Sequence[str], mark: str) -> list[Validity]:
    said: dict[str, tuple[int, str]] = {}
    text = done.stdout.decode("utf-8", "replace")
    for part in text.split(f"{mark} ")[1:]:
        head, _, log = part.partition("\n")
        name, _, status = head.partition(" ")
        if status.isdigit():
            said[name] = int(status), log.strip()
    stopped = done.stopped or f"exit status {done.returncode}"
    missing = Validity(None, f"the check did not get here ({stopped})")
    return [_one(*said[name]) if name in said else missing for name in names]


def _one(status: int, log: str) -> Validity:
    if status == 0:
        return Validity(True)
    if status in (126, 127):
        return Validity(None, "the checker could not be started")
    if status > 127:
        return Validity(None, f"the checker was ended by signal {status - 128}")
    if _BROKEN.search(log):
        return Validity(None, log[:_DETAIL])
    errors = [line for line in log.splitlines() if "rror" in line]
    return Validity(False, (errors or log.splitlines() or ["refused"])[0][:_DETAIL])
