"""How much of one set of tasks already stands in another: shared word n-grams.

The usual measure for leaks between training and evaluation data: an evaluation task whose code
shares a tenth of its 13-grams with the training tasks is not unseen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from treeplay.tasks.task import Task

# An identifier, a number, or one single other character that is not white space.
_TOKEN = re.compile(r"[^\W\d]\w*|\d\w*(?:\.\d\w*)?|[^\w\s]")


@dataclass(frozen=True)
class Shared:
    """``fraction``: share (0 to 1) of the task's distinct n-grams that occur in the other set.

    ``nearest_id``: the task of the other set that shares most of them; None when none does.
    """

    task_id: str
    fraction: float
    nearest_id: str | None


def code_tokens(text: str) -> list[str]:
    """Identifiers, numbers and single punctuation characters, in order; white space is dropped."""
    return _TOKEN.findall(text)


def task_ngrams(task: Task, n: int = 13) -> set[tuple[str, ...]]:
    """The distinct n-grams of prompt + golden and of prompt + vulnerable.

    The two are cut up apart: an n-gram across the seam between the answers is in no program.
    """
    grams: set[tuple[str, ...]] = set()
    for answer in {task.golden or "", task.vulnerable or ""}:
        tokens = code_tokens(task.prompt + answer)
        grams.update(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    return grams


def shared_ngrams(train: Sequence[Task], others: Sequence[Task], n: int = 13) -> list[Shared]:
    """For each task of ``others``, in order, the share of its distinct n-grams found in ``train``.

    A task with fewer than ``n`` tokens has no n-grams and a fraction of 0.
    """
    wanted = [task_ngrams(task, n) for task in others]
    # Only the n-grams of the (smaller) other side are indexed, so memory does not grow with train.
    holders: dict[tuple[str, ...], list[int]] = {gram: [] for grams in wanted for gram in grams}
    for index, task in enumerate(train):
        for gram in task_ngrams(task, n) & holders.keys():
            holders[gram].append(index)
    found: list[Shared] = []
    for task, grams in zip(others, wanted, strict=True):
        count: Counter[int] = Counter()
        for gram in grams:
            count.update(holders[gram])
        hits = sum(1 for gram in grams if holders[gram])
        # The lowest index wins among equals, whatever the order of the set was.
        best = min(count, key=lambda index: (-count[index], index)) if count else None
        nearest = None if best is None else train[best].id
        found.append(Shared(task.id, hits / len(grams) if grams else 0.0, nearest))
    return found
