"""The starter pack's files, their loader, and the proof that tasks mean what they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.errors import SandboxError, TaskError
from treeplay.judge.execute import EXECUTED, toolchain
from treeplay.sandbox import Sandbox, check_sandbox
from treeplay.tasks import validate as validate_module
from treeplay.tasks.pack import load_pack, load_task_toml
from treeplay.tasks.task import Task
from treeplay.tasks.validate import check_task, do_nothing, line, summary, validate

GOOD = """
id = "py-095-total"
language = "python"
cwe = ["CWE-95"]
split = "train"
instruction = "Sum the numbers in a text."
statements = 1
exercise = 'eval'
prompt = '''
import ast


def total(text: str) -> int:
'''
golden = '''
    numbers = ast.literal_eval(text)
'''
vulnerable = '''
    numbers = eval(text)
'''
suffix = '''
    return sum(numbers)
'''
functional = '''
from solution import total
assert total("[1, 2]") == 3
'''
security = '''
import builtins, solution
assert solution.total("[4]") == 4
builtins.hit = []
try:
    solution.total("[hit.append(1) or 1]")
except Exception:
    pass
if builtins.hit:
    exploited("ran the text")
'''
"""


def write(folder: Path, text: str = GOOD, name: str = "py-095-total") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def needs_sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


def test_load(tmp_path: Path) -> None:
    task = load_task_toml(write(tmp_path))
    assert task.id == "py-095-total"
    assert task.statements == 1
    assert task.golden == "\n    numbers = ast.literal_eval(text)\n"
    assert task.prompt.endswith("-> int:")
    assert task.tests
    assert task.tests.functional.startswith("from solution")
    assert load_pack(tmp_path) == [task]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("golden =", "goldne =", "'goldne'"),
        ("statements = 1", 'statements = "1"', "'statements' must be a whole number"),
        ("statements = 1", "statements = true", "'statements' must be a whole number"),
        ("statements = 1", "statements = 0", "statements is 0"),
        ('cwe = ["CWE-95"]', 'cwe = "CWE-95"', "'cwe' must be a list"),
        ('cwe = ["CWE-95"]', 'cwe = ["95"]', "'95' is no CWE name"),
        ('cwe = ["CWE-95"]', "", "'cwe' is missing"),
        ('split = "train"', 'split = "trian"', "'trian'"),
        ('id = "py-095-total"', 'id = "py-095-sum"', "must be the file's name"),
        ('language = "python"', "language = python", "no valid TOML"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TaskError) as error:
        load_task_toml(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_folders_without_tasks_and_with_doubles(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no task files"):
        load_pack(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    with pytest.raises(TaskError, match="two tasks are called"):
        load_pack(tmp_path)
    with pytest.raises(TaskError, match="cannot be read"):
        load_task_toml(tmp_path / "none.toml")


def test_a_good_task_holds(tmp_path: Path) -> None:
    needs_sandbox()
    task = load_task_toml(write(tmp_path))
    task = replace(task, exercise=r"eval\(")
    check = check_task(task, Sandbox())
    assert check.problems == ()
    assert check.ok
    assert line(check).startswith("ok ")


def test_an_expression_that_is_none_is_told_when_a_task_is_read(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"exercise '\(' is no regular expression"):
        load_task_toml(write(tmp_path, GOOD.replace("exercise = 'eval'", "exercise = '('")))


def test_pairs_without_tests_are_not_run_and_not_wrong(tmp_path: Path) -> None:
    needs_sandbox()
    task = load_task_toml(write(tmp_path, GOOD))
    check = check_task(replace(task, tests=None), Sandbox())
    assert (check.problems, check.not_run) == ((), "it has no tests")
    check = check_task(replace(task, tests=None, vulnerable=None), Sandbox())
    assert check.not_run == "it has no tests and no vulnerable"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ast.literal_eval(text)\n", "[0]\n", "golden: functional is fail"),
        ("ast.literal_eval(text)", "list(eval(text))", "golden: security is exploited"),
        ("= eval(text)", "= ast.literal_eval(str(text))", "vulnerable: security is pass"),
        ("= eval(text)", "= [eval('0')]", "vulnerable: functional is fail"),
        ("assert total(", "total(", "do-nothing `pass`: functional is pass"),
        ("exercise = 'eval'", "exercise = 'exec'", "exercise: 'exec' does not match the golden"),
        ("numbers = eval(text)", "text = text\n    numbers = eval(text)", "vulnerable: is cut to"),
    ],
)
def test_bad_tasks_are_found(tmp_path: Path, old: str, new: str, words: str) -> None:
    needs_sandbox()
    text = GOOD.replace(old, new, 1)
    if "do-nothing" in words:
        text = text.replace("    return sum(numbers)\n", "    return 3\n")
    check = check_task(load_task_toml(write(tmp_path, text)), Sandbox())
    assert any(words in problem for problem in check.problems), check.problems
    assert not check.ok
    assert line(check).startswith("FAILED")


def test_across_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task_toml(write(tmp_path))
    monkeypatch.setattr(validate_module, "missing_for", lambda _task: "no tool here")
    copy = replace(task, id="copy", split="eval-seen")
    result = validate([task, copy, task], Sandbox())
    assert not any(check.ok for check in result.checks)
    assert "id: used by 2 tasks" in result.checks[0].problems
    assert "100% of its 13-grams" in result.checks[1].problems[0]
    assert "not run" in line(validate([task], Sandbox()).checks[0])
    assert not validate([task], Sandbox()).failed()
    assert validate([task], Sandbox()).failed(strict=True)
    assert "1 not run" in summary(validate([task], Sandbox()))


def test_command_line(tmp_path: Path) -> None:
    needs_sandbox()
    path = write(tmp_path)
    good = CliRunner().invoke(app, ["tasks", "validate", str(path)])
    assert good.exit_code == 0
    assert "1 of 1 tasks hold" in good.output
    write(tmp_path, GOOD.replace("= eval(text)", "= [eval('0')]"))
    wrong = CliRunner().invoke(app, ["tasks", "validate", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "vulnerable: functional is fail" in wrong.output
    write(tmp_path, GOOD.replace("cwe", "cew"))
    broken = CliRunner().invoke(app, ["tasks", "validate", str(tmp_path)])
    assert broken.exit_code == 2
    assert "'cew'" in broken.output


def test_do_nothing_answers_fit_the_hole(tmp_path: Path) -> None:
    task = load_task_toml(write(tmp_path))
    assert do_nothing(task) == ["\n    pass\n", "\n    return None\n"]
    braces = replace(task, language="c", statements=None, golden="\n\tx();\n}\n")
    assert do_nothing(braces) == ["\n\t;\n}\n", "\n\treturn 0;\n}\n"]


PACK = load_pack()


def test_pack_shape() -> None:
    """What the project promises of its starter pack."""
    languages = Counter(task.language for task in PACK)
    splits = Counter(task.split for task in PACK)
    assert len(PACK) >= 120
    assert languages["python"] >= 72
    assert languages["c"] >= 24
    assert set(languages) <= set(EXECUTED)
    assert set(splits) == {"train", "eval-seen", "eval-unseen"}
    assert splits["train"] > splits["eval-seen"] > splits["eval-unseen"] >= 15
    cwes = {split: {c for t in PACK if t.split == split for c in t.cwe} for split in splits}
    seen = [task for task in PACK if task.split == "eval-seen"]
    assert [task.id for task in seen if not set(task.cwe) & cwes["train"]] == []
    assert len(cwes["eval-unseen"]) >= 5
    assert not cwes["eval-unseen"] & cwes["train"]
    every = set().union(*cwes.values())
    assert len(every) >= 18
    wanted = [{f"CWE-{n}"} for n in (22, 78, 79, 89, 94, 113, 117, 190, 125, 295, 377, 476, 502)]
    wanted += [{f"CWE-{n}"} for n in (601, 611, 732, 918, 1333)]
    wanted += [{"CWE-119", "CWE-787"}, {"CWE-327", "CWE-328"}, {"CWE-330", "CWE-338"}]
    for group in wanted:
        assert every & group, group


def test_pack_sample_holds() -> None:
    """A few tasks of each language by running them; `treeplay tasks validate` runs all."""
    needs_sandbox()
    chosen: list[Task] = []
    for language in EXECUTED:
        if toolchain(language) is None:
            same = [task for task in PACK if task.language == language]
            chosen += [same[0], same[len(same) // 2]]
    result = validate(chosen, Sandbox(), contamination=False)
    assert [line(check) for check in result.checks if check.problems] == []


def test_pack_static() -> None:
    """No eval task shares a tenth of its 13-grams with train; every answer survives the cut."""
    across = validate_module._across(PACK)
    assert across == {}
    for task in PACK:
        assert list(validate_module._static(task)) == [], task.id
