"""cppcheck: C and C++ without headers, so that fragments are read as they are.

One process a file: in one process for all, cppcheck compares functions of programs that have
nothing to do with each other (``ctuOneDefinitionRuleViolation``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from xml.etree import ElementTree

from treeplay.errors import SandboxError
from treeplay.judge.cwe import matches_any
from treeplay.judge.each import Outcome, run_each
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import SUFFIXES, asked_for, failure
from treeplay.judge.tools.process import all_failed, first_version
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox

TOOL = "cppcheck"
EACH_S = 20
INSTALL = "apt-get install cppcheck"
COMMAND = "cppcheck --enable=warning,portability,style --library=posix --xml --quiet -j 1"
# checks that count, with the weakness they name; cppcheck's own number is too general for most
CWE_OF: dict[str, str] = {
    "arrayIndexOutOfBounds": "CWE-787",
    "arrayIndexThenCheck": "CWE-125",
    "bufferAccessOutOfBounds": "CWE-787",
    "negativeIndex": "CWE-786",
    "pointerOutOfBounds": "CWE-119",
    "outOfBounds": "CWE-787",
    "stringLiteralWrite": "CWE-787",
    "terminateStrncpy": "CWE-170",
    "strncatUsage": "CWE-787",
    "sizeofwithsilentarraypointer": "CWE-467",
    "pointerSize": "CWE-467",
    "sizeofDivisionMemfunc": "CWE-467",
    "invalidscanf": "CWE-120",
    "invalidScanfFormatWidth": "CWE-787",
    "getsCalled": "CWE-242",
    "tmpnamCalled": "CWE-377",
    "tempnamCalled": "CWE-377",
    "mktempCalled": "CWE-377",
    "nullPointer": "CWE-476",
    "nullPointerRedundantCheck": "CWE-476",
    "ctunullpointer": "CWE-476",
    "uninitvar": "CWE-457",
    "uninitdata": "CWE-457",
    "uninitStructMember": "CWE-457",
    "legacyUninitvar": "CWE-457",
    "memleak": "CWE-401",
    "memleakOnRealloc": "CWE-401",
    "resourceLeak": "CWE-775",
    "leakReturnValNotUsed": "CWE-401",
    "doubleFree": "CWE-415",
    "deallocuse": "CWE-416",
    "deallocret": "CWE-416",
    "deallocThrow": "CWE-416",
    "useClosedFile": "CWE-416",
    "autovarInvalidDeallocation": "CWE-590",
    "mismatchAllocDealloc": "CWE-762",
    "returnDanglingLifetime": "CWE-562",
    "invalidLifetime": "CWE-562",
    "danglingLifetime": "CWE-562",
    "danglingTemporaryLifetime": "CWE-562",
    "autoVariables": "CWE-562",
    "zerodiv": "CWE-369",
    "integerOverflow": "CWE-190",
    "signConversion": "CWE-195",
    "wrongPrintfScanfArgNum": "CWE-685",
    "containerOutOfBounds": "CWE-125",
    "invalidContainer": "CWE-416",
    "negativeContainerIndex": "CWE-125",
    "accessMoved": "CWE-416",
}
_BROKEN: tuple[str, ...] = (
    "syntaxError",
    "internalError",
    "internalAstError",
    "preprocessorErrorDirective",
)
_BROKEN += ("unknownMacro", "cppcheckError", "noValidConfiguration")


def cppcheck_version() -> str | None:
    """The installed version; None without one, or with one older than 2.0."""
    return first_version(("cppcheck", "--version"), (2, 0))


@cache
def cppcheck_covers(language: str, cwe: str) -> bool:
    """Does any check that counts look for this CWE?"""
    return language in ("c", "cpp") and any(matches_any(one, (cwe,)) for one in CWE_OF.values())


def run_cppcheck(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    """cppcheck's findings in each program; raises nothing."""
    if cppcheck_version() is None:
        return all_failed(len(programs), f"cppcheck 2 is not installed; mend: {INSTALL}")
    names = [f"p{number}{SUFFIXES[one.language]}" for number, one in enumerate(programs)]
    files = {name: one.text for name, one in zip(names, programs, strict=True)}
    try:
        outcomes = run_each(sandbox, COMMAND, files, each_s=EACH_S)
    except (SandboxError, OSError) as error:
        return [failure(TOOL, error)] * len(programs)
    return [_one(outcomes[name], one) for name, one in zip(names, programs, strict=True)]


def _one(outcome: Outcome, program: Program) -> ToolResult:
    if outcome.failed:
        return ToolResult(failed=f"cppcheck: {outcome.failed}")
    try:
        errors = list(ElementTree.fromstring(_readable(outcome.stderr)).iter("error"))
    except ElementTree.ParseError as error:
        return ToolResult(failed=f"cppcheck: its output is not whole XML ({error})")
    for one in errors:
        if one.get("id") in _BROKEN:
            said = (one.get("msg") or "it cannot read the program")[:200]
            return ToolResult(failed=f"cppcheck: {said}")
    return ToolResult(asked_for(_findings(errors), program.cwe))


def _readable(text: str) -> str:
    """The XML without characters that XML has no place for."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _findings(errors: Iterable[ElementTree.Element]) -> Iterable[Finding]:
    for one in errors:
        rule = one.get("id") or ""
        cwe = CWE_OF.get(rule.removesuffix("Cond"))
        place = one.find("location")
        if cwe is None or place is None or one.get("inconclusive") == "true":
            continue
        line = max(1, int(place.get("line") or 1))
        message = " ".join((one.get("msg") or rule).split())
        yield Finding(cwe, line, line, rule, TOOL, message)


CPPCHECK = Tool(
    name=TOOL,
    languages=("c", "cpp"),
    install=INSTALL,
    version=cppcheck_version,
    covers=cppcheck_covers,
    run=run_cppcheck,
)
