"""What a game does with its tasks before the first round: warn of contamination, of answers that
cannot be heard to the end and of tests that cannot be run, and leave out or refuse what the model
cannot read whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from treeplay.config import Config
from treeplay.contrasts import NEEDS_VULNERABLE, check_references
from treeplay.errors import TaskError
from treeplay.evaluate import EvalConfig
from treeplay.judge.execute import missing_with_packages
from treeplay.ordinary import ordinary_code
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.policy.model import Policy, check_room, encode_path
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.contamination import shared_ngrams
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task, make_task

Say = Callable[[str], None]


def contaminated(tasks: Sequence[Task], suites: Sequence[Suite], ordinary: bool) -> list[str]:
    """A sentence for every evaluation task that shares a tenth of its 13-grams with a training
    task, or with ``ordinary`` code where that is learnt from too."""
    learnt = [*tasks, *(_ordinary_tasks() if ordinary else [])]
    return [
        f"{suite.name}: {one.task_id} shares {one.fraction:.0%} of its 13-grams with the training "
        f"task {one.nearest_id}"
        for suite in suites
        for one in shared_ngrams(learnt, suite.tasks)
        if one.fraction >= 0.1
    ]


def _ordinary_tasks() -> list[Task]:
    return [
        make_task(id=f"ordinary/{one.name}", language=one.language, cwe=(), prompt=one.code)
        for one in ordinary_code()
    ]


def what_fits(
    policy: Policy, tasks: Sequence[Task], suites: Sequence[Suite], config: Config, say: Say
) -> tuple[list[Task], list[Suite]]:
    """The training tasks and suites that fit into the model's context.

    Raises :class:`TaskError` for a task that does not, unless ``tasks.too_long`` is ``skip``;
    where none is left; and where the method needs vulnerable answers and there are none.
    """

    def fits(task: Task, answers: Sequence[str | None], room: int, setting: str) -> bool:
        try:
            for answer in answers:
                path = encode_path(policy, task, answer or "")
                check_room(policy, task, path, room, setting)
        except TaskError as error:
            if config.tasks.too_long != "skip":
                raise
            say(f"skipped: {error}")
            return False
        return True

    grpo = config.method == "grpo"  # which samples from the prompt

    def given(task: Task) -> list[str | None]:
        if grpo:
            return [None]
        read = config.method in NEEDS_VULNERABLE or config.contrasts.given
        return [task.golden, task.vulnerable if read else None]

    room, setting = config.grow.max_tokens, "grow.max_tokens"
    if grpo:
        room, setting = config.grpo.max_tokens, "grpo.max_tokens"
    if config.golden.source == "reference":
        check_references(config.method, tasks, config.tasks.train)
        kept = [t for t in tasks if fits(t, given(t), room, setting)]
    else:
        room += config.golden.max_tokens
        kept = [t for t in tasks if fits(t, [None], room, "golden.max_tokens or grow.max_tokens")]
    if tasks and not kept:
        raise TaskError("no training task fits the model's context; shorten them")
    fitting = []
    for suite in suites:
        room = suite.max_tokens or config.eval.max_tokens
        room += config.sven.tokens if config.method == "sven" else 0  # positions of the prefix
        asked = tuple(t for t in suite.tasks if fits(t, [None], room, "eval.max_tokens"))
        if not asked:
            raise TaskError(f"no task of {suite.name} fits the model's context; shorten them")
        fitting.append(replace(suite, tasks=asked))
    return kept, fitting


def short_budgets(policy: Policy, suites: Sequence[Suite], config: EvalConfig) -> list[str]:
    """A warning for every suite with golden answers that its token budget would cut off: whoever
    answers such a task as it is meant to be answered is not heard to the end."""
    out = []
    for suite in suites:
        paths = [encode_path(policy, task, task.golden) for task in suite.tasks if task.golden]
        lengths = [len(path.ids) - path.n_prompt for path in paths]
        room = suite.max_tokens or config.max_tokens
        longer = sum(length > room for length in lengths)
        if longer:
            key = "its max_tokens" if suite.max_tokens else "eval.max_tokens"
            out.append(
                f"{suite.name}: {longer} of {len(lengths)} golden answers are longer than {key} "
                f"({room}; the longest has {max(lengths)} tokens), and such answers are cut off "
                "there; raise it"
            )
    return out


def cut_short(tasks: Sequence[Task]) -> list[str]:
    """A warning where given answers end before their end (or never): an answer that a model gave
    so would be cut to something else, as one is that begins with the prompt once more."""

    def odd(task: Task, answer: str | None) -> bool:
        if answer is None:
            return False
        try:
            return cut_answer(task, answer).text.rstrip() != answer.rstrip()
        except (RuntimeError, ValueError, TaskError):
            return True

    found = [task.id for task in tasks if odd(task, task.golden) or odd(task, task.vulnerable)]
    if not found:
        return []
    return [
        f"{len(found)} of {len(tasks)} training tasks have a given answer that is not one answer "
        f"to the prompt ({found[0]}, say): it should be what follows the prompt, to its end and no "
        "further; see treeplay tasks validate"
    ]


def judges_training(config: Config) -> bool:
    """Whether answers to training tasks are judged: branches, golden paths, snapshots."""
    unjudged = config.method in (*WITHOUT_BRANCHES, *UNJUDGED)
    return not unjudged or config.golden.source != "reference" or config.tasks.hold_out > 0


def cannot_run(name: str, tasks: Sequence[Task]) -> list[str]:
    """A warning where tests of ``tasks`` want a tool or a package that is not here: whatever is
    answered is "unknown" then, and rates are not those of a machine that has it."""
    tested = [task for task in tasks if task.tests is not None]
    found = (missing_with_packages(task, task.program(task.golden or "")) for task in tested)
    reasons = Counter(why for why in found if why)
    if not reasons:
        return []
    why, more = reasons.most_common(1)[0][0], len(reasons) - 1
    return [
        f"{name}: the tests of {reasons.total()} of {len(tested)} tasks cannot be run here, and "
        f"answers to them stay unknown ({why}" + (f"; and {more} more)" if more else ")")
    ]
