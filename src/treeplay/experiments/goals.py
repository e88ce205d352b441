"""What a player trained on trees is claimed to do, beside what the results show.

The paper's claims (arXiv 2606.03489), and that nothing is paid for them in ability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from treeplay.experiments.cells import estimate_cell, p_cell, table_head, table_line
from treeplay.experiments.plan import BASE
from treeplay.experiments.results import Group, Study
from treeplay.experiments.stats import (
    FEW,
    Estimate,
    difference,
    estimate,
    holm,
    p_no_difference,
    ratio,
)
from treeplay.experiments.tables import HEADINGS

EXECUTED = "executed, decision form"
FULL = "executed, full form"
STATIC = "judged by static tools"
GENERAL = "general ability"
BEST = "the best other"


@dataclass(frozen=True)
class Goal:
    """``measure`` of an arm of which it is claimed against ``against`` (:data:`BEST`: the base
    model and the best of the arms of which it is not): its ``ratio``, or its difference.
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
    Goal("main", (EXECUTED, FULL, STATIC), "spr1_all", "sft", 75.8 / 57.0, 1.0, ratio=True),
    Goal("main", (EXECUTED, STATIC), "spr1_all", "spin", 0.0, 0.0),
    # The same with what tsp has beside its trees: its rate and its anchor, and its steps.
    Goal("main", (EXECUTED, STATIC), "spr1_all", "spin-anchored", 0.0, 0.0),
    Goal("main", (EXECUTED, STATIC), "spr1_all", "spin-stepped", 0.0, 0.0),
    Goal("main", (EXECUTED, STATIC), "spr1_all", "tsp-paper", 0.0, 0.0),
    Goal("main", ("cweval@token",), "secure_pass1", BEST, 0.0, 0.0),
    Goal("main", (GENERAL,), "pass1", BASE, -0.01, -0.01),
    Goal("main", (GENERAL,), "valid", BASE, -0.02, -0.02),
    Goal("main", (EXECUTED,), "valid", BASE, -0.02, -0.02),
    Goal("main", (EXECUTED,), "inert", BASE, 0.0, 0.0, below=True),
    Goal("unseen", (EXECUTED,), "vulnerable", BASE, 1 - 0.32, 1.0, ratio=True, below=True),
    Goal("transfer", (EXECUTED, STATIC), "spr1_all", BASE, 0.0, 0.0),
)


def goals_table(studies: Sequence[Study]) -> list[str]:
    """A row for every goal, study and group that there are results of; none without any."""
    rows = [row for study in studies for row in _study_rows(study)]
    if not rows:
        return []
    heads = ("protocol", "model", "seeds", "tasks", "arm", "what", "against", "goal")
    return [
        "What is claimed of `tsp`, of `tsp-own` (`tsp` with anchors on its own ordinary answers), "
        "of `given` and `own-given` (`tsp` and `tsp-own` that reject the tasks' own vulnerable "
        "answers too) and of `own-stepped` and `own-given-stepped` (`tsp-own` and `own-given`, "
        "learnt tree by tree), and what these results show. *yes*: the estimate reaches the goal "
        "and its whole interval lies on the right side of no effect (where something may fall by "
        "so much: of that), and enough tasks tell (see [experiments.md](../experiments.md)); *not "
        "shown*: only the estimate does; *no*: it does not; *nothing to lose*: the other's rate is "
        "within what may be lost. "
        "Intervals stand for themselves; p is of no difference at all (see there), with "
        "Holm's correction over the rows of a protocol and model (no p where something may fall "
        "by so much).",
        "",
        *table_head((*heads, "found", "reached", "p (Holm)")),
        *(table_line(row) for row in rows),
    ]


@dataclass(frozen=True)
class _Row:
    cells: list[str]
    p_value: float | None


def _study_rows(study: Study) -> list[list[str]]:
    """The lines of a study, with p-values corrected over them."""
    rows = [row for goal in GOALS if goal.protocol == study.protocol for row in _rows(study, goal)]
    tested = [row.p_value for row in rows if row.p_value is not None]
    corrected = iter(holm(tested))
    return [[*row.cells, "n/a" if row.p_value is None else p_cell(next(corrected))] for row in rows]


def _rows(study: Study, goal: Goal) -> list[_Row]:
    rows = (
        _row(study, group, goal, mine, other)
        for group in study.groups()
        if group.name.startswith(goal.groups)
        for mine in study.claims
        for other in _others(study, goal, group, mine)
    )
    return [row for row in rows if row is not None]


def _others(study: Study, goal: Goal, group: Group, mine: str) -> list[str]:
    """The arms to compare with. The best is looked for among those that have all seeds of ``mine``
    where there are such, so that no lucky seed makes one."""
    if goal.against != BEST:
        return [goal.against]
    others = [arm for arm in study.arms if arm not in (*study.claims, BASE)]
    seeds = study.seeds(mine)
    whole = [arm for arm in others if study.together(mine, arm) == seeds]
    means = {
        arm: estimate(study.values(arm, group, goal.measure, seeds), resamples=1).value
        for arm in whole or others
    }
    known = {arm: mean for arm, mean in means.items() if mean is not None}
    return [BASE, *([max(known, key=known.__getitem__)] if known else [])]


def _row(study: Study, group: Group, goal: Goal, mine: str, other: str) -> _Row | None:
    """One line of the table; None where the two arms have no seed or no value in common. A ratio to
    nothing is told as that, and shows nothing."""
    seeds = study.together(mine, other)
    if not seeds:
        return None
    ours = study.values(mine, group, goal.measure, seeds)
    theirs = study.values(other, group, goal.measure, seeds)
    compared: Callable[..., Estimate] = ratio if goal.ratio else difference
    found = compared(ours, theirs, group.clusters)
    nothing = goal.ratio and difference(ours, theirs, group.clusters).value is not None
    if found.value is None and not nothing:
        return None
    scale, digits = (1, 2) if goal.ratio else (100, 1)
    told = estimate_cell(found, scale, sign=not goal.ratio, digits=digits)
    if found.value is None:
        told = f"n/a (`{other}` has none)"
    what = HEADINGS[goal.measure] + (", ratio" if goal.ratio else "")
    empty = _empty(study, group, goal, other, seeds)
    said = "nothing to lose" if empty else reached(goal, found)
    names = [study.protocol, study.model, str(len(seeds)), group.name + group.fewer(found.tasks)]
    best = f" ({BEST})" if goal.against == BEST and other != BASE else ""
    cells = [*names, f"`{mine}`", what, f"`{other}`{best}", goal.words(), told, said]
    loss = not goal.ratio and goal.clear != 0
    return _Row(cells, None if loss else p_no_difference(ours, theirs, group.clusters))


def _empty(study: Study, group: Group, goal: Goal, arm: str, seeds: Sequence[int]) -> bool:
    """Whether the other arm's rate is so low that falling by more than is allowed cannot be."""
    theirs = estimate(study.values(arm, group, goal.measure, seeds), resamples=1).value
    return goal.bound < 0 and theirs is not None and theirs <= -goal.bound


def reached(goal: Goal, found: Estimate) -> str:
    """``yes``, ``not shown`` or ``no`` (see :func:`goals_table`)."""
    if found.value is None:
        return "not shown"
    sign = -1.0 if goal.below else 1.0
    # "Higher" is more than the bound; a ratio, and what may fall by so much, may be just it.
    strict = not goal.ratio and not goal.below and goal.bound == 0
    over = sign * (found.value - goal.bound)
    if over < -1e-9 or (strict and over <= 1e-9):
        return "no"
    end = found.high if goal.below else found.low
    if end is None or (found.moved < FEW and not _bounded(goal, found)):
        return "not shown"
    past = sign * (end - goal.clear)
    beyond = past > 1e-9 or (goal.bound == goal.clear and not strict and past >= -1e-9)
    return "yes" if beyond else "not shown"


def _bounded(goal: Goal, found: Estimate) -> bool:
    """Whether so many clusters were asked that a loss which next to none of them shows is smaller
    than what may be lost: where none of n does, up to 3 / n of them may (the rule of three; Hanley
    and Lippman-Hand 1983, *If nothing goes wrong, is everything all right?*, JAMA 249)."""
    return not goal.ratio and goal.clear < 0 and found.clusters * -goal.clear >= 3
