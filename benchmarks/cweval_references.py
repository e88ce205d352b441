"""Run CWEval's reference pairs with its published tests.

    python benchmarks/cweval_references.py PATH [--only TEXT] [--workers N] [--json OUT]

PATH is the benchmark folder or its converted JSONL. docs/cweval.md says what to install.
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
    tasks = [task for task in import_tasks("cweval", given.path).tasks if given.only in task.id]
    items = [
        (task, (task.meta["secure_program"], task.meta["vulnerable_program"]))
        for task in tasks
        if task.tests is not None and task.meta["vulnerable_program"] is not None
    ]
    start = time.monotonic()
    rows = run_all(items, given.workers)
    report(rows, given.json, time.monotonic() - start)


if __name__ == "__main__":
    main()
