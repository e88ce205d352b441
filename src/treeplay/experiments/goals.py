"""What a player trained on trees is claimed to do, beside what the results show.

The paper's claims (arXiv 2606.03489), and that nothing is paid for them in ability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from treeplay.experiments.plan import BASE
from treeplay.experiments.results import Group, Study
from treeplay.experiments.stats import Estimate, difference, estimate, ratio
from treeplay.experiments.tables import HEADINGS, estimate_cell, table_head, table_line

# The arms of which it is claimed: trees alone, and with anchors that keep general ability.
CLAIMANTS = ("tsp", "tsp-own")
EXECUTED = "executed, decision form"
STATIC = "judged by static tools"
GENERAL = "general ability"


@dataclass(frozen=True)
class Goal:
    """``measure`` of a claimant against ``against`` (empty: every arm that is none): its
    ``ratio``, or its difference.
    ``bound`` is what the estimate is to reach, from above or, with ``below``, from below; ``clear``
    is what the whole interval has to lie beyond. ``groups`` are names of groups or their starts."""

    protocol: str
    groups: tuple[str, ...]
    measure: str
    against: str
    bound: float
    clear: float
    ratio: bool = False
    below: bool = False

    def words(self) -> str:
        most = "at most" if self.below else "at least"
        if self.ratio:
            return f"{most} {self.bound:.2f} times"
        if self.bound == self.clear == 0:
            return "no higher" if self.below else "higher"
        points = abs(100 * self.bound)
        return f"no more than {points:g} point{'s' * (points != 1)} lower"


GOALS = (
    Goal("main", (EXECUTED, STATIC), "spr1_all", "sft", 75.8 / 57.0, 1.0, ratio=True),
    Goal("main", (EXECUTED, STATIC), "spr1_all", "spin", 0.0, 0.0),
    Goal("main", (EXECUTED, STATIC), "spr1_all", "tsp-paper", 0.0, 0.0),
    Goal("main", ("cweval@token",), "secure_pass1", "", 0.0, 0.0),
    Goal("main", (GENERAL,), "pass1", BASE, -0.01, -0.01),
    Goal("main", (EXECUTED,), "valid", BASE, -0.02, -0.02),
    Goal("main", (EXECUTED,), "inert", BASE, 0.0, 0.0, below=True),
    Goal("unseen", (EXECUTED,), "vulnerable", BASE, 1 - 0.32, 1.0, ratio=True, below=True),
    Goal("transfer", (EXECUTED,), "spr1_all", BASE, 0.0, 0.0),
)


def goals_table(studies: Sequence[Study]) -> list[str]:
    """A row for every goal, study and group that there are results of; none without any."""
    rows = [row for study in studies for goal in GOALS for row in _rows(study, goal)]
    if not rows:
        return []
    heads = ("protocol", "model", "seeds", "tasks", "arm", "what", "against", "goal")
    return [
        "What is claimed of `tsp`, and of `tsp-own` (`tsp` with anchors on its own ordinary "
        "answers), and what these results show. *yes*: the estimate reaches the goal and its "
        "whole interval lies on the right side of no effect (where something may fall by so "
        "much: of that); *not shown*: only the estimate does; *no*: it does not; *nothing to "
        "lose*: the other's rate is within what may be lost.",
        "",
        *table_head((*heads, "found", "reached")),
        *(table_line(row) for row in rows),
    ]


def _rows(study: Study, goal: Goal) -> list[list[str]]:
    if study.protocol != goal.protocol:
        return []
    groups = [group for group in study.groups() if group.name.startswith(goal.groups)]
    others = [goal.against] if goal.against else [a for a in study.arms if a not in CLAIMANTS]
    rows = (
        _row(study, group, goal, mine, other)
        for group in groups
        for mine in CLAIMANTS
        for other in others
    )
    return [row for row in rows if row]


def _row(study: Study, group: Group, goal: Goal, mine: str, other: str) -> list[str]:
    """One line of the table; empty where the two arms have no seed or no value in common."""
    seeds = study.together(mine, other)
    if not seeds:
        return []
    compared: Callable[..., Estimate] = ratio if goal.ratio else difference
    found = compared(
        study.values(mine, group, goal.measure, seeds),
        study.values(other, group, goal.measure, seeds),
        group.clusters,
    )
    if found.value is None:
        return []
    scale, digits = (1, 2) if goal.ratio else (100, 1)
    told = estimate_cell(found, scale, sign=not goal.ratio, digits=digits)
    what = HEADINGS[goal.measure] + (", ratio" if goal.ratio else "")
    empty = _empty(study, group, goal, other, seeds)
    said = "nothing to lose" if empty else reached(goal, found)
    names = [study.protocol, study.model, str(len(seeds)), group.name]
    return [*names, f"`{mine}`", what, f"`{other}`", goal.words(), told, said]


def _empty(study: Study, group: Group, goal: Goal, arm: str, seeds: Sequence[int]) -> bool:
    """Whether the other arm's rate is so low that falling by more than is allowed cannot be."""
    theirs = estimate(study.values(arm, group, goal.measure, seeds), resamples=1).value
    return goal.bound < 0 and theirs is not None and theirs <= -goal.bound


def reached(goal: Goal, found: Estimate) -> str:
    """``yes``, ``not shown`` or ``no`` (see :func:`goals_table`)."""
    assert found.value is not None
    sign = -1.0 if goal.below else 1.0
    # "Higher" is more than the bound; a ratio, and what may fall by so much, may be just it.
    strict = not goal.ratio and not goal.below and goal.bound == 0
    over = sign * (found.value - goal.bound)
    if over < -1e-9 or (strict and over <= 1e-9):
        return "no"
    end = found.high if goal.below else found.low
    if end is None:
        return "not shown"
    past = sign * (end - goal.clear)
    beyond = past > 1e-9 or (goal.bound == goal.clear and not strict and past >= -1e-9)
    return "yes" if beyond else "not shown"
