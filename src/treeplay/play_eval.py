"""Evaluating a player: its answers to every suite, sampled, judged and kept with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treeplay.evaluate import Answer, sample_answers
from treeplay.evaluations import asked_as
from treeplay.metrics import Scored, scored_to_json
from treeplay.policy.model import Policy
from treeplay.run import batches, staged
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task

if TYPE_CHECKING:
    from treeplay.play import Game


def scored_answers(game: Game, policy: Policy, number: int) -> list[dict[str, Any]]:
    """Rows of ``eval/PLAYER.jsonl`` for ``policy``, the player of round ``number``."""
    player = game.player(number)
    answers = [
        (suite, sampled_answers(game, policy, player, suite, f"eval/{player}.{suite.name}.answers"))
        for suite in game.suites
    ]
    rows: list[dict[str, Any]] = []
    for suite, sampled in answers:
        by_id = {task.id: task for task in suite.tasks}
        items = [(by_id[answer.task], answer.text) for answer in sampled]
        with (
            game.run.timed(f"{player} eval judge"),
            game.reporter.stage(f"{player} judge {suite.name}", len(items)) as meter,
        ):
            verdicts = game.judge.judge_many(items, meter.reach)
        for (task, _), answer, verdict in zip(items, sampled, verdicts, strict=True):
            rows.append(scored_to_json(_scored(player, number, suite, task, answer, verdict)))
    return rows


def sampled_answers(
    game: Game, policy: Policy, player: str, suite: Suite, file: str
) -> list[Answer]:
    """The answers of ``policy`` to a suite, kept in ``file`` of the run folder as they come."""
    config = asked_as(game.config.eval, suite)
    order = sorted(range(len(suite.tasks)), key=lambda i: len(suite.tasks[i].prompt))
    groups = batches(order, [config.samples] * len(suite.tasks), config.rows_at_once)
    with (
        game.run.timed(f"{player} eval sample"),
        game.reporter.stage(f"{player} sample {suite.name}", len(suite.tasks)) as meter,
    ):

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            tasks = [suite.tasks[i] for i in group]
            made = sample_answers(policy, tasks, config, game.config.seed, meter.tokens)
            by_id = {task.id: task for task in tasks}
            game.judge.judge_ahead([(by_id[answer.task], answer.text) for answer in made])
            return [vars(answer) for answer in made]

        rows = staged(game.run.path(file), groups, work, meter.advance)
    place = {task.id: i for i, task in enumerate(suite.tasks)}
    rows.sort(key=lambda row: (place[row["task"]], row["sample"]))
    return [Answer(**row) for row in rows]


def _scored(
    player: str, number: int, suite: Suite, task: Task, answer: Answer, verdict: Any
) -> Scored:
    return Scored(
        player=player,
        round=number,
        suite=suite.name,
        split=task.split,
        language=task.language,
        cwe=task.cwe,
        task=task.id,
        sample=answer.sample,
        answer=answer.text,
        tokens=answer.tokens,
        ended=answer.ended,
        verdict=verdict,
    )
