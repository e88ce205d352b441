"""Semgrep as a tool: what it finds, and that its failures are never silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from treeplay.judge.tools import semgrep
from treeplay.judge.tools.base import Program, Tool
from treeplay.judge.tools.common import BrokenToolError
from treeplay.judge.tools.semgrep import SEMGREP, make_semgrep, semgrep_version
from treeplay.sandbox import Limits, Sandbox

needs_semgrep = pytest.mark.skipif(semgrep_version() is None, reason="Semgrep is not installed")
EVIL = "def f(a):\n    return eval(a)  # nosemgrep\n"


def rule(name: str, pattern: str, cwe: list[str]) -> dict[str, Any]:
    return {
        "id": name,
        "languages": ["python"],
        "severity": "ERROR",
        "message": "evil",
        "pattern": pattern,
        "metadata": {"cwe": cwe},
    }


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    rules = [rule("own.eval", "eval($X)", ["CWE-95", "CWE-78"]), rule("zero", "$X / 0", [])]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))
    return make_semgrep([tmp_path / "rules.yaml"], "mine")


@needs_semgrep
def test_findings_in_order(tool: Tool) -> None:
    programs = [
        Program("python", EVIL, ("CWE-89",)),
        Program("python", EVIL, ("CWE-78",)),
        Program("python", "\n" + EVIL + "x / 0\n"),
        Program("python", EVIL + "x / 0\n", ("CWE-94",)),
        Program("go", "package m\n"),
        Program("python", "@@@ ??? eval( ]]]\n"),
        Program("python", "def f(a):\n  return eval(a)\n  ) ) (\nx = 1\n"),  # read in part
        Program("python", 'x = "\ud800"\neval(x)\n'),
    ]
    results = tool.run(programs, Sandbox())
    seen = [[(one.rule, one.cwe, one.line_start) for one in each.findings] for each in results]
    assert seen == [
        [],
        [("own.eval", "CWE-78", 2)],
        [("own.eval", "CWE-95", 3), ("zero", None, 4)],
        [("own.eval", "CWE-95", 2)],
        [],
        [],
        [("own.eval", "CWE-95", 2)],
        [("own.eval", "CWE-95", 2)],
    ]
    assert [bool(each.failed) for each in results] == [False] * 5 + [True] + [False] * 2
    assert results[5].failed == "mine: it could not parse the program"
    assert {one.tool for each in results for one in each.findings} == {"mine"}
    assert tool.covers("python", "CWE-95")
    assert not tool.covers("python", "CWE-89")
    assert not tool.covers("c", "CWE-95")
    assert ", rules " in (tool.version() or "")


@needs_semgrep
def test_the_slow_way_says_the_same(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [Program("python", EVIL), Program("python", "x = 1\n")]
    quick = tool.run(programs, Sandbox())
    real = semgrep._Scan.once
    tried = []

    def no_fast_way(self: Any, texts: Any, *, fast: bool) -> Any:
        tried.append(fast)
        if fast:
            raise BrokenToolError("no such option")
        return real(self, texts, fast=False)

    monkeypatch.setattr(semgrep._Scan, "once", no_fast_way)
    assert tool.run(programs, Sandbox()) == quick
    assert tried == [True, False]


HIT = {"check_id": "x.own.eval", "path": "p/0.py", "start": {"line": 2}, "end": {"line": 2}}
GOOD = {"errors": [], "paths": {"scanned": ["p/0.py", "p/1.py"]}, "results": [HIT]}


def fake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, version: str = "1.150.0"
) -> None:
    """An executable that says a version, and otherwise does ``body`` (shell)."""
    bin_folder = folder / "fake"
    bin_folder.mkdir()
    path = bin_folder / "semgrep"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo {version}; exit; fi\n{body}\n')
    for each in (bin_folder, path):
        each.chmod(0o755)
    monkeypatch.setenv("TREEPLAY_SEMGREP", str(path))


def say(data: Any) -> str:
    return f"cat <<'END'\n{json.dumps(data)}\nEND"


def both(tool: Tool) -> list[tuple[int, str]]:
    """(number of findings, failure) for two programs."""
    programs = [Program("python", EVIL), Program("python", "y = eval(1)\n")]
    return [(len(one.findings), one.failed) for one in tool.run(programs, Sandbox())]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("kill -SEGV $$", "no output (exit status 139"),
        ("echo it broke >&2; exit 2", "no output (exit status 2: it broke)"),
        ("exit 0", "no output"),
        ('echo \'{"errors": [], "results": [{\'', "no whole JSON"),
        ("echo '[]'", "no whole JSON"),
        (say({**GOOD, "paths": {"scanned": []}}), "it scanned none of 2 programs"),
        (say({"errors": [], "results": []}), "no whole JSON"),
        (say({**GOOD, "results": [{**HIT, "check_id": "z"}]}), "no whole JSON"),
        (
            say(
                {**GOOD, "errors": [{"level": "error", "type": "Rule parse error", "message": "r"}]}
            ),
            "mine: r",
        ),
        (say({**GOOD, "results": []}) + "\nexit 3", "exit status 3"),
    ],
)
def test_a_broken_semgrep_is_never_silence(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    fake(tmp_path, monkeypatch, body)
    for found, failed in both(tool):
        assert found == 0
        assert failed.startswith("mine: ")
        assert said in failed


def test_what_it_did_not_scan_is_failed(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {"level": "warn", "path": "p/0.py", "type": "Timeout", "message": "Timeout on p/0.py"}
    fake(tmp_path, monkeypatch, say({**GOOD, "paths": {"scanned": ["p/0.py"]}, "errors": [late]}))
    assert both(tool) == [
        (1, "mine: Timeout on the program"),
        (0, "mine: it did not scan the program"),
    ]


def test_it_hangs(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "exec sleep 600")
    monkeypatch.setattr(semgrep, "Limits", lambda **more: Limits(**{**more, "wall_s": 0.4}))
    assert both(tool) == [(0, "mine: it was stopped for its time")] * 2


def test_one_program_that_breaks_it_takes_no_other_with_it(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "ls p | sed 's/.*/\"p\\/&\"/' | paste -sd,"
    body = f"""
if grep -q BREAK p/*; then exit 9; fi
echo '{{"errors": [], "results": [], "paths": {{"scanned": ['; {names}; echo ']}}}}'"""
    fake(tmp_path, monkeypatch, body)
    texts = [f"x = {number}\n" for number in range(7)]
    texts[4] = "BREAK\n"
    results = tool.run([Program("python", text) for text in texts], Sandbox())
    assert [bool(one.failed) for one in results] == [text == "BREAK\n" for text in texts]


def test_missing_old_and_mute(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEPLAY_SEMGREP", str(tmp_path / "none"))
    assert tool.version() is None
    assert all("mine: not installed; mend: pip install" in failed for _, failed in both(tool))
    fake(tmp_path, monkeypatch, say(GOOD), "1.99.3")
    assert all("version 1.99.3 is too old; mend: pip install" in said for _, said in both(tool))
    (tmp_path / "fake/semgrep").write_text("#!/bin/sh\necho what; exit 1\n")
    assert tool.version() is None
    assert all("does not say its version" in failed for _, failed in both(tool))


def test_the_packaged_rules_are_the_constant() -> None:
    assert SEMGREP.name == "semgrep"
    assert SEMGREP.covers("python", "CWE-89")
    assert not SEMGREP.covers("python", "CWE-416")
