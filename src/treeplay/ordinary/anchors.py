"""Ordinary code among the contrasts of a round: as it is written, or as the opponent writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from treeplay.anchors import anchors_of_text
from treeplay.contrast import Contrast, ContrastConfig
from treeplay.ordinary import some_ordinary_code
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.policy.sample import Request, Row, SampleConfig, sample, seed_of
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task, make_task

# How the opponent is asked for its own answers: by the temperature that evaluation has by default.
ASKED = SampleConfig(temperature=0.8, max_tokens=128)
# Where the body of a first function begins: behind its docstring, or behind the brace that follows
# its parameters.
PYTHON_BODY = re.compile(r'^[ \t]*def [^\n]*:\n(?:[ \t]+"""(?:.|\n)*?"""\n)?', re.MULTILINE)
BRACE_BODY = re.compile(r"\)[^(){};\n]*\s\{[ \t]*\n")


@dataclass(frozen=True)
class Ordinary:
    """Anchors, and how many tokens the opponent was asked to sample for them, those of answers that
    became none counted too."""

    anchors: tuple[Contrast, ...] = ()
    sampled: int = 0


def ordinary_anchors(
    policy: Policy, config: ContrastConfig, seed: int, languages: tuple[str, ...] = ()
) -> Ordinary:
    """``config.ordinary`` anchors, of other texts with another ``seed``; every epoch meets each.

    With ``config.ordinary_text`` "own" the opponent (``policy``) is asked for the rest of each
    text, and what it answers is the anchor: as far as it was sampled, so with the end mark where
    the model set one. Answers that were cut off teach the KL alone, not the likelihood, to go on.
    """
    texts = some_ordinary_code(config.ordinary, seed, languages)
    if config.ordinary_text == "own":
        return _own_answers(policy, texts, config, seed)
    kind = config.ordinary_kind
    return Ordinary(tuple(anchors_of_text(policy, texts, config.ordinary_weight, kind)))


def beginning(name: str, code: str) -> Task | None:
    """A task that asks for the rest of ordinary code: its prompt is ``code`` up to where the body
    of the first function begins. None where there is no such place (a function in one line)."""
    language = name.partition("/")[0]
    body = (PYTHON_BODY if language == "python" else BRACE_BODY).search(code)
    if body is None:
        return None
    return make_task(id=f"ordinary/{name}", language=language, cwe=(), prompt=code[: body.end()])


def _own_answers(
    policy: Policy, texts: Mapping[str, str], config: ContrastConfig, seed: int
) -> Ordinary:
    asked = (beginning(name, text) for name, text in texts.items())
    tasks = [task for task in asked if task is not None]
    paths = [encode_path(policy, task).ids for task in tasks]
    fits = [i for i, path in enumerate(paths) if len(path) + ASKED.max_tokens <= policy.max_length]
    tasks, paths = [tasks[i] for i in fits], [paths[i] for i in fits]
    requests = [
        Request(path, (Row(len(path), seed_of("ordinary", seed, task.id)),), name=task.id)
        for task, path in zip(tasks, paths, strict=True)
    ]

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return cut_answer(tasks[request], decode(policy, list(ids))).complete

    draw = policy.sampler or partial(sample, policy.model)
    drawn = [rows[0] for rows in draw(requests, ASKED, policy.stop_ids, done, None)]
    weight, kl = config.ordinary_weight, config.ordinary_kind == "kl"
    anchors = tuple(
        Contrast(task.id, -1, path, one.ids, (), weight, kl=kl)
        for task, path, one in zip(tasks, paths, drawn, strict=True)
        if one.ids and (kl or one.ended != "length")
    )
    return Ordinary(anchors, sum(len(one.ids) for one in drawn))
