"""Evaluating several suites in one flow, against each suite in batches of its own.

    python benchmarks/flow.py [--repeats 2] [--quick] [--json OUT]

The suites are those of an experiment in kind: one of many tasks, and small ones whose answers may
be longer, each with its own samples a task and bound. In batches, the next rows begin when the last
of a batch has ended; in a flow, when there is room. The ways take turns in one process, behind one
small suite that is not counted. CPU seconds of one thread, the middle one of each; ``same`` is the
share of answers that are the same to the last token (bfloat16 is rounded by the batch).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from common import arguments, load, machine, model_folder, table, told, write

from treeplay.evaluate import Answer, EvalConfig, sample_answers
from treeplay.policy.model import Policy
from treeplay.run import FLOW, batches
from treeplay.tasks.pack import load_pack
from treeplay.tasks.task import Task

Asked = Sequence[tuple[Task, EvalConfig]]
ROWS_AT_ONCE = 64


def main() -> None:
    parser = arguments(__doc__ or "")
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    print(told(about))
    dtype = "bfloat16"
    policy = load(str(model_folder(given.model, dtype)), dtype)
    apart = suites(given.quick)
    together = [one for asked in apart for one in asked]
    in_groups(policy, apart[-1][:1], 1, given.seed)
    ways: dict[str, Callable[[], list[Answer]]] = {
        "flow": lambda: in_groups(policy, together, FLOW, given.seed),
        "batches": lambda: [a for asked in apart for a in in_groups(policy, asked, 1, given.seed)],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[Answer]] = {}
    for _ in range(given.repeats or 2):
        for way, work in ways.items():
            began = time.process_time()
            answers[way] = work()
            seconds[way].append(time.process_time() - began)
    flow, batch = (statistics.median(seconds[way]) for way in ways)
    tokens = sum(answer.tokens for answer in answers["flow"])
    pairs = zip(*(sorted(map(str, found)) for found in answers.values()), strict=True)
    same = statistics.mean(one == other for one, other in pairs)
    row = (tokens, flow, batch, batch / flow, same)
    print(table(("tokens", "flow: s", "batches: s", "batches / flow", "same"), [row]))
    write(given.json, {"machine": about, "command": sys.argv[1:], "row": row})


def suites(quick: bool) -> list[Asked]:
    tasks = [task for task in load_pack() if task.language == "python"]
    many, few = (8, 2) if quick else (32, 5)
    shapes = [(many, 4, 96)] + [(few, 2, bound) for bound in (96, 128, 160, 192, 256)]
    out: list[Asked] = []
    for count, samples, bound in shapes:
        config = EvalConfig(samples=samples, max_tokens=bound, rows_at_once=ROWS_AT_ONCE)
        out.append([(task, config) for task in tasks[:count]])
        tasks = tasks[count:] + tasks[:count]
    return out


def in_groups(policy: Policy, asked: Asked, flow: int, seed: int) -> list[Answer]:
    """Answers sampled in groups of up to ``flow`` times ``ROWS_AT_ONCE`` rows."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0].prompt))
    groups = batches(order, [c.samples for _, c in asked], ROWS_AT_ONCE * flow // FLOW)
    return [
        answer
        for group in groups
        for found in sample_answers(policy, [asked[i] for i in group], seed)
        for answer in found
    ]


if __name__ == "__main__":
    main()
