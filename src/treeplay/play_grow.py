"""Growing the trees of a round: level by level, wave by wave, each sampled and then judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treeplay.golden_stage import own_trees
from treeplay.grow import deepen, grow, missing, plant, spent
from treeplay.nodes import LEARNT
from treeplay.policy.model import Policy
from treeplay.policy.trunks import Kept
from treeplay.run import batches, read_jsonl, staged, write_jsonl
from treeplay.selfplay import merged, seat, signed
from treeplay.tasks.task import Task
from treeplay.tree import Tree, tree_from_json, tree_to_json

if TYPE_CHECKING:
    from treeplay.play import Game

# Methods that learn from given text alone, and methods whose branches no judge looks at.
WITHOUT_BRANCHES = ("sft", "dpo", "safecoder", "sven")
UNJUDGED = ("tsp-paper", "spin")


class Opponents:
    """The players of a round's pool, one at a time on the model. Used in a ``with`` statement."""

    def __init__(self, game: Game, number: int) -> None:
        self.game, self.pool = game, game.pool(number)
        self._stack = ExitStack()
        self._seated: tuple[int, Policy] | None = None
        self._kept: dict[int, Kept] = {}

    def __enter__(self) -> Opponents:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def policy(self, player: int) -> Policy:
        """The policy of round ``player``; the one before it is no longer to be used."""
        if self._seated is None or self._seated[0] != player:
            self._stack.close()
            self._seated = None
            self._seated = player, self._stack.enter_context(self.game.policy_of(player))
        return self._seated[1]

    def kept(self, player: int) -> Kept:
        """Keys and values of golden paths under ``player``, who shares the memory with the rest."""
        megabytes = self.game.config.grow.keep_mb / len(self.pool)
        return self._kept.setdefault(player, Kept(megabytes))


def plant_trees(game: Game, policy: Policy, number: int) -> list[Tree]:
    """The golden paths of the game's tasks with their risk nodes, and no branches yet, but those
    that come with golden paths of the opponent's own."""
    room = game.config.grow.max_tokens
    if game.config.golden.source == "reference":
        trees = [plant(policy, task, game.config.nodes, room) for task in game.played(number)]
    else:
        trees = own_trees(game, policy, number, game.config.method not in UNJUDGED)
    bare = sum(not tree.nodes for tree in trees)
    later = any(source in LEARNT for source in game.config.nodes.sources)
    if bare and not later and game.config.method not in WITHOUT_BRANCHES:
        game.reporter.say(f"{bare} of {len(trees)} training tasks have no risk node")
    return trees


def grow_trees(game: Game, opponents: Opponents, number: int, trees: list[Tree]) -> list[Tree]:
    """``trees`` with the branches of round ``number``, judged where the method wants it."""
    tasks = game.tasks_of(trees)
    config = game.config.grow
    judged = game.config.method not in UNJUDGED
    room = opponents.policy(opponents.pool[0]).max_length - config.max_tokens
    latest = game.player(opponents.pool[0])
    trees = [signed(tree, latest) for tree in trees]  # rollouts, samples of a trie
    for level in range(1, config.depth + 1):
        wave, before = 1, trees
        while wave == 1 or (
            any(_rows(game, tree) for tree in trees) and not spent(before, trees, config.budget)
        ):
            before = trees
            trees = _grow_level(game, opponents, tasks, trees, number, (level, wave))
            if judged:
                trees = _judge_level(game, tasks, trees, number, (level, wave))
            wave += 1
        if judged and level < config.depth:
            trees = deepen(tasks, trees, room)
    return trees


def _grow_level(
    game: Game,
    opponents: Opponents,
    tasks: list[Task],
    trees: list[Tree],
    number: int,
    when: tuple[int, int],
) -> list[Tree]:
    parts = [
        _grow_share(game, opponents, tasks, trees, number, when, player)
        for player in opponents.pool
    ]
    return merged(trees, parts)


def _grow_share(
    game: Game,
    opponents: Opponents,
    tasks: list[Task],
    trees: list[Tree],
    number: int,
    when: tuple[int, int],
    opponent: int,
) -> list[Tree]:
    """``trees`` with those of the missing branches that fall to one opponent of the pool."""
    level, wave = when
    player, name = game.player(number), game.player(opponent)
    title = f"{player} grow" + (f" level {level}" if level > 1 else "")
    title += f" wave {wave}" if wave > 1 else ""
    stem = _stem("grown", when)
    if len(opponents.pool) > 1:
        title, stem = f"{title} by {name}", f"{stem}.{name}"
    path = game.run.path(player, f"{stem}.jsonl")
    config = game.config.grow
    seed = game.config.seed * 1000 + number

    def mine(task: str, node: int, branch: int) -> bool:
        return seat(opponents.pool, seed, task, node, branch) == opponent

    # Trees of like length share a batch; the order is restored by the ids below.
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].prompt_ids))
    rows_at_once = config.rows_at_once * len(opponents.pool)  # a share of these is sampled here
    groups = batches(order, [_rows(game, tree) for tree in trees], rows_at_once)
    with game.run.timed(f"{player} grow"), game.reporter.stage(title, len(trees)) as meter:

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            grown = grow(
                opponents.policy(opponent),
                [tasks[i] for i in group],
                [trees[i] for i in group],
                config,
                seed,
                meter.sampled,
                opponents.kept(opponent),
                mine,
            )
            grown = [signed(tree, name) for tree in grown]
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

        rows = staged(path, groups, work, meter.reach)
    by_task = {row["task"]: tree_from_json(row) for row in rows}
    return [by_task[tree.task] for tree in trees]


def _rows(game: Game, tree: Tree) -> int:
    return sum(missing(tree, node, game.config.grow) for node in tree.nodes)


def _stem(kind: str, when: tuple[int, int]) -> str:
    level, wave = when
    return f"{kind}-{level}" + (f"-{wave}" if wave > 1 else "")


def _judge_level(
    game: Game, tasks: list[Task], trees: list[Tree], number: int, when: tuple[int, int]
) -> list[Tree]:
    """``trees`` with verdicts on the branches that lack one.

    Kept where what is sampled next depends on them (which nodes get another wave or level): an
    unknown verdict is asked for anew by a later process, and may be another one then.
    """
    level, _ = when
    path = game.run.path(game.player(number), f"{_stem('judged', when)}.jsonl")
    if path.is_file():
        return [tree_from_json(row) for row in read_jsonl(path)]
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
    judged = [
        replace(
            tree,
            branches=tuple(
                branch if branch.verdict else replace(branch, verdict=next(verdicts))
                for branch in tree.branches
            ),
        )
        for tree in trees
    ]
    if game.config.grow.adaptive or level < game.config.grow.depth:
        write_jsonl(path, [tree_to_json(tree) for tree in judged])
    return judged
