"""``treeplay judge`` as a person meets it: files, folders, stdin, output forms, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from treeplay.cli import app

BAD = "import os\n\n\ndef f(name):\n    os.system('ls ' + name)\n"
GOOD = "def f(a, b):\n    return a + b\n"
TOOLS = ("--tools", "rules", "--tools", "bandit")  # as well as rules,bandit


def run(*words: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["judge", *words], input=stdin)


def verdicts(*words: str, stdin: bytes | None = None) -> dict[str, dict[str, object]]:
    result = run(*words, *TOOLS, "--format", "json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return {Path(one["path"]).name: one for one in json.loads(result.stdout)["files"]}


def test_a_folder(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", "node_modules/c.py", ".hidden/d.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(BAD)
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    found = verdicts(str(tmp_path))
    assert set(found) == {"a.py", "b.py"}
    one = found["a.py"]
    assert (one["label"], one["evidence"], one["language"]) == ("vulnerable", "static", "python")
    findings = one["findings"]
    assert isinstance(findings, list)
    assert {(f["cwe"], f["line_start"]) for f in findings} == {("CWE-78", 5)}
    assert isinstance(one["confidence"], float)


def test_the_table_and_the_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(BAD)
    result = run(str(path), *TOOLS)
    assert result.exit_code == 0
    assert "vulnerable" in result.output
    assert "line 5: CWE-78" in result.output
    assert "1 programs: 1 vulnerable" in result.output
    assert run(str(path), *TOOLS, "--error").exit_code == 1
    assert run(str(path), *TOOLS, "--error", "--cwe", "CWE-89").exit_code == 0


def test_standard_input() -> None:
    found = verdicts("-", "--language", "python", stdin=BAD.encode())
    assert found["stdin"]["label"] == "vulnerable"
    result = run("-", stdin=BAD.encode())
    assert result.exit_code == 2
    assert "say its language with --language" in result.output


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x7fELF\0\0\0", "it is binary"),
        ("x = 'é'\n".encode("latin-1"), "it is not UTF-8 text (byte 5)"),
        (b"x = 1  #" + b"a" * 1_000_000, "the program is longer than"),
        (b"x = '" + b"a" * 200_000 + b"'\n", "a line of more than"),
        (b"#" * 5_000_000, "it is larger than"),
        (b" \n", "the program is empty"),
    ],
)
def test_what_is_no_program_is_unknown(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "odd.py").write_bytes(data)
    (tmp_path / "bad.py").write_text(BAD)
    found = verdicts(str(tmp_path))
    assert found["odd.py"]["label"] == "unknown"
    assert words in str(found["odd.py"]["reason"])
    assert found["bad.py"]["label"] == "vulnerable"  # the run goes on


def test_broken_code_is_invalid_and_a_method_alone_is_not(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n  return\n")
    (tmp_path / "method.py").write_text("    def f(self, n):\n        eval(n)\n")
    found = verdicts(str(tmp_path))
    assert found["broken.py"]["label"] == "invalid"
    assert found["method.py"]["label"] == "vulnerable"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.py"], "absent.py: there is no such file or folder"),
        (["."], "nothing to judge in ."),
        (["x.txt"], "its name does not tell the language"),
        (["x.txt", "--language", "pyton"], "did you mean 'python'"),
        (["x.txt", "--language", "python", "--policy", "precison"], "did you mean 'precision'"),
        (["x.txt", "--language", "python", "--tools", "bandid"], "did you mean 'bandit'"),
        (["x.txt", "--language", "python", "--cwe", "SQL"], "write it as CWE-89"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text(GOOD)
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_sarif(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(BAD)
    target = tmp_path / "out" / "a.sarif"
    assert run(str(path), *TOOLS, "--format", "sarif", "-o", str(target)).exit_code == 0
    log = json.loads(target.read_text())
    assert log["version"] == "2.1.0"
    results = [one for each in log["runs"] for one in each["results"]]
    assert results[0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 5


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.py"
    path.write_text(BAD)
    assert "\x1b" not in run(str(path), *TOOLS).output


def test_bench_command(tmp_path: Path) -> None:
    record = {"id": "a", "language": "python", "cwe": "CWE-78", "vulnerable": BAD, "secure": GOOD}
    (tmp_path / "r.jsonl").write_text(json.dumps(record) + "\n")
    result = run("bench", str(tmp_path / "r.jsonl"), *TOOLS, "--json", str(tmp_path / "o.json"))
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert {row["tool"] for row in rows} == {"ensemble", "rules", "bandit"}
    assert run("bench", str(tmp_path / "no.jsonl")).exit_code == 2
