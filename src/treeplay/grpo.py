"""GRPO: learn from whole answers and the judge's verdicts on them, through TRL's trainer.

    tasks -> groups of sampled answers -> verdicts -> rewards -> advantages in the group -> adapter

Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300) is here for comparison: it
needs no golden answers and no nodes, and its only signal is one number an answer. TRL computes
advantages, loss and gradient (:mod:`treeplay.grpo_trl`); prompts, sampling, verdicts, the learning
rate, the state on disk and the adapter are those of every other method. Each step samples from the
player as it is at that step and learns from those samples once.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from treeplay.errors import RunError
from treeplay.judge.verdict import LABELS, Verdict
from treeplay.policy.model import Policy, encode_path
from treeplay.policy.sample import SampleConfig
from treeplay.tasks.task import Task
from treeplay.train import TrainConfig

INSTALL = "pip install 'trl>=1.16,<2'"


@dataclass(frozen=True)
class GrpoRewards:
    """What an answer is worth that is not secure; a secure one is worth 1, and what a secure one
    that fails the functional tests is worth, ``inert`` says too. An unknown verdict (and
    one on a task that asks nothing about security) is no reward at all: the answer is left out of
    its group's mean and moves nothing. Where ``invalid`` or ``inert`` is above ``vulnerable``,
    breaking the program pays more than writing it with the weakness."""

    vulnerable: float = 0.0
    inert: float = 0.0
    invalid: float = 0.0


@dataclass(frozen=True)
class GrpoConfig(SampleConfig):
    """``generations`` answers a task and step form a group; ``train.groups_per_step`` tasks make a
    step. ``top_p`` stays 1 unless the loss may be biased: TRL's probabilities know of
    ``temperature`` only. ``budget``: sampled tokens after which a round ends, its last step
    finished (``train.budget``: gradient tokens, answers with their prompts; with neither,
    ``train.epochs`` decides). ``beta`` weighs the KL divergence from the player that the
    round began with. ``loss``: how TRL averages over tokens and answers.
    """

    top_p: float = 1.0
    max_tokens: int = 128
    generations: int = 8
    budget: int = 0
    beta: float = 0.0
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    rewards: GrpoRewards = GrpoRewards()


Judged = Callable[[Sequence[tuple[Task, str]]], list[Verdict]]
# progress(done, of, row): steps, or sampled tokens where there is a budget
Progress = Callable[[int, int, dict[str, float]], None]


def require_trl() -> str:
    """The version of TRL. Raises :class:`RunError` with the mend where it is not installed."""
    if util.find_spec("trl") is None:
        raise RunError(f"method grpo trains through TRL, which is not installed; run: {INSTALL}")
    return metadata.version("trl")


def reward_of(verdict: Verdict, config: GrpoRewards) -> float | None:
    """The reward of an answer with ``verdict``; ``None`` where it says nothing."""
    if verdict.label == "secure" and verdict.functional is False:
        return config.inert
    worth = {
        "secure": 1.0,
        "vulnerable": config.vulnerable,
        "inert": config.inert,
        "invalid": config.invalid,
    }
    return worth.get(verdict.label)


@dataclass
class Course:
    """How far a round has come, and how far it goes. ``longest``: tokens of the longest prompt.
    ``rows`` are the lines of ``train.jsonl``."""

    config: GrpoConfig
    train: TrainConfig
    tasks: int
    longest: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """Answers of one step."""
        return self.train.groups_per_step * self.config.generations

    @property
    def spent(self) -> list[tuple[int, int, int]]:
        """(tokens used, budget, the most of one step) of the budgets that are set: of sampled
        tokens, and of gradient tokens, in which every answer counts with its prompt."""
        written = self.answers * self.config.max_tokens
        kinds = (
            ("sampled", self.config.budget, written),
            ("learnt", self.train.budget, written + self.answers * self.longest),
        )
        return [
            (sum(row.get(kind, row.get("tokens", 0)) for row in self.rows), limit, most)
            for kind, limit, most in kinds
            if limit
        ]

    @property
    def steps(self) -> int:
        """The most steps there can be: with a budget, if every answer were one token long."""
        if self.spent:
            return min(math.ceil(limit / self.answers) for _, limit, _ in self.spent)
        return math.ceil(self.train.epochs * self.tasks / self.train.groups_per_step)

    @property
    def place(self) -> tuple[int, int]:
        """(how far, of how far): tokens of the budget that ends first, or steps."""
        found = max(self.spent, key=lambda one: one[0] / one[1], default=None)
        return found[:2] if found else (len(self.rows), self.steps)

    def over(self) -> bool:
        now, goal = self.place
        return now >= goal

    def rate(self) -> float:
        """The share of the learning rate at which the next step learns: as in every other method,
        a linear warm-up and (``schedule`` linear) a linear way down to 0, over the round."""
        now, goal = self.place
        behind, one = now / goal, 1 / self.steps
        if self.spent:
            one = max(most / limit for _, limit, most in self.spent)
        warm = max(self.train.warmup, one)
        if behind < warm:
            return min(1.0, (behind + one) / warm)
        if self.train.schedule == "constant":
            return 1.0
        return max(0.0, (1 - behind) / max(1 - warm, 1e-9))


def order(tasks: int, seed: int) -> Iterator[int]:
    """Numbers of tasks, each once an epoch, in an order that the seed gives; without an end."""
    epoch = 0
    while True:
        numbers = list(range(tasks))
        random.Random(f"{seed}/{epoch}").shuffle(numbers)
        yield from numbers
        epoch += 1


def rows_at_once(longest: int, answers: int, max_tokens: int) -> int:
    """How many of a step's ``answers`` are learnt from in one pass: as many as divide them evenly
    and have no more than ``max_tokens`` tokens in all, each being up to ``longest`` long."""
    fitting = [n for n in range(1, answers + 1) if answers % n == 0 and n * longest <= max_tokens]
    return max(fitting, default=1)


def train_grpo(
    policy: Policy,
    tasks: Sequence[Task],
    config: GrpoConfig,
    train: TrainConfig,
    judged: Judged,
    seed: int,
    out: Path,
    start_from: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train an adapter (new, or the one in ``start_from``) and write it to ``out/adapter``.

    ``policy`` must hold the base model without an adapter; it is as it was afterwards. ``judged``
    gives a verdict for each (task, answer). Interrupted, it goes on behind the last step that
    ``out/state`` holds, to the same result. Raises :class:`RunError` where TRL or tasks are
    missing, the loss is not a number, or memory is too small; :class:`ModelError` for an adapter
    that TRL cannot train.
    """
    require_trl()
    from treeplay.grpo_trl import learn

    if not tasks:
        raise RunError("there are no tasks to learn from; name some in tasks.train")
    final = out / "adapter"
    if (final / "adapter_model.safetensors").is_file():
        return final
    out.mkdir(parents=True, exist_ok=True)
    prompts = [encode_path(policy, task).ids for task in tasks]
    course = Course(config, train, len(tasks), max(map(len, prompts)))
    learn(policy, tasks, prompts, course, judged, seed, out, start_from, progress)
    return final


def counts_of(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many answers had which verdict in the steps of ``train.jsonl``."""
    return sum((Counter({label: row[label] for label in LABELS}) for row in rows), Counter())


def nothing_learnt(rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning where no step had anything to learn from; else nothing."""
    if any(row["groups"] for row in rows):
        return ""
    found = ", ".join(f"{count} {label}" for label, count in counts_of(rows).items())
    return (
        f"nothing was learnt: in no group of answers did two have different rewards ({found}); "
        "raise grpo.temperature or grpo.generations, or choose tasks that the player gets right "
        "sometimes"
    )


def finished_rows(log: Path, steps: int) -> list[dict[str, Any]]:
    """The lines of ``train.jsonl`` for the steps that the state holds."""
    lines = log.read_text(encoding="utf-8").splitlines()[:steps] if log.is_file() else []
    rows = [json.loads(line) for line in lines]
    if len(rows) < steps:
        raise RunError(
            f"{log} lacks lines of the {steps} steps taken so far; remove {log.parent} to train "
            "this round again"
        )
    return rows
