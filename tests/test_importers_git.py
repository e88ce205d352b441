"""Fixes in a real repository's history, made here with git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from treeplay.errors import TaskError
from treeplay.tasks.importers import git_objects, import_tasks
from treeplay.tasks.importers.git_history import (
    MANY_FUNCTIONS,
    NO_FUNCTION,
    NO_PARENT,
    REVERTED,
    REVERTS,
    UNREADABLE,
)
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
    bare = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *who, *arguments]
    subprocess.run(command, check=True, capture_output=True, env=bare)


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


SCRIPT = "#!/bin/sh\necho ran >> {marker}\n"


@pytest.fixture
def trapped(repository: Path, tmp_path: Path) -> Path:
    """The marker of a script that the repository's settings name wherever they can."""
    marker, script = tmp_path / "marker", tmp_path / "script.sh"
    script.write_text(SCRIPT.format(marker=marker))
    script.chmod(0o755)
    settings = {
        "core.fsmonitor": script,
        "core.sshCommand": script,
        "core.pager": script,
        "gpg.program": script,
        "log.showSignature": "true",
        "diff.external": script,
        "core.repositoryFormatVersion": 1,
        "extensions.partialClone": "origin",
        "remote.origin.url": tmp_path / "elsewhere",
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": script,
        "i18n.logOutputEncoding": "UTF-16BE",
    }
    commit(repository, "A shop", app_dot_py=app(UNSAFE), big_dot_py=app(UNSAFE))
    commit(repository, "Fix command injection", app_dot_py=app(SAFE))
    commit(repository, "Fix it there too: CWE-78", big_dot_py=app(SAFE, 3))
    for key, value in settings.items():
        git(repository, "config", key, str(value))
    return marker


def test_programs_that_a_repository_names_are_not_run(repository: Path, trapped: Path) -> None:
    assert import_tasks("git", repository).report.kept == 2  # the third is a copy
    assert not trapped.exists()
    git(repository, "status")  # which does run one
    assert trapped.exists()


def test_nothing_is_fetched(repository: Path, trapped: Path) -> None:
    bare = {"PATH": os.environ["PATH"]}
    name = ["git", "-C", str(repository), "rev-parse", "HEAD:big.py"]
    found = subprocess.run(name, check=True, capture_output=True, text=True, env=bare).stdout
    (repository / ".git" / "objects" / found[:2] / found[2:].strip()).unlink()
    trapped.unlink(missing_ok=True)
    result = import_tasks("git", repository)
    assert [task.meta["subject"] for task in result.tasks] == ["Fix command injection"]
    assert result.report.dropped == {UNREADABLE: 1}
    assert not trapped.exists()


def test_what_was_taken_back_is_no_fix(repository: Path) -> None:
    commit(repository, "A shop", app_dot_py=app(UNSAFE))
    commit(repository, "Fix command injection", app_dot_py=app(SAFE))
    git(repository, "revert", "--no-edit", "HEAD")
    commit(repository, "Fix command injection again", app_dot_py=app(SAFE))
    result = import_tasks("git", repository)
    assert [task.meta["subject"] for task in result.tasks] == ["Fix command injection again"]
    assert result.report.dropped == {REVERTS: 1, REVERTED: 1}


def test_functions_of_one_name_are_told_apart(repository: Path) -> None:
    go = "package a\n\nfunc (x *{}) Close() int {{\n\treturn {}\n}}\n"
    java = "class A {{\n  int f(int a) {{ return {}; }}\n  int f(long a) {{ return {}; }}\n}}\n"
    both = go.format("A", 1) + go.format("B", 2).split("\n", 1)[1]
    commit(repository, "Close", a_dot_go=both, A_dot_java=java.format(1, 2))
    after = go.format("Z", 9) + both.split("\n", 1)[1].replace("return 1", "return 3")
    commit(repository, "Fix CVE-2020-1", a_dot_go=after, A_dot_java=java.format(4, 2))
    overload, close = sorted(import_tasks("git", repository).tasks, key=lambda t: t.language)[::-1]
    assert close.prompt.startswith("func (x *A) Close")
    assert close.golden is not None
    assert "return 3" in close.golden
    assert overload.prompt.lstrip().startswith("int f(int a)")


def test_functions_of_javascript_are_those_that_are_put_somewhere(repository: Path) -> None:
    forms = {
        "f": "const f = (a) => {{\n  return {};\n}};",
        "exports.g": "exports.g = function (a) {{\n  return {};\n}};",
        "app.get('/x'": "app.get('/x', (req, res) => {{\n  res.send({});\n}});",
    }
    module = "(function () {{\n{}\n}})();\n"
    for number, form in enumerate(forms.values()):
        text = module.format(form.format(1))
        commit(repository, "A page", **{f"p{number}_dot_js": text})
    for number, form in enumerate(forms.values()):
        text = module.format(form.format(2))
        commit(repository, "Fix XSS", **{f"p{number}_dot_js": text})
    tasks = import_tasks("git", repository).tasks[::-1]
    assert [task.meta["func_name"] for task in tasks] == list(forms)
    for task, form in zip(tasks, forms.values(), strict=True):
        assert task.golden is not None
        assert task.program(task.golden).strip() == form.format(2)


def test_what_cannot_be_read_is_counted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, "Fix XSS from the first", app_dot_py=app(UNSAFE), a_dot_py="x = 1\n")
    commit(repository, "Fix XSS in long files", app_dot_py=app(SAFE))
    (repository / "a.py").write_bytes(b"x = '\xff'\n")
    commit(repository, "Fix XSS in bytes")
    monkeypatch.setattr(git_objects, "MOST_BYTES", 40)
    assert import_tasks("git", repository).report.dropped == {UNREADABLE: 2, NO_PARENT: 1}
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallow")
    assert import_tasks("git", tmp_path / "shallow").report.dropped == {NO_PARENT: 1}


def test_a_folder_without_history_is_told(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(TaskError, match="git cannot read a history here"):
        import_tasks("git", tmp_path / "shop")  # without a commit
    with pytest.raises(TaskError, match="gone: no such file or folder"):
        import_tasks("git", tmp_path / "gone")
