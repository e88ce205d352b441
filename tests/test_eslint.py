"""eslint as a tool: its findings, and that every way it can break is a failure with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from treeplay.judge.tools import eslint
from treeplay.judge.tools.base import Program
from treeplay.judge.tools.eslint import CWE_OF, ESLINT, Eslint
from treeplay.sandbox import Completed, Sandbox

SANDBOX = Sandbox()


def javascript(text: str, *cwe: str) -> Program:
    return Program("javascript", text, cwe)


def needs_eslint() -> None:
    if ESLINT.version() is None:
        pytest.skip(f"eslint with eslint-plugin-security is not installed: {ESLINT.install}")


def test_findings_in_order() -> None:
    needs_eslint()
    programs = [
        javascript("// eslint-disable-next-line\nfunction f(p) { return eval(p); }\n"),
        javascript("function f(p) { return JSON.parse(p); }\n"),
        javascript("import cp from 'child_process';\nexport const f = (p) => cp.exec(p);\n"),
        javascript(
            "/* eslint-disable */\nconst b = crypto.pseudoRandomBytes(8);\nreturn b;\n", "CWE-330"
        ),
        javascript("eval(x);\n", "CWE-78"),
        javascript("const A = () => <a href='x'>y</a>;\n"),
    ]
    results = ESLINT.run(programs, SANDBOX)
    assert [result.failed for result in results] == [""] * 6
    seen = [[(one.rule, one.cwe, one.line_start) for one in result.findings] for result in results]
    assert seen == [
        [("security/detect-eval-with-expression", "CWE-95", 2)],
        [],
        [("security/detect-child-process", "CWE-78", 2)],
        [("security/detect-pseudoRandomBytes", "CWE-338", 2)],
        [],
        [],
    ]


def test_a_program_that_does_not_parse_fails_alone() -> None:
    needs_eslint()
    broken, good = ESLINT.run([javascript("function f( {"), javascript("eval(x)")], SANDBOX)
    assert "line 1" in broken.failed
    assert not broken.findings
    assert not good.failed
    assert [one.cwe for one in good.findings] == ["CWE-95"]


def test_covers() -> None:
    assert ESLINT.covers("javascript", "CWE-78")
    assert not ESLINT.covers("python", "CWE-78")
    assert not ESLINT.covers("javascript", "CWE-89")


def install(folder: Path, script: str, version: str = "9.1.0") -> None:
    """A folder whose eslint is ``script``."""
    for name, number in (("eslint", version), ("eslint-plugin-security", "3.0.0")):
        package = folder / "node_modules" / name
        (package / "bin").mkdir(parents=True)
        (package / "package.json").write_text(json.dumps({"name": name, "version": number}))
    (folder / "node_modules" / "eslint" / "bin" / "eslint.js").write_text(script)


def needs_node() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed: apt-get install nodejs")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("throw new Error('the rule broke')", "exit status 1"),
        ("console.error('Oops: the rule broke'); process.exit(2)", "Oops: the rule broke"),
        ('process.stdout.write(\'[{"filePath": "p0.js", "mess\')', "no JSON"),
        ("process.stdout.write('[]')", "says nothing of this program"),
        ('process.stdout.write(\'[{"filePath": "p0.js", "messages": [3]}]\')', "eslint"),
        ("while (true) {}", "stopped for its time"),
    ],
)
def test_faults(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_node()
    install(tmp_path, script)
    monkeypatch.setenv("TREEPLAY_ESLINT", str(tmp_path))
    monkeypatch.setattr(eslint, "START_S", 1)
    (result,) = ESLINT.run([javascript("eval(x)")], SANDBOX)
    assert said in result.failed or (said == "exit status 1" and "no JSON" in result.failed)
    assert not result.findings


def test_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_node()
    install(tmp_path, "process.exit(3)", version="8.57.0")
    monkeypatch.setenv("TREEPLAY_ESLINT", str(tmp_path))
    assert ESLINT.version() is None
    (result,) = ESLINT.run([javascript("eval(x)")], SANDBOX)
    assert "8.57.0 is too old" in result.failed
    assert ESLINT.install in result.failed


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEPLAY_ESLINT", str(tmp_path))
    assert ESLINT.version() is None
    results = ESLINT.run([javascript("eval(x)"), javascript("1")], SANDBOX)
    assert ["not installed" in result.failed for result in results] == [True, True]


class Crashing(Sandbox):
    """eslint that crashes whenever the batch holds the text ``crash``."""

    def run(self, argv: Sequence[str], files: Any = None, **_: Any) -> Completed:
        assert isinstance(files, Mapping)
        names = [name for name in argv if name.startswith("p") and name.endswith(".js")]
        if any(b"crash" in files[name] for name in names):
            return Completed(2, b"", b"TypeError: a rule broke\n", False, 0.1)
        said = [{"filePath": f"/w/{name}", "messages": []} for name in names]
        return Completed(0, json.dumps(said).encode(), b"", False, 0.1)


def test_a_crash_on_one_program_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Eslint("/usr/bin/node", Path("/nowhere/node_modules"), "9.0.0", "3.0.0")
    monkeypatch.setattr(eslint, "find_eslint", lambda: found)
    texts = ["a", "b", "crash", "c", "d"]
    results = ESLINT.run([javascript(text) for text in texts], Crashing())
    assert [result.failed for result in results] == [
        "",
        "",
        "eslint: exit status 2: TypeError: a rule broke",
        "",
        "",
    ]


def test_table_names_rules_that_exist() -> None:
    needs_eslint()
    found = eslint.find_eslint()
    assert found is not None
    for name in CWE_OF:
        owner, _, rule = name.rpartition("/")
        folder = "eslint-plugin-security/rules" if owner else "eslint/lib/rules"
        assert (found.modules / folder / f"{rule}.js").is_file(), name
