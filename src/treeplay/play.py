"""Play: rounds of grow -> judge -> contrasts -> train -> evaluate. The whole algorithm.

Every stage reads files of the run folder and writes one; a stage whose file is there is not done
again. So each can be run alone, looked at, replaced, and resumed (see :mod:`treeplay.run`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from treeplay.contrasts import (
    Contrast,
    contrast_from_json,
    contrast_to_json,
    draw_contrasts,
)
from treeplay.errors import RunError, TaskError
from treeplay.evaluate import Answer, sample_answers
from treeplay.grow import deepen, grow, missing, plant
from treeplay.judge.judge import Judge
from treeplay.metrics import Scored, scored_to_json
from treeplay.opponent import score_opponent, with_sampled
from treeplay.policy.model import (
    Policy,
    adapter_digest,
    check_room,
    encode_path,
    load_adapter,
    load_policy,
    tokenizer_digest,
)
from treeplay.policy.server import open_server
from treeplay.policy.trunks import Kept
from treeplay.progress import Reporter
from treeplay.run import Run, read_jsonl, staged, write_json, write_jsonl
from treeplay.sandbox import Sandbox, check_sandbox
from treeplay.tasks.contamination import shared_ngrams
from treeplay.tasks.jsonl import task_to_json
from treeplay.tasks.select import Suite, eval_suites, train_tasks
from treeplay.tasks.task import Task
from treeplay.train import packed_where_right, train
from treeplay.tree import Tree, tree_from_json, tree_to_json

# Methods that learn from given text alone, and methods whose branches no judge looks at.
WITHOUT_BRANCHES = ("sft", "dpo")
UNJUDGED = ("tsp-paper", "spin")


class Game:
    """A run with its model, judge and tasks at hand. One method a stage, in order.

    ``name`` is what the untrained player is called; ``training`` false loads no training tasks
    (a player made elsewhere is only evaluated).
    """

    def __init__(
        self, run: Run, reporter: Reporter, *, name: str = "base", training: bool = True
    ) -> None:
        config = run.config
        self.run, self.config, self.reporter = run, config, reporter
        if not config.judge.unsafe:
            check_sandbox()
        self.sandbox = Sandbox(unsafe=config.judge.unsafe)
        self.base_name = name
        self.server = open_server(config.model, run.folder, reporter.say)
        self.tasks = train_tasks(config.tasks, config.seed) if training else []
        self.suites = eval_suites(config.tasks)
        self._warn_of_contamination()
        with run.timed("load"), reporter.stage("load model", 1) as meter:
            self.policy = load_policy(config.model)
            meter.advance(1)
        if training and config.model.adapter:  # the base of this run is model and adapter
            self.policy = replace(self.policy, model=self.policy.model.merge_and_unload())
        if training:  # said once, here
            packed_where_right(self.policy.model, config.train, reporter.say)
        if self.server:
            self.policy = replace(self.policy, sampler=self.server.sampler(self.policy))
        run.name(name, self.policy.identity)
        run.name("tokenizer", tokenizer_digest(self.policy.tokenizer))
        self._leave_out_what_does_not_fit()
        every = [*self.tasks, *(t for suite in self.suites for t in suite.tasks)]
        lines = [json.dumps(task_to_json(task)) for task in every]
        run.name("tasks", hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16])
        self.judge = Judge(self.sandbox, run.path("verdicts.jsonl"), config.judge)
        run.name("judge", self.judge.identity())
        untested = sorted({task.language for task in every if task.tests is None})
        if untested:
            with reporter.stage("canaries", 1) as meter:
                self.judge.panel.check(untested)
                meter.advance(1)
        if not (run.folder / "tasks.jsonl").is_file():
            write_jsonl(run.path("tasks.jsonl"), [task_to_json(task) for task in every])

    def _warn_of_contamination(self) -> None:
        for suite in self.suites:
            shared = [s for s in shared_ngrams(self.tasks, suite.tasks) if s.fraction >= 0.1]
            for one in shared:
                self.reporter.say(
                    f"warning: {suite.name}: {one.task_id} shares {one.fraction:.0%} of its "
                    f"13-grams with the training task {one.nearest_id}"
                )

    def _leave_out_what_does_not_fit(self) -> None:
        """Refuse or skip, before anything is made, tasks that the model cannot read whole."""
        config = self.config

        def fits(task: Task, answers: Sequence[str | None], room: int, setting: str) -> bool:
            try:
                for answer in answers:
                    path = encode_path(self.policy, task, answer or "")
                    check_room(self.policy, task, path, room, setting)
            except TaskError as error:
                if config.tasks.too_long != "skip":
                    raise
                self.reporter.say(f"skipped: {error}")
                return False
            return True

        def given(task: Task) -> list[str | None]:
            return [task.golden, task.vulnerable if config.method == "dpo" else None]

        room = config.grow.max_tokens
        kept = [t for t in self.tasks if fits(t, given(t), room, "grow.max_tokens")]
        if self.tasks and not kept:
            raise TaskError("no training task fits the model's context; shorten them")
        self.tasks = kept
        room = config.eval.max_tokens
        for i, suite in enumerate(self.suites):
            asked = tuple(t for t in suite.tasks if fits(t, [None], room, "eval.max_tokens"))
            if not asked:
                raise TaskError(f"no task of {suite.name} fits the model's context; shorten them")
            self.suites[i] = replace(suite, tasks=asked)

    def close(self) -> None:
        """End what goes on in the background (after an interruption, say)."""
        self.judge.close()
        if self.server:
            self.server.close()

    # Players. Round 0 is the base model, round r the adapter that round r trained.

    def player(self, number: int) -> str:
        return self.base_name if number == 0 else f"round-{number}"

    def adapter(self, number: int) -> Path:
        return self.run.folder / self.player(number) / "adapter"

    @contextmanager
    def policy_of(self, number: int) -> Iterator[Policy]:
        """The policy of round ``number``; the base model is as it was afterwards."""
        if number == 0:
            yield self.policy
            return
        folder = self.adapter(number)
        if not folder.is_dir():
            raise RunError(f"{folder} is not there; run the training stage of round {number} first")
        self.run.name(self.player(number), adapter_digest(folder))
        model = load_adapter(self.policy.model, folder, trainable=False)
        try:
            policy = replace(self.policy, model=model.eval())
            if self.server:
                served = self.server.sampler(policy, folder, self.player(number))
                policy = replace(policy, sampler=served)
            yield policy
        finally:
            model.unload()

    # Stages.

    def grow(self, number: int) -> list[Tree]:
        """Grow and judge the trees of round ``number``; the opponent is the player before."""
        where = self.player(number)
        final = self.run.path(where, "judged.jsonl")
        if final.is_file():
            return [tree_from_json(row) for row in read_jsonl(final)]
        opponent = number - 1
        self.run.name(f"{where} opponent", self.player(opponent))
        with self.policy_of(opponent) as policy:
            trees = self._plant(policy)
            tasks = self._tasks_of(trees)
            if self.config.method in WITHOUT_BRANCHES:
                write_jsonl(final, [tree_to_json(tree) for tree in trees])
                return trees
            kept = Kept(self.config.grow.keep_mb)
            room = policy.max_length - self.config.grow.max_tokens
            for level in range(1, self.config.grow.depth + 1):
                wave = 1
                while wave == 1 or any(self._rows(tree) for tree in trees):
                    trees = self._grow_level(policy, tasks, trees, number, (level, wave), kept)
                    if self.config.method in UNJUDGED:
                        break
                    trees = self._judge_level(tasks, trees, number, level)
                    wave += 1
                if self.config.method not in UNJUDGED and level < self.config.grow.depth:
                    trees = deepen(tasks, trees, room)
        write_jsonl(final, [tree_to_json(tree) for tree in trees])
        return trees

    def _plant(self, policy: Policy) -> list[Tree]:
        room = self.config.grow.max_tokens
        trees = [plant(policy, task, self.config.nodes, room) for task in self.tasks]
        bare = sum(not tree.nodes for tree in trees)
        if bare and self.config.method not in WITHOUT_BRANCHES:
            self.reporter.say(f"{bare} of {len(trees)} training tasks have no risk node")
        return trees

    def _tasks_of(self, trees: Sequence[Tree]) -> list[Task]:
        by_id = {task.id: task for task in self.tasks}
        return [by_id[tree.task] for tree in trees]

    def _grow_level(
        self,
        policy: Policy,
        tasks: list[Task],
        trees: list[Tree],
        number: int,
        when: tuple[int, int],
        kept: Kept,
    ) -> list[Tree]:
        level, wave = when
        title = f"{self.player(number)} grow" + (f" level {level}" if level > 1 else "")
        title += f" wave {wave}" if wave > 1 else ""
        name = f"grown-{level}" + (f"-{wave}" if wave > 1 else "")
        path = self.run.path(self.player(number), f"{name}.jsonl")
        # Trees of like length share a batch; the order is restored by the ids below.
        order = sorted(range(len(trees)), key=lambda i: len(trees[i].prompt_ids))
        groups = _batches(
            order, [self._rows(tree) for tree in trees], self.config.grow.rows_at_once
        )
        seed = self.config.seed * 1000 + number
        with (
            self.run.timed(f"{self.player(number)} grow"),
            self.reporter.stage(title, len(trees)) as meter,
        ):

            def work(group: Sequence[int]) -> list[dict[str, Any]]:
                grown = grow(
                    policy,
                    [tasks[i] for i in group],
                    [trees[i] for i in group],
                    self.config.grow,
                    seed,
                    meter.tokens,
                    kept,
                )
                if self.config.method not in UNJUDGED:
                    self.judge.judge_ahead(
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

    def _rows(self, tree: Tree) -> int:
        return sum(missing(tree, node, self.config.grow) for node in tree.nodes)

    def _judge_level(
        self, tasks: list[Task], trees: list[Tree], number: int, level: int
    ) -> list[Tree]:
        items = [
            (task, branch.answer)
            for task, tree in zip(tasks, trees, strict=True)
            for branch in tree.branches
            if branch.verdict is None
        ]
        title = f"{self.player(number)} judge" + (f" level {level}" if level > 1 else "")
        with (
            self.run.timed(f"{self.player(number)} judge"),
            self.reporter.stage(title, len(items)) as meter,
        ):
            verdicts = iter(self.judge.judge_many(items, meter.reach))
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

    def contrasts(self, number: int) -> list[Contrast]:
        """Draw the contrasts of round ``number`` and score them under the opponent, once."""
        where = self.player(number)
        path = self.run.path(where, "contrasts.jsonl")
        if path.is_file():
            return [contrast_from_json(row) for row in read_jsonl(path)]
        trees = self.grow(number)
        with self.policy_of(number - 1) as policy:
            drawn = draw_contrasts(
                self.config.method, policy, self._tasks_of(trees), trees, self.config.contrasts
            )
            bare = drawn.contrasts and not any(contrast.rejected for contrast in drawn.contrasts)
            if bare and self.config.method not in WITHOUT_BRANCHES:
                self.reporter.say(f"{where}: nothing to disprefer; golden answers alone are learnt")
            found: Sequence[Contrast] = drawn.contrasts
            if self.config.train.reference == "reuse":
                found = with_sampled(found, trees)
            with (
                self.run.timed(f"{where} score"),
                self.reporter.stage(f"{where} score opponent", len(found)) as meter,
            ):

                def done(count: int, tokens: int) -> None:
                    meter.tokens(tokens)
                    meter.advance(count)

                say = self.reporter.say
                scored = score_opponent(policy, found, self.config.train, done, say)
        write_json(
            self.run.path(where, "contrasts.json"),
            {"opponent": self.player(number - 1), "counts": drawn.counts},
        )
        write_jsonl(path, [contrast_to_json(contrast) for contrast in scored])
        return scored

    def train(self, number: int) -> Path:
        """Train the player of round ``number`` from the player before it."""
        if self.adapter(number).is_dir():
            return self.adapter(number)
        contrasts = self.contrasts(number)
        where = self.player(number)
        with self.run.timed(f"{where} train"), self.reporter.stage(f"{where} train", 1) as meter:

            def done(step: int, steps: int, row: dict[str, float]) -> None:
                meter.reach(step, steps)
                meter.tokens(int(row["tokens"]))
                meter.note(f"{meter.rate()}  loss {row['loss']:.3f}")

            folder = train(
                self.policy,
                contrasts,
                self.config.train,
                self.config.seed * 1000 + number,
                self.run.folder / where,
                self.adapter(number - 1) if number > 1 else None,
                done,
            )
        self.run.name(where, adapter_digest(folder))
        return folder

    def evaluate(self, number: int) -> None:
        """Sample and judge every suite with the player of round ``number``."""
        player = self.player(number)
        path = self.run.path("eval", f"{player}.jsonl")
        if path.is_file():
            return
        with self.policy_of(number) as policy:
            answers = [(suite, self._answers(policy, player, suite)) for suite in self.suites]
        rows: list[dict[str, Any]] = []
        for suite, sampled in answers:
            by_id = {task.id: task for task in suite.tasks}
            items = [(by_id[answer.task], answer.text) for answer in sampled]
            with (
                self.run.timed(f"{player} eval judge"),
                self.reporter.stage(f"{player} judge {suite.name}", len(items)) as meter,
            ):
                verdicts = self.judge.judge_many(items, meter.reach)
            for (task, _), answer, verdict in zip(items, sampled, verdicts, strict=True):
                rows.append(scored_to_json(_scored(player, number, suite, task, answer, verdict)))
        write_jsonl(path, rows)

    def _answers(self, policy: Policy, player: str, suite: Suite) -> list[Answer]:
        order = sorted(range(len(suite.tasks)), key=lambda i: len(suite.tasks[i].prompt))
        counts = [self.config.eval.samples] * len(suite.tasks)
        groups = _batches(order, counts, self.config.eval.rows_at_once)
        with (
            self.run.timed(f"{player} eval sample"),
            self.reporter.stage(f"{player} sample {suite.name}", len(suite.tasks)) as meter,
        ):

            def work(group: Sequence[int]) -> list[dict[str, Any]]:
                tasks = [suite.tasks[i] for i in group]
                made = sample_answers(
                    policy, tasks, self.config.eval, self.config.seed, meter.tokens
                )
                by_id = {task.id: task for task in tasks}
                self.judge.judge_ahead([(by_id[answer.task], answer.text) for answer in made])
                return [vars(answer) for answer in made]

            path = self.run.path("eval", f"{player}.{suite.name}.answers")
            rows = staged(path, groups, work, meter.advance)
        place = {task.id: i for i, task in enumerate(suite.tasks)}
        rows.sort(key=lambda row: (place[row["task"]], row["sample"]))
        return [Answer(**row) for row in rows]

    def play(self) -> None:
        """All rounds, base and every player evaluated. The game ends early where the opponent, a
        player by then, makes no mistake any more."""
        self.evaluate(0)
        for number in range(1, self.config.rounds + 1):
            if number > 1 and not self.adapter(number).is_dir() and not self.contrasts(number):
                self.reporter.say(
                    f"round {number}: {self.player(number - 1)} made no mistake to learn from; "
                    "the game ends here"
                )
                return
            self.train(number)
            self.evaluate(number)


def _batches(order: Sequence[int], rows: Sequence[int], limit: int) -> list[list[int]]:
    """Groups of indices, in order, with at most ``limit`` rows together where possible."""
    groups: list[list[int]] = []
    used = 0
    for i in order:
        if not groups or used + rows[i] > limit:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += rows[i]
    return groups


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
