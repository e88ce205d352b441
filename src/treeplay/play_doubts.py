"""Whether the judge of a game can be believed, and what is to be known of a run besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treeplay.run import write_json
from treeplay.tasks.task import Task
from treeplay.tree import Tree

if TYPE_CHECKING:
    from treeplay.judge.judge import Judge
    from treeplay.play import Game

ENOUGH = 8  # decided branches from which on all or none of them vulnerable is looked into
CONTROLS = 8  # tasks whose given answers are judged then


def warn(game: Game, warning: str) -> None:
    """Write a warning into the manifest, once."""
    found = game.run.manifest.setdefault("warnings", [])
    if warning not in found:
        found.append(warning)
        write_json(game.run.folder / "manifest.json", game.run.manifest)


def doubt(game: Game, trees: Sequence[Tree]) -> str:
    """:func:`doubt_of` about the branches of ``trees``."""
    labels = Counter(b.verdict.label for tree in trees for b in tree.branches if b.verdict)
    return doubt_of(game, labels, game.tasks_of(trees), "branches")


def doubt_of(game: Game, labels: Counter[Any], tasks: Sequence[Task], what: str) -> str:
    """A warning where the judge flagged all or none of so many answers to ``tasks``, or decided
    none of them; empty where there is nothing to say.

    What then tells the judge from the opponent are answers whose label is known: golden ones,
    which must not be flagged, and given vulnerable ones, which must.
    """
    return _doubt(game.judge, labels, tasks, what)[0]


def doubts_of_answers(game: Game, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about the suites of ``rows`` (of ``eval/PLAYER.jsonl``) whose answers all got one
    label, where the judge says the same of answers that are known to be otherwise, or where there
    are none to ask it about."""
    out = []
    for suite in game.suites:
        tasks = [task for task in suite.tasks if not task.general]
        asked = {task.id for task in tasks}
        labels = Counter(
            row["verdict"]["label"]
            for row in rows
            if row["suite"] == suite.name and row["task"] in asked
        )
        warning, judge = _doubt(game.judge, labels, tasks, "answers")
        if judge:
            out.append(f"{suite.name}: {warning}")
    return out


def _doubt(
    judge: Judge, labels: Counter[Any], tasks: Sequence[Task], what: str
) -> tuple[str, bool]:
    """(a warning or nothing, whether it may be the judge's fault)."""
    count, bad = labels["secure"] + labels["vulnerable"], labels["vulnerable"]
    if labels.total() >= ENOUGH and not count:
        told = ", ".join(f"{n} {label}" for label, n in sorted(labels.items()))
        text = f"the judge could decide none of {labels.total()} {what} ({told})"
        return text, labels["unknown"] > 0  # broken and inert ones are no fault of the judge
    if count < ENOUGH or 0 < bad < count:
        return "", False
    # Static tools judge against the golden answer, so they can never flag it: tests can.
    known = [
        (task, answer)
        for task in tasks
        if (answer := (task.golden if task.tests else None) if bad else task.vulnerable)
    ][:CONTROLS]
    kind = "golden" if bad else "given vulnerable"
    done = f"the judge flagged {'all' if bad else 'none'} of {count} {what}"
    if not known:
        tested = " of tasks with tests" if bad else ""
        return f"{done}, and there are no {kind} answers{tested} to check it with", True
    flagged = [v.label for v in judge.judge_many(known)].count("vulnerable")
    done += f", and {flagged} of {len(known)} {kind} answers"
    if bad:
        end = ": do not believe it" if flagged else ": the opponent is always wrong"
        return done + end, bool(flagged)
    wrong = flagged < len(known)
    end = ": it may miss mistakes" if wrong else ": the opponent makes no mistakes"
    return done + end, wrong
