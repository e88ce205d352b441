"""Play: rounds of grow -> judge -> contrasts -> train -> evaluate. The whole algorithm.

Every stage reads files of the run folder and writes one; a stage whose file is there is not done
again. So each can be run alone, looked at, replaced, and resumed (see :mod:`treeplay.run`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from treeplay.anchors import freed
from treeplay.config_check import unread
from treeplay.contrast import Contrast, contrast_from_json, contrast_to_json
from treeplay.contrasts import WITHOUT_ANCHOR, draw_contrasts
from treeplay.errors import RunError, TreeplayError
from treeplay.evaluations import question, settle, tasks_digest
from treeplay.golden import own_task
from treeplay.judge.judge import Judge
from treeplay.lora import check_adapter
from treeplay.metrics import scored_from_json
from treeplay.nodes_learn import learn_nodes
from treeplay.nodes_llm import annotator_config
from treeplay.opponent import score_opponent, with_sampled
from treeplay.ordinary.anchors import Ordinary, ordinary_anchors
from treeplay.play_doubts import doubt, doubts_of_answers, warn
from treeplay.play_eval import scored_answers
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES, Opponents, grow_trees, plant_trees
from treeplay.play_keep import held_suite
from treeplay.play_over import check_watched, end, why_over
from treeplay.play_rates import measured
from treeplay.play_tasks import (
    cannot_run,
    contaminated,
    cut_short,
    judges_training,
    short_budgets,
    what_fits,
)
from treeplay.play_train import train_player
from treeplay.policy.model import (
    Policy,
    adapter_digest,
    load_adapter,
    load_policy,
    tokenizer_digest,
)
from treeplay.policy.prefix import merge, take_off
from treeplay.policy.server import open_server
from treeplay.progress import Reporter
from treeplay.run import Run, read_jsonl, write_json, write_jsonl
from treeplay.sandbox import Sandbox, check_sandbox
from treeplay.selfplay import (
    Rate,
    hard_tasks,
    pool_of,
    rates,
    rates_to_json,
    replayed,
    with_reference,
)
from treeplay.tasks.jsonl import task_to_json
from treeplay.tasks.select import eval_suites, train_tasks
from treeplay.tasks.task import Task
from treeplay.track import answer_figures, branch_figures
from treeplay.train import packed_where_right
from treeplay.tree import Tree, tree_from_json, tree_to_json


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
        if training and "llm" in config.nodes.sources:
            annotator_config(config.nodes.llm)  # before anything is sampled
        self.sandbox = Sandbox(unsafe=config.judge.unsafe)
        self.base_name = name
        self._played: dict[int, list[Task]] = {}
        self.server = open_server(config.model, run.folder, reporter.say)
        given = config.golden.source == "reference"
        self.tasks = train_tasks(config.tasks, config.seed, given) if training else []
        self.suites = eval_suites(config.tasks)
        check_watched(config.play, self.suites)
        self.tasks, self.held = held_suite(config, self.tasks)
        warnings = contaminated(self.tasks, self.suites, config.contrasts.ordinary > 0)
        with run.timed("load"), reporter.stage("load model", 1) as meter:
            self.policy = load_policy(config.model)
            meter.advance(1)
        if training and config.model.adapter:  # the base of this run is model and adapter
            self.policy = replace(self.policy, model=merge(self.policy.model))
        if training and config.method != "sven":
            check_adapter(self.policy.model, config.train.lora)
        if training:  # said once, here
            packed_where_right(self.policy.model, config.train, reporter.say)
        if self.server:
            self.policy = replace(self.policy, sampler=self.server.sampler(self.policy))
        run.name(name, self.policy.identity)
        run.name("tokenizer", tokenizer_digest(self.policy.tokenizer))
        asked = [*self.suites, *([self.held] if self.held else [])]
        self.tasks, asked = what_fits(self.policy, self.tasks, asked, config, reporter.say)
        if self.held:
            self.held = asked.pop()
        self.suites = asked
        learnt = [*self.tasks, *(self.held.tasks if self.held else ())]
        evaluated = [task for suite in self.suites for task in suite.tasks]
        every = [*learnt, *evaluated]
        run.name("training tasks", tasks_digest(learnt))
        self.judge = Judge(self.sandbox, run.path("verdicts.jsonl"), config.judge)
        run.name("judge", self.judge.identity())
        untested = sorted({task.language for task in every if task.tests is None})
        if untested:
            with reporter.stage("canaries", 1) as meter:
                self.judge.panel.check(untested)
                meter.advance(1)
        # Nothing can be wrong with the run any more.
        suites = {suite.name: question(config.eval, suite) for suite in self.suites}
        if told := settle(run, tasks_digest(evaluated), suites):
            reporter.say(told)
        warnings += unread(config) if training else []
        warnings += short_budgets(self.policy, self.suites, config.eval)
        warnings += cut_short(self.tasks)
        if judges_training(config):
            warnings += cannot_run("training", learnt)
        warnings += [said for suite in self.suites for said in cannot_run(suite.name, suite.tasks)]
        for warning in warnings:
            reporter.say(f"warning: {warning}")
            warn(self, warning)
        if not (run.folder / "tasks.jsonl").is_file():
            write_jsonl(run.path("tasks.jsonl"), [task_to_json(task) for task in every])

    def close(self) -> None:
        """End what goes on in the background (after an interruption, say)."""
        self.judge.close()
        self.sandbox.ending.set()  # this game's own
        if self.server:
            self.server.close()
        self.reporter.tracks.close()

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
        folder = self._check_there(number)
        self.run.name(self.player(number), adapter_digest(folder))
        model = load_adapter(self.policy.model, folder, trainable=False)
        try:
            policy = replace(self.policy, model=model.eval())
            if self.server:
                served = self.server.sampler(policy, folder, self.player(number))
                policy = replace(policy, sampler=served)
            yield policy
        finally:
            take_off(model)

    def _check_there(self, number: int) -> Path:
        """The adapter of round ``number``. Raises :class:`RunError` where it was not trained."""
        folder = self.adapter(number)
        if number and not folder.is_dir():
            raise RunError(f"{folder} is not there; run the training stage of round {number} first")
        return folder

    def pool(self, number: int) -> tuple[int, ...]:
        """Whom round ``number`` is played against, the latest player first."""
        return pool_of(number, self.config.play)

    def played(self, number: int) -> list[Task]:
        """The training tasks of round ``number``: all, or with ``tasks.pick=hard`` some, by the
        vulnerable rates last measured."""
        config = self.config.tasks
        if config.pick == "all" or number == 1:
            return self.tasks
        if number not in self._played:
            known: dict[str, Rate] = {}
            for earlier in range(1, number):
                told = measured(self, earlier)
                # A round that decided nothing about a task does not unmake what is known of it.
                known |= {name: rate for name, rate in told.items() if rate.share is not None}
            self._played[number] = hard_tasks(
                self.tasks, known, config.share, config.floor, self.config.seed * 1000 + number
            )
        return self._played[number]

    # Stages.

    def grow(self, number: int) -> list[Tree]:
        """Grow and judge the trees of round ``number``; the opponents are players before it."""
        where = self.player(number)
        final = self.run.path(where, "judged.jsonl")
        if final.is_file():
            return [tree_from_json(row) for row in read_jsonl(final)]
        self.played(number)
        names = [self.player(opponent) for opponent in self.pool(number)]
        self.run.name(f"{where} opponent", ", ".join(names))
        with Opponents(self, number) as opponents:
            policy = opponents.policy(opponents.pool[0])
            trees = plant_trees(self, policy, number)
            if self.config.method not in WITHOUT_BRANCHES:
                trees = learn_nodes(self, policy, number, trees)
                trees = grow_trees(self, opponents, number, trees)
        write_jsonl(final, [tree_to_json(tree) for tree in trees])
        self.reporter.tracks.now(branch_figures(trees))
        return trees

    def tasks_of(self, trees: Sequence[Tree]) -> list[Task]:
        """The task of each tree, with the tree's golden path for reference where it is the
        opponent's own."""
        by_id = {task.id: task for task in self.tasks}
        found = [by_id[tree.task] for tree in trees]
        if self.config.golden.source == "reference":
            return found
        return [own_task(task, tree) for task, tree in zip(found, trees, strict=True)]

    def contrasts(self, number: int) -> list[Contrast]:
        """Draw the contrasts of round ``number`` and score each under its opponent, once."""
        where = self.player(number)
        path = self.run.path(where, "contrasts.jsonl")
        if path.is_file():
            return [contrast_from_json(row) for row in read_jsonl(path)]
        trees = self.grow(number)
        names = [self.player(opponent) for opponent in self.pool(number)]
        with Opponents(self, number) as opponents:
            policy = opponents.policy(opponents.pool[0])
            drawn = draw_contrasts(
                self.config.method, policy, self.tasks_of(trees), trees, self.config.contrasts
            )
            bare = any(not c.kl for c in drawn.contrasts)
            bare = bare and not any(contrast.rejected for contrast in drawn.contrasts)
            if bare and self.config.method not in WITHOUT_ANCHOR:
                told = f"{where}: nothing to disprefer; golden answers alone are learnt"
                self.reporter.say(f"warning: {told}")
                warn(self, told)
            found: Sequence[Contrast] = with_reference(drawn.contrasts, names)
            if self.config.train.reference == "reuse":
                found = with_sampled(found, trees)
            extra = self._ordinary(policy, number) if found else Ordinary()
            found = [*found, *with_reference(extra.anchors, names)]
            with (
                self.run.timed(f"{where} score"),
                self.reporter.stage(f"{where} score opponent", len(found)) as meter,
            ):

                def done(count: int, tokens: int) -> None:
                    meter.tokens(tokens)
                    meter.advance(count)

                say = self.reporter.say
                scored: list[Contrast] = list(found)
                for opponent, name in zip(opponents.pool, names, strict=True):
                    which = [i for i, one in enumerate(found) if one.opponent == name]
                    if not which:
                        continue
                    policy, some = opponents.policy(opponent), [found[i] for i in which]
                    one_s = score_opponent(policy, some, self.config.train, done, say)
                    for i, contrast in zip(which, one_s, strict=True):
                        scored[i] = contrast
        judged = self.config.method not in (*WITHOUT_BRANCHES, *UNJUDGED)
        warning = doubt(self, trees) if judged else ""
        if warning:
            self.reporter.say(f"warning: {where}: {warning}")
        write_json(
            self.run.path(where, "contrasts.json"),
            {
                "opponent": names[0],
                "counts": drawn.counts,
                "ordinary_tokens": extra.sampled,
                "opponents": {name: rates_to_json(rates(trees, name)) for name in names},
                "warning": warning,
            },
        )
        write_jsonl(path, [contrast_to_json(contrast) for contrast in scored])
        return scored

    def _ordinary(self, policy: Policy, number: int) -> Ordinary:
        """Round ``number``'s anchors on ordinary code."""
        config = self.config.contrasts
        if not config.ordinary:
            return Ordinary()
        stage = f"{self.player(number)} ordinary"
        with self.run.timed(stage), self.reporter.stage(stage, config.ordinary) as meter:
            seed = self.config.seed * 1000 + number
            found = ordinary_anchors(policy, config, seed, self.config.tasks.languages)
            meter.advance(config.ordinary)
        return found

    def lesson(self, number: int) -> list[Contrast]:
        """What the player of round ``number`` is trained on: the round's contrasts, and with
        ``play.replay`` some of the rounds before."""
        own = self.contrasts(number)
        if not self.config.play.replay or number == 1 or not own:
            return own
        path = self.run.path(self.player(number), "replayed.jsonl")
        if path.is_file():
            again = [contrast_from_json(row) for row in read_jsonl(path)]
        else:
            earlier = [self.contrasts(before) for before in range(1, number)]
            seed = self.config.seed * 1000 + number
            again = replayed(own, earlier, self.config.play.replay, seed)
            write_jsonl(path, [contrast_to_json(contrast) for contrast in again])
        return [*freed(own, again), *again]

    def train(self, number: int) -> Path:
        """Train the player of round ``number`` from the player before it."""
        if self.adapter(number).is_dir():
            return self.adapter(number)
        self._check_there(number - 1)
        folder = train_player(self, number)
        self.run.name(self.player(number), adapter_digest(folder))
        return folder

    def evaluate(self, number: int) -> None:
        """Sample and judge every suite with the player of round ``number``."""
        player = self.player(number)
        path = self.run.path("eval", f"{player}.jsonl")
        if path.is_file():
            return
        with self.policy_of(number) as policy:
            rows = scored_answers(self, policy, number)
        for warning in doubts_of_answers(self, rows):
            self.reporter.say(f"warning: {player}: {warning}")
            warn(self, f"{player}: {warning}")
        write_jsonl(path, rows)
        if self.reporter.tracks:
            tasks = {task.id: task for suite in self.suites for task in suite.tasks}
            found = [scored_from_json(row) for row in read_jsonl(path)]
            self.reporter.tracks.now(answer_figures(found, tasks))

    def play(self, base: bool = True) -> None:
        """All rounds; every player and, where wanted, ``base`` are evaluated. The game ends early
        where there is nothing left to learn (:func:`treeplay.play_over.why_over`); the manifest
        says so.

        Where a round fails, the players before it have been evaluated, and the manifest says why.
        """
        if base:
            self.evaluate(0)
        for number in range(1, self.config.rounds + 1):
            stage = "growing"
            try:
                if reason := why_over(self, number):
                    self.reporter.say(f"round {number}: {reason}; the game ends here")
                    end(self, number, reason)
                    return
                stage = "training"
                self.train(number)
            except TreeplayError as error:
                end(self, number, f"{stage} failed: {error}")
                raise
            self.evaluate(number)
        end(self, self.config.rounds, "")
