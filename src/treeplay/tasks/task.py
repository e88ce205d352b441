"""What a model is asked, and how its answer is tested.

A task is a program with a hole. Its text is ``prompt + answer + suffix``; the model writes the
answer. The loaders of this package make tasks; everything after them only reads tasks.

The one normal form (made by :func:`make_task`): the prompt carries no trailing white space; what
white space stood there begins the answers instead. A byte-pair tokenizer joins a line break with
the indentation that follows it, so a prompt cut between the two would ask every model for a token
sequence it has never seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from treeplay.errors import TaskError

LANGUAGES = ("python", "c", "cpp", "javascript", "go", "java", "ruby", "rust", "php")
TEST_FORMS = ("treeplay", "pytest")
SPLITS = ("train", "eval-seen", "eval-unseen", "eval")


@dataclass(frozen=True)
class Tests:
    """Source text of the two test groups.

    ``functional`` asks whether the program does its job; ``security`` is the exploit attempt. In
    the form "treeplay" they are in the task's own language; what the text may use is set out in
    :mod:`treeplay.judge.execute`. In the form "pytest" both are the text of one published pytest
    file, ``name`` is the name it must have, and ``sanitize`` asks for the address sanitizer; see
    :mod:`treeplay.judge.pytest_runner`. ``requires`` names third-party modules that a Python
    program may import; they come from treeplay's own environment. An empty ``security`` makes the
    task one of general ability.
    """

    __test__: ClassVar[bool] = False  # pytest: no test case, whatever its name

    functional: str
    security: str
    form: str = "treeplay"
    name: str = ""
    sanitize: bool = False
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class RiskNote:
    """A risk line given with the data: one line of the golden solution and why it matters."""

    code: str
    cwe: str | None
    description: str = ""


@dataclass(frozen=True)
class Task:
    """One task. ``golden`` and ``vulnerable`` are answers, not whole programs.

    ``statements``: the answer is cut after this many statements at its own level; ``None`` lets it
    run to the end of the enclosing function. ``exercise`` is a regular expression: the risky thing
    that a real answer must do, whatever its tests say of it.
    """

    id: str
    language: str
    cwe: tuple[str, ...]
    prompt: str
    golden: str | None = None
    vulnerable: str | None = None
    suffix: str = ""
    statements: int | None = None
    split: str = "train"
    instruction: str = ""
    tests: Tests | None = None
    exercise: str | None = None
    notes: tuple[RiskNote, ...] = ()
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def general(self) -> bool:
        """A task of general ability: its tests ask whether the program works, none whether it is
        secure. Its verdicts are ``plain``, and no security rate counts it."""
        return self.tests is not None and not self.tests.security.strip()

    def program(self, answer: str) -> str:
        """The whole program text with ``answer`` in the hole."""
        if self.suffix and not answer.endswith("\n"):
            answer += "\n"
        return self.prompt + answer + self.suffix


def make_task(**fields: Any) -> Task:
    """A :class:`Task` in normal form, checked. An answer of nothing but white space is none.

    Raises :class:`TaskError` (naming the field) for an unknown language or split, an empty prompt,
    a name that is no CWE's, an ``exercise`` that is no regular expression, or fewer statements
    than one.
    """
    given = Task(**fields)

    def written(answer: str | None) -> str | None:
        return answer if answer and answer.strip() else None

    task = replace(given, golden=written(given.golden), vulnerable=written(given.vulnerable))
    where = f"task {task.id!r}"
    if not task.id:
        raise TaskError("a task has an empty id; give every task a name of its own")
    if task.language not in LANGUAGES:
        raise TaskError(f"{where}: unknown language {task.language!r}; use one of {LANGUAGES}")
    if task.split not in SPLITS:
        raise TaskError(f"{where}: unknown split {task.split!r}; use one of {SPLITS}")
    if not task.prompt.strip():
        raise TaskError(f"{where}: the prompt is empty; give the code that the model continues")
    for cwe in task.cwe:
        if not cwe.startswith("CWE-") or not cwe[4:].isdigit():
            raise TaskError(f"{where}: {cwe!r} is no CWE name; write it like 'CWE-89'")
    if task.statements is not None and task.statements < 1:
        raise TaskError(f"{where}: statements is {task.statements}; it must be at least 1")
    if task.exercise is not None:
        try:
            re.compile(task.exercise)
        except re.error as error:
            told = f"exercise {task.exercise!r} is no regular expression ({error})"
            raise TaskError(f"{where}: {told}; mend or leave it out") from None
    if task.tests is not None:
        _check_tests(task.tests, where)
    prompt = task.prompt.rstrip()
    white = task.prompt[len(prompt) :]
    if not white:
        return task

    def carry(answer: str | None) -> str | None:
        return None if answer is None else white + answer

    return replace(
        task, prompt=prompt, golden=carry(task.golden), vulnerable=carry(task.vulnerable)
    )


def _check_tests(tests: Tests, where: str) -> None:
    if tests.form not in TEST_FORMS:
        raise TaskError(f"{where}: unknown form {tests.form!r} of tests; use one of {TEST_FORMS}")
    if tests.form == "pytest":
        if tests.functional != tests.security:
            raise TaskError(
                f"{where}: tests in pytest's form are one file; give it for both groups"
            )
        if not re.fullmatch(r"\w+_test\.py", tests.name):
            raise TaskError(
                f"{where}: the test file's name {tests.name!r} must be like 'x_test.py'"
            )
    elif tests.name or tests.sanitize:
        raise TaskError(f"{where}: 'name' and 'sanitize' are for tests in pytest's form only")
