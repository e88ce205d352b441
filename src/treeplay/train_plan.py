"""Which trees each step of a training learns from, and how fast."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from treeplay.groups import Group

if TYPE_CHECKING:
    from treeplay.train import TrainConfig


def plan_steps(
    groups: Sequence[Group], config: TrainConfig, seed: int
) -> tuple[list[list[Group]], list[int]]:
    """The trees of every step of every epoch, and the number of steps at the end of each; a new
    order each epoch, from the seed. With a budget, up to the step that uses it up."""
    steps: list[list[Group]] = []
    ends: list[int] = []
    used = 0
    for epoch in count() if config.budget else range(config.epochs):
        order = list(groups)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for step in _cut(order, config):
            steps.append(step)
            used += sum(max(1, group.learnt) for group in step)
            if config.budget and used >= config.budget:
                return steps, [*ends, len(steps)]
        ends.append(len(steps))
    return steps, ends


def _cut(order: Sequence[Group], config: TrainConfig) -> Iterator[list[Group]]:
    """The steps of an epoch."""
    step: list[Group] = []
    tokens = 0
    for group in order:
        more = max(1, group.learnt)
        if config.tokens_per_step:
            full = tokens + more / 2 > config.tokens_per_step
        else:
            full = len(step) == config.groups_per_step
        if step and full:
            yield step
            step, tokens = [], 0
        step.append(group)
        tokens += more
    if step:
        yield step


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """The share of ``config.learning_rate`` at step ``step`` (from 0) of ``steps``."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    return (steps - step) / max(1, steps - warm)
