"""A suite may name its own form and how much is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from writer import tasks

from treeplay.errors import TaskError
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.select import TaskConfig, eval_suites
from treeplay.tasks.task import Task


def held(folder: Path, name: str = "held.jsonl") -> Path:
    every: list[Task] = [replace(task, split="eval") for task in tasks()]
    write_tasks(folder / name, every)
    return folder / name


def test_a_suite_names_its_form_and_what_is_sampled(tmp_path: Path) -> None:
    path = held(tmp_path)
    config = TaskConfig(eval=(f"{path}@token", f"{path}@full,max_tokens=96,samples=2", str(path)))
    token, full, plain = eval_suites(config)
    assert (token.name, token.samples, token.max_tokens) == ("held@token", 0, 0)
    assert (full.name, full.samples, full.max_tokens) == ("held@full", 2, 96)
    assert (plain.name, plain.tasks) == ("held", full.tasks)
    assert all(task.meta["form"] == "token" for task in token.tasks)
    assert token.tasks != full.tasks


def test_a_file_whose_name_holds_a_form_is_that_file(tmp_path: Path) -> None:
    path = held(tmp_path, "held.jsonl@token")
    path.rename(tmp_path / "tasks@token.jsonl")
    (suite,) = eval_suites(TaskConfig(eval=(str(tmp_path / "tasks@token.jsonl"),)))
    assert suite.name == "tasks@token"
    assert suite.tasks[0].meta == {}


@pytest.mark.parametrize("tail", ["samples=0", "samples", "seed=3", "max_tokens=many"])
def test_what_is_no_setting_of_a_suite_is_named(tmp_path: Path, tail: str) -> None:
    with pytest.raises(TaskError, match=tail):
        eval_suites(TaskConfig(eval=(f"{held(tmp_path)}@full,{tail}",)))
