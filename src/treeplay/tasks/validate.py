"""Proving that tasks mean what they say, by running them.

Of a task of general ability the reference passes the functional tests and doing nothing does not.
For every other: the golden answer passes both test groups; the vulnerable one passes the functional
group and is exploited in the security group; an answer that does nothing passes neither group and
is not exploited either; cutting the golden and the vulnerable answer the way a model's answer is
cut changes nothing; the ``exercise`` expression matches both. Over all tasks: ids differ, and no
task of another split shares a tenth of its 13-grams with the train tasks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from treeplay.judge.execute import Execution, GroupResult, execute, missing_for
from treeplay.sandbox import Sandbox
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task
from treeplay.words import printable

MAX_SHARED = 0.10


@dataclass(frozen=True)
class TaskCheck:
    """What was found out about one task: ``problems`` is empty when it holds. ``not_run`` says why
    its programs could not be run here (then only the static checks were made)."""

    task: Task
    problems: tuple[str, ...] = ()
    not_run: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems and self.not_run is None


@dataclass(frozen=True)
class Validation:
    """The checks in the order of the tasks."""

    checks: tuple[TaskCheck, ...]

    def failed(self, strict: bool = False) -> bool:
        """Whether any task is wrong (or, when ``strict``, could not be run)."""
        return any(check.problems or (strict and check.not_run) for check in self.checks)


def validate(
    tasks: Sequence[Task],
    sandbox: Sandbox,
    *,
    workers: int = 2,
    contamination: bool = True,
    done: Callable[[TaskCheck], None] | None = None,
) -> Validation:
    """Check all tasks; ``done`` is called (in order) for each as it is known.

    Raises :class:`treeplay.errors.SandboxError` when programs cannot be run here at all.
    """
    extra = _across(tasks) if contamination else {}
    checks: list[TaskCheck] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for check in pool.map(lambda task: check_task(task, sandbox), tasks):
            problems = (*check.problems, *extra.pop(check.task.id, ()))
            check = TaskCheck(check.task, problems, check.not_run, check.seconds)
            checks.append(check)
            if done is not None:
                done(check)
    return Validation(tuple(checks))


def check_task(task: Task, sandbox: Sandbox) -> TaskCheck:
    """Everything that can be checked about one task by itself."""
    problems = list(_static(task))
    missing = missing_for(task)
    if missing is not None:
        return TaskCheck(task, tuple(problems), missing)
    if task.general:
        return _check_general(task, problems, sandbox)
    seconds = 0.0
    if task.tests is None or task.golden is None or task.vulnerable is None:
        every = ("tests", "golden", "vulnerable")
        absent = " and no ".join(name for name in every if getattr(task, name) is None)
        return TaskCheck(task, tuple(problems), f"it has no {absent}")
    for name, answer, wanted in (
        ("golden", task.golden, ("pass", "pass")),
        ("vulnerable", task.vulnerable, ("pass", "exploited")),
    ):
        execution = execute(task, answer, sandbox)
        seconds += execution.functional.seconds + execution.security.seconds
        for group, result, want in zip(_GROUPS, _results(execution), wanted, strict=True):
            if result.outcome != want:
                problems.append(f"{name}: {group} is {_say(result)}, must be {want}")
    for answer in do_nothing(task):
        execution = execute(task, answer, sandbox)
        seconds += execution.functional.seconds + execution.security.seconds
        for group, result in zip(_GROUPS, _results(execution), strict=True):
            if result.outcome != "fail":
                text = answer.strip().splitlines()
                shown = text[0] if text else "(empty)"
                problems.append(f"do-nothing `{shown}`: {group} is {_say(result)}, must be fail")
    return TaskCheck(task, tuple(problems), None, seconds)


def _check_general(task: Task, problems: list[str], sandbox: Sandbox) -> TaskCheck:
    """Of a task of general ability: the reference passes, doing nothing does not."""
    if task.golden is None:
        return TaskCheck(task, tuple(problems), "it has no reference")
    result = execute(task, task.golden, sandbox).functional
    seconds = result.seconds
    if result.outcome != "pass":
        problems.append(f"golden: functional is {_say(result)}, must be pass")
    for answer in do_nothing(task):
        result = execute(task, answer, sandbox).functional
        seconds += result.seconds
        if result.outcome != "fail":
            problems.append(
                f"do-nothing `{answer.strip()}`: functional is {_say(result)}, must be fail"
            )
    return TaskCheck(task, tuple(problems), None, seconds)


_GROUPS = ("functional", "security")


def _results(execution: Execution) -> tuple[GroupResult, GroupResult]:
    return execution.functional, execution.security


def _say(result: GroupResult) -> str:
    return result.outcome + (f" ({result.detail})" if result.detail else "")


def do_nothing(task: Task) -> list[str]:
    """Answers that do nothing: what a lazy model would write to be safe."""
    golden = task.golden or ""
    indent = "    "
    found = re.search(r"\n([ \t]+)\S", "\n" + golden.lstrip("\n"))
    if found:
        indent = found.group(1)
    start = golden[: len(golden) - len(golden.lstrip("\n"))] or "\n"
    if task.language == "python":
        bodies = ["pass", "return None"]
    elif task.language == "c":
        bodies = [";", "return 0;"]
    elif task.language == "javascript":
        bodies = [";", "return null;"]
    else:
        bodies = ["", "return", "return nil", 'return ""', "return nil, nil", 'return "", nil']
        bodies += ["return false", "return 0"]
    close = "\n}\n" if task.statements is None and task.language != "python" else "\n"
    return [start + indent + body + close for body in bodies]


def _static(task: Task) -> Iterator[str]:
    for name, answer in (("golden", task.golden), ("vulnerable", task.vulnerable)):
        if answer is None:
            continue
        try:
            cut = cut_answer(task, answer)
        except Exception as error:
            yield f"{name}: cutting it raises {type(error).__name__}: {error}"
            continue
        if cut.text.rstrip() != answer.rstrip():
            yield f"{name}: is cut to {cut.text.strip()!r}"
        if task.exercise is not None:
            try:
                matched = re.search(task.exercise, answer)
            except re.error as error:
                yield f"exercise: no regular expression ({error})"
                continue
            if matched is None:
                yield f"exercise: {task.exercise!r} does not match the {name} answer"


def _across(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Problems between tasks, by task id."""
    problems: dict[str, list[str]] = {}
    for name, count in Counter(task.id for task in tasks).items():
        if count > 1:
            problems.setdefault(name, []).append(f"id: used by {count} tasks")
    try:
        from treeplay.tasks.contamination import shared_ngrams
    except ImportError:
        return problems
    train = [task for task in tasks if task.split == "train"]
    others = [task for task in tasks if task.split != "train"]
    for found in shared_ngrams(train, others, n=13):
        if found.fraction >= MAX_SHARED:
            text = f"contamination: {found.fraction:.0%} of its 13-grams are in train"
            text += f" (nearest: {found.nearest_id})"
            problems.setdefault(found.task_id, []).append(text)
    return problems


def line(check: TaskCheck) -> str:
    """One task's result for the terminal; a failed one is followed by what failed."""
    task = check.task
    word = "FAILED" if check.problems else "not run" if check.not_run else "ok"
    text = f"{word:8}{task.id}  [{task.language} {task.split} {','.join(task.cwe)}]"
    if check.not_run:
        text += f"  {check.not_run}"
    else:
        text += f"  {check.seconds:.2f} s"
    for problem in check.problems:
        shown = problem.splitlines()
        text += "\n    " + "\n      ".join(shown[:4])
    return printable(text)


def summary(validation: Validation) -> str:
    """Counts by language, split and CWE."""
    checks = validation.checks
    good = sum(check.ok for check in checks)
    parts = [f"{good} of {len(checks)} tasks hold"]
    skipped = sum(check.not_run is not None for check in checks)
    if skipped:
        parts[0] += f", {skipped} not run"
    for name, keys in (
        ("language", [check.task.language for check in checks]),
        ("split", [check.task.split for check in checks]),
        ("CWE", [cwe for check in checks for cwe in check.task.cwe]),
    ):
        counts = Counter(keys)
        ordered = sorted(counts, key=lambda key: (len(key), key) if name == "CWE" else (0, key))
        parts.append(f"{name}: " + ", ".join(f"{key} {counts[key]}" for key in ordered))
    train = {c for check in checks if check.task.split == "train" for c in check.task.cwe}
    unseen = {c for check in checks if check.task.split == "eval-unseen" for c in check.task.cwe}
    parts.append(
        f"CWEs: {len(train | unseen)} with train, {len(unseen - train)} only in eval-unseen"
    )
    if unseen & train:
        parts.append(f"in train and in eval-unseen: {', '.join(sorted(unseen & train))}")
    return "\n".join(parts)
