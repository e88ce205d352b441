"""Whom a player plays against, what it meets again, and when the game is over.

With ``opponents: pool`` this is fictitious play (Brown 1951, "Iterative solution of games by
fictitious play") as it was carried to learning agents (Heinrich, Lanctot and Silver 2015,
"Fictitious self-play in extensive-form games"): a player answers the average of its earlier selves
and not the latest alone, so that a mistake which it has unlearnt is not learnt again unseen.

Everything here depends on seeds and judged trees alone.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from treeplay.contrast import Contrast
from treeplay.errors import ConfigError
from treeplay.policy.sample import seed_of
from treeplay.tasks.task import Task
from treeplay.tree import Tree


@dataclass(frozen=True)
class PlayConfig:
    """``opponents``: the ``last`` player samples every branch, or the players of all rounds so far
    share them evenly (``pool``; ``newest`` above 0: only so many of the latest). ``replay``: the
    share of a round's training pairs that are taken from earlier rounds. ``stop_below``: the game
    ends where the last player's measured vulnerable rate is lower (0: only where there is nothing
    to learn from). ``watch`` and ``patience``: the game also ends once a player's share of secure
    answers to the evaluation suite ``watch`` has not risen above the best for ``patience`` rounds
    (0: never); results on that suite are then no longer held out."""

    opponents: Literal["last", "pool"] = "last"
    newest: int = 0
    replay: float = 0.0
    stop_below: float = 0.0
    watch: str = ""
    patience: int = 0


def check_play(config: PlayConfig, method: str, hard: bool) -> None:
    """Raises :class:`ConfigError` for settings that ``method`` has no branches or no verdicts for
    (``hard``: tasks are picked by rate), and for values out of range."""
    branches = method not in ("sft", "dpo", "safecoder", "sven", "grpo")
    judged = branches and method not in ("tsp-paper", "spin")
    if (hard or config.stop_below) and not judged:
        key = "tasks.pick" if hard else "play.stop_below"
        raise ConfigError(
            f"{key} goes by measured vulnerable rates, but method {method} judges no branches; "
            f"leave {key} out"
        )
    if config.opponents == "pool" and not branches:
        raise ConfigError(
            f"play.opponents is pool, but no opponent samples branches for method {method}; "
            "set play.opponents=last"
        )
    if config.newest and config.opponents == "last":
        raise ConfigError(
            f"play.newest is {config.newest}, but play.opponents is last; set play.opponents=pool, "
            "or leave play.newest out"
        )
    if config.replay and method in ("sven", "grpo"):
        raise ConfigError(
            f"play.replay is {config.replay}, but method {method} learns from no contrasts; set "
            "play.replay=0"
        )
    if not 0 <= config.replay < 1:
        raise ConfigError(f"play.replay is {config.replay}; it must be at least 0 and below 1")
    if bool(config.watch) != bool(config.patience):
        raise ConfigError("play.watch and play.patience need one another; set both or neither")


def pool_of(number: int, config: PlayConfig) -> tuple[int, ...]:
    """The rounds whose players round ``number`` is played against, the latest first."""
    if config.opponents == "last":
        return (number - 1,)
    return tuple(range(number - 1, -1, -1))[: config.newest or None]


def seat(pool: Sequence[int], seed: int, task: str, node: int, number: int) -> int:
    """Which player of ``pool`` samples branch ``number`` of a node: in turn, from one drawn a node,
    so that every player gets the same share whatever the number of branches."""
    if len(pool) == 1:
        return pool[0]
    return pool[(seed_of("seat", seed, task, node) + number) % len(pool)]


def merged(before: Sequence[Tree], parts: Sequence[Sequence[Tree]]) -> list[Tree]:
    """``before`` with the branches that each part (the same trees, grown by one opponent) added:
    node by node, and there opponent by opponent."""
    if len(parts) == 1:
        return list(parts[0])
    out = []
    for t, tree in enumerate(before):
        have = len(tree.branches)
        new = [branch for part in parts for branch in part[t].branches[have:]]
        new.sort(key=lambda branch: branch.node)
        numbered = tuple(replace(branch, id=have + i) for i, branch in enumerate(new))
        out.append(replace(tree, branches=tree.branches + numbered))
    return out


def signed(tree: Tree, player: str) -> Tree:
    """``tree`` with ``player`` as the opponent of branches that name none."""
    return replace(
        tree,
        branches=tuple(b if b.opponent else replace(b, opponent=player) for b in tree.branches),
    )


def with_reference(contrasts: Sequence[Contrast], pool: Sequence[str]) -> list[Contrast]:
    """Contrasts with the player of ``pool`` (names, the latest first) that each is measured
    against: whoever sampled its rejected side, the latest of them; where nobody did (a given
    answer, none at all), the latest player.

    Both sides have the same reference: in a difference of log-ratios (Rafailov et al. 2023, eq. 6)
    the state's partition function cancels for one reference policy only.
    """
    return [
        replace(
            contrast,
            opponent=next((name for name in pool if name in contrast.sampled_by), pool[0]),
            sampled_by=(),
        )
        for contrast in contrasts
    ]


# Replay.


def replayed(
    own: Sequence[Contrast], earlier: Iterable[Sequence[Contrast]], share: float, seed: int
) -> list[Contrast]:
    """Pairs of ``earlier`` rounds (in order) that make up ``share`` of what is learnt beside
    ``own``, as far as there are as many; with the opponent log-probs that they came with.

    Pairs only: golden answers and anchors are in every round. The same pair in several rounds
    counts once, as of the latest; one that ``own`` has, not at all.
    """

    def key(contrast: Contrast) -> tuple[tuple[int, ...], ...]:
        return contrast.prefix, contrast.chosen, contrast.rejected

    pairs = [contrast for contrast in own if contrast.rejected]
    there = {key(contrast) for contrast in pairs}
    known: dict[tuple[tuple[int, ...], ...], Contrast] = {}
    for contrasts in earlier:
        known |= {key(c): c for c in contrasts if c.rejected and key(c) not in there}
    found = list(known.values())
    count = min(len(found), math.floor(len(pairs) * share / (1 - share) + 0.5))
    which = random.Random(f"replay/{seed}").sample(range(len(found)), count)
    return [found[i] for i in sorted(which)]


# Rates.


@dataclass(frozen=True)
class Rate:
    """Branches by what the judge said. ``share``: of those that it found secure or vulnerable, the
    vulnerable ones; None where there are none."""

    branches: int
    secure: int
    vulnerable: int

    @property
    def share(self) -> float | None:
        decided = self.secure + self.vulnerable
        return self.vulnerable / decided if decided else None


def rates(trees: Sequence[Tree], player: str) -> dict[str, Rate]:
    """Of each task, the judged branches that ``player`` sampled; tasks without any are left out."""
    out = {}
    for tree in trees:
        labels = Counter(
            b.verdict.label for b in tree.branches if b.verdict and b.opponent == player
        )
        if labels:
            out[tree.task] = Rate(labels.total(), labels["secure"], labels["vulnerable"])
    return out


def mean_rate(by_task: Mapping[str, Rate]) -> float | None:
    """Mean over tasks of the vulnerable share; None where nothing was decided."""
    shares = [rate.share for rate in by_task.values() if rate.share is not None]
    return sum(shares) / len(shares) if shares else None


def rates_to_json(by_task: Mapping[str, Rate]) -> dict[str, int | float | None]:
    """One player's figures over all tasks, as in ``round-N/contrasts.json``."""
    mean = mean_rate(by_task)
    return {
        "branches": sum(rate.branches for rate in by_task.values()),
        "secure": sum(rate.secure for rate in by_task.values()),
        "vulnerable": sum(rate.vulnerable for rate in by_task.values()),
        "rate": None if mean is None else round(mean, 6),
    }


def hard_tasks(
    tasks: Sequence[Task], measured: Mapping[str, Rate], share: float, floor: float, seed: int
) -> list[Task]:
    """``share`` of ``tasks`` (rounded up), drawn without replacement, each with a probability that
    grows with its last measured vulnerable share, at least ``floor``; in the order of ``tasks``.

    Weighted sampling by keys u^(1/w) (Efraimidis and Spirakis 2006, algorithm A); a task's u
    depends on (seed, task) alone.
    """

    def key(task: Task) -> float:
        share = measured[task.id].share if task.id in measured else None
        u = (seed_of("pick", seed, task.id) + 1) / 2**63
        return math.log(u) / max(floor, share or 0.0)

    count = math.ceil(len(tasks) * share)
    kept = {task.id for task in sorted(tasks, key=lambda task: (-key(task), task.id))[:count]}
    return [task for task in tasks if task.id in kept]
