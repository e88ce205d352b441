"""How fast the judge is: a tree of 64 Python branches in one batch, against one tool start a file.

    python benchmarks/judge_speed.py [--branches 64] [--json OUT]

The branches are the starter pack's Python answers, golden and vulnerable, each as one program. Per
tool: wall seconds for the batch, and for the same programs given one by one (on the first
``--single`` of them, scaled). Then all tools together through the panel, canaries included, and
executed tests through the judge with two workers. One run on one machine: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from treeplay.judge.judge import Judge
from treeplay.judge.panel import Panel
from treeplay.judge.tools import TOOLS
from treeplay.judge.tools.base import Program
from treeplay.sandbox import Sandbox, check_sandbox
from treeplay.tasks.pack import load_pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--single", type=int, default=8, help="programs given one by one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check_sandbox()
    sandbox = Sandbox()
    tasks = [task for task in load_pack() if task.language == "python"]
    answers = [(task, one) for task in tasks for one in (task.golden, task.vulnerable) if one]
    items = list(islice(cycle(answers), arguments.branches))
    programs = [Program("python", task.program(answer), task.cwe) for task, answer in items]

    rows: list[dict[str, Any]] = []
    for tool in TOOLS:
        if "python" not in tool.languages or tool.version() is None:
            continue
        tool.run(programs[:1], sandbox)  # imports and compiled rules are paid for once a process
        batch = timed(lambda tool=tool: tool.run(programs, sandbox))  # type: ignore[misc]
        few = programs[: arguments.single]
        single = timed(lambda tool=tool, few=few: [tool.run([one], sandbox) for one in few])  # type: ignore[misc]
        rows.append(row(tool.name, len(programs), batch, single * len(programs) / len(few)))
    panel = Panel(sandbox)
    whole = timed(lambda: panel.look_many(programs))
    rows.append(row("all, with canaries", len(programs), whole, None))
    again = Panel(sandbox)
    static = [(replace(task, id=str(n), tests=None), one) for n, (task, one) in enumerate(items)]
    judged = timed(lambda: Judge(sandbox, panel=again).judge_many(static))
    rows.append(row("judge, differential", len(static), judged, None))
    distinct = list({task.program(answer): (task, answer) for task, answer in items}.values())
    executed = timed(lambda: Judge(sandbox, panel=panel).judge_many(distinct))
    rows.append(row("executed tests", len(distinct), executed, None))

    print(f"{'':<22}{'programs':>9}{'seconds':>9}{'a second':>10}{'one by one':>12}{'ratio':>7}")
    for one in rows:
        single_s = "" if one["single_s"] is None else f"{one['single_s']:.1f}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.1f}"
        print(
            f"{one['what']:<22}{one['programs']:>9}{one['batch_s']:>9.2f}{one['per_second']:>10.1f}"
            f"{single_s:>12}{ratio:>7}"
        )
    if arguments.json:
        report = {
            "created": datetime.now(timezone.utc).isoformat(timespec="minutes"),
            "machine": f"{psutil.cpu_count()} CPUs, {platform.machine()}",
            "judge": panel.identity(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(what: str, programs: int, batch_s: float, single_s: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "programs": programs,
        "batch_s": round(batch_s, 3),
        "single_s": None if single_s is None else round(single_s, 3),
        "ratio": None if single_s is None else round(single_s / batch_s, 2),
        "per_second": round(programs / batch_s, 2),
    }


if __name__ == "__main__":
    main()
