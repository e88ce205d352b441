"""What the benchmarks of the executed oracles share: running reference pairs and counting them.

A pair agrees when the secure program passes both groups and the vulnerable one passes the
functional group and not the security group.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from treeplay.judge.execute import execute_program
from treeplay.judge.outcome import Execution, GroupResult
from treeplay.sandbox import Sandbox
from treeplay.tasks.task import Task


@dataclass(frozen=True)
class Row:
    """One pair. ``state``: "agrees", "disagrees", or "not run" (a group of it gave no result).
    The four outcomes are secure functional, secure security, vulnerable functional, vulnerable
    security; ``why`` is the first thing that is not as the label says."""

    id: str
    language: str
    state: str
    outcomes: tuple[str, ...]
    why: str
    seconds: float


def run_pair(task: Task, programs: Sequence[str]) -> Row:
    """Run the secure and the vulnerable whole program of ``programs``."""
    start = time.monotonic()
    done = [execute_program(task, program, Sandbox()) for program in programs]
    groups = [group for one in done for group in _groups(one)]
    wanted = (("pass",), ("pass",), ("pass",), ("exploited", "fail"))
    outcomes = tuple(group.outcome for group in groups)
    off = [group for group, want in zip(groups, wanted, strict=True) if group.outcome not in want]
    state = "agrees"
    if off:
        state = "not run" if any(group.outcome == "unknown" for group in groups) else "disagrees"
    why = f"{off[0].outcome}: {_line(off[0].detail)}" if off else ""
    return Row(task.id, task.language, state, outcomes, why, time.monotonic() - start)


def _groups(done: Execution) -> tuple[GroupResult, GroupResult]:
    return done.functional, done.security


def _line(text: str) -> str:
    return " / ".join(text.split("\n")[:2])[:200]


def run_all(
    items: Iterable[tuple[Task, Sequence[str]]], workers: int, say: Callable[[str], None] = print
) -> list[Row]:
    """Every pair, in order; those that do not agree are told as they come."""
    rows = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for row in pool.map(lambda item: run_pair(*item), items):
            rows.append(row)
            if row.state != "agrees":
                say(f"{row.state}: {row.id} {'/'.join(row.outcomes)} {row.why}")
    return rows


def report(rows: Sequence[Row], json_path: Path | None, seconds: float) -> None:
    """Print the table and, where asked for, write it."""
    languages = sorted({row.language for row in rows})
    print(f"{'language':<12}{'pairs':>7}{'agree':>7}{'disagree':>10}{'not run':>9}")
    for name in [*languages, "all"]:
        mine = [row for row in rows if name in ("all", row.language)]
        states = Counter(row.state for row in mine)
        print(
            f"{name:<12}{len(mine):>7}{states['agrees']:>7}{states['disagrees']:>10}"
            f"{states['not run']:>9}"
        )
    exploited = sum(row.state == "agrees" and row.outcomes[3] == "exploited" for row in rows)
    print(f"{exploited} of the vulnerable programs were exploited; the others failed otherwise")
    print(f"{2 * len(rows)} programs in {seconds:.0f} s")
    if json_path is not None:
        states = Counter(row.state for row in rows)
        data = {"seconds": seconds, **states, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
