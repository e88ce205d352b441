"""Claims beside results: which are reached, only hinted at, or missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_results_page import line, page, results, row, tables, write  # noqa: F401

from treeplay.experiments.goals import GOALS, Goal, goals_table, reached
from treeplay.experiments.page import write_page
from treeplay.experiments.results import read_studies
from treeplay.experiments.stats import Estimate


def found(
    value: float, low: float | None, high: float | None, clusters: int = 10, moved: int = 6
) -> Estimate:
    return Estimate(value, low, high, clusters, 2, clusters, moved)


HIGHER = Goal("main", ("x",), "spr1_all", "spin", 0.0, 0.0)
KEPT = Goal("main", ("x",), "valid", "base", -0.02, -0.02)
NO_HIGHER = Goal("main", ("x",), "inert", "base", 0.0, 0.0, below=True)
RATIO = Goal("main", ("x",), "spr1_all", "sft", 4 / 3, 1.0, ratio=True)
FEWER = Goal("unseen", ("x",), "vulnerable", "base", 0.68, 1.0, ratio=True, below=True)


@pytest.mark.parametrize(
    ("goal", "estimate", "said"),
    [
        (HIGHER, found(0.04, 0.01, 0.08), "yes"),
        (HIGHER, found(0.04, 0.0, 0.08), "not shown"),
        (HIGHER, found(0.04, None, None), "not shown"),
        (HIGHER, found(0.0, 0.0, 0.0), "no"),
        (HIGHER, found(-0.01, -0.02, 0.01), "no"),
        (KEPT, found(-0.01, -0.02, 0.01), "yes"),
        (KEPT, found(-0.01, -0.03, 0.01), "not shown"),
        (KEPT, found(-0.03, -0.05, -0.01), "no"),
        (NO_HIGHER, found(0.0, 0.0, 0.0), "yes"),
        (NO_HIGHER, found(-0.01, -0.05, 0.02), "not shown"),
        (NO_HIGHER, found(0.01, -0.05, 0.02), "no"),
        (RATIO, found(1.4, 1.1, 2.0), "yes"),
        (RATIO, found(1.4, 0.9, float("inf")), "not shown"),
        (RATIO, found(1.3, 1.1, 2.0), "no"),
        (FEWER, found(0.6, 0.4, 0.9), "yes"),
        (FEWER, found(0.6, 0.4, 1.1), "not shown"),
        (FEWER, found(0.7, 0.6, 0.9), "no"),
        # Too few tasks differ.
        (HIGHER, found(0.04, 0.01, 0.08, moved=5), "not shown"),
        (NO_HIGHER, found(0.0, 0.0, 0.0, 400, 0), "not shown"),
        # None of n lost anything: up to 3 / n of them may.
        (KEPT, found(0.0, 0.0, 0.0, 20, 0), "not shown"),
        (KEPT, found(0.02, 0.0, 0.07, 149, 1), "not shown"),
        (KEPT, found(0.02, 0.0, 0.07, 150, 1), "yes"),
        (KEPT, found(-0.01, -0.03, 0.0, 150, 1), "not shown"),
    ],
)
def test_reached(goal: Goal, estimate: Estimate, said: str) -> None:
    assert reached(goal, estimate) == said


def test_goals_have_a_page_of_their_own(results: Path, page: Path) -> None:  # noqa: F811
    ability = row("g", 0, 0, suite="m@full", general=True)

    def eight(low: int, high: int, vulnerable: int) -> list[list[Any]]:
        return [row(f"{n}", high if n % 2 else low, vulnerable) for n in range(8)]

    for seed in (0, 1):
        write(results, "base", seed, [*eight(1, 2, 4), ability])
        write(results, "tsp", seed, [*eight(4, 5, 2), ability])
        write(results, "sft", seed, eight(2, 3, 4))
        write(results, "tsp-own", seed, eight(1, 2, 2))
    write_page(results, page)
    text = tables(page, "claims")
    start = ("main", "tiny", "2", "executed, decision form", "`tsp`")
    assert line(text, *start, "SPR@1, ratio", "`sft`")[7:10] == [
        "at least 1.33 times",
        "1.80 [1.70, 1.94]",
        "yes",
    ]
    # Nothing differs, in eight tasks: that shows nothing.
    alike = ["no higher", "0.0 [0.0, 0.0]", "not shown"]
    assert line(text, *start, "inert", "`base`")[7:10] == alike
    assert line(text, *start, "valid", "`base`")[9:] == ["yes", "n/a"]
    # A base model that passes nothing cannot lose: that is no success.
    general = ("main", "tiny", "2", "general ability", "`tsp`", "pass@1")
    assert line(text, *general)[9] == "nothing to lose"
    # The other claimant has rows of its own.
    assert line(text, *start[:-1], "`tsp-own`", "SPR@1, ratio", "`sft`")[9] == "no"
    found = page.read_text()
    assert found.index("(page/claims.md)") < found.index("### `main`")


def test_the_best_other_has_the_same_seeds(results: Path) -> None:  # noqa: F811
    for arm, seeds, secure in (("dpo", (0, 1), 3), ("ipo", (0,), 6), ("base", (0, 1), 1)):
        for seed in seeds:
            rows = [row(task, secure, 0, suite="cweval@token") for task in ("a", "b")]
            write(results, arm, seed, rows)
    for seed in (0, 1):
        write(results, "tsp", seed, [row(t, 5, 0, suite="cweval@token") for t in ("a", "b")])
    table = "\n".join(goals_table(read_studies(results)))
    assert "| `dpo` (the best other) | higher | +20.0 [+20.0, +20.0] |" in table
    assert "`ipo`" not in table


def test_a_fold_that_is_missing_is_told(results: Path, page: Path) -> None:  # noqa: F811
    for seed in (0, 1):
        write(results, "tsp", seed, [row("a", 4, 2)])
    write_page(results, page)
    fewer = "executed, decision form, 1 of the tasks"
    goals = tables(page, "claims")
    assert line(goals, "main", "tiny", "2", fewer, "`tsp`", "SPR@1, ratio")[8] == "2.00"
    text = tables(page)
    assert line(text, fewer, "`tsp`", "`sft`")[3] == "+20.0"
    # Beside the base model: the claimant lacks a task, sft does not.
    assert line(text, fewer, "`tsp`", "+30.0")
    assert line(text, "executed, decision form", "`sft`", "+10.0")


def test_without_a_claimant_there_is_no_goal(results: Path) -> None:  # noqa: F811
    for path in (results / "main" / "tiny" / "tsp").iterdir():
        path.unlink()
    assert goals_table(read_studies(results)) == []


def test_every_goal_is_in_words() -> None:
    assert {goal.words() for goal in GOALS} == {
        "at least 1.33 times",
        "at most 0.68 times",
        "higher",
        "no higher",
        "no more than 1 point lower",
        "no more than 2 points lower",
    }


def test_a_ratio_to_nothing_is_told(results: Path, page: Path) -> None:  # noqa: F811
    for seed in (0, 1):
        write(results, "sft", seed, [row("a", 0, 4), row("b", 0, 4)])
    write_page(results, page)
    start = ("main", "tiny", "2", "executed, decision form", "`tsp`", "SPR@1, ratio", "`sft`")
    assert line(tables(page, "claims"), *start)[8:10] == ["n/a (`sft` has none)", "not shown"]
