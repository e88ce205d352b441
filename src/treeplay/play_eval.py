"""Evaluating a player: its answers to every suite, sampled, judged and kept with their verdicts."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeplay.evaluate import Answer, sample_answers
from treeplay.evaluations import asked_as
from treeplay.metrics import Scored, scored_to_json
from treeplay.policy.model import Policy
from treeplay.run import batches, read_jsonl, staged, write_jsonl
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task

if TYPE_CHECKING:
    from treeplay.play import Game


def scored_answers(game: Game, policy: Policy, number: int) -> list[dict[str, Any]]:
    """Rows of ``eval/PLAYER.jsonl`` for ``policy``, the player of round ``number``."""
    player = game.player(number)
    files = {f"eval/{player}.{suite.name}.answers": suite for suite in game.suites}
    answers = sampled_answers(game, policy, player, files)
    rows: list[dict[str, Any]] = []
    for suite, sampled in zip(game.suites, answers, strict=True):
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
    game: Game, policy: Policy, player: str, files: Mapping[str, Suite]
) -> list[list[Answer]]:
    """The answers of ``policy`` to suites, each kept in a file of the run folder. Those that are
    not there yet are sampled in one flow, so that no suite waits for the last answer of another."""
    if not files:
        return []
    first = game.run.path(next(iter(files)))
    for whole in first.parent.glob(f"{glob.escape(first.name)}.*.sampled"):
        _hand_out(game, whole)  # killed before it came to that
    left = {file: suite for file, suite in files.items() if not game.run.path(file).is_file()}
    if left:
        # Named after what is asked, which is less where some suites have answers.
        which = hashlib.sha256("\n".join(left).encode()).hexdigest()[:8]
        path = first.with_name(f"{first.name}.{which}.sampled")
        _sample(game, policy, player, left, path)
        _hand_out(game, path)
    return [[Answer(**row) for row in read_jsonl(game.run.path(file))] for file in files]


def _sample(
    game: Game, policy: Policy, player: str, files: Mapping[str, Suite], path: Path
) -> None:
    """Keep in ``path`` the answers to all tasks of the suites, in no order."""
    asked = [
        (file, number, task, asked_as(game.config.eval, suite))
        for file, suite in files.items()
        for number, task in enumerate(suite.tasks)
    ]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][2].prompt))
    samples = [config.samples for *_, config in asked]
    rows_at_once = game.config.eval.rows_at_once
    groups = batches(order, samples, rows_at_once)
    name = next(iter(files.values())).name if len(files) == 1 else f"{len(files)} suites"
    with (
        game.run.timed(f"{player} eval sample"),
        game.reporter.stage(f"{player} sample {name}", len(asked)) as meter,
    ):

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            ready: list[tuple[Task, str]] = []

            def heard(tokens: int, finished: Sequence[tuple[Task, list[Answer]]]) -> None:
                meter.sampled(tokens, len(finished))
                ready.extend((task, one.text) for task, answers in finished for one in answers)
                if len(ready) >= rows_at_once:  # tools are slow to start
                    game.judge.judge_ahead(ready.copy())
                    ready.clear()

            made = sample_answers(policy, [asked[i][2:] for i in group], game.config.seed, heard)
            game.judge.judge_ahead(ready)
            return [
                {"file": asked[i][0], "place": asked[i][1]} | vars(answer)
                for i, found in zip(group, made, strict=True)
                for answer in found
            ]

        staged(path, groups, work, meter.reach)


def _hand_out(game: Game, path: Path) -> None:
    """Write what a finished flow holds to the files of its suites, in the order of their tasks."""
    own: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(read_jsonl(path), key=lambda row: (row["place"], row["sample"])):
        own.setdefault(row.pop("file"), []).append(row)
        del row["place"]
    for file, rows in own.items():
        write_jsonl(game.run.path(file), rows)
    path.with_name(f"{path.name}.part").unlink(missing_ok=True)
    path.unlink()


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
