"""What commands say before and beside their work: refusals, warnings, how they go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import refused, run

from treeplay.sandbox import Sandbox


def test_an_import_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    record = {
        "task_id": "HumanEval/0", "entry_point": "f", "canonical_solution": "    return 1\n",
        "prompt": 'def f():\n    """One."""\n', "test": "def check(c):\n    assert c() == 1\n",
    }  # fmt: skip
    (tmp_path / "h.jsonl").write_text(json.dumps(record) + "\n")
    given = ("tasks", "import", "humaneval", tmp_path / "h.jsonl", "-o", tmp_path / "o.jsonl")
    says = "has no task in 'pyhton'; did you mean 'python'"
    refused(run(*given, "--languages", "pyhton"), says)
    refused(run(*given, "--max-chars", 1), "no task is left of it, so nothing was written")
    assert not (tmp_path / "o.jsonl").exists()
    assert run(*given, "--languages", "python").exit_code == 0


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "v.py").write_text("x = 1\n")
    refused(run("judge", tmp_path / "v.py", "-o", tmp_path), "cannot be written .Is a directory")
    (tmp_path / "r.jsonl").write_text("{}\n")
    given = ("judge", "bench", tmp_path / "r.jsonl")
    refused(run(*given, "--json", tmp_path), "cannot be written")
    refused(run(*given, "--calibrate", tmp_path), "cannot be written")


def test_an_endpoint_that_is_set_and_not_asked_is_told(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREEPLAY_LLM_BASE_URL", "http://localhost:1/v1")
    (tmp_path / "v.py").write_text("x = 1\n")
    done = run("judge", tmp_path / "v.py", "--tools", "rules")
    assert "is set, but no language model is asked: name a file with --llm" in done.stderr


def test_commands_say_how_they_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("treeplay.config.load_config", interrupted)
    monkeypatch.setattr("treeplay.tasks.select.load_tasks", interrupted)
    for command, says in (
        (["play", "x"], "what was made is kept: add --resume to go on"),
        (["grow", "x"], "what was made is kept: run the same again to go on"),
        (["tasks", "list"], "interrupted; run the same again\n"),
    ):
        assert says in run(*command).stderr


def test_the_version_and_the_module(tmp_path: Path) -> None:
    assert run("--version").stdout.startswith("treeplay ")
    done = subprocess.run(
        [sys.executable, "-m", "treeplay", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == run("--version").stdout
