"""Training with snapshots: each is asked the held-out tasks, and the best is the player.

``held/base.json`` is the base model's mark. ``round-N/`` has a folder ``rate-R`` for each learning
rate, with ``epochs/`` (the snapshots) and ``held/`` (answers and marks), and ``kept.json``: all the
marks, and what was kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeplay.config import Config
from treeplay.errors import LearningError, TaskError
from treeplay.keep import Keeper, Mark, hold_out, mark, mark_from_json
from treeplay.play_doubts import warn
from treeplay.play_eval import sampled_answers
from treeplay.policy.model import Policy
from treeplay.run import read_json, write_json
from treeplay.tasks.decision import decision_form
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task

if TYPE_CHECKING:
    from treeplay.play import Game
    from treeplay.train import TrainConfig

# run(settings, folder, keeper) -> the adapter
Run = Callable[["TrainConfig", Path, "Keeper | None"], Path]


def held_suite(config: Config, tasks: Sequence[Task]) -> tuple[list[Task], Suite | None]:
    """(tasks to train on, the held-out ones in the form in which evaluation asks).

    Raises :class:`TaskError` where no task is left for one of the two.
    """
    if not config.tasks.hold_out or not tasks:
        return list(tasks), None
    kept, held = hold_out(tasks, config.tasks.hold_out, config.seed)
    asked = [decision_form(task, config.tasks.form) for task in held]
    found = tuple(task for task in asked if task is not None)
    if not found:
        raise TaskError(
            f"none of the {len(held)} held-out tasks can be asked in form {config.tasks.form!r}; "
            "raise tasks.hold_out or set tasks.form=full"
        )
    return kept, Suite("held-out", found, samples=config.train.keep_samples)


def train_and_choose(game: Game, number: int, run: Run) -> Path:
    """Train round ``number``'s player, with every learning rate of ``train.rates``, and keep the
    best snapshot; returns its adapter. With ``train.keep=best`` that of the round before stays
    where no snapshot has a better mark (``epoch`` 0 of ``kept.json``).

    A rate with which training fails (:class:`LearningError`) is told and left out; the error is
    raised where none is left.
    """
    where = game.player(number)
    folder = game.run.folder / where
    config = game.config.train
    base = _mark_of(game, game.policy, "held/base", 0, None)
    tried: list[tuple[float, Path, Keeper]] = []
    failed: dict[str, str] = {}
    for rate in config.rates or (config.learning_rate,):
        inside = f"{where}/rate-{rate:g}"

        def examine(model: Any, adapter: Path, epoch: int, inside: str = inside) -> Mark:
            policy = replace(game.policy, model=model)
            if game.server:
                name = f"{inside}-epoch-{epoch}".replace("/", "-")
                policy = replace(policy, sampler=game.server.sampler(policy, adapter, name))
            return _mark_of(game, policy, f"{inside}/held/epoch-{epoch}", epoch, base)

        settings = replace(config, learning_rate=rate)
        keeper = Keeper(game.run.folder / inside / "epochs", base, settings, examine)
        try:
            run(settings, game.run.folder / inside, keeper)
        except LearningError as error:
            if len(failed) + 1 == max(1, len(config.rates)):
                raise
            failed[f"{rate:g}"] = str(error)
            told = f"{where}: learning rate {rate:g} is left out: {error}"
            game.reporter.say(f"warning: {told}")
            warn(game, told)
        else:
            tried.append((rate, game.run.folder / inside, keeper))
    rate, chosen, keeper = tried[best_run([keeper for _, _, keeper in tried])]
    kept, adapter = keeper.best(), chosen / "adapter"
    which = f"epoch {kept.epoch} at learning rate {rate:g}"
    before = kept_mark(game, number - 1) if config.keep == "best" else None
    if before and (keeper.able(before), before.score) >= (keeper.able(kept), kept.score):
        kept, adapter = replace(before, epoch=0), game.adapter(number - 1)
        which = f"no epoch did better than {game.player(number - 1)}, which"
    marks = {
        "base": asdict(base),
        "learning_rate": rate,
        "epoch": kept.epoch,
        "mark": asdict(kept),
        "tried": {f"{one:g}": each.to_json() for one, _, each in tried},
    }
    write_json(folder / "kept.json", marks | ({"failed": failed} if failed else {}))
    game.reporter.say(
        f"{where}: {which} is kept; held-out tasks: "
        f"secure {kept.secure:.1%} (base {base.secure:.1%}), able {kept.able:.1%} "
        f"(base {base.able:.1%})"
    )
    if kept.score < base.score:
        game.reporter.say(f"warning: {where}: on the held-out tasks the base model does better")
    final = game.adapter(number)
    shutil.copyfile(chosen / "train.jsonl", folder / "train.jsonl")
    part = folder / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(adapter, part)
    part.replace(final)
    return final


def kept_mark(game: Game, number: int) -> Mark | None:
    """The mark of the player that round ``number`` kept; None where it chose by none."""
    path = game.run.folder / game.player(number) / "kept.json"
    kept = read_json(path) if path.is_file() else {}
    return mark_from_json(kept["mark"]) if "mark" in kept else None


def best_run(keepers: Sequence[Keeper]) -> int:
    """Which of several runs has the player: of those whose snapshot kept its ability
    (``train.max_drop``), if any did, the one with the highest score, the first of equals."""
    found = [(keeper.able(keeper.best()), keeper.best().score) for keeper in keepers]
    return found.index(max(found))


def _held(game: Game) -> Suite:
    assert game.held is not None
    return game.held


def _mark_of(game: Game, policy: Policy, file: str, epoch: int, base: Mark | None) -> Mark:
    """The mark of ``policy``, from ``file``.json of the run folder where it is there."""
    path = game.run.path(f"{file}.json")
    if path.is_file():
        return mark_from_json(read_json(path))
    suite = _held(game)
    player = "base" if base is None else file.replace("/held/", " ")
    (answers,) = sampled_answers(game, policy, player, {f"{file}.answers": suite})
    by_id = {task.id: task for task in suite.tasks}
    items = [(by_id[answer.task], answer.text) for answer in answers]
    with (
        game.run.timed(f"{player} held-out judge"),
        game.reporter.stage(f"{player} judge held-out", len(items)) as meter,
    ):
        verdicts = game.judge.judge_many(items, meter.reach)
    found = mark([(t, v) for (t, _), v in zip(items, verdicts, strict=True)], epoch, base)
    write_json(path, asdict(found))
    return found
