"""Markdown tables from reports of ``treeplay judge bench --json``.

python benchmarks/judge_tables.py REPORT.json...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "recall": "recall",
    "false_positive_rate": "false alarms",
    "precision": "precision",
    "pair_accuracy": "pairs",
    "coverage": "decided",
    "brier": "Brier",
}


def main() -> None:
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        print(f"{report['evidence']}, half {report['half']}, {report['created']}\n")
        print(f"| data set | language | tool | bad / good | {' | '.join(COLUMNS.values())} |")
        print("|---|---|---|---|" + "---|" * len(COLUMNS))
        for row in report["rows"]:
            if row["cwe"] is None:
                cells = " | ".join(cell(row, key) for key in COLUMNS)
                counts = f"{row['n_vulnerable']} / {row['n_secure']}"
                print(
                    f"| {row['dataset']} | {row['language']} | {row['tool']} | {counts} | {cells} |"
                )
        print()


def cell(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{row[key]:.2f} [{row[f'{key}_low']:.2f}, {row[f'{key}_high']:.2f}]"


if __name__ == "__main__":
    main()
