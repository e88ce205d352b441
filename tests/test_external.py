"""Tools described in YAML: real ones run live, and fake ones that fail in every way seen."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from treeplay.errors import ConfigError
from treeplay.judge.tools import external
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.external import load_external, make_external, read_external
from treeplay.sandbox import Sandbox

CODE = Path(__file__).with_name("data") / "sarif" / "code"
BESIDE = str(Path(sys.executable).parent)
PY = (CODE / "py/run.py.txt").read_text()
CLEAN = (CODE / "py/clean.py.txt").read_text()
C = (CODE / "c/copy.c.txt").read_text()
JS = (CODE / "js/run.js.txt").read_text()


def find(command: str) -> str:
    path = shutil.which(f"{BESIDE}/{command}") or shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is not installed")
    return path


def rows(result: ToolResult) -> list[tuple[str, str | None, int]]:
    assert result.failed == ""
    return [(one.rule, one.cwe, one.line_start) for one in result.findings]


def test_ruff_live() -> None:
    ruff = find("ruff")
    tool = make_external(
        read_external(
            {
                "name": "ruff",
                "languages": ["python"],
                "command": f"{ruff} check --isolated --no-cache --ignore-noqa --select S "
                f"--output-format sarif {{folder}}".split(),
                "version": [ruff, "--version"],
                "at_least": "0.1",
                "cwe_map": {"S602": ["CWE-78"], "S301": ["CWE-502"]},
                "examples": {"python": "import pickle\npickle.loads(x)\n"},
            },
            "ruff",
        )
    )
    programs = [Program("python", text, cwe) for text in (PY, CLEAN) for cwe in ((), ("CWE-502",))]
    assert [rows(one) for one in tool.run(programs, Sandbox())] == [
        [("S602", "CWE-78", 9), ("S301", "CWE-502", 13)],
        [("S301", "CWE-502", 13)],
        [],
        [],
    ]
    assert tool.covers("python", "CWE-78")
    assert not tool.covers("python", "CWE-89")
    assert not tool.covers("go", "CWE-78")


def test_semgrep_live(tmp_path: Path) -> None:
    semgrep = find("semgrep")
    if not Path("/etc/ssl/certs").is_dir():
        pytest.skip("Semgrep's own command line wants certificates")
    rule = {"id": "pickle", "languages": ["python"], "severity": "ERROR", "message": "evil"}
    rule |= {"pattern": "pickle.loads(...)", "metadata": {"cwe": ["CWE-502: Deserialization"]}}  # type: ignore[dict-item]
    tmp_path.chmod(0o755)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    tool = make_external(
        read_external(
            {
                "name": "mine",
                "languages": ["python"],
                "command": f"{semgrep} scan --experimental --metrics=off --quiet "
                f"--config={tmp_path}/rules.yaml --sarif {{folder}}".split(),
                "cwe": ["CWE-502"],
                "examples": {"python": "import pickle\npickle.loads(x)\n"},
                "readonly": [str(tmp_path), "/etc/ssl/certs"],
                "env": {"EIO_BACKEND": "posix", "SEMGREP_ENABLE_VERSION_CHECK": "0"},
            },
            "semgrep",
        )
    )
    results = tool.run([Program("python", CLEAN), Program("python", PY)], Sandbox())
    assert [[(name.split(".")[-1], *rest) for name, *rest in rows(one)] for one in results] == [
        [],
        [("pickle", "CWE-502", 13)],
    ]


def test_flawfinder_live() -> None:
    flawfinder = find("flawfinder")
    tool = make_external(
        read_external(
            {
                "name": "flawfinder",
                "languages": ["c", "cpp"],
                "command": [flawfinder, "--sarif", "{folder}"],
                "version": [flawfinder, "--version"],
                "examples": {
                    "c": "void f(char*a){gets(a);}\n",
                    "cpp": "void f(char*a){gets(a);}\n",
                },
            },
            "flawfinder",
        )
    )
    programs = [
        Program("c", C, ("CWE-134",)),
        Program("cpp", C),
        Program("c", "int f(void);\n"),
    ]
    first, second, third = (rows(one) for one in tool.run(programs, Sandbox()))
    assert first == [("FF1016", "CWE-134", 7)]
    assert [line for _, _, line in second] == [5, 6, 7]
    assert third == []
    assert not tool.covers("c", "CWE-120")  # nothing is promised, so silence is not believed


def test_njsscan_live() -> None:
    njsscan = find("njsscan")
    tool = make_external(
        read_external(
            {
                "name": "njsscan",
                "languages": ["javascript"],
                "command": [njsscan, "--sarif", "-o", "{output}", "{folder}"],
                "version": [njsscan, "--version"],
                "examples": {"javascript": JS},
                "readonly": ["/etc/ssl/certs"],
                "env": {
                    "EIO_BACKEND": "posix",
                    "SEMGREP_ENABLE_VERSION_CHECK": "0",
                    "PATH": f"{Path(njsscan).parent}:/usr/bin:/bin",
                },
            },
            "njsscan",
        )
    )
    results = tool.run(
        [Program("javascript", "let a = 1;\n"), Program("javascript", JS)], Sandbox()
    )
    assert [rows(one) for one in results] == [
        [],
        [("generic_os_command_exec", "CWE-78", 5), ("eval_nodejs", "CWE-95", 7)],
    ]


def log(*places: tuple[str, int], **more: Any) -> str:
    results = [
        {
            "ruleId": "r",
            "message": {"text": "m"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": f"p/{name}"},
                        "region": {"startLine": line},
                    }
                }
            ],
        }
        for name, line in places
    ]
    run = {"tool": {"driver": {"name": "fake"}}, "results": results, **more}
    return json.dumps({"version": "2.1.0", "runs": [run]})


KNOWN = ("known.py", 1)


def fake(folder: Path, body: str, **more: Any) -> Tool:
    """A tool whose executable does ``body`` (shell); it says version 1.4 when asked."""
    (folder / "bin").mkdir()
    path = folder / "bin/fake"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo fake 1.4; exit; fi\n{body}\n')
    for each in (folder, folder / "bin", path):
        each.chmod(0o755)
    described = {
        "name": "fake",
        "languages": ["python"],
        "command": [str(path), "{folder}", "{output}"],
        "examples": {"python": "KNOWN BAD\n"},
        "cwe_map": {"r": ["CWE-89"]},
        "version": [str(path), "--version"],
        "install": "pip install fake",
        "timeout_s": 20,
        **more,
    }
    return make_external(read_external(described, "fake.yaml"))


def write(text: str) -> str:
    return f"cat > \"$2\" <<'END'\n{text}\nEND"


def two(tool: Tool) -> list[tuple[int, str]]:
    programs = [Program("python", "x = 1\n", ("CWE-89",)), Program("python", "y = 1\n")]
    return [(len(one.findings), one.failed) for one in tool.run(programs, Sandbox())]


def test_a_log_is_given_back_to_its_programs(tmp_path: Path) -> None:
    body = "grep -q KNOWN p/known.py || exit 7\necho chatter\n"
    tool = fake(tmp_path, body + write(log(KNOWN, ("t00001.py", 1), ("t00009.py", 1))))
    assert str(tool.version()).startswith("1.4 (")  # and a digest of its description
    assert two(tool) == [(0, ""), (1, "")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("kill -SEGV $$", "fake: exit status 139"),
        ("echo it broke >&2; exit 2", "fake: exit status 2: it broke"),
        ("exit 0", "fake: it wrote no log"),
        (': > "$2"', "fake: it wrote no log"),
        (write(log(KNOWN)[:-9]), "no whole JSON"),
        (write('{"a": 1}'), "no SARIF log"),
        (write(log()), "fake: it does not report its own example, so it looked at nothing"),
        (write(log(("t00000.py", 1), results=[])), "it does not report its own example"),
        (write(log(KNOWN, invocations=[{"executionSuccessful": False}])), "says that it failed"),
        (write(log(KNOWN)) + "\nexit 3", "fake: exit status 3"),
    ],
)
def test_a_broken_tool_is_never_silence(tmp_path: Path, body: str, said: str) -> None:
    for found, failed in two(fake(tmp_path, body)):
        assert found == 0
        assert said in failed


def test_it_hangs(tmp_path: Path) -> None:
    tool = fake(tmp_path, "exec sleep 600", timeout_s=0.5)
    assert two(tool) == [(0, "fake: it was stopped for its time")] * 2


def test_a_file_that_it_could_not_read(tmp_path: Path) -> None:
    place = {"physicalLocation": {"artifactLocation": {"uri": "file:///tmp/work/p/t00000.py"}}}
    note = {"level": "error", "message": {"text": "no parse"}, "locations": [place]}
    run = [{"executionSuccessful": True, "toolExecutionNotifications": [note]}]
    body = write(log(KNOWN, ("t00001.py", 4), invocations=run))
    assert two(fake(tmp_path, body)) == [(0, "fake: no parse"), (1, "")]


def test_one_program_that_breaks_it_takes_no_other_with_it(tmp_path: Path) -> None:
    body = "if grep -q BREAK p/t*; then exit 9; fi\n" + write(log(KNOWN))
    texts = ["a", "b", "BREAK", "c", "d"]
    results = fake(tmp_path, body).run([Program("python", text) for text in texts], Sandbox())
    assert [one.failed for one in results] == ["", "", "fake: exit status 9", "", ""]


def test_missing_old_and_mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = fake(tmp_path, write(log(KNOWN)), at_least="1.10")
    assert two(tool)[0][1] == (
        "fake: version 1.4 is too old, 1.10 is needed; mend: pip install fake"
    )
    path = tmp_path / "bin/fake"
    external._ask_version.cache_clear()
    path.write_text("#!/bin/sh\nexit 1\n")
    assert tool.version() is None
    assert "does not say its version; mend: pip install fake" in two(tool)[0][1]
    path.unlink()
    assert tool.version() is None
    assert "is not installed; mend: pip install fake" in two(tool)[1][1]


GOOD = {
    "name": "x",
    "languages": ["go"],
    "command": ["x", "{folder}"],
    "examples": {"go": "package m\n"},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"comand": []}, "comand: "),
        ({"command": "x {folder}"}, "command: "),
        ({"timeout_s": "soon"}, "timeout_s: "),
        ({"languages": ["ruby"]}, "language 'ruby'"),
        ({"languages": ["go", "c"]}, "give a c program"),
        ({"languages": []}, "must not be empty"),
        ({"command": ["x"]}, "{folder} must stand"),
        ({"cwe": ["89"]}, "'89' is no name like CWE-89"),
        ({"cwe_map": {"r": ["x"]}}, "'x' is no name"),
        ({"readonly": ["opt"]}, "'opt' must be an absolute path"),
        ({"at_least": "2"}, "needs a version command"),
        ({"at_least": "two", "version": ["x"]}, "must be like '2.18'"),
    ],
)
def test_descriptions_are_read_strictly(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_external(path).languages == ("go",)
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(ConfigError) as caught:
        load_external(path)
    assert said in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_descriptions_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [")
    for name in ("bad.yaml", "none.yaml"):
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            load_external(tmp_path / name)
    with pytest.raises(ConfigError, match="the file"):
        read_external(["x"], "x.yaml")


def test_another_description_is_another_tool() -> None:
    """Kept verdicts go by the version, and what a rule is taken for decides as well."""
    described: dict[str, Any] = {
        "name": "shell",
        "languages": ["python"],
        "command": ["sh", "{folder}"],
        "examples": {"python": "KNOWN BAD\n"},
        "cwe_map": {"r": ["CWE-89"]},
    }

    def version(**more: Any) -> str | None:
        return make_external(read_external(described | more, "shell.yaml")).version()

    assert version() == version()
    assert str(version()).startswith("installed (")
    assert version(cwe_map={"r": ["CWE-78"]}) != version()
