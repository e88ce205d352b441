"""bfloat16 on a processor that does not help with it: widened, plain, and float32 beside them.

    python benchmarks/bfloat16.py [--repeats 2] [--json OUT]

A step is forward and backward over all contrasts of one tree with LoRA on every linear layer; a
sampling is all branches of the tree from one prefill. The ways take turns in one process, behind
a smaller tree each that is not counted. CPU seconds of one thread, the middle one of each. On a
processor that has bfloat16 the first two are the same.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from common import (
    SMALL,
    BenchTree,
    Shape,
    arguments,
    load,
    machine,
    make_contrasts,
    make_tree,
    model_folder,
    sequences,
    table,
    text_ids,
    told,
    write,
)

from treeplay.lora import LoraSettings, with_adapter
from treeplay.policy.matmul import narrow
from treeplay.policy.sample import Request, Row, SampleConfig, sample
from treeplay.policy.score import packed_logps

WAYS = {"widened": "bfloat16", "plain": "bfloat16", "float32": "float32"}


def main() -> None:
    parser = arguments(__doc__ or "")
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = machine() | {"helped": not narrow()}
    print(told(about))
    shape = SMALL if given.quick else Shape()
    work: dict[str, list[Callable[[], None]]] = {"sampling": [], "step": []}
    for dtype in WAYS.values():
        policy = load(str(model_folder(given.model, dtype)), dtype)
        small, tree = (make_tree(text_ids(policy), one, given.seed) for one in (SMALL, shape))
        model = with_adapter(policy.model, LoraSettings(), None)
        for name, run in (("sampling", branches), ("step", step)):
            run(model, small)
            work[name].append(partial(run, model, tree))
    rows = {}
    for name, ways in work.items():
        taken = [
            [timed(way, one) for way, one in zip(WAYS, ways, strict=True)]
            for _ in range(given.repeats or 2)
        ]
        rows[name] = [statistics.median(column) for column in zip(*taken, strict=True)]
    told_rows = [
        (name, *seconds, seconds[1] / seconds[0], seconds[2] / seconds[0])
        for name, seconds in rows.items()
    ]
    head = ("", *(f"{way}: s" for way in WAYS), "plain / widened", "float32 / widened")
    print(table(head, told_rows))
    write(given.json, {"machine": about, "command": sys.argv[1:], "seconds": rows})


def branches(model: Any, tree: BenchTree) -> None:
    rows = tuple(
        Row(len(node.prefix), branch) for node in tree.nodes for branch in range(len(node.branches))
    )
    longest = max(len(branch) for node in tree.nodes for branch in node.branches)
    config = SampleConfig(max_tokens=longest, rows_at_once=len(rows))
    with torch.no_grad():
        sample(model, [Request(tuple(tree.path), rows)], config, frozenset())


def step(model: Any, tree: BenchTree) -> None:
    contrasts = make_contrasts(tree)
    spans = [
        (len(c.prefix), len(c.prefix) + len(tail))
        for c in contrasts
        for tail in (c.chosen, c.rejected)
    ]
    logps = packed_logps(model, sequences(contrasts), spans)
    torch.stack([part.sum() for part in logps]).sum().backward()
    model.zero_grad()


def timed(way: str, work: Callable[[], None]) -> float:
    began = time.process_time()
    if way == "plain":
        with mock.patch("treeplay.policy.matmul.narrow", return_value=False):
            work()
    else:
        work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
