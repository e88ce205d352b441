"""The bench: the judge on labelled records, every tool for itself and all together.

Each side of a record is judged alone, as if the other did not exist: no reference, no differential
judging, only the record's CWE is asked for. (The pipeline has a reference and does better.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal

from treeplay.judge.bench.measure import Measured
from treeplay.judge.bench.records import Record
from treeplay.judge.bench.score import Side
from treeplay.judge.bench.tests import runnable_sides, tests_for
from treeplay.judge.ensemble import Opinion
from treeplay.judge.judge import Judge
from treeplay.judge.panel import Panel
from treeplay.judge.programs import judge_programs
from treeplay.judge.tools.base import Program
from treeplay.judge.verdict import Finding, Verdict
from treeplay.progress import Reporter
from treeplay.tasks.task import Task

Evidence = Literal["static", "executed", "all"]
ENSEMBLE = "ensemble"
TESTS = "tests"
CHUNK = 200  # programs that go to the tools at once: each batch starts every tool


@dataclass(frozen=True)
class Bench:
    """What the bench saw: ``sides`` for the rows, ``per_second`` by (tool, dataset, language),
    ``measured`` for a calibration, and records that were asked to be executed but have no tests or
    could not be run, with the reason."""

    sides: tuple[Side, ...]
    per_second: dict[tuple[str, str, str], float]
    measured: tuple[Measured, ...]
    not_run: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Half:
    record: Record
    vulnerable: bool
    program: Program


def run_bench(
    records: Sequence[Record],
    panel: Panel,
    evidence: Evidence = "static",
    reporter: Reporter | None = None,
) -> Bench:
    """Judge both sides of every record.

    ``static``: by the tools. ``executed``: by the records' tests alone; records without tests are
    left out. ``all``: by the tests where there are some, else by the tools. Raises
    :class:`~treeplay.errors.SandboxError` when programs must run and there is no sandbox.
    """
    reporter = reporter or Reporter(quiet=True)
    sides: list[Side] = []
    speed: dict[tuple[str, str, str], float] = {}
    measured: list[Measured] = []
    not_run: list[tuple[str, str]] = []
    for (dataset, language), group in _grouped(records).items():
        what = f"{dataset} {language}"
        executed: dict[tuple[str, bool], Verdict] = {}
        run_s = 0.0
        if evidence != "static":
            start = time.perf_counter()
            executed, missing = _execute(group, panel, what, reporter)
            run_s = time.perf_counter() - start
            not_run += missing
            if executed:
                speed[TESTS, dataset, language] = len(executed) / run_s
        halves = _halves(group)
        if evidence == "executed":
            halves = [one for one in halves if (one.record.id, one.vulnerable) in executed]
        opinions: list[Opinion] = []
        start = time.perf_counter()
        if evidence == "executed":
            verdicts = [executed[one.record.id, one.vulnerable] for one in halves]
        else:
            before = dict(panel.spent)
            with reporter.stage(f"{what} tools", len(halves)) as meter:
                for first in range(0, len(halves), CHUNK):
                    chunk = [one.program for one in halves[first : first + CHUNK]]
                    opinions += panel.look_many(chunk)
                    meter.advance(len(chunk))
            verdicts = judge_programs([one.program for one in halves], panel, opinions)
            for tool in panel.tools:
                seconds, count = panel.spent.get((tool.name, language), (0.0, 0))
                old_seconds, old_count = before.get((tool.name, language), (0.0, 0))
                if count > old_count:
                    speed[tool.name, dataset, language] = (count - old_count) / (
                        seconds - old_seconds
                    )
            verdicts = [
                executed.get((one.record.id, one.vulnerable), verdict)
                for one, verdict in zip(halves, verdicts, strict=True)
            ]
        if halves:
            spent = time.perf_counter() - start + run_s
            speed[ENSEMBLE, dataset, language] = len(halves) / spent
        sides += [
            _side(ENSEMBLE, half, verdict) for half, verdict in zip(halves, verdicts, strict=True)
        ]
        sides += [
            _side(TESTS, half, executed[half.record.id, half.vulnerable])
            for half in halves
            if (half.record.id, half.vulnerable) in executed
        ]
        for half, opinion in zip(halves, opinions, strict=False):
            sides += _tool_sides(half, opinion, panel)
        measured += [
            Measured(
                half.record,
                half.vulnerable,
                opinions[place] if opinions else None,
                executed.get((half.record.id, half.vulnerable)),
            )
            for place, half in enumerate(halves)
        ]
    rounded = {key: round(value, 3) for key, value in speed.items()}
    return Bench(tuple(sides), rounded, tuple(measured), tuple(not_run))


def _grouped(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.dataset, record.language), []).append(record)
    return groups


def _halves(records: Sequence[Record]) -> list[_Half]:
    return [
        _Half(record, bad, Program(record.language, text, (record.cwe,) if record.cwe else ()))
        for record in records
        for bad, text in ((True, record.vulnerable), (False, record.secure))
        if text is not None
    ]


def _execute(
    records: Sequence[Record],
    panel: Panel,
    what: str,
    reporter: Reporter,
) -> tuple[dict[tuple[str, bool], Verdict], list[tuple[str, str]]]:
    """Verdicts by (record, is it the vulnerable side) of the records' tests; what was not run."""
    judge = Judge(panel.sandbox, panel=panel)
    items: list[tuple[Task, str]] = []
    keys: list[tuple[str, bool]] = []
    not_run: list[tuple[str, str]] = []
    tasks = tests_for(records)
    for record in records:
        task = tasks[record.id]
        if isinstance(task, str):
            not_run.append((record.id, task))
            continue
        for bad, text in runnable_sides(record, task).items():
            # the whole program is the answer, so that the tests are all that speaks
            items.append((task, text))
            keys.append((record.id, bad))
    if not items:
        return {}, not_run
    with reporter.stage(f"{what} tests", len(items)) as meter:
        verdicts = judge.judge_many(items, meter.reach)
    found: dict[tuple[str, bool], Verdict] = {}
    for key, verdict in zip(keys, verdicts, strict=True):
        if verdict.evidence == "executed" or verdict.label == "invalid":
            found[key] = verdict
        else:
            not_run.append((key[0], f"{'vulnerable' if key[1] else 'secure'}: {verdict.reason}"))
    return found, not_run


def _side(tool: str, half: _Half, verdict: Verdict) -> Side:
    flagged = verdict.label == "vulnerable"
    side = Side(
        tool,
        half.record.dataset,
        half.record.language,
        half.record.cwe,
        half.record.id,
        half.vulnerable,
        flagged,
        verdict.label in ("secure", "vulnerable"),
        verdict.confidence,
    )
    return replace(side, distance=_distance(half, verdict.findings)) if flagged else side


def _tool_sides(half: _Half, opinion: Opinion, panel: Panel) -> list[Side]:
    """Each tool alone: it flags what it has any finding on, and silence is its word for secure."""
    found = []
    record = half.record
    for tool in panel.tools:
        if record.language not in tool.languages:
            continue
        mine = [one for one in opinion.findings if one.tool == tool.name]
        found.append(
            Side(
                tool.name,
                record.dataset,
                record.language,
                record.cwe,
                record.id,
                half.vulnerable,
                bool(mine),
                tool.name in opinion.looked,
                None,
                _distance(half, mine) if mine else None,
            )
        )
    return found


def _distance(half: _Half, findings: Sequence[Finding]) -> int | None:
    """Lines from the nearest finding in the vulnerable side to the nearest line of the change."""
    record = half.record
    if not half.vulnerable or record.secure is None or not findings:
        return None
    bad = [line.strip() for line in half.program.text.splitlines()]
    good = [line.strip() for line in record.secure.splitlines()]
    changed: list[int] = []
    for tag, i1, i2, _j1, _j2 in SequenceMatcher(None, bad, good, autojunk=False).get_opcodes():
        if tag == "insert":  # what is missing would stand between these two
            changed += [i1, i1 + 1]
        elif tag != "equal":
            changed += range(i1 + 1, i2 + 1)
    if not changed:
        return None
    return min(
        max(0, one.line_start - line, line - one.line_end) for one in findings for line in changed
    )
