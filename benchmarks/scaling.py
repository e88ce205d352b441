"""How the cost of a packed step and of tree sampling grows with a tree, beside the least possible.

    python benchmarks/scaling.py [--quick] [--dtype bfloat16] [--json OUT]
        [--axes nodes branches branch depth path] [--what step sample] [--top TOKENS]

From the tree of 1,024 unique tokens one axis at a time grows: the number of nodes, of branches a
node, the length of a branch, to about 8,000 unique tokens; the depth (nodes on branches of nodes)
at the same number of tokens; and the length of the golden path, where attention must grow faster
than the tokens do. A step is one packed pass with activation checkpointing, so that 8,000 tokens
fit into a laptop's memory (--no-checkpointing, and --budget N to split trees above N tokens). It is
the second of its process: the first one also waits for the system to hand out the memory.

The floor: FLOPs that any implementation needs (checkpointing's second pass is not among them) at
the rate of matrix products measured in the same run, or bytes at the measured rate of reading,
whichever takes longer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    Shape,
    arguments,
    fresh,
    goal,
    goals_table,
    load_text,
    machine,
    make_tree,
    middle,
    model_folder,
    ok,
    table,
    take_turns,
    told,
    write,
)
from floors import Floor, rates
from train_step import step_spec

BASE = Shape()
GROWING = ("nodes", "branches", "branch")  # axes along which the cost should be linear
AXES: dict[str, tuple[Shape, ...]] = {
    "nodes": tuple(replace(BASE, nodes=n) for n in (8, 18, 40, 82)),
    "branches": tuple(replace(BASE, branches=n) for n in (4, 9, 20, 41)),
    "branch": tuple(replace(BASE, branch=n) for n in (24, 54, 120, 246)),
    "depth": tuple(replace(BASE, nodes=16, depth=n) for n in (1, 2, 4, 8)),
    "path": tuple(replace(BASE, path=n) for n in (256, 1024, 2048, 4096)),
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--what", nargs="+", default=["step", "sample"], choices=("step", "sample"))
    parser.add_argument("--top", type=int, help="leave out trees of more unique tokens")
    parser.add_argument("--budget", type=int, default=0, help="train.max_tokens (0: whole trees)")
    parser.add_argument("--no-checkpointing", action="store_true")
    given = parser.parse_args()
    top = given.top or (2100 if given.quick else 10_000)
    if given.quick:
        given.axes = [axis for axis in given.axes if axis in GROWING]
    data: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "seed": given.seed}
    print(told(data["machine"]))
    folder = model_folder(given.model, given.dtype)
    for what in given.what:
        data[what] = run(given, what, folder, top)
        tell(data[what], what, given.dtype)
    write(given.json, data)


def run(
    given: argparse.Namespace, what: str, folder: Path, top: int, device: str = "cpu"
) -> dict[str, Any]:
    """Measure every point of every axis once a round; equal shapes are measured once."""
    points = {axis: [shape for shape in AXES[axis] if shape.unique <= top] for axis in given.axes}
    shapes = dict.fromkeys(shape for some in points.values() for shape in some)
    ways: dict[str, Callable[[], dict[str, Any]]] = {"rate": partial(rates, device)}
    for shape in shapes:
        ways[label(shape)] = partial(measure, given, what, folder, shape, device)
    rows = take_turns(ways, given.repeats or 1)
    rate = {key: middle(rows["rate"], key) for key in rows["rate"][0] if not key.endswith("each")}
    axes = {
        axis: [
            point(shape, rows[label(shape)], rate, given.dtype, what)
            for shape in some
            if label(shape) in rows
        ]
        for axis, some in points.items()
    }
    return {
        "rate": rate,
        "axes": axes,
        "rows": rows,
        "goals": [linear(axis, axes[axis]) for axis in given.axes if axis in GROWING],
    }


def label(shape: Shape) -> str:
    return " ".join(f"{value} {key}" for key, value in asdict(shape).items())


def measure(
    given: argparse.Namespace, what: str, folder: Path, shape: Shape, device: str
) -> dict[str, Any]:
    """One shape, in a new process."""
    if what == "sample":
        spec: dict[str, Any] = {
            "folder": str(folder),
            "dtype": given.dtype,
            "device": device,
            "seed": given.seed,
            "shape": asdict(shape),
            "trees": 1,
        }
        return fresh("tree_sampling.py", spec | {"way": "treeplay", "steps": 1})
    tree = make_tree(load_text(folder), shape, given.seed)
    spec = step_spec(
        folder,
        given.dtype,
        device,
        [tree],
        given.budget or shape.unique,
        given.seed,
        checkpointing=not given.no_checkpointing,
    )
    return fresh("train_step.py", spec | {"way": "packed", "before": 1, "steps": 1})


def point(
    shape: Shape, rows: Sequence[dict[str, Any]], rate: dict[str, float], dtype: str, what: str
) -> dict[str, Any]:
    """Seconds, seconds a token, the floor and memory of one shape."""
    tokens = shape.unique - (shape.path if what == "sample" else 0)
    row: dict[str, Any] = asdict(shape) | {"unique": shape.unique, "counted": tokens}
    if not ok(rows):
        return row | {"error": rows[0]["error"]}
    seconds = middle(rows)
    floor = Floor(rows[0]["flops"], rows[0]["bytes"]).seconds(rate, dtype)
    return row | {
        "seconds": seconds,
        "ms_per_token": 1000 * seconds / tokens,
        "floor_s": floor,
        "times_floor": seconds / floor,
        "extra_mb": middle(rows, "extra_mb"),
    }


def linear(axis: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cost a token of the largest tree over that of the first: 1 is linear."""
    good = [p for p in points if "seconds" in p]
    growth = good[-1]["ms_per_token"] / good[0]["ms_per_token"] if len(good) > 1 else float("nan")
    reach = good[-1]["unique"] if good else 0
    text = f"growth of the cost a token, {axis}, to {reach:,} unique tokens: at most 1.10"
    return goal(text, growth, growth <= 1.10)


def tell(data: dict[str, Any], what: str, dtype: str) -> None:
    print(f"\n{what}, {dtype}\n")
    lines: list[tuple[Any, ...]] = []
    for axis, points in data["axes"].items():
        for p in points:
            if "error" in p:
                lines.append((axis, p[axis], p["unique"], p["error"][:50], *[None] * 4))
                continue
            figures = (p["seconds"], p["ms_per_token"], p["floor_s"], p["times_floor"])
            lines.append((axis, p[axis], f"{p['unique']:,}", *figures, p["extra_mb"]))
    head = ("axis", "", "unique tokens", "s", "ms a token", "floor s", "times floor", "extra MB")
    print(table(head, lines) + "\n")
    print(goals_table(data["goals"]))


if __name__ == "__main__":
    main()
