"""Run SecCodePLT's reference pairs with its capability and safety cases.

    python benchmarks/seccodeplt_references.py PATH [--only TEXT] [--workers N] [--json OUT]

PATH is the JSONL (or upstream's parquet file). docs/seccodeplt.md lists the pairs that do not
agree.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from references import report, run_all

from treeplay.tasks.importers import import_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--only", default="", help="only tasks with this text in the id")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tasks = import_tasks("seccodeplt", given.path).tasks
    items = [
        (task, (task.program(task.golden), task.program(task.vulnerable)))
        for task in tasks
        if task.tests is not None
        and task.golden is not None
        and task.vulnerable is not None
        and given.only in task.id
    ]
    start = time.monotonic()
    rows = run_all(items, given.workers)
    report(rows, given.json, time.monotonic() - start)


if __name__ == "__main__":
    main()
