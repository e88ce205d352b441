"""What a task, a model or a tool wrote is text to a terminal, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from test_metrics import scored
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.metrics import paired, rows
from treeplay.report import print_table
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.task import make_task
from treeplay.tasks.validate import TaskCheck, line
from treeplay.words import printable

TITLE = "\x1b]0;owned\x07"


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\tb\nc é\u2028") == "a\tb\nc é\u2028"
    assert printable(f"{TITLE}\x9b31m\r") == r"\x1b]0;owned\x07\x9b31m\x0d"
    assert printable("\u202eevil") == r"\x202eevil"


@pytest.mark.parametrize("name", ["x[/b]", "[red]b[/red]", TITLE])
def test_names_of_tasks_and_suites(name: str, tmp_path: Path) -> None:
    task = make_task(id=name, language="python", cwe=("CWE-1",), prompt="x")
    write_tasks(tmp_path / "tasks.jsonl", [task])
    done = CliRunner().invoke(app, ["tasks", "list", str(tmp_path / "tasks.jsonl")])
    assert done.exit_code == 0
    assert printable(name) in done.output
    assert "\x1b]" not in line(TaskCheck(task, (f"its test said {TITLE}",)))
    samples = scored("s v", suite=name) + scored("s s", suite="other")
    report = {"rows": rows(samples), "paired": paired(samples), "branches": [], "run": {}}
    said = io.StringIO()
    print_table(report, Console(file=said, width=100))
    assert printable(name) in said.getvalue()
    assert "\x1b]" not in said.getvalue()
