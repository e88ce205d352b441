"""When a game is over, and whether its judge can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treeplay.errors import ConfigError
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.play_train import learns_from_contrasts
from treeplay.run import read_jsonl, write_json
from treeplay.selfplay import PlayConfig, mean_rate, rates
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task
from treeplay.tree import Tree

if TYPE_CHECKING:
    from treeplay.judge.judge import Judge
    from treeplay.play import Game

ENOUGH = 8  # decided branches from which on all or none of them vulnerable is looked into
CONTROLS = 8  # tasks whose given answers are judged then


def check_watched(config: PlayConfig, suites: Sequence[Suite]) -> None:
    """Raises :class:`ConfigError` where the suite that is watched is not evaluated, or has no task
    that asks about security."""
    asked = [s.name for s in suites if not all(task.general for task in s.tasks)]
    if config.watch and config.watch not in asked:
        raise ConfigError(
            f"play.watch is {config.watch!r}, which is no evaluation suite about security; name "
            f"one of {', '.join(asked) or '(none: see tasks.eval)'}"
        )


def why_over(game: Game, number: int) -> str:
    """Why round ``number`` is not played; empty where it is."""
    if game.adapter(number).is_dir():
        return ""
    if reason := _risen_no_more(game, number):
        return reason
    method, last = game.config.method, game.player(number - 1)
    if not learns_from_contrasts(method):
        return ""
    rate = None
    if method not in (*WITHOUT_BRANCHES, *UNJUDGED):
        rate = mean_rate(rates(game.grow(number), last))
    below = game.config.play.stop_below
    if rate is not None and rate < below:
        return f"{last}'s vulnerable rate of {rate:.1%} is below play.stop_below ({below:.1%})"
    contrasts = game.contrasts(number)
    # In the first round golden answers (anchors) teach where there is nothing else; a player that
    # has met them and makes no more mistakes is done, unless one of an older opponent is left.
    at_rest = number > 1 and rate == 0 and not any(c.rejected for c in contrasts)
    if contrasts and not at_rest:
        return ""
    # A base model without contrasts is an error of the settings, unless it was measured.
    if number > 1 or rate == 0:
        return f"{last} made no mistake to learn from"
    return ""


def _risen_no_more(game: Game, number: int) -> str:
    config = game.config.play
    if not config.patience:
        return ""
    scores = [_secure_share(game, player, config.watch) for player in range(number)]
    best = max(range(number), key=lambda player: scores[player])
    if number - 1 - best < config.patience:
        return ""
    return (
        f"secure answers to {config.watch} have not risen above {scores[best]:.1%} "
        f"({game.player(best)}) for {config.patience} round{'s' * (config.patience > 1)}"
    )


def _secure_share(game: Game, player: int, suite: str) -> float:
    game.evaluate(player)
    rows = read_jsonl(game.run.path("eval", f"{game.player(player)}.jsonl"))
    labels = [row["verdict"]["label"] for row in rows if row["suite"] == suite]
    return labels.count("secure") / max(1, len(labels))


def end(game: Game, number: int, reason: str) -> None:
    """Write into the manifest that the game ended before the player of round ``number`` was there;
    with an empty ``reason``, that it did not."""
    manifest = game.run.manifest
    ended = {"round": number, "reason": reason} if reason else None
    if manifest.get("ended") != ended:
        manifest["ended"] = ended
        if not ended:
            del manifest["ended"]
        write_json(game.run.folder / "manifest.json", manifest)


def warn(game: Game, warning: str) -> None:
    """Write a warning into the manifest, once."""
    found = game.run.manifest.setdefault("warnings", [])
    if warning not in found:
        found.append(warning)
        write_json(game.run.folder / "manifest.json", game.run.manifest)


def doubt(game: Game, trees: Sequence[Tree]) -> str:
    """A warning where the judge flagged all or none of the branches, or decided none of them;
    empty where there is nothing to say.

    What then tells the judge from the opponent are answers whose label is known: golden ones,
    which must not be flagged, and given vulnerable ones, which must.
    """
    labels = Counter(b.verdict.label for tree in trees for b in tree.branches if b.verdict)
    return _doubt(game.judge, labels, game.tasks_of(trees), "branches")[0]


def doubts_of_answers(game: Game, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings about the suites of ``rows`` (of ``eval/PLAYER.jsonl``) whose answers all got one
    label, where the judge says the same of answers that are known to be otherwise."""
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
    """(a warning or nothing, whether it is the judge that is to be doubted)."""
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
        return f"{done}, and there are no {kind} answers{tested} to check it with", False
    flagged = [v.label for v in judge.judge_many(known)].count("vulnerable")
    done += f", and {flagged} of {len(known)} {kind} answers"
    if bad:
        end = ": do not believe it" if flagged else ": the opponent is always wrong"
        return done + end, bool(flagged)
    wrong = flagged < len(known)
    end = ": it may miss mistakes" if wrong else ": the opponent makes no mistakes"
    return done + end, wrong
