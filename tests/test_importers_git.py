"""Fixes in a real repository's history, made here with git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from treeplay.errors import TaskError
from treeplay.tasks.importers import import_tasks
from treeplay.tasks.importers.git_history import MANY_FUNCTIONS, NO_FUNCTION
from treeplay.tasks.importers.pairs import NO_CWE
from treeplay.tasks.jsonl import read_tasks, write_tasks

APP = '''import subprocess


class Shell:
    """Runs things."""

    @staticmethod
    def greet(name):
        {body}
        return name

    def other(self):
        return {other}
'''
UNSAFE = "subprocess.run('echo ' + name, shell=True)"
SAFE = "subprocess.run(['echo', name])"
C = """#include <string.h>

static char *copy(char *to, const char *from)
{
    %s
    return to;
}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit(folder: Path, message: str, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


def app(body: str, other: int = 1) -> str:
    return APP.format(body=body, other=other)


def test_a_fix_is_a_pair_of_the_function_that_it_changed(repository: Path, tmp_path: Path) -> None:
    commit(repository, "A shop", src__app_dot_py=app(UNSAFE))
    commit(repository, "Count to two", src__app_dot_py=app(UNSAFE, 2))
    fixed = {"src__app_dot_py": app(SAFE, 2), "tests__test_app_dot_py": "def test(): pass\n"}
    commit(repository, "Fix command injection\n\nWhich names may cause.", **fixed)
    result = import_tasks("git", repository)
    (task,) = result.tasks
    assert task.golden is not None
    assert task.vulnerable is not None
    body = "@staticmethod\ndef greet(name):\n    {}\n    return name\n"
    assert task.program(task.golden) == body.format(SAFE)
    assert task.program(task.vulnerable) == body.format(UNSAFE)
    assert task.prompt == "@staticmethod\ndef greet(name):"
    assert (task.language, task.cwe, task.split) == ("python", ("CWE-78",), "train")
    assert task.meta["subject"] == "Fix command injection"
    assert task.meta["func_name"] == "greet"
    assert task.meta["file_name"] == "src/app.py"
    assert result.report.read == 1
    write_tasks(tmp_path / "tasks.jsonl", result.tasks)
    assert read_tasks(tmp_path / "tasks.jsonl") == result.tasks


def test_a_weakness_that_no_message_names_is_taken_from_the_rules(repository: Path) -> None:
    commit(repository, "A shop", app_dot_py=app(UNSAFE))
    commit(repository, "Security fix", app_dot_py=app(SAFE))
    commit(repository, "Another security fix", app_dot_py=app(SAFE, 2))
    other, greet = import_tasks("git", repository).tasks  # the latest first
    assert greet.cwe == ("CWE-78",)
    assert greet.meta["faults"] == []
    assert other.cwe == ()
    assert other.meta["faults"] == [NO_CWE]


def test_what_a_message_names_is_taken_before_what_it_speaks_of(repository: Path) -> None:
    commit(repository, "A shop", app_dot_py=app(UNSAFE))
    commit(repository, "Fix XSS, a path-traversal and a stack overflow", app_dot_py=app(SAFE))
    commit(repository, "No XSS by CWE-80", app_dot_py=app(SAFE, 2))
    named, spoken = import_tasks("git", repository).tasks
    assert named.cwe == ("CWE-80",)
    assert spoken.cwe == ("CWE-79", "CWE-22")


def test_functions_of_c_have_names_and_their_lines(repository: Path) -> None:
    commit(repository, "Copies", copy_dot_c=C % "strcpy(to, from);")
    commit(repository, "Fix a buffer overflow", copy_dot_c=C % "strncpy(to, from, 8);")
    (task,) = import_tasks("git", repository).tasks
    assert task.meta["func_name"] == "copy"
    assert task.cwe == ("CWE-787",)
    assert task.prompt.startswith("static char *copy(char *to")
    assert task.golden is not None
    assert task.program(task.golden) == (C % "strncpy(to, from, 8);").split("\n\n", 1)[1]


def test_what_is_no_fix_of_few_functions_is_counted(repository: Path) -> None:
    many = "".join(f"def f{n}():\n    return {{0}}\n\n\n" for n in range(4))
    rest = "def f0():\n    return 2\n\n\ndef new():\n    return 1\n"
    commit(repository, "Much", many_dot_py=many.format(1), read_dot_md="a", web__a_dot_css="a{}")
    commit(repository, "Fix CVE-2020-1 everywhere", many_dot_py=many.format(2))
    commit(repository, "Tell of CVE-2020-1", read_dot_md="b")
    commit(repository, "New and gone\n\nA vulnerability", many_dot_py=rest)
    commit(repository, "Let the text overflow", many_dot_py=many.format(3))
    result = import_tasks("git", repository)
    assert result.tasks == []
    assert result.report.dropped == {NO_FUNCTION: 2, MANY_FUNCTIONS: 1}
    assert {line.detail for line in result.report.lines} == {
        "Fix CVE-2020-1 everywhere",
        "Tell of CVE-2020-1",
        "New and gone",
    }


def test_a_folder_without_history_is_told(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(TaskError, match="git cannot read a history here"):
        import_tasks("git", tmp_path / "shop")  # without a commit
    with pytest.raises(TaskError, match="gone: no such file or folder"):
        import_tasks("git", tmp_path / "gone")
