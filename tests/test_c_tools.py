"""cppcheck, gcc -fanalyzer and clang-tidy: what they find, and that their failures are no silence;
fragments that are completed; the labelled C programs."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from treeplay.judge import complete as complete_module
from treeplay.judge.complete import complete, complete_many
from treeplay.judge.tools import process
from treeplay.judge.tools.base import Program, Tool
from treeplay.judge.tools.clang_tidy import CLANG_TIDY
from treeplay.judge.tools.cppcheck import CPPCHECK
from treeplay.judge.tools.gcc import GCC
from treeplay.sandbox import Completed, Sandbox

PROGRAMS = Path(__file__).parents[1] / "benchmarks" / "c_programs"
TOOLS = [CPPCHECK, GCC, CLANG_TIDY]
USE_AFTER_FREE = """#include <stdlib.h>
int main(void)
{
    char *p = malloc(4);
    if (!p)
        return 1;
    free(p);
    return p[0];
}
"""
TOO_FAR = "int main(void)\n{\n    int a[4] = {0};\n    a[4] = 1;\n    return a[0];\n}\n"
FINE = "int main(void)\n{\n    return 0;\n}\n"
FRAGMENT = """static int last_of(Queue *q, Item *out)
{
    if (q->count > QUEUE_MAX || !ready(q))
        return -EINVAL;
    out->size = q->items[q->count - 1].size;
    Item *copy = malloc(sizeof(Item));
    copy->size = q->count;
    free(copy);
    return ready(copy);
}
"""


def needs(tool: Tool) -> None:
    if tool.version() is None:
        pytest.skip(f"{tool.name} is not installed: {tool.install}")


def needs_gcc() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


class Told(Sandbox):
    """A sandbox in which every process ends as it is told to."""

    status, out, err, cut = 0, b"", b"", 0

    def run(self, argv: Sequence[str], files: Any = None, **_: Any) -> Completed:
        assert isinstance(files, Mapping)
        said = b""
        for name in files:
            if name == "one.sh":
                continue
            # the compiler of complete_many is content, so that the tool itself is asked
            ours = "-fsyntax-only" not in str(files["one.sh"])
            status, out, err = (self.status, self.out, self.err) if ours else (0, b"", b"")
            said += b"@@each %s %d %d %d\n%s%s" % (
                name.encode(),
                status,
                len(out),
                len(err),
                out,
                err,
            )
        stopped = "time" if self.cut else ""
        return Completed(0, said[: len(said) - self.cut], b"", bool(self.cut), 0.0, stopped)


def told(status: int = 0, out: bytes = b"", err: bytes = b"", cut: int = 0) -> Sandbox:
    class Now(Told):
        pass

    Now.status, Now.out, Now.err, Now.cut = status, out, err, cut
    return Now()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tool says that it is here."""
    for name in ("cppcheck", "gcc", "clang_tidy"):
        monkeypatch.setattr(f"treeplay.judge.tools.{name}.{name}_version", lambda: "99.0")
    complete_module._known.clear()


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_real_mistake_is_found_and_a_fine_program_is_not(tool: Tool) -> None:
    needs(tool)
    bad, cwe, line = (TOO_FAR, "CWE-787", 4) if tool is CPPCHECK else (USE_AFTER_FREE, "CWE-416", 8)
    programs = [Program("c", bad), Program("c", FINE), Program("c", bad)]
    first, fine, third = tool.run(programs, Sandbox())
    assert [one.failed for one in (first, fine, third)] == ["", "", ""]
    assert (cwe, line) in {(one.cwe, one.line_start) for one in first.findings}
    assert first == third
    assert fine.findings == ()
    (other,) = tool.run([Program("c", bad, ("CWE-89",))], Sandbox())
    assert other.findings == ()
    assert other.failed == ""
    assert tool.covers("c", cwe)
    assert not tool.covers("c", "CWE-89")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
@pytest.mark.parametrize(
    ("sandbox", "reason"),
    [
        (told(status=139), "ended by signal 11"),
        (told(status=137), "was stopped after"),
        (told(status=127), "could not be started"),
        (told(out=b"x" * 50, cut=20), "did not get here (stopped for its time)"),
    ],
    ids=["crash", "hang", "gone", "batch cut off"],
)
def test_a_tool_that_breaks_is_failed(
    tool: Tool, sandbox: Sandbox, reason: str, installed: None
) -> None:
    (result,) = tool.run([Program("c", FINE)], sandbox)
    assert reason in result.failed
    assert result.findings == ()


@pytest.mark.parametrize(
    ("tool", "sandbox"),
    [
        (CPPCHECK, told(err=b'<?xml version="1.0"?>\n<results><errors><error id="memle')),
        (GCC, told(err=b'[{"kind": "warning", "message": "us')),
        (GCC, told()),
        (CLANG_TIDY, told(out=b"/tmp/work/p0.c:3:1: warning: Use of mem")),
    ],
)
def test_half_an_output_is_failed(tool: Tool, sandbox: Sandbox, installed: None) -> None:
    (result,) = tool.run([Program("c", FINE)], sandbox)
    assert result.failed
    assert result.findings == ()


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_missing_or_old_tool_is_failed(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = tool.name
    old = tmp_path / name
    old.write_text(f"#!/bin/sh\necho {name} 1.0.1\n")
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    for folder in (tmp_path, tmp_path / "empty"):
        process.first_version.cache_clear()
        monkeypatch.setenv("PATH", str(folder))
        (result,) = tool.run([Program("c", FINE)], Sandbox())
        assert "is not installed; mend: apt-get install" in result.failed
    process.first_version.cache_clear()


def test_a_fragment_is_completed_and_its_lines_are_kept() -> None:
    needs_gcc()
    whole = complete("c", FRAGMENT)
    assert whole.failed == ""
    assert {"Queue", "Item", "QUEUE_MAX"} <= set(whole.added)
    lines = whole.text.splitlines()
    assert lines[whole.line_shift :] == FRAGMENT.splitlines()
    needs(GCC)
    (result,) = GCC.run([Program("c", FRAGMENT, ("CWE-416",))], Sandbox())
    assert result.completed
    assert [one.line_start for one in result.findings][-1:] == [9]


def test_a_whole_program_is_left_as_it_is_and_nonsense_is_failed() -> None:
    needs_gcc()
    fine, nonsense = complete_many("c", [FINE, "int f( { ]] \n"], Sandbox())
    assert (fine.text, fine.line_shift, fine.added, fine.failed) == (FINE, 0, (), "")
    assert "does not compile" in nonsense.failed
    needs(CLANG_TIDY)
    for tool in (GCC, CLANG_TIDY):
        (result,) = tool.run([Program("c", "int f( { ]] \n")], Sandbox())
        assert "does not compile" in result.failed


def test_a_missing_header_keeps_its_line() -> None:
    needs_gcc()
    whole = complete("c", '#include "no_such_thing.h"\nint f(thing_t *t)\n{\n    return t->n;\n}\n')
    assert whole.failed == ""
    assert whole.text.splitlines()[whole.line_shift + 3].strip() == "return t->n;"


@pytest.mark.parametrize(
    ("language", "text", "shift", "start"),
    [
        ("python", "    def m(self):\n        return 1\n", 0, "def m"),
        ("javascript", "  run(a) {\n    return a;\n  }\n", 1, "class"),
        ("javascript", "function (a) {\n  return a;\n}\n", 1, "const"),
        ("go", "func f() { fmt.Println(os.Args) }\n", 7, "package main"),
    ],
)
def test_other_languages_are_wrapped(language: str, text: str, shift: int, start: str) -> None:
    whole = complete(language, text)
    assert whole.line_shift == shift
    assert whole.text.startswith(start)
    assert whole.added
    lines = [line.strip() for line in whole.text.splitlines()]
    assert lines[shift] == text.splitlines()[0].strip()


def _records() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "records.py")], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_labelled_programs_are_what_their_labels_say() -> None:
    needs_gcc()
    records = _records()
    assert len(records) >= 30
    assert len({one["id"] for one in records}) == len(records)
    assert all(one["secure"] != one["vulnerable"] for one in records)
    shown = [one for one in records if (one["meta"]["proof"] or {}).get("shows")]
    assert len(shown) >= 15


@pytest.mark.parametrize("name", ["word_reader", "copy_row", "two_names", "cart_total"])
def test_a_sanitizer_shows_the_mistake(name: str, tmp_path: Path) -> None:
    needs_gcc()
    (record,) = [one for one in _records() if one["id"] == f"c_programs/{name}"]
    proof = record["meta"]["proof"]
    for kind in ("vulnerable", "secure"):
        source, binary = tmp_path / f"{kind}.c", tmp_path / kind
        source.write_text(record[kind])
        command = ["gcc", "-w", "-g", "-fsanitize=address,undefined", str(source), "-o"]
        subprocess.run([*command, str(binary)], check=True)
        done = subprocess.run(
            [str(binary), *proof.get("argv", [])],
            input=proof.get("stdin", "").encode(),
            capture_output=True,
            check=False,
            timeout=30,
        )
        said = done.stderr.decode("utf-8", "replace")
        assert (proof["shows"] in said) == (kind == "vulnerable"), said
