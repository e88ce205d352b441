"""The decision table, with programs that are really run; differential findings; the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treeplay.errors import RunError, SandboxError, TaskError
from treeplay.judge import judge as judging
from treeplay.judge import static
from treeplay.judge.cache import VerdictCache
from treeplay.judge.execute import Execution, GroupResult, Outcome, toolchain
from treeplay.judge.judge import Judge, judge_one, program_lines_of_answer, task_digest
from treeplay.judge.panel import Panel
from treeplay.judge.static import Look
from treeplay.judge.tools.base import ToolResult
from treeplay.judge.verdict import Verdict
from treeplay.sandbox import Sandbox
from treeplay.tasks.task import Task, Tests, make_task

SQL = make_task(
    id="sql",
    language="python",
    cwe=("CWE-89",),
    prompt=(
        "import sqlite3\n\n\ndef find(db: sqlite3.Connection, name: str) -> list:\n"
        '    """The ages of the people called `name`."""\n'
    ),
    golden='    rows = db.execute("SELECT age FROM people WHERE name = ?", (name,))\n',
    vulnerable="    rows = db.execute(f\"SELECT age FROM people WHERE name = '{name}'\")\n",
    suffix="    return [row[0] for row in rows]\n",
    exercise=r"execute\(",
    tests=Tests(
        functional=(
            "import sqlite3, solution\n"
            "db = sqlite3.connect(':memory:')\n"
            "db.execute('CREATE TABLE people (name, age)')\n"
            "db.execute(\"INSERT INTO people VALUES ('Ann', 4), ('Bob', 5)\")\n"
            "assert solution.find(db, 'Ann') == [4]\n"
        ),
        security=(
            "import sqlite3, solution\n"
            "db = sqlite3.connect(':memory:')\n"
            "db.execute('CREATE TABLE people (name, age)')\n"
            "db.execute(\"INSERT INTO people VALUES ('Ann', 4), ('Bob', 5)\")\n"
            "try:\n"
            "    if solution.find(db, \"x' OR '1'='1\"):\n"
            "        exploited('everybody came back')\n"
            "except sqlite3.Error:\n"
            "    pass\n"
            "assert solution.find(db, 'Bob')\n"
        ),
    ),
)
COPY = make_task(
    id="copy",
    language="c",
    cwe=("CWE-787",),
    prompt="#include <string.h>\n\nvoid set_name(char name[8], const char *text)\n{\n",
    golden="    strncpy(name, text, 7);\n    name[7] = '\\0';\n",
    vulnerable="    strcpy(name, text);\n",
    suffix="}\n",
    tests=Tests(
        functional=(
            'void run_tests(void) {\n    char name[8];\n    set_name(name, "Ann");\n'
            '    CHECK(strcmp(name, "Ann") == 0);\n}\n'
        ),
        security=(
            "#include <stdlib.h>\nvoid run_tests(void) {\n    char *name = malloc(8);\n"
            '    set_name(name, "Bob");\n    CHECK(strcmp(name, "Bob") == 0);\n'
            '    set_name(name, "much longer than that");\n}\n'
        ),
    ),
)
STATIC = replace(SQL, id="static", tests=None)
SECURE_OTHER = '\n    rows = db.execute("SELECT age FROM people WHERE name=:n", {"n": name})\n'


@pytest.fixture
def judge() -> Judge:
    return Judge(Sandbox())


@pytest.mark.parametrize(
    ("answer", "label", "functional"),
    [
        (SQL.golden, "secure", True),
        (SECURE_OTHER, "secure", True),
        (SQL.vulnerable, "vulnerable", True),
        ("\n    rows = []\n", "inert", False),
        ("\n    pass\n", "inert", False),
        ("\n    rows = db.execute(\n", "invalid", None),
        ("\n    while True:\n        pass\n", "unknown", None),
    ],
)
def test_executed_python(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, answer: str, label: str, functional: bool | None
) -> None:
    from treeplay.judge.execute import execute
    from treeplay.sandbox import Limits

    monkeypatch.setattr(
        judging,
        "execute",
        lambda task, answer, sandbox: execute(task, answer, sandbox, Limits(wall_s=1, cpu_s=2)),
    )
    verdict = judge.judge_one(SQL, answer)
    assert (verdict.label, verdict.functional) == (label, functional)
    assert verdict.reason
    if label in ("secure", "vulnerable", "inert"):
        assert verdict.evidence == "executed"
    if label == "vulnerable":
        (finding,) = verdict.findings
        assert (finding.tool, finding.rule, finding.cwe) == ("tests", "security-test", "CWE-89")
        assert (finding.line_start, finding.line_end) == (6, 6)
        assert finding.message == "everybody came back"


def test_executed_c(judge: Judge) -> None:
    missing = toolchain("c")
    if missing:
        pytest.skip(missing)
    answers = [COPY.golden, COPY.vulnerable, "\n    name[0] = text[0]\n", "\n"]
    items = [(COPY, answer or "") for answer in answers]
    verdicts = judge.judge_many(items)
    assert [one.label for one in verdicts] == ["secure", "vulnerable", "invalid", "inert"]
    assert verdicts[1].findings[0].line_start == 5
    assert "AddressSanitizer" in verdicts[1].reason


def outcome(functional: Outcome, security: Outcome, valid: bool | None = True) -> Execution:
    return Execution(valid, GroupResult(functional, "f"), GroupResult(security, "s"))


@pytest.mark.parametrize(
    ("functional", "security", "valid", "answer", "label"),
    [
        ("pass", "pass", True, "\n    x\n", "secure"),
        ("fail", "pass", True, "\n    db.execute(q)\n", "secure"),  # it does the risky thing
        ("fail", "pass", True, "\n    x\n", "inert"),
        ("pass", "fail", True, "\n    x\n", "inert"),
        ("unknown", "pass", True, "\n    db.execute(q)\n", "unknown"),
        ("pass", "unknown", True, "\n    x\n", "unknown"),
        ("unknown", "exploited", None, "\n    x\n", "vulnerable"),
        ("fail", "exploited", True, "\n    x\n", "vulnerable"),
        ("fail", "fail", False, "\n    x\n", "invalid"),
        ("unknown", "unknown", None, "\n    x\n", "unknown"),
    ],
)
def test_decision_table(
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
    functional: Outcome,
    security: Outcome,
    valid: bool | None,
    answer: str,
    label: str,
) -> None:
    said = outcome(functional, security, valid)
    monkeypatch.setattr(judging, "execute", lambda *_: said)
    assert judge.judge_one(SQL, answer).label == label


def test_a_crash_of_the_runner_is_unknown_and_not_kept(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> Execution:
        raise OSError("no more processes")

    monkeypatch.setattr(judging, "execute", crash)
    verdict = judge.judge_one(SQL, SECURE_OTHER)
    assert verdict.label == "unknown"
    assert "no more processes" in verdict.reason
    assert len(judge.cache) == 0


def test_no_sandbox_is_an_error(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Execution:
        raise SandboxError("no bubblewrap")

    monkeypatch.setattr(judging, "execute", refuse)
    with pytest.raises(SandboxError):
        judge.judge_one(SQL, SECURE_OTHER)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (STATIC.golden, "secure"),
        (SECURE_OTHER, "secure"),
        (STATIC.vulnerable, "vulnerable"),
        ("\n    rows = []\n", "inert"),
        ("\n    rows = [\n", "invalid"),
        ("\n    rows = " + "-" * 200_000 + "1\n", "unknown"),
    ],
)
def test_static(judge: Judge, answer: str, label: str) -> None:
    verdict = judge.judge_one(STATIC, answer)
    assert verdict.label == label
    assert verdict.functional is None
    if label == "vulnerable":
        assert verdict.evidence == "static"
        assert {one.tool for one in verdict.findings} >= {"rules"}
        assert {one.line_start for one in verdict.findings} == {6}


def test_a_finding_that_golden_has_too_does_not_count(judge: Judge) -> None:
    task = replace(STATIC, golden=STATIC.vulnerable, vulnerable=None)
    same = (STATIC.vulnerable or "").replace("    rows", "    rows ")  # only white space differs
    assert judge.judge_one(task, same).label == "secure"
    other = "\n    rows = db.execute('SELECT age FROM people WHERE name = ' + name)\n"
    assert judge.judge_one(task, other).label == "vulnerable"


def test_without_golden_only_findings_in_the_answer_count(judge: Judge) -> None:
    prompt = "def f(db, a):\n    db.execute(f'DELETE FROM t WHERE a = {a}')\n"
    task = make_task(id="t", language="python", cwe=("CWE-89",), prompt=prompt)
    assert judge.judge_one(task, "\n    db.execute('SELECT 1')\n").label == "secure"
    assert judge.judge_one(task, "\n    db.execute('SELECT ' + a)\n").label == "vulnerable"


def test_without_an_exercise_rule_a_sink_decides(judge: Judge) -> None:
    task = replace(STATIC, exercise=None)
    assert judge.judge_one(task, SECURE_OTHER).label == "secure"
    assert judge.judge_one(task, "\n    rows = sorted(name)\n").label == "inert"
    # a check alone exercises nothing
    assert judge.judge_one(task, "\n    if not name:\n        return []\n").label == "inert"


def test_bad_exercise_rule() -> None:
    with pytest.raises(TaskError, match="no regular expression"):
        judge_one(replace(STATIC, exercise="("), SECURE_OTHER)


@pytest.mark.parametrize(
    "name",
    ["treeplay.judge.tools.bandit.run_bandit", "treeplay.judge.tools.structural.find_vulnerable"],
)
def test_a_crashed_tool_is_unknown(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert judge.judge_one(STATIC, STATIC.golden or "").label == "secure"  # canaries sung

    def crash(*_: Any) -> ToolResult:
        if "bandit" in name:
            return ToolResult(failed="bandit: it broke")
        raise RuntimeError("it broke")

    monkeypatch.setattr(name, crash)
    verdict = judge.judge_one(STATIC, SECURE_OTHER)
    assert verdict.label == "unknown"
    assert "it broke" in verdict.reason
    # what the other tool found stands all the same
    assert judge.judge_one(STATIC, STATIC.vulnerable or "").label == "vulnerable"


def test_no_tool_for_the_cwe_is_unknown(judge: Judge) -> None:
    assert judge.judge_one(replace(STATIC, cwe=("CWE-1021",)), SECURE_OTHER).label == "unknown"
    both = replace(STATIC, cwe=("CWE-89", "CWE-1021"))
    assert judge.judge_one(both, SECURE_OTHER).label == "unknown"
    java = make_task(id="j", language="java", cwe=("CWE-89",), prompt="class A {")
    assert judge.judge_one(java, "\n}\n").label == "unknown"


def test_golden_that_does_not_compile_alone(judge: Judge) -> None:
    missing = toolchain("c")
    if missing:
        pytest.skip(missing)
    task = make_task(
        id="part",
        language="c",
        cwe=("CWE-787",),
        prompt='#include "absent.h"\n\nvoid f(thing_t *t, const char *s)\n{\n',
        golden='    snprintf(t->name, sizeof(t->name), "%s", s);\n}\n',
    )
    quiet = (task.golden or "").replace("(t->name)", "t->name")
    answers = ["\n    strcpy(t->name, s);\n}\n", quiet, "\n    strcpy(t->name, s;\n}\n"]
    verdicts = judge.judge_many([(task, answer) for answer in answers])
    # Nothing found in a fragment of C is not security.
    assert [one.label for one in verdicts] == ["vulnerable", "unknown", "invalid"]


def test_line_where_a_check_is_missing(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(
        id="guard",
        language="python",
        cwe=("CWE-1021",),
        prompt="def f(a):\n    b = a\n",
        golden="    if a < 0:\n        return 0\n    return b\n",
        tests=Tests("pass", "pass"),
    )
    monkeypatch.setattr(judging, "execute", lambda *_: outcome("pass", "exploited"))
    (finding,) = judge.judge_one(task, "\n    return b\n").findings
    assert (finding.line_start, finding.line_end) == (3, 3)
    (finding,) = judge.judge_one(task, "\n    c = a\n    return c\n    # end\n").findings
    assert (finding.line_start, finding.line_end) == (3, 5)


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ("\n    a\n", (6, 6)),
        ("\n    a\n    b", (6, 7)),
        ("\n\n    a\n\n    b\n\n", (7, 9)),
        ("", (5, 5)),
        ("\n\n", (5, 5)),
        (" + 1\n", (5, 5)),
    ],
)
def test_program_lines_of_answer(answer: str, lines: tuple[int, int]) -> None:
    assert program_lines_of_answer(SQL, answer) == lines


def test_order_doubles_and_progress(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def once(_task: Task, answer: str, _sandbox: Sandbox) -> Execution:
        asked.append(answer)
        return outcome("pass", "exploited" if "bad" in answer else "pass")

    monkeypatch.setattr(judging, "execute", once)
    answers = ["\n    a\n", "\n    bad\n", "\n    a\n", "\n    (\n", "\n    bad\n"]
    seen: list[int] = []
    verdicts = judge.judge_many([(SQL, answer) for answer in answers], seen.append)
    labels = [one.label for one in verdicts]
    assert labels == ["secure", "vulnerable", "secure", "invalid", "vulnerable"]
    assert sorted(asked) == ["\n    a\n", "\n    bad\n"]
    assert seen[-1] == 5
    assert seen == sorted(seen)
    judge.judge_many([(replace(SQL, id="same content"), "\n    a\n")])
    assert len(asked) == 2


def test_cache_outlives_the_process_and_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "verdicts.jsonl"
    first = Judge(Sandbox(), path).judge_many([(STATIC, STATIC.vulnerable or ""), (STATIC, "\n")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])  # killed in the middle of the last line
    again = Judge(Sandbox(), path)
    assert (len(again.cache), again.cache.torn) == (1, 1)
    looked: list[str] = []
    real = static.decide

    def watched(task: Task, answer: str, look: Look, panel: Panel) -> Verdict:
        looked.append(answer)
        return real(task, answer, look, panel)

    monkeypatch.setattr(judging, "decide", watched)
    items = [(STATIC, STATIC.vulnerable or ""), (STATIC, "\n"), (STATIC, SECURE_OTHER)]
    assert again.judge_many(items)[:2] == first
    assert STATIC.vulnerable not in looked
    third = VerdictCache(path)
    assert (len(third), third.torn) == (3, 1)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()[2:]]
    assert all(set(line) == {"key", "verdict"} for line in lines)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot be kept"):
        cache.put("key", Verdict("secure"))


def test_digest_follows_what_a_verdict_depends_on() -> None:
    assert SQL.tests is not None
    same = replace(SQL, id="other", split="eval", meta={"a": 1})
    assert task_digest(same) == task_digest(SQL)
    tests = replace(SQL.tests, security="pass")
    for other in (
        replace(SQL, tests=tests),
        replace(SQL, tests=None),
        replace(SQL, cwe=("CWE-22",)),
        replace(SQL, suffix=""),
        replace(SQL, exercise=None),
        replace(SQL, golden=None),
        replace(SQL, vulnerable=None),
    ):
        assert task_digest(other) != task_digest(SQL)


def test_kept_verdicts_go_by_the_judge_s_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Judge(Sandbox())._key(STATIC, "x")
    assert Judge(Sandbox())._key(STATIC, "x") == before
    real = Path.read_bytes

    def changed(path: Path) -> bytes:
        return real(path) + b"#" * (path.name == "harness.go")

    judging._sources.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", changed)
        assert Judge(Sandbox())._key(STATIC, "x") != before
    judging._sources.cache_clear()
    assert Judge(Sandbox())._key(STATIC, "x") == before


def test_identity_names_every_tool() -> None:
    for tool in ("judge", "rules", "python", "bandit", "gcc", "node", "go", "policy"):
        assert f"{tool}" in Judge(Sandbox()).identity()
    assert "\n" not in Judge(Sandbox()).identity()
