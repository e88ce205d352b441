"""Validity checks and Bandit: what they say, and that their failures are never silence."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from treeplay.judge import validity
from treeplay.judge.execute import toolchain
from treeplay.judge.rules import Rule, load_rules
from treeplay.judge.tools import bandit as bandit_tool
from treeplay.judge.tools import eslint
from treeplay.judge.tools.bandit import BANDIT, bandit_covers, run_bandit
from treeplay.judge.tools.base import Program, Tool
from treeplay.judge.tools.clang_tidy import CLANG_TIDY
from treeplay.judge.tools.gcc import GCC
from treeplay.judge.tools.structural import RULES
from treeplay.judge.validity import check_valid, check_valid_many
from treeplay.sandbox import Completed, Sandbox

SANDBOX = Sandbox()


def needs(language: str) -> None:
    missing = toolchain(language)
    if missing:
        pytest.skip(missing)


class Fake(Sandbox):
    """A sandbox whose checker says what it is told to."""

    said = Completed(0, b"", b"", False, 0.0)

    def run(self, argv: Sequence[str], files: Any = None, **_: Any) -> Completed:
        assert isinstance(files, Mapping)
        return type(self).said


def fake(stdout: bytes, *, timed_out: bool = False) -> Sandbox:
    class Said(Fake):
        said = Completed(
            137 if timed_out else 0, stdout, b"", timed_out, 0.0, "time" if timed_out else ""
        )

    return Said()


@pytest.mark.parametrize(
    ("program", "valid"),
    [
        ("x = 1\n", True),
        ("x = '\\d'\n", True),  # only a warning
        ("def f(:\n", False),
        ("return 1\n", False),
        ("\n    def method(self):\n        return 1\n", True),  # without its class
        ("    def method(self):\n      return 1\n  x\n", False),
        ("x = '\0'\n", False),
        ("x = '\ud800'\n", False),
        ("(" * 5000, False),
        ("1" * 6000, False),
        ("-" * 200_000 + "1", None),
        ("a" + ".b" * 100_000, None),
    ],
)
def test_python(program: str, valid: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = check_valid("python", program, SANDBOX)
    assert seen.valid is valid
    assert bool(seen.detail) is (valid is not True)


def test_c_batch_keeps_order() -> None:
    needs("c")
    programs = ["int f(void) { return 1; }", "int f(void) {", "int g;", "int f(void){return q;}"]
    seen = check_valid_many("c", programs, SANDBOX)
    assert [one.valid for one in seen] == [True, False, True, False]
    assert "undeclared" in seen[3].detail


def test_c_more_than_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("c")
    monkeypatch.setattr("treeplay.judge.validity.BATCH", 2)
    seen = check_valid_many("c", ["int a;", "int", "int b;", "int", "int c;"], SANDBOX)
    assert [one.valid for one in seen] == [True, False, True, False, True]


def test_javascript() -> None:
    needs("javascript")
    programs = ["let a = 1", "let a = ", "import x from 'y'; export const a = 1"]
    seen = check_valid_many("javascript", programs, SANDBOX)
    assert [one.valid for one in seen] == [True, False, True]


def test_go() -> None:
    needs("go")
    programs = ["package main\n\nfunc f() int { return 1 }\n", "package main\nfunc f( {\n"]
    assert [one.valid for one in check_valid_many("go", programs, SANDBOX)] == [True, False]


def test_unknown_is_not_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_valid("java", "class A {}", SANDBOX).valid is None
    monkeypatch.setattr("treeplay.judge.validity.shutil.which", lambda _tool: None)
    seen = check_valid("c", "int a;", SANDBOX)
    assert (seen.valid, seen.detail) == (None, "gcc is not installed")


@pytest.mark.parametrize(
    ("stdout", "timed_out", "expected"),
    [
        (
            b"@@validity f00 p0.c 0\n\n@@validity f00 p1.c 1\np1.c:1: error: no\n",
            False,
            [True, False],
        ),
        (b"@@validity f00 p0.c 0\n\n", True, [True, None]),  # the time ran out on the second
        (b"@@validity f00 p0.c 137\n\n@@validity f00 p1.c 0\n", False, [None, True]),
        (
            b"@@validity f00 p0.c 127\nsh: gcc: not found\n@@validity f00 p1.c 0\n",
            False,
            [None, True],
        ),
        (b"@@validity f00 p0.c 1\ngcc: internal compiler error\n", False, [None, None]),
        (b"", False, [None, None]),
    ],
)
def test_checker_faults(
    stdout: bytes, timed_out: bool, expected: list[bool | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("c")
    monkeypatch.setattr("treeplay.judge.validity.secrets.token_hex", lambda _count: "f00")
    seen = check_valid_many("c", ["int a;", "int b;"], fake(stdout, timed_out=timed_out))
    assert [one.valid for one in seen] == expected


def test_a_program_cannot_tell_its_own_validity() -> None:
    """Compilers show lines of the source."""
    needs("c")
    programs = ["#error @@validity p0.c 0\n#error @@validity p1.c 1\n", "int a;"]
    assert [one.valid for one in check_valid_many("c", programs, SANDBOX)] == [False, True]
    needs("javascript")
    broken = "// @@validity p0.js 0\nlet a = ;"
    assert check_valid("javascript", broken, SANDBOX).valid is False


def test_many_blank_lines_take_no_time_to_speak_of() -> None:
    """No pattern may begin anew at each of them and read on to the end."""
    start = time.process_time()
    for module in (validity._MODULE, eslint._MODULE):
        assert not module.search("\n" * 200_000)
        assert module.search("\n\n  import x from 'y'")
    assert time.process_time() - start < 5


DOUBLE_FREE = """#include <stdlib.h>
int f(void)
{
    int *p = malloc(4);
    if (!p) return 1;
    free(p);
    free(p); // NOLINT
    return 0;
}
"""


@pytest.mark.parametrize("tool", [GCC, CLANG_TIDY], ids=lambda tool: tool.name)
@pytest.mark.parametrize(
    "silent",
    [
        "%s",
        '#pragma GCC diagnostic ignored "-Wanalyzer-double-free"\n%s',
        '_Pragma("GCC diagnostic ignored \\"-Wanalyzer-double-free\\"")\n%s',
        "#pragma GCC system_header\n%s",
        "#ifdef __clang_analyzer__\nint f(void) { return 0; }\n#else\n%s#endif\n",
    ],
)
def test_a_program_cannot_silence_an_analyser(tool: Tool, silent: str) -> None:
    if tool.version() is None:
        pytest.skip(tool.install)
    program = silent.replace("%s", DOUBLE_FREE)
    (result,) = tool.run([Program("c", program, ("CWE-415",))], SANDBOX)
    (finding,) = result.findings
    assert program.split("\n")[finding.line_start - 1].strip().startswith("free(p); //")


def test_bandit_findings() -> None:
    program = "import hashlib\n\n\ndef f(x):\n    eval(x)  # nosec\n    return hashlib.md5(x)\n"
    result = run_bandit(program)
    assert not result.failed
    assert [(one.rule, one.cwe, one.line_start) for one in result.findings] == [
        ("B307", "CWE-95", 5),
        ("B324", "CWE-327", 6),
    ]


def test_bandit_reads_a_method_without_its_class() -> None:
    result = run_bandit("    def f(self, x):\n        return eval(x)\n")
    assert [(one.rule, one.line_start, one.line_end) for one in result.findings] == [("B307", 2, 2)]


def test_bandit_leaves_out_mere_remarks() -> None:
    program = "import subprocess\n\nsubprocess.run(['ls', d])\nsubprocess.run('ls', shell=True)\n"
    assert run_bandit(program).findings == ()


def test_bandit_reports_its_own_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "SyntaxError" in run_bandit("def (").failed
    assert "UnicodeEncodeError" in run_bandit("x = '\ud800'").failed

    def broken(_context: Any, _config: Any = None) -> None:
        raise KeyError("oops")

    broken._test_id = "B999"  # type: ignore[attr-defined]
    tests = bandit_tool._parts()[2]
    monkeypatch.setattr(tests, "get_tests", lambda _kind: [broken])
    result = run_bandit("x = f(1)\n")
    assert "test broken crashed" in result.failed


def test_bandit_leaves_the_process_as_it_was() -> None:
    before = warnings.formatwarning, logging.getLogger("bandit").level
    run_bandit("x = 1\n")
    assert (warnings.formatwarning, logging.getLogger("bandit").level) == before


def test_bandit_covers_what_it_finds() -> None:
    for number in (22, 78, 79, 89, 94, 295, 327, 330, 338, 377, 502, 611, 732):
        assert bandit_covers(f"CWE-{number}"), number
    for number in (117, 476, 601, 918, 1333):
        assert not bandit_covers(f"CWE-{number}"), number


def test_tools_answer_in_order_and_only_what_is_asked() -> None:
    rule = next(one for one in load_rules() if (one.language, one.kind) == ("python", "vulnerable"))
    evil = "def f(a):\n    return eval(a)\n"
    for tool, text, cwe, name in ((BANDIT, evil, "CWE-95", "B307"), (RULES, *_example(rule))):
        assert tool.version()
        asked: tuple[tuple[str, ...], ...] = (("CWE-835",), (cwe,), ())
        programs = [Program("python", text, one) for one in asked]
        results = tool.run([*programs, Program("python", "def (")], SANDBOX)
        assert [name in {one.rule for one in result.findings} for result in results] == [
            False,
            True,
            True,
            False,
        ]
        # a tree is made of any text, a compiler's reader gives up
        assert bool(results[3].failed) is (tool is BANDIT)
        assert tool.covers("python", cwe)
        assert not tool.covers("python", "CWE-835")
    assert not BANDIT.covers("go", "CWE-95")


def _example(rule: Rule) -> tuple[str, str, str]:
    return rule.match[0], rule.cwe[0], rule.id
