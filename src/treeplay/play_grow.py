"""Growing the trees of a round: level by level, wave by wave, each sampled and then judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treeplay.golden_stage import own_trees
from treeplay.grow import deepen, grow, missing, plant
from treeplay.nodes import LEARNT
from treeplay.policy.model import Policy
from treeplay.policy.trunks import Kept
from treeplay.run import batches, staged
from treeplay.tasks.task import Task
from treeplay.tree import Tree, tree_from_json, tree_to_json

if TYPE_CHECKING:
    from treeplay.play import Game

# Methods that learn from given text alone, and methods whose branches no judge looks at.
WITHOUT_BRANCHES = ("sft", "dpo", "safecoder", "sven")
UNJUDGED = ("tsp-paper", "spin")


def plant_trees(game: Game, policy: Policy, number: int) -> list[Tree]:
    """The golden paths of the game's tasks with their risk nodes, and no branches yet, but those
    that come with golden paths of the opponent's own."""
    room = game.config.grow.max_tokens
    if game.config.golden.source == "reference":
        trees = [plant(policy, task, game.config.nodes, room) for task in game.tasks]
    else:
        trees = own_trees(game, policy, number, game.config.method not in UNJUDGED)
    bare = sum(not tree.nodes for tree in trees)
    later = any(source in LEARNT for source in game.config.nodes.sources)
    if bare and not later and game.config.method not in WITHOUT_BRANCHES:
        game.reporter.say(f"{bare} of {len(trees)} training tasks have no risk node")
    return trees


def grow_trees(game: Game, policy: Policy, number: int, trees: list[Tree]) -> list[Tree]:
    """``trees`` with the branches of round ``number``, judged where the method wants it."""
    tasks = game.tasks_of(trees)
    config = game.config.grow
    judged = game.config.method not in UNJUDGED
    kept = Kept(config.keep_mb)
    room = policy.max_length - config.max_tokens
    for level in range(1, config.depth + 1):
        wave = 1
        while wave == 1 or any(_rows(game, tree) for tree in trees):
            trees = _grow_level(game, policy, tasks, trees, number, (level, wave), kept)
            if not judged:
                break
            trees = _judge_level(game, tasks, trees, number, level)
            wave += 1
        if judged and level < config.depth:
            trees = deepen(tasks, trees, room)
    return trees


def _grow_level(
    game: Game,
    policy: Policy,
    tasks: list[Task],
    trees: list[Tree],
    number: int,
    when: tuple[int, int],
    kept: Kept,
) -> list[Tree]:
    level, wave = when
    player = game.player(number)
    title = f"{player} grow" + (f" level {level}" if level > 1 else "")
    title += f" wave {wave}" if wave > 1 else ""
    name = f"grown-{level}" + (f"-{wave}" if wave > 1 else "")
    path = game.run.path(player, f"{name}.jsonl")
    config = game.config.grow
    # Trees of like length share a batch; the order is restored by the ids below.
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].prompt_ids))
    groups = batches(order, [_rows(game, tree) for tree in trees], config.rows_at_once)
    seed = game.config.seed * 1000 + number
    with game.run.timed(f"{player} grow"), game.reporter.stage(title, len(trees)) as meter:

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            grown = grow(
                policy,
                [tasks[i] for i in group],
                [trees[i] for i in group],
                config,
                seed,
                meter.tokens,
                kept,
            )
            if game.config.method not in UNJUDGED:
                game.judge.judge_ahead(
                    [
                        (tasks[i], branch.answer)
                        for i, tree in zip(group, grown, strict=True)
                        for branch in tree.branches
                        if branch.verdict is None
                    ]
                )
            return [tree_to_json(tree) for tree in grown]

        rows = staged(path, groups, work, meter.advance)
    by_task = {row["task"]: tree_from_json(row) for row in rows}
    return [by_task[tree.task] for tree in trees]


def _rows(game: Game, tree: Tree) -> int:
    return sum(missing(tree, node, game.config.grow) for node in tree.nodes)


def _judge_level(
    game: Game, tasks: list[Task], trees: list[Tree], number: int, level: int
) -> list[Tree]:
    items = [
        (task, branch.answer)
        for task, tree in zip(tasks, trees, strict=True)
        for branch in tree.branches
        if branch.verdict is None
    ]
    player = game.player(number)
    title = f"{player} judge" + (f" level {level}" if level > 1 else "")
    with game.run.timed(f"{player} judge"), game.reporter.stage(title, len(items)) as meter:
        verdicts = iter(game.judge.judge_many(items, meter.reach))
    return [
        replace(
            tree,
            branches=tuple(
                branch if branch.verdict else replace(branch, verdict=next(verdicts))
                for branch in tree.branches
            ),
        )
        for tree in trees
    ]
