"""clang-tidy: the Clang static analyser and some checks of the bugprone and cert families.

Its findings carry no CWE; the table here gives them one. A program must compile; one that does
not is completed with stubs first, see :mod:`treeplay.judge.complete`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from treeplay.errors import SandboxError
from treeplay.judge.complete import INCLUDES, Completed, complete_many, unsuppressed
from treeplay.judge.cwe import matches_any
from treeplay.judge.each import Outcome, run_each
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import SUFFIXES, asked_for, failure
from treeplay.judge.tools.process import all_failed, first_version
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox

TOOL = "clang-tidy"
EACH_S = 30
INSTALL = "apt-get install clang-tidy"
# check (without "clang-analyzer-"), a part of its message ("" for any), the weakness
CWE_OF: tuple[tuple[str, str, str], ...] = (
    ("unix.Malloc", "after it is freed", "CWE-416"),
    ("unix.Malloc", "free released memory", "CWE-415"),
    ("unix.Malloc", "leak", "CWE-401"),
    ("unix.Malloc", "Argument to", "CWE-590"),
    ("cplusplus.NewDelete", "after it is freed", "CWE-416"),
    ("cplusplus.NewDelete", "free released memory", "CWE-415"),
    ("cplusplus.NewDelete", "Argument to", "CWE-590"),
    ("cplusplus.NewDeleteLeaks", "", "CWE-401"),
    ("cplusplus.InnerPointer", "", "CWE-416"),
    ("cplusplus.Move", "", "CWE-416"),
    ("unix.MismatchedDeallocator", "", "CWE-762"),
    ("unix.MallocSizeof", "", "CWE-131"),
    ("unix.cstring.NullArg", "", "CWE-476"),
    ("unix.cstring.BadSizeArg", "", "CWE-805"),
    ("core.NullDereference", "", "CWE-476"),
    ("core.NonNullParamChecker", "", "CWE-476"),
    ("core.CallAndMessage", "null", "CWE-476"),
    ("core.CallAndMessage", "uninitialized", "CWE-457"),
    ("core.DivideZero", "", "CWE-369"),
    ("core.StackAddressEscape", "", "CWE-562"),
    ("core.UndefinedBinaryOperatorResult", "", "CWE-457"),
    ("core.uninitialized.", "", "CWE-457"),
    ("alpha.unix.cstring.OutOfBounds", "", "CWE-787"),
    ("alpha.unix.cstring.NotNullTerminated", "", "CWE-170"),
    ("alpha.unix.Stream", "never closed", "CWE-775"),
    ("alpha.unix.SimpleStream", "", "CWE-775"),
    ("alpha.core.SizeofPtr", "", "CWE-467"),
    ("security.insecureAPI.gets", "", "CWE-242"),
    ("security.insecureAPI.mktemp", "", "CWE-377"),
    ("security.insecureAPI.UncheckedReturn", "", "CWE-252"),
    ("security.insecureAPI.vfork", "", "CWE-676"),
    ("security.insecureAPI.getpw", "", "CWE-676"),
    ("bugprone-sizeof-expression", "", "CWE-467"),
    ("bugprone-not-null-terminated-result", "", "CWE-170"),
    ("bugprone-suspicious-memset-usage", "", "CWE-687"),
    ("bugprone-misplaced-operator-in-strlen-in-alloc", "", "CWE-131"),
    ("bugprone-misplaced-pointer-arithmetic-in-alloc", "", "CWE-131"),
    ("bugprone-infinite-loop", "", "CWE-835"),
    ("bugprone-signal-handler", "", "CWE-479"),
    ("bugprone-use-after-move", "", "CWE-416"),
    ("bugprone-dangling-handle", "", "CWE-416"),
    ("bugprone-too-small-loop-variable", "", "CWE-190"),
    ("cert-msc51-cpp", "", "CWE-338"),
)
# the taint checker names the weakness in its message
TAINT = "alpha.security.taint.TaintPropagation"
_TAINTED = ("CWE-134", "CWE-78", "CWE-120")
CHECKS = "-*,clang-analyzer-core.*,clang-analyzer-unix.*,clang-analyzer-cplusplus.*,"
CHECKS += ",".join(
    f"clang-analyzer-{name}" if "." in name else name
    for name in sorted({check for check, _, _ in CWE_OF if not check.endswith(".")} | {TAINT})
)
COMMAND = f"clang-tidy --quiet --allow-enabling-analyzer-alpha-checkers --checks='{CHECKS}'"
FLAGS = {"c": "-x c -std=gnu11", "cpp": "-x c++ -std=gnu++17"}
_LINE = re.compile(
    r"^\S*?p\d+\.\w+:(\d+):\d+: (warning|error): (.*) \[([\w.,+-]+)\]$", re.MULTILINE
)


def clang_tidy_version() -> str | None:
    """The installed version; None without one, or with one older than 14."""
    return first_version(("clang-tidy", "--version"), (14, 0))


@cache
def clang_tidy_covers(language: str, cwe: str) -> bool:
    """Does a check that counts look for this CWE?"""
    known = {*_TAINTED, *(one for _, _, one in CWE_OF)}
    return language in ("c", "cpp") and any(matches_any(one, (cwe,)) for one in known)


def run_clang_tidy(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    """The findings in each program; raises nothing."""
    if clang_tidy_version() is None:
        reason = f"clang-tidy 14 or later is not installed; mend: {INSTALL}"
        return all_failed(len(programs), reason)
    results: dict[int, ToolResult] = {}
    try:
        for language in ("c", "cpp"):
            mine = [at for at, one in enumerate(programs) if one.language == language]
            results |= _run_language(language, {at: programs[at] for at in mine}, sandbox)
    except (SandboxError, OSError) as error:
        return [failure(TOOL, error)] * len(programs)
    other = ToolResult(failed="clang-tidy: it reads C and C++ only")
    return [results.get(at, other) for at in range(len(programs))]


def _run_language(
    language: str, programs: dict[int, Program], sandbox: Sandbox
) -> dict[int, ToolResult]:
    whole = dict(
        zip(
            programs,
            complete_many(language, [one.text for one in programs.values()], sandbox),
            strict=True,
        )
    )
    suffix = SUFFIXES[language]
    texts = {at: unsuppressed(one.text) for at, one in whole.items() if not one.failed}
    files = {f"p{at}{suffix}": text for at, text in texts.items()}
    # Code must not be another one where it is analysed.
    command = f'{COMMAND} "$1" -- {FLAGS[language]} -U__clang_analyzer__ {INCLUDES} -w'
    outcomes = run_each(sandbox, command, files, each_s=EACH_S)
    return {
        at: _one(outcomes.get(f"p{at}{suffix}"), one, whole[at]) for at, one in programs.items()
    }


def _one(outcome: Outcome | None, program: Program, whole: Completed) -> ToolResult:
    if outcome is None:
        return ToolResult(failed=f"clang-tidy: {whole.failed}")
    if outcome.failed:
        return ToolResult(failed=f"clang-tidy: {outcome.failed}")
    if outcome.stdout and not outcome.stdout.endswith("\n"):
        return ToolResult(failed="clang-tidy: its output breaks off")
    found = list(_LINE.finditer(outcome.stdout))
    errors = [one for one in found if one[2] == "error"]
    if errors or outcome.status != 0:
        said = errors[0][3] if errors else f"exit status {outcome.status}"
        return ToolResult(failed=f"clang-tidy: the program does not compile: {said[:200]}")
    findings = asked_for(_findings(found, program, whole.line_shift), program.cwe)
    return ToolResult(findings, completed=bool(whole.added))


def _findings(found: Iterable[re.Match[str]], program: Program, shift: int) -> Iterable[Finding]:
    last = program.text.count("\n") + 1
    for one in found:
        message, checks = one[3], one[4].split(",")
        line = int(one[1]) - shift
        for check in checks:
            cwe = _cwe(check.removeprefix("clang-analyzer-"), message)
            if cwe is not None and 1 <= line <= last:
                yield Finding(cwe, line, line, check, TOOL, message)
                break


def _cwe(check: str, message: str) -> str | None:
    if check == TAINT:
        named = re.search(r"CWE-\d+", message)
        return named[0] if named else None
    for known, part, cwe in CWE_OF:
        same = check.startswith(known) if known.endswith(".") else check == known
        if same and part in message:
            return cwe
    return None


CLANG_TIDY = Tool(
    name=TOOL,
    languages=("c", "cpp"),
    install=INSTALL,
    version=clang_tidy_version,
    covers=clang_tidy_covers,
    run=run_clang_tidy,
)
