"""Experiments as they are played outside smoke runs: budgets, faults of one run, kept results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tinydata import make_data

from treeplay.errors import ConfigError, RunError
from treeplay.experiments import runs
from treeplay.experiments.budget import MANY
from treeplay.experiments.costs import lines
from treeplay.experiments.data import prepare
from treeplay.experiments.page import BEGIN, END, page_files
from treeplay.experiments.plan import Plan
from treeplay.experiments.protocol import parse_protocol
from treeplay.experiments.runs import run_plan
from treeplay.judge.judge import Judge
from treeplay.judge.verdict import Verdict
from treeplay.progress import Reporter

pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run

PROTOCOL = """
title: a few tasks
train:
  - {source: starter, splits: [train], languages: [python], max_chars: 460, limit: {cpu: 3}}
eval:
  - source: starter
    splits: [eval-seen]
    languages: [python]
    max_chars: 460
    limit: {cpu: 9}
    form: token
settings:
  model: {dtype: float32, threads: 1}
  judge: {tools: [rules, bandit]}
  nodes: {sources: [diff], per_task: 1}
  grow: {completion: graft, max_tokens: 12}
  contrasts: {extent: local, anchor: 1.0}
  train: {groups_per_step: 1, lora: {r: 4}, budget: 1500}
  eval: {samples: 2, max_tokens: 12}
arms:
  tsp: {grow: {branches: 3}}
  sft: {}
  dpo: {}
  spin: {grow: {completion: model}}
"""
Planned = Callable[..., Plan]


@pytest.fixture
def planned(writer: Path, tmp_path: Path) -> Planned:
    """A plan of the protocol above, with ``changes`` in its text."""

    def plan(*arms: str, changes: tuple[tuple[str, str], ...] = (), more: Any = ()) -> Plan:
        text = PROTOCOL
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        protocol = parse_protocol("tiny", text)
        data = make_data(tmp_path / "data")
        folds = prepare(protocol, data, tmp_path / "runs" / "tiny", "cpu", lambda line: None)
        places = (tmp_path / "runs", tmp_path / "results")
        return Plan(protocol, "cpu", str(writer), arms, (0,), tuple(folds), *places, tuple(more))

    return plan


def told(plan: Plan, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan.result(arm, 0).read_text())
    return found


def page_of(folder: Path) -> str:
    """The results pages of what was played."""
    path = folder / "page.md"
    path.write_text(f"{BEGIN}\n{END}\n")
    files = page_files(folder / "results", path)
    return "\n".join(text for path, text in files.items() if path.suffix == ".md")


def test_arms_take_the_tokens_of_the_reference(planned: Planned, tmp_path: Path) -> None:
    plan = planned("tsp", "sft", "spin")
    assert [one.faults for one in run_plan(plan, Reporter(quiet=True))] == [(), (), (), ()]
    (tsp,), (sft,), (spin,) = (told(plan, arm)["runs"] for arm in ("tsp", "sft", "spin"))
    sampled, gradient = tsp["used"]["sampled"], tsp["used"]["gradient"]
    assert (sampled > 0, gradient >= 1500) == (True, True)
    assert sft["budget"] == [f"train.budget={gradient}"]
    assert set(spin["budget"]) == {
        *(f"train.budget={gradient}", f"grow.budget={sampled}"),
        *(f"grow.branches={MANY}", "grow.wave=1"),
    }
    # To a step of one task, and to half a wave of one branch a task.
    step = max(run["training"]["round-1"]["last"]["learnt"] for run in (tsp, sft, spin))
    for run in (sft, spin):
        assert gradient <= run["used"]["gradient"] <= gradient + 2 * step
    assert abs(spin["used"]["sampled"] - sampled) <= 3 * 12
    assert sft["used"]["sampled"] == 0

    # What is there is kept; what was given far other budgets is refused, before anything is played.
    assert not any(one.played for one in run_plan(plan, Reporter(quiet=True)))
    path = plan.result("spin", 0)
    text = path.read_text()
    other = text.replace(f"grow.budget={sampled}", f"grow.budget={2 * sampled}")
    for kept, arms in ((other, ("tsp", "dpo", "spin")), ("{", ("tsp", "dpo", "spin"))):
        path.write_text(kept)
        fault, words = (RunError, "spin/0.json") if kept == "{" else (ConfigError, "other budgets")
        with pytest.raises(fault, match=words):
            run_plan(replace(plan, arms=arms), Reporter(quiet=True))
        assert not plan.result("dpo", 0).exists()
    path.write_text(text)

    # Tokens of a reference that other settings made are nobody's budget.
    stale = planned("sft", changes=(("per_task: 1", "per_task: 2"),))
    stale.result("sft", 0).unlink()
    stale.result("base", 0).unlink()
    (_, outcome) = run_plan(stale, Reporter(quiet=True))
    assert "whose tokens are the budget of sft, was made with other settings" in outcome.faults[0]
    assert any("cannot run" in line for line in lines(stale))

    # The page tells where budgets are apart.
    (spin,) = told(plan, "spin")["runs"]
    page = page_of(tmp_path)
    assert "sampled tokens, where" not in page
    much = text.replace(
        f'"sampled": {spin["used"]["sampled"]},\n    "nodes"', '"sampled": 9999,\n    "nodes"'
    )
    assert much != text
    path.write_text(much)
    page = page_of(tmp_path)
    assert f"9,999 sampled tokens, where tsp took {sampled}" in page


TRAINED = "{source: starter, splits: [train], languages: [python], max_chars: 460, limit: {cpu: 3}}"


def test_an_arm_played_before_the_reference_is_told_apart(planned: Planned) -> None:
    """It was trained as its recipe says; by now its budget would be another."""
    assert not any(one.faults for one in run_plan(planned("sft"), Reporter(quiet=True)))
    outcomes = run_plan(planned("tsp", "sft"), Reporter(quiet=True))
    assert [(one.arm, bool(one.faults), one.played) for one in outcomes] == [
        ("base", False, False),
        ("tsp", False, True),
        ("sft", True, False),
    ]
    assert "was made with other budgets of tokens; remove it" in outcomes[-1].faults[0]


@pytest.mark.parametrize(
    ("change", "arm", "words"),
    [
        # Data without vulnerable answers.
        ((TRAINED, "{source: humaneval}"), "dpo", "vulnerable answer"),
        # A loss that is not a number.
        (("budget: 1500", "budget: 1500, learning_rate: 1.0e+30, warmup: 0.0"), "sft", "step"),
    ],
)
def test_a_run_that_fails_is_named_and_the_others_go_on(
    change: tuple[str, str], arm: str, words: str, planned: Planned
) -> None:
    plan = planned(arm, changes=(change,))
    base, failed = run_plan(plan, Reporter(quiet=True))
    assert base.faults == ()
    (fault,) = failed.faults
    assert words in fault
    assert told(plan, arm)["tasks"] == []
    assert [one["fold"] for one in told(plan, arm)["faults"]] == [0]


def test_a_fold_without_tasks_is_the_fault_of_that_fold(planned: Planned) -> None:
    plan = planned(
        "sft",
        changes=(
            ("title:", "folds: 2\ntitle:"),
            (TRAINED, TRAINED.replace("limit", "cwes: [CWE-78], limit")),
            ("    splits: [eval-seen]\n", "    cwes: [CWE-78, CWE-89]\n"),
        ),
    )
    _, outcome = run_plan(plan, Reporter(quiet=True))
    assert outcome.faults == ("fold 1: no task is left to train on",)
    assert [run["fold"] for run in told(plan, "sft")["runs"]] == [2]


def _flag(judge: Judge, items: Any, told: Any = None) -> list[Verdict]:
    return [Verdict("vulnerable", "executed") for _ in items]


def test_a_judge_that_flags_everything_is_named(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Judge, "judge_many", _flag)
    plan = planned("tsp", changes=(("branches: 3", "branches: 4"),))
    assert not any(one.faults for one in run_plan(plan, Reporter(quiet=True)))
    (run,) = told(plan, "tsp")["runs"]
    assert "flagged all of" in run["branches"][0]["warning"]
    assert "do not believe it" in " ".join(run["run"]["warnings"])
    page = page_of(tmp_path)
    assert "`base`, seed 0: base: starter@token: the judge flagged all of 12 answers" in page


def test_an_opponent_without_mistakes_is_named(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Golden answers are learnt all the same (anchors), which makes the arm another method."""

    def acquit(judge: Judge, items: Any, told: Any = None) -> list[Verdict]:
        return [Verdict("secure", "executed") for _ in items]

    monkeypatch.setattr(Judge, "judge_many", acquit)
    plan = planned("tsp")
    assert not any(one.faults for one in run_plan(plan, Reporter(quiet=True)))
    (run,) = told(plan, "tsp")["runs"]
    words = "round-1: nothing to disprefer; golden answers alone are learnt"
    assert words in run["run"]["warnings"]
    page = page_of(tmp_path)
    assert f"- `tsp`, seed 0: {words}" in page


def test_a_broken_run_leaves_its_trace(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(game: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runs, "_look_for_faults", broken)
    plan = planned("sft")
    assert run_plan(plan, Reporter(quiet=True))[1].faults == ("ZeroDivisionError: a bug",)
    (cell,) = plan.cells("sft", 0)
    assert "in broken" in cell.folder.with_name("0.trace").read_text()
