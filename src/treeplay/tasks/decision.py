"""The decision form of a task: only the deciding statement is asked for.

A small model asked for a whole function breaks long before it decides anything about security.
Given the golden code up to where golden and vulnerable part, and the code that follows as a
suffix, it answers the one question that matters. Any task with a pair has this form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from treeplay.tasks.answer import cut_answer, statement_ends
from treeplay.tasks.task import Task, make_task

Form = Literal["full", "statement", "token"]


def parting(golden: str, vulnerable: str) -> int:
    """The character offset where two answers part."""
    for offset, (a, b) in enumerate(zip(golden, vulnerable, strict=False)):
        if a != b:
            return offset
    return min(len(golden), len(vulnerable))


def decision_form(task: Task, form: Form) -> Task | None:
    """``task`` with everything but the decision given.

    ``statement``: the prompt ends before the first statement in which golden and vulnerable
    differ; ``token``: before the first word in which they differ, within that statement (before
    the statement where the answer could not be told from the suffix otherwise). What both answers
    share behind the decision goes into the suffix. ``None`` where the task has no pair, the two do
    not differ, or neither form fits; ``full`` returns the task unchanged.
    """
    if form == "full":
        return task
    if task.golden is None or task.vulnerable is None:
        return None
    if task.golden.split() == task.vulnerable.split():
        return None
    for kind in ("token", "statement") if form == "token" else ("statement",):
        out = _decision(task, task.golden, task.vulnerable, kind)
        if out is not None and _ends_right(out):
            return out
    return None


def _ends_right(task: Task) -> bool:
    """Whether the answer's end can be seen with the suffix behind it."""
    return all(
        cut_answer(task, answer + task.suffix).text.rstrip() == answer.rstrip()
        for answer in (task.golden or "", task.vulnerable or "")
    )


def _decision(task: Task, golden_text: str, vulnerable_text: str, form: str) -> Task | None:
    golden = _statements(task, golden_text)
    vulnerable = _statements(task, vulnerable_text)
    head = 0
    while head < min(len(golden), len(vulnerable)) - 1 and golden[head] == vulnerable[head]:
        head += 1
    tail = 0
    while (
        tail < min(len(golden), len(vulnerable)) - head - 1
        and golden[-1 - tail].strip() == vulnerable[-1 - tail].strip()
    ):
        tail += 1
    middle = golden[head : len(golden) - tail]
    wrong = vulnerable[head : len(vulnerable) - tail]
    count = max(_count(middle), _count(wrong))
    before = "".join(golden[:head])
    answer, bad = "".join(middle), "".join(wrong)
    if form == "token":
        at = _word_start(answer, bad, parting(answer, bad))
        before, answer, bad = before + answer[:at], answer[at:], bad[at:]
    suffix = "".join(golden[len(golden) - tail :]) + task.suffix
    if not answer.strip() or count == 0:
        return None
    return replace(
        make_task(
            id=task.id,
            language=task.language,
            cwe=task.cwe,
            prompt=task.prompt + before,
            golden=answer,
            vulnerable=bad,
        ),
        suffix=suffix,
        statements=count,
        split=task.split,
        instruction=task.instruction,
        tests=task.tests,
        exercise=None,  # it may speak of code that is given now
        notes=task.notes,
        source=task.source,
        license=task.license,
        meta={**task.meta, "form": form},
    )


def _statements(task: Task, answer: str) -> list[str]:
    """The answer's statements with the white space before each; a rest that is none (the closing
    brace of the function) is an item of its own."""
    pieces, start = [], 0
    for end in statement_ends(replace(task, statements=None), answer):
        pieces.append(answer[start:end])
        start = end
    if answer[start:]:
        pieces.append(answer[start:])
    return pieces


def _count(pieces: list[str]) -> int:
    return sum(1 for piece in pieces if piece.strip(" \t\n})];"))


def _word_start(golden: str, vulnerable: str, at: int) -> int:
    """``at``, moved back to where the word (identifier or number) begins that differs there."""

    def word(char: str) -> bool:
        return char.isalnum() or char == "_"

    def inside(text: str) -> bool:
        return at < len(text) and word(text[at])

    if inside(golden) or inside(vulnerable) or (at and at == min(len(golden), len(vulnerable))):
        while at > 0 and word(golden[at - 1]):
            at -= 1
    return at
