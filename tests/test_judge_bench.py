"""The bench: rates by hand, halves, bad files, a calibration that can be read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from treeplay.errors import TaskError
from treeplay.judge.bench.command import bench_files, print_bench, write_calibration
from treeplay.judge.bench.measure import Measured, calibrate
from treeplay.judge.bench.page import bench_page
from treeplay.judge.bench.records import Record, group_of, half_of, read_labelled
from treeplay.judge.bench.run import run_bench
from treeplay.judge.bench.score import Side, make_rows, wilson
from treeplay.judge.calibration import Fired, Silent, load_calibration
from treeplay.judge.ensemble import Opinion
from treeplay.judge.panel import JudgeConfig, Panel
from treeplay.judge.verdict import Finding
from treeplay.progress import Reporter
from treeplay.sandbox import Sandbox

GOOD = "import sqlite3\n\n\ndef f(db, n):\n    return db.execute('SELECT a WHERE b = ?', (n,))\n"
BAD = "import sqlite3\n\n\ndef f(db, n):\n    return db.execute('SELECT a WHERE b = ' + n)\n"


def side(record: str, vulnerable: bool, flagged: bool, confidence: float | None = None) -> Side:
    decided = flagged or confidence is not None
    return Side(
        "ensemble", "d", "python", "CWE-89", record, vulnerable, flagged, decided, confidence
    )


def test_rates_by_hand() -> None:
    sides = [
        side("1", True, True, 0.9),
        side("1", False, False, 0.8),
        side("2", True, True, 0.7),
        side("2", False, True, 0.6),
        side("3", True, False),
        side("3", False, False),
        side("4", True, True, 1.0),
    ]
    whole, by_cwe = make_rows(sides, {("ensemble", "d", "python"): 12.5})
    assert (whole["cwe"], by_cwe["cwe"]) == (None, "CWE-89")
    assert (whole["n_vulnerable"], whole["n_secure"], whole["n_pairs"]) == (4, 3, 3)
    assert whole["recall"] == 0.75
    assert whole["false_positive_rate"] == pytest.approx(1 / 3, abs=1e-4)
    assert whole["precision"] == 0.75
    assert whole["pair_accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert whole["coverage"] == pytest.approx(5 / 7, abs=1e-4)
    assert whole["brier"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.36 + 0) / 5, abs=1e-4)
    assert whole["per_second"] == 12.5
    for name in ("recall", "precision", "pair_accuracy", "coverage", "brier"):
        assert whole[f"{name}_low"] <= whole[name] <= whole[f"{name}_high"]


def test_what_cannot_be_measured_is_none() -> None:
    (row, _by_cwe) = make_rows([side("1", True, True)], {})
    assert row["recall"] == 1.0
    for name in ("precision", "pair_accuracy", "false_positive_rate", "brier", "line_distance"):
        assert row[name] is row[f"{name}_low"] is row[f"{name}_high"] is None
    assert row["per_second"] is None


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0


def test_a_group_lies_in_one_half() -> None:
    def record(name: str, **meta: object) -> dict[str, object]:
        return {"id": name, "meta": meta}

    one = record("sven/1", commit_link="github.com/a/b/commit/1")
    two = record("safecoder/9", commit_link="https://github.com/A/b/commit/2")
    assert group_of(one) == group_of(two) == "repository a/b"
    assert half_of(one) == half_of(two)
    c, go = (record(f"cweval/core/{x}/cwe_020_0_{x}.{x}") for x in ("c", "go"))
    assert group_of(c) == group_of(go) == "cweval cwe_020_0"
    named = record("seccodeplt/1", task_description={"function_name": "f"})
    assert group_of(named) == "function f"
    halves = {half_of(record(f"x/{n}")) for n in range(50)}
    assert halves == {"dev", "test"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "this line is not JSON"),
        ("[]", "a record is an object"),
        ('{"secure": "x"}', "language must be text, not None"),
        ('{"language": "python", "secure": 3}', "secure must be text or null, not 3"),
        ('{"language": "python", "secure": "x", "cwe": "SQL"}', "cwe must look like 'CWE-89'"),
        ('{"language": "ruby", "secure": "x"}', "no record in it holds a program"),
        ('{"language": "python", "secure": null, "vulnerable": null}', "no record in it"),
    ],
)
def test_bad_records(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TaskError, match=r"r\.jsonl") as caught:
        read_labelled(path)
    assert words in str(caught.value)


def write(path: Path, *records: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_bench_end_to_end(tmp_path: Path) -> None:
    base = {"language": "python", "cwe": "CWE-89", "source": "mine"}
    path = write(
        tmp_path / "r.jsonl",
        {"id": "a", **base, "secure": GOOD, "vulnerable": BAD},
        {"id": "b", **base, "secure": None, "vulnerable": BAD.replace("n)", "n[0])")},
        {"id": "c", **base, "cwe": None, "secure": GOOD, "vulnerable": None},
        {"id": "d", **base, "language": "ruby", "secure": "puts 1"},
    )
    panel = Panel(Sandbox(), JudgeConfig(tools=("rules", "bandit")))
    result = bench_files([path], panel, "static", "all", [], 0, Reporter(quiet=True))
    report = json.loads(json.dumps(result.report))
    assert report["records"] == 3
    row = next(r for r in report["rows"] if r["tool"] == "rules" and r["cwe"] is None)
    assert (row["dataset"], row["recall"], row["n_secure"]) == ("mine", 1.0, 2)
    assert (row["pair_accuracy"], row["line_distance"]) == (1.0, 0.0)
    wanted = {"tool", "dataset", "language", "cwe", "n_vulnerable", "n_secure", "recall"}
    wanted |= {"precision", "pair_accuracy", "coverage", "per_second", "recall_low", "recall_high"}
    assert wanted <= set(row)
    page = bench_page(report)
    assert "<script" not in page
    assert "mine, python" in page
    calibration = tmp_path / "mine.json"
    write_calibration(calibration, result, panel)
    read = load_calibration(calibration)
    key = next(key for key in read.fired if key.startswith("python/rules/"))
    assert (read.fired[key].vulnerable, read.fired[key].only_vulnerable) == (1, 1)
    assert read.silent["python/CWE-89"].n_vulnerable == 2
    assert read.made["datasets"] == ["r.jsonl"]
    console = Console(file=StringIO(), width=200)
    print_bench(report, console)
    assert "ensemble" in console.file.getvalue()  # type: ignore[attr-defined]


def opinion_of(rules: Sequence[str]) -> Opinion:
    return Opinion(tuple(Finding("CWE-89", 1, 1, rule, "t", "") for rule in rules), ("t",))


def test_a_crude_rule_is_worth_little_where_a_fine_one_looked() -> None:
    """Of ten pairs the fine rule flags nine vulnerable sides; the crude one flags the same, and
    three fixed sides as well. Alone the crude one has 9 of 12, where the fine one looked 0 of 3."""
    measured = []
    for n in range(10):
        record = Record(f"r{n}", "d", "python", "CWE-89", "good", "bad", {})
        fired = ["fine", "crude"] if n < 9 else []
        measured.append(Measured(record, True, opinion_of(fired), None))
        measured.append(Measured(record, False, opinion_of(["crude"] if n < 3 else []), None))
    found = calibrate(measured, "precision", 0.6, {})
    fine, crude = (Finding("CWE-89", 1, 1, rule, "t", "") for rule in ("fine", "crude"))
    assert found.fired["python/t/crude/CWE-89"] == Fired(9, 3, 9, 3)
    assert found.left["python/t/crude/CWE-89"] == Fired(0, 3, 0, 3)
    assert found.left["python/t/fine/CWE-89"] == Fired(9, 0, 9, 0)
    assert found.precision(fine, "python", whole=True) > 0.9
    assert found.precision(crude, "python") > 0.7
    assert found.precision(crude, "python", whole=True) < 0.5
    assert found.silent["python/CWE-89"] == Silent(1, 10, 10, 10)


def test_names_in_records_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    path = write(
        tmp_path / "r.jsonl",
        {"id": evil, "source": evil, "language": "python", "cwe": "CWE-89", "secure": GOOD},
    )
    panel = Panel(Sandbox(), JudgeConfig(tools=("rules",)))
    result = bench_files([path], panel, "all", "all", [], 0, Reporter(quiet=True))
    page = bench_page(result.report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert result.report["not_run"][0]["records"] == [evil]


def test_nothing_left(tmp_path: Path) -> None:
    record = {"id": "a", "language": "python", "secure": GOOD}
    panel = Panel(Sandbox(), JudgeConfig(tools=("rules",)))
    path = write(tmp_path / "r.jsonl", record)
    with pytest.raises(TaskError, match="no record is left"):
        bench_files([path], panel, "static", "all", ["go"], 0, Reporter(quiet=True))
    (found,), _ = read_labelled(path)
    bench = run_bench([found], panel, "executed")
    assert bench.sides == ()
    assert bench.not_run == (("a", "the record has no tests"),)
