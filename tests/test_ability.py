"""General ability: HumanEval and MBPP as tasks, judged by their tests, kept out of every SPR."""

from __future__ import annotations

import gzip
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from treeplay.errors import TaskError
from treeplay.judge.execute import execute
from treeplay.judge.judge import judge_one
from treeplay.judge.verdict import Label, Verdict
from treeplay.metrics import GENERAL_METRICS, METRICS, Scored, paired, rows, scored_to_json
from treeplay.report import build_report, print_table
from treeplay.sandbox import Sandbox
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.importers import import_tasks
from treeplay.tasks.importers.general import CUT_REFERENCE
from treeplay.tasks.importers.mbpp import HELPERS, NO_FUNCTION, OTHER_FUNCTION
from treeplay.tasks.task import Task
from treeplay.tasks.validate import check_task

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))

NUMBERS = count(1)  # of samples

# An entry point of the module's own name, tests that call a helper of the prompt.
HUMAN = {
    "task_id": "HumanEval/7",
    "prompt": 'def half(n):\n    return n // 2\n\n\ndef solution(n):\n    """Quarter.\n    """\n',
    "canonical_solution": "    def again(x):\n        return half(x)\n\n    return again(half(n))",
    "test": "\n\ndef check(candidate):\n    assert half(4) == 2\n    assert candidate(8) == 2\n",
    "entry_point": "solution",
}
MBPP = {
    "task_id": 3,
    "text": "Write a function to double every number; keep the \\ in the text.",
    "code": "import math\r\ndef twice(xs, by=2):\r\n\tout = []\r\n#a note\r\n\tfor x in xs:\r\n"
    "\t  out.append(math.prod((by, x)))\r\n\treturn out",
    "test_setup_code": "limit = 3",
    "test_list": ["assert len(twice([1])) < limit", "assert twice([1, 2]) == [2, 4]"],
    "challenge_test_list": [],
}


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def human(tmp_path: Path) -> Task:
    (task,) = import_tasks("humaneval", jsonl(tmp_path / "HumanEval.jsonl", HUMAN)).tasks
    return task


def test_humaneval_in_every_form(tmp_path: Path) -> None:
    upstream = human(tmp_path)
    assert (upstream.id, upstream.cwe, upstream.split) == ("humaneval/7", (), "eval")
    assert upstream.general
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(HUMAN).encode()))
    assert import_tasks("humaneval", packed).tasks == [upstream]
    keys = ("id", "source", "language", "cwe", "secure", "vulnerable")
    record = {**dict.fromkeys(keys), "prompt": HUMAN["prompt"], "meta": HUMAN, "id": "humaneval/7"}
    assert import_tasks("humaneval", jsonl(tmp_path / "r.jsonl", record)).tasks == [upstream]
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(TaskError, match="cannot be read"):
        import_tasks("humaneval", packed)


def test_mbpp_upstream_gets_a_prompt(tmp_path: Path, sandbox: Sandbox) -> None:
    helper = {
        **MBPP,
        "task_id": 4,
        "code": "def h(x): return 2 * x\ndef twice(xs): return [h(x) for x in xs]",
    }
    named = {**MBPP, "task_id": 5, "code": "def sum(a): return a", "test_list": ["assert sum(1)"]}
    other = {**MBPP, "task_id": 6, "code": "def thrice(xs): return xs"}
    result = import_tasks("mbpp", jsonl(tmp_path / "mbpp.jsonl", MBPP, helper, named, other))
    assert [task.id for task in result.tasks] == ["mbpp/3", "mbpp/4", "mbpp/5"]
    assert result.report.dropped == {NO_FUNCTION: 1}
    assert result.report.flagged == {HELPERS: 1}
    first, second, _ = result.tasks
    assert first.prompt == (
        "import math\n\n\ndef twice(xs, by=2):\n"
        '    """\n    Write a function to double every number; keep the \\\\ in the text.\n'
        "    Test examples:\n    assert len(twice([1])) < limit\n"
        '    assert twice([1, 2]) == [2, 4]\n    """'
    )
    assert first.golden is not None
    assert cut_answer(first, first.golden + "\ndef more():\n    pass\n").text.rstrip() == (
        first.golden.rstrip()
    )
    assert second.prompt.startswith("def h(x): return 2 * x\n\n\ndef twice(xs):")
    for task in result.tasks:
        assert execute(task, task.golden or "", sandbox).functional.outcome == "pass", task.id


def test_mbpp_records_that_nobody_can_answer_are_dropped(tmp_path: Path) -> None:
    keys = ("source", "language", "cwe", "secure", "vulnerable")
    base = {**dict.fromkeys(keys), "meta": {"test": "assert set(f(1)) == {1}"}}
    good = {**base, "id": "mbpp/1", "prompt": 'def f(x):\n    """Doc."""\n'}
    bad = {**base, "id": "mbpp/2", "prompt": 'def helper(x):\n    """Doc."""\n'}
    result = import_tasks("mbpp", jsonl(tmp_path / "m.jsonl", good, bad))
    assert [(task.id, task.golden) for task in result.tasks] == [("mbpp/1", None)]
    assert result.report.dropped == {OTHER_FUNCTION: 1}


def test_the_verdict_is_of_the_functional_tests_alone(tmp_path: Path, sandbox: Sandbox) -> None:
    task = human(tmp_path)

    def verdict(answer: str) -> tuple[Label, bool | None]:
        found = judge_one(task, answer, sandbox)
        return found.label, found.functional

    assert verdict(task.golden or "") == ("plain", True)
    assert verdict("\n    return eval('n')\n") == ("plain", False)  # nobody looks for weaknesses
    assert verdict("\n    return (n\n") == ("invalid", None)
    assert verdict("\n    return n // 4\n\nimport sys\nsys.exit(0)\n")[1] is not True
    assert check_task(task, sandbox).ok


def scored(player: str, task: str, label: Label, passed: bool | None, suite: str = "he") -> Scored:
    verdict = Verdict(label, "executed", (), passed)
    cwe = ("CWE-89",) if suite == "sec" else ()
    number, round_ = next(NUMBERS), 0 if player == "base" else 1
    return Scored(
        player, round_, suite, "eval", "python", cwe, task, number, "x", 3, "answer", verdict
    )


def samples() -> list[Scored]:
    """Base passes half of task a and none of b, which it always breaks; round-1 half of b too.
    Beside them a task about security."""
    return [
        scored("base", "a", "plain", True),
        scored("base", "a", "plain", False),
        scored("base", "b", "invalid", None),
        scored("base", "b", "unknown", None),
        scored("round-1", "a", "plain", True),
        scored("round-1", "a", "plain", False),
        scored("round-1", "b", "plain", True),
        scored("round-1", "b", "invalid", None),
        scored("base", "s", "vulnerable", True, "sec"),
        scored("round-1", "s", "secure", True, "sec"),
    ]


def test_general_tasks_have_no_security_rates() -> None:
    found = {(row["player"], row["suite"]): row for row in rows(samples()) if not row["cwe"]}
    base, after = found["base", "he"], found["round-1", "he"]
    for metric in METRICS:
        assert (base[metric] is None) == (metric not in GENERAL_METRICS or metric == "pass5")
    # b counts although base never wrote anything valid there
    assert (base["pass1"], base["valid"], base["unknown"]) == (0.25, 0.5, 0.25)
    assert (after["pass1"], after["valid"]) == (0.5, 0.75)
    assert (found["base", "sec"]["spr1_all"], found["round-1", "sec"]["spr1_all"]) == (0, 1)
    differences = {row["metric"]: row["diff"] for row in paired(samples()) if row["suite"] == "he"}
    assert differences["pass1"] == 0.25
    assert differences["spr1_all"] is None


def test_a_task_without_cwe_but_with_security_tests_keeps_its_spr() -> None:
    both = [scored("base", "a", "secure", True), scored("base", "b", "invalid", None)]
    (row,) = [row for row in rows(both) if row["language"] == "all"]
    assert row["spr1_all"] == 0.5


def test_the_report_shows_ability_beside_security(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    lines = [json.dumps(scored_to_json(one)) + "\n" for one in samples()]
    (tmp_path / "eval" / "all.jsonl").write_text("".join(lines))
    report = build_report(tmp_path)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_table(report, console)
    text = console.export_text()
    security, _, ability = text.partition("he eval")
    assert "SPR@1" in security
    assert "SPR@1" not in ability
    assert "pass@1 +25.0 points" in ability
    page = (tmp_path / "report.html").read_text()
    assert page.index("sec eval") < page.index("he eval")
    # alone, pass@1 is the headline
    lines = [line for line in lines if '"he"' in line]
    (tmp_path / "eval" / "all.jsonl").write_text("".join(lines))
    build_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "of the samples of round-1 pass the tests" in page
    assert "is more, or less, secure" not in page


@pytest.mark.skipif(not (DATA / "humaneval.jsonl").is_file(), reason="no HumanEval data here")
def test_all_of_humaneval(sandbox: Sandbox) -> None:
    result = import_tasks("humaneval", DATA / "humaneval.jsonl")
    assert len(result.tasks) == 164
    assert CUT_REFERENCE not in result.report.flagged
    for task in result.tasks[32::40]:  # every 40th, from one whose tests call a helper
        outcome = execute(task, task.golden or "", sandbox).functional
        assert outcome.outcome == "pass", (task.id, outcome)


@pytest.mark.skipif(not (DATA / "mbpp.jsonl").is_file(), reason="no MBPP data here")
def test_all_of_mbpp() -> None:
    result = import_tasks("mbpp", DATA / "mbpp.jsonl")
    assert len(result.tasks) == 416
    assert result.report.dropped == {OTHER_FUNCTION: 11}
    assert all(task.general and task.tests for task in result.tasks)
