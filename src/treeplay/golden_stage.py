"""The stage that makes a round's golden paths (see :mod:`treeplay.golden`).

golden-samples.jsonl    whole answers of the opponent, as sampled
golden-repair-K.jsonl   attempt K at repairs, as sampled
*-judged.jsonl          the same with verdicts, on which the next attempt rests
golden.jsonl            a line a task: judged samples, and the golden path where there is one
golden.json             what was counted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treeplay.errors import RunError
from treeplay.golden import (
    Own,
    choose,
    mended_path,
    mistakes,
    own_from_json,
    own_to_json,
    plant_own,
    relocated,
    request,
    rooted,
    whole,
)
from treeplay.grow import grow
from treeplay.policy.model import Policy, encode_path
from treeplay.policy.sample import seed_of
from treeplay.run import batches, read_jsonl, staged, write_json, write_jsonl
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Tree, tree_from_json, tree_to_json
from treeplay.trie import Path, accepted, nearest, vulnerable

if TYPE_CHECKING:
    from treeplay.play import Game


def own_goldens(game: Game, policy: Policy, number: int) -> list[Own]:
    """What the opponent ``policy`` makes of every task of round ``number``, in task order.

    Raises :class:`RunError` where it has no accepted answer to any task.
    """
    final = game.run.path(game.player(number), "golden.jsonl")
    if final.is_file():
        return [own_from_json(row) for row in read_jsonl(final)]
    config = game.config.golden
    prompts = [encode_path(policy, task).ids for task in game.played(number)]
    trees = [rooted(task, ids) for task, ids in zip(game.played(number), prompts, strict=True)]
    trees = _sampled(game, policy, number, "samples", game.played(number), trees, config.samples)
    trees = _judged(game, number, "samples", game.played(number), trees)
    owns = [Own(tree) for tree in trees] if config.source == "repair" else list(map(choose, trees))
    counts: dict[str, int] = {
        "tasks": len(owns),
        "samples": sum(len(tree.branches) for tree in trees),
        "sampled_tokens": sum(len(b.ids) for tree in trees for b in tree.branches),
    }
    if config.source == "repair":
        owns = _repair(game, policy, number, owns, counts)
        # An accepted answer is one whether or not it was mended.
        owns = [own if own.golden else choose(own.samples) for own in owns]
    room = policy.max_length - game.config.grow.max_tokens
    owns = [_fitting(own, room) for own in owns]
    owns = [
        relocated(t, own, game.sandbox) for t, own in zip(game.played(number), owns, strict=True)
    ]
    counts["accepted"] = sum(own.golden is not None for own in owns)
    counts["mended"] = sum(own.golden is not None and own.mended for own in owns)
    write_json(game.run.path(game.player(number), "golden.json"), counts)
    _tell(game, number, counts, owns)
    write_jsonl(final, [own_to_json(own) for own in owns])
    return owns


def own_trees(game: Game, policy: Policy, number: int, with_trie: bool) -> list[Tree]:
    """The trees of all tasks that have a golden path of the opponent's own, with their nodes; and,
    ``with_trie``, with the samples for their first branches."""
    owns = own_goldens(game, policy, number)
    planted = [
        plant_own(policy, task, own, game.config.nodes, with_trie)
        for task, own in zip(game.played(number), owns, strict=True)
    ]
    return [tree for tree in planted if tree is not None]


def _tell(game: Game, number: int, counts: dict[str, int], owns: Sequence[Own]) -> None:
    left = counts["tasks"] - counts["accepted"]
    if not counts["accepted"]:
        labels = Counter(b.verdict.label for o in owns for b in o.samples.branches if b.verdict)
        told = [f"{count} {label}" for label, count in labels.most_common()]
        told += [f"{counts['repairs']} repairs"] if counts.get("repairs") else []
        raise RunError(
            f"{game.player(number)}: judge and tests accept none of {counts['samples']} answers of "
            f"{game.player(number - 1)} to {counts['tasks']} training tasks ({', '.join(told)}); "
            "raise golden.samples or golden.max_tokens, take a stronger model, or set "
            "golden.source=reference"
        )
    if left:
        game.reporter.say(
            f"{game.player(number)}: {left} of {counts['tasks']} training tasks have no accepted "
            "answer and are left out"
        )


def _fitting(own: Own, room: int) -> Own:
    """Without a golden path that would leave no room for branches (a tokenised repair may)."""
    if own.golden and len(own.samples.prompt_ids) + len(own.golden.ids) > room:
        return replace(own, golden=None, mended=False)
    return own


def _sampled(
    game: Game,
    policy: Policy,
    number: int,
    name: str,
    tasks: Sequence[Task],
    trees: Sequence[Tree],
    count: int,
) -> list[Tree]:
    """``count`` whole answers on each of ``trees``."""
    player = game.player(number)
    path = game.run.path(player, f"golden-{name}.jsonl")
    config = whole(game.config.golden, count)
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].prompt_ids))
    groups = batches(order, [count] * len(trees), config.rows_at_once)
    # Its own, so that no branch of the round is drawn with the same noise.
    seed = seed_of("golden", name, game.config.seed * 1000 + number)
    with (
        game.run.timed(f"{player} golden"),
        game.reporter.stage(f"{player} golden {name}", len(trees)) as meter,
    ):

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            asked = [tasks[i] for i in group]
            made = grow(policy, asked, [trees[i] for i in group], config, seed, meter.sampled)
            game.judge.judge_ahead(
                [(t, b.answer) for t, tree in zip(asked, made, strict=True) for b in tree.branches]
            )
            return [tree_to_json(tree) for tree in made]

        rows = staged(path, groups, work, meter.reach)
    by_task = {row["task"]: tree_from_json(row) for row in rows}
    return [by_task[tree.task] for tree in trees]


def _judged(
    game: Game, number: int, name: str, tasks: Sequence[Task], trees: Sequence[Tree]
) -> list[Tree]:
    player = game.player(number)
    # An unknown verdict is asked for anew by a later process, and may be another one then.
    path = game.run.path(player, f"golden-{name}-judged.jsonl")
    if path.is_file():
        return [tree_from_json(row) for row in read_jsonl(path)]
    items = [(t, b.answer) for t, tree in zip(tasks, trees, strict=True) for b in tree.branches]
    with (
        game.run.timed(f"{player} golden judge"),
        game.reporter.stage(f"{player} golden judge {name}", len(items)) as meter,
    ):
        verdicts = iter(game.judge.judge_many(items, meter.reach))
    judged = [
        replace(t, branches=tuple(replace(b, verdict=next(verdicts)) for b in t.branches))
        for t in trees
    ]
    write_jsonl(path, [tree_to_json(tree) for tree in judged])
    return judged


def _repair(
    game: Game, policy: Policy, number: int, owns: list[Own], counts: dict[str, int]
) -> list[Own]:
    """``owns`` with repairs for golden paths, where one was accepted.

    The first attempt mends the task's most frequent mistake; a later one what the last attempt left
    vulnerable, if anything, with its new finding; else the next mistake.
    """
    config = game.config.golden
    wrong = [mistakes(own.samples) for own in owns]
    again: dict[int, Branch] = {}
    counts["with_mistakes"] = sum(bool(some) for some in wrong)
    counts["repairs"] = 0
    for attempt in range(config.attempts):
        which: list[int] = []
        asked: list[Task] = []
        trees: list[Tree] = []
        for i, (task, own) in enumerate(zip(game.played(number), owns, strict=True)):
            if own.golden or not wrong[i]:
                continue
            broken = again.get(i) or wrong[i][attempt % len(wrong[i])]
            ask = request(policy, task, broken, game.sandbox)
            ids = encode_path(policy, ask).ids
            if len(ids) + config.max_tokens > policy.max_length:
                again.pop(i, None)
                continue
            which.append(i)
            asked.append(ask)
            trees.append(rooted(task, ids))
        if not which:
            continue
        tasks = [game.played(number)[i] for i in which]
        name = f"repair-{attempt + 1}"
        trees = _sampled(game, policy, number, name, tasks, trees, config.mends)
        trees = _judged(game, number, name, tasks, trees)
        counts["repairs"] += sum(len(tree.branches) for tree in trees)
        counts["sampled_tokens"] += sum(len(b.ids) for tree in trees for b in tree.branches)
        for i, task, ask, tree in zip(which, tasks, asked, trees, strict=True):
            golden = _mended(policy, task, ask, owns[i], tree)
            if golden:
                owns[i] = replace(owns[i], golden=golden, mended=True)
            still = mistakes(tree)
            again.pop(i, None)
            if still:
                again[i] = still[0]
    return owns


def _mended(policy: Policy, task: Task, asked: Task, own: Own, tree: Tree) -> Path | None:
    """The accepted repair that changes least, as a path; None where none was accepted."""
    good = [branch for branch in tree.branches if accepted(branch)]
    if not good:
        return None
    bad = [branch for branch in own.samples.branches if vulnerable(branch)]
    return mended_path(policy, task, asked, nearest(good, bad))
