"""What a game says of its tasks before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_play import game, recipe, settings
from writer import tasks

from treeplay.play_tasks import cut_short
from treeplay.policy.model import ModelConfig, encode_path, load_policy
from treeplay.progress import Reporter
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.task import Tests, make_task

pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


def test_a_budget_that_golden_answers_exceed_is_told(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    suite = tmp_path / "s.jsonl"
    two = [
        make_task(id=one, language="python", cwe=("CWE-89",), prompt="def f(x):\n    ", golden=code)
        for one, code in (("short", "return x\n"), ("long", "x += 1\n    return x\n"))
    ]
    policy = load_policy(ModelConfig(str(writer)))
    paths = [encode_path(policy, task, task.golden or "") for task in two]
    size, longest = (len(path.ids) - path.n_prompt for path in paths)
    write_tasks(suite, two)
    path = recipe(tmp_path, settings(writer))
    first = game(path, tmp_path / "a", f"tasks.eval=[{suite}]", f"eval.max_tokens={size}")
    (warning,) = first.run.manifest["warnings"]
    assert warning == (
        f"s: 1 of 2 golden answers are longer than eval.max_tokens ({size}; the longest has "
        f"{longest} tokens), and such answers are cut off there; raise it"
    )
    assert f"warning: {warning}" in said
    own = game(path, tmp_path / "b", f'tasks.eval=["{suite}@full,max_tokens={size - 1}"]')
    (warning,) = own.run.manifest["warnings"]
    assert warning.startswith("s@full: 2 of 2 golden answers are longer than its max_tokens (")
    long = game(path, tmp_path / "c", f'tasks.eval=["{suite}@full,max_tokens={longest}"]')
    assert "warnings" not in long.run.manifest


def test_given_answers_that_are_not_what_follows_the_prompt_are_told() -> None:
    good = tasks()
    assert cut_short(good) == []
    twice = replace(good[0], golden=f"\n{good[0].prompt}{good[0].golden}")
    (told,) = cut_short([twice, good[1]])
    assert told.startswith("1 of 2 training tasks have a given answer that is not one answer")
    assert f"({twice.id}, say)" in told
    more = replace(good[1], vulnerable=f"{good[1].vulnerable}\n\nx = 1\n")
    assert cut_short([more, replace(good[0], golden=None)])[0].startswith("1 of 2")


def test_tests_that_cannot_be_run_here_are_told(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"jwt", "lxml"}
    for module in ("treeplay.judge.pytest_needs", "treeplay.judge.execute"):
        monkeypatch.setattr(f"{module}.has_module", lambda name: name not in known)
    published = Tests("import lxml\n", "import lxml\n", "pytest", "xml_test.py")
    wanted = {
        "plain": Tests("def test(): ...\n", "def test(): ...\n"),
        "jwt": Tests("x = 1\n", "x = 1\n", requires=("jwt",)),
        "lxml": published,
        "lxml-too": published,
    }
    suite = tmp_path / "s.jsonl"
    some = [
        make_task(
            id=name,
            language="python",
            cwe=("CWE-89",),
            prompt="def f(x):\n    ",
            golden="return x\n",
            tests=tests,
        )
        for name, tests in wanted.items()
    ]
    write_tasks(suite, some)
    path = recipe(tmp_path, settings(writer))
    played = game(path, tmp_path / "a", f"tasks.eval=[{suite}]", "eval.max_tokens=200")
    assert played.run.manifest["warnings"] == [
        "s: the tests of 3 of 4 tasks cannot be run here, and answers to them stay unknown "
        "(not installed: lxml for Python; mend: scripts/cweval-packages.sh; and 1 more)"
    ]
    known.clear()
    again = game(path, tmp_path / "b", f"tasks.eval=[{suite}]", "eval.max_tokens=200")
    assert "warnings" not in again.run.manifest


def test_what_is_known_from_training_is_kept_with_the_run(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    code = "return " + " + ".join(f"x[{i}]" for i in range(9)) + "\n"
    for name, answer in (("train", code), ("same", code), ("other", "return sorted(x)[0]\n")):
        task = make_task(
            id=name, language="python", cwe=("CWE-89",), prompt="def f(x):\n    ", golden=answer
        )
        write_tasks(tmp_path / f"{name}.jsonl", [task])
    path = recipe(tmp_path, settings(writer))
    changes = [f"tasks.train={tmp_path}/train.jsonl", "eval.max_tokens=200"]
    known = game(path, tmp_path / "a", *changes, f"tasks.eval=[{tmp_path}/same.jsonl]")
    assert known.run.manifest["warnings"] == [
        "same: same shares 100% of its 13-grams with the training task train"
    ]
    assert f"warning: {known.run.manifest['warnings'][0]}" in said
    new = game(path, tmp_path / "b", *changes, f"tasks.eval=[{tmp_path}/other.jsonl]")
    assert "warnings" not in new.run.manifest
