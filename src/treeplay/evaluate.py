"""Evaluate a player: sample answers to held-out tasks, judge them, keep every one.

The numbers are made from the kept samples later (:mod:`treeplay.metrics`), so that any metric can
be recomputed without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from treeplay.errors import TaskError
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.policy.sample import Ended, Request, Row, Sample, SampleConfig, sample, seed_of
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task


@dataclass(frozen=True)
class EvalConfig(SampleConfig):
    """``samples`` a task, drawn as the inherited fields say."""

    temperature: float = 0.8
    max_tokens: int = 128
    samples: int = 10


@dataclass(frozen=True)
class Answer:
    """One sampled answer, cut where it ends; ``tokens`` counts what was sampled."""

    task: str
    sample: int
    text: str
    tokens: int
    ended: Ended


def sample_answers(
    policy: Policy,
    asked: Sequence[tuple[Task, EvalConfig]],
    seed: int,
    progress: Callable[[int, list[tuple[Task, list[Answer]]]], None] | None = None,
) -> list[list[Answer]]:
    """For each task ``samples`` answers of up to ``max_tokens`` tokens; the rest of what the
    configurations say is the first one's. An answer depends on (seed, task, number). ``progress``
    gets the tokens sampled since its last call, and the answers to tasks that are finished.
    Raises :class:`TaskError` for a task with an empty prompt."""
    if not asked:
        return []
    requests = []
    for task, config in asked:
        path = encode_path(policy, task)
        if not path.n_prompt:
            raise TaskError(
                f"task {task.id!r} has an empty prompt, and no model predicts a first token from "
                "nothing; begin its prompt with some text"
            )
        rows = tuple(
            Row(path.n_prompt, seed_of("eval", seed, task.id, number), config.max_tokens)
            for number in range(config.samples)
        )
        requests.append(Request(path.ids, rows, name=task.id))

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return cut_answer(asked[request][0], decode(policy, list(ids))).complete

    def answers(request: int, samples: Sequence[Sample]) -> list[Answer]:
        task, _ = asked[request]
        return [
            Answer(
                task.id,
                number,
                cut_answer(task, decode(policy, one.ids)).text,
                len(one.ids),
                one.ended,
            )
            for number, one in enumerate(samples)
        ]

    found: dict[int, list[Answer]] = {}

    def told(tokens: int, whole: Mapping[int, list[Sample]]) -> None:
        new = {request: answers(request, samples) for request, samples in whole.items()}
        found.update(new)
        if progress:
            progress(tokens, [(asked[i][0], made) for i, made in new.items()])

    draw = policy.sampler or partial(sample, policy.model)
    drawn = draw(requests, asked[0][1], policy.stop_ids, done, told)
    return [found.get(i) or answers(i, samples) for i, samples in enumerate(drawn)]
