"""When a game is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treeplay.errors import ConfigError
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.play_keep import kept_mark
from treeplay.play_rates import measured
from treeplay.play_train import learns_from_contrasts
from treeplay.run import read_jsonl, write_json
from treeplay.selfplay import PlayConfig, mean_rate
from treeplay.tasks.select import Suite

if TYPE_CHECKING:
    from treeplay.play import Game


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
    if (kept := kept_mark(game, number - 1)) and kept.epoch == 0:
        return f"no epoch of {last} did better on the held-out tasks than the player before it"
    if not learns_from_contrasts(method):
        return ""
    judged = method not in (*WITHOUT_BRANCHES, *UNJUDGED)
    rate = mean_rate(measured(game, number)) if judged else None
    below = game.config.play.stop_below
    if rate is not None and rate < below:
        return f"{last}'s vulnerable rate of {rate:.1%} is below play.stop_below ({below:.1%})"
    contrasts = game.contrasts(number)
    # In the first round golden answers (anchors) teach where there is nothing else; a player that
    # has met them and makes no more mistakes is done, unless one of an older opponent is left.
    at_rest = number > 1 and rate == 0 and not any(c.rejected for c in contrasts)
    # Where there is nothing else, staying close to the opponent (anchors of kind kl) is no lesson.
    still = bool(contrasts) and all(c.kl for c in contrasts)
    if contrasts and not at_rest and not still:
        return ""
    # A base model without contrasts is an error of the settings, unless it was measured.
    if judged and rate is None and (number > 1 or still):
        return f"none of {last}'s branches could be judged secure or vulnerable"
    if number > 1 or rate == 0 or still:
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
