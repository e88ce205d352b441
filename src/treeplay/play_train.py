"""The training stage of a round, by method.

A trainer reads what it needs of the game and leaves a PEFT adapter in ``round-N/adapter``, whole or
not at all. Methods that learn from contrasts share one; a method that learns otherwise (from
rewards, say) has an entry in :data:`TRAINERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from treeplay.grpo import counts_of, nothing_learnt, train_grpo
from treeplay.keep import Keeper
from treeplay.play_doubts import doubt_of, warn
from treeplay.play_keep import train_and_choose
from treeplay.run import read_jsonl
from treeplay.sven import train_prefixes
from treeplay.train import TrainConfig, train

if TYPE_CHECKING:
    from treeplay.play import Game

# trainer(game, round) -> the adapter's folder
Trainer = Callable[["Game", int], Path]
# told(step, steps, the step's figures)
Told = Callable[[int, int, dict[str, float]], None]


@contextmanager
def _stage(game: Game, where: str, figure: str) -> Iterator[Told]:
    """The training stage of ``where``, timed and shown; ``figure`` is shown beside each step."""
    with game.run.timed(f"{where} train"), game.reporter.stage(f"{where} train", 1) as meter:

        def told(step: int, steps: int, row: dict[str, float]) -> None:
            meter.reach(step, steps)
            meter.tokens(int(row["tokens"]))
            meter.note(f"{meter.rate()}  {figure} {row.get(figure, 0.0):.3f}")
            game.reporter.tracks.trained(row)

        yield told


def train_contrasts(game: Game, number: int) -> Path:
    """Train on the contrasts of round ``number``, from the player before it."""
    contrasts = game.lesson(number)
    where = game.player(number)
    with _stage(game, where, "loss") as told:

        def run(config: TrainConfig, folder: Path, keeper: Keeper | None) -> Path:
            return train(
                game.policy,
                contrasts,
                config,
                game.config.seed * 1000 + number,
                folder,
                game.adapter(number - 1) if number > 1 else None,
                told,
                keeper,
            )

        if game.held is None:
            return run(game.config.train, game.run.folder / where, None)
        return train_and_choose(game, number, run)


def train_rewards(game: Game, number: int) -> Path:
    """Train on the judge's verdicts on whole answers, from the player before round ``number``."""
    where = game.player(number)
    if game.server:
        game.reporter.say(f"{where}: grpo samples here, since its player changes at every step")
    with _stage(game, where, "reward") as told:
        adapter = train_grpo(
            game.policy,
            game.tasks,
            game.config.grpo,
            game.config.train,
            game.judge.judge_many,
            game.config.seed * 1000 + number,
            game.run.folder / where,
            game.adapter(number - 1) if number > 1 else None,
            told,
        )
    rows = list(read_jsonl(game.run.path(where, "train.jsonl")))
    for warning in (nothing_learnt(rows), doubt_of(game, counts_of(rows), game.tasks, "answers")):
        if warning:
            game.reporter.say(f"warning: {where}: {warning}")
            warn(game, f"{where}: {warning}")
    return adapter


def train_pairs(game: Game, number: int) -> Path:
    """Train prefixes on given pairs of answers, from the player before round ``number``."""
    where = game.player(number)
    with _stage(game, where, "loss") as told:
        return train_prefixes(
            game.policy,
            game.tasks,
            game.config.sven,
            game.config.train,
            game.config.seed * 1000 + number,
            game.run.folder / where,
            game.adapter(number - 1) if number > 1 else None,
            told,
        )


# Methods whose players are not trained on contrasts: nothing is drawn for them, and a round is
# never without something to learn from.
TRAINERS: dict[str, Trainer] = {"grpo": train_rewards, "sven": train_pairs}


def learns_from_contrasts(method: str) -> bool:
    return method not in TRAINERS


def train_player(game: Game, number: int) -> Path:
    """Train the player of round ``number`` as the game's method says."""
    return TRAINERS.get(game.config.method, train_contrasts)(game, number)
