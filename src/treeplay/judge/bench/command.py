"""What ``treeplay judge bench`` does: files to rows, the printed table, a calibration."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from treeplay.errors import TaskError
from treeplay.judge.bench.measure import calibrate
from treeplay.judge.bench.records import Record, half_of, read_labelled
from treeplay.judge.bench.run import ENSEMBLE, Bench, Evidence, run_bench
from treeplay.judge.bench.score import make_rows
from treeplay.judge.calibration import calibration_to_json
from treeplay.judge.panel import Panel
from treeplay.progress import Reporter

# column -> head in the printed table
SHOWN = {
    "recall": "recall",
    "false_positive_rate": "false alarms",
    "precision": "precision",
    "pair_accuracy": "pairs",
    "coverage": "decided",
    "brier": "Brier",
}


@dataclass(frozen=True)
class BenchResult:
    """``report`` is the JSON form: ``rows`` as :func:`make_rows` gives them, and how they came."""

    report: dict[str, Any]
    bench: Bench


def bench_files(
    datasets: Sequence[Path],
    panel: Panel,
    evidence: Evidence,
    half: str,
    languages: Sequence[str],
    limit: int,
    reporter: Reporter,
) -> BenchResult:
    """Judge the records of all files; ``limit`` takes the first ones of each (0: all).

    Raises :class:`TaskError` for files that cannot be read and when no record is left.
    """
    records: list[Record] = []
    for path in datasets:
        read, left_out = read_labelled(path)
        if left_out:
            reporter.say(f"{path}: {left_out} records in other languages or without a program")
        kept = [
            one
            for one in read
            if (half == "all" or half_of(one.raw) == half)
            and (not languages or one.language in languages)
        ]
        records += kept[:limit] if limit else kept
    if not records:
        raise TaskError("no record is left to judge; widen --half, --languages or --limit")
    bench = run_bench(records, panel, evidence, reporter)
    reasons: dict[str, list[str]] = {}
    for record, reason in bench.not_run:
        reasons.setdefault(reason, []).append(record)
    report = {
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "treeplay": metadata.version("treeplay"),
        "machine": f"{psutil.cpu_count()} CPUs, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "judge": panel.identity(),
        "datasets": [path.name for path in datasets],
        "evidence": evidence,
        "half": half,
        "policy": panel.config.policy,
        "records": len(records),
        "absent": [tool.name for tool in (*panel.absent, *panel.missing)],
        "not_run": [
            {"reason": reason, "n": len(names), "records": names}
            for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))
        ],
        "rows": make_rows(bench.sides, bench.per_second),
    }
    return BenchResult(report, bench)


def write_calibration(path: Path, result: BenchResult, panel: Panel) -> None:
    """The counts of the records as a file for ``judge.calibration``."""
    kept = ("created", "treeplay", "judge", "datasets", "evidence", "half", "policy", "records")
    made = {key: result.report[key] for key in kept}
    calibration = calibrate(
        result.bench.measured, panel.config.policy, panel.config.threshold, made
    )
    text = json.dumps(calibration_to_json(calibration), indent=0, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def print_bench(report: dict[str, Any], out: Console) -> None:
    """The rows over all CWEs, one a tool, data set and language; then what was not run."""
    table = Table(box=None, title=f"{report['evidence']} evidence, half: {report['half']}")
    table.add_column("data set", no_wrap=True)
    table.add_column("language", no_wrap=True)
    table.add_column("tool", no_wrap=True)
    for head in ("vulnerable", "secure", *SHOWN.values(), "a second"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in report["rows"]:
        if row["cwe"] is not None:
            continue
        speed = row["per_second"]
        table.add_row(
            row["dataset"],
            row["language"],
            row["tool"],
            str(row["n_vulnerable"]),
            str(row["n_secure"]),
            *(_cell(row, key) for key in SHOWN),
            "" if speed is None else f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}",
            style="bold" if row["tool"] == ENSEMBLE else None,
        )
    wide = out if out.is_terminal else Console(file=out.file, width=180)
    wide.print(table)
    for entry in report["not_run"]:
        names = ", ".join(entry["records"][:4]) + (", ..." if entry["n"] > 4 else "")
        out.print(f"not run ({entry['n']}): {entry['reason']}: {names}", markup=False)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    return f"{value:.2f} [{row[f'{key}_low']:.2f} {row[f'{key}_high']:.2f}]"
