"""Preference pairs: both of TRL's forms, with and without a prompt, and what is not taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from treeplay.errors import TaskError
from treeplay.tasks.importers import ImportResult, import_tasks
from treeplay.tasks.importers.pairs import NO_CWE
from treeplay.tasks.importers.preference import (
    ONE_FENCED,
    OPEN_FENCE,
    OTHER_QUESTION,
    SEVERAL_BLOCKS,
    SEVERAL_TURNS,
    TWO_LANGUAGES,
)
from treeplay.tasks.jsonl import read_tasks, write_tasks

GOOD = "def greet(name):\n    subprocess.run(['echo', name])\n    return name\n"
BAD = "def greet(name):\n    os.system('echo ' + name)\n    return name\n"
PROMPT, ANSWER, OTHER = "def greet(name):\n", GOOD.split("\n", 1)[1], BAD.split("\n", 1)[1]
PROSE = "Write a function that greets."


def fenced(code: str, tag: str = "python") -> str:
    return f"Here it is:\n\n```{tag}\n{code}```\n\nIt greets."


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def load(folder: Path, *rows: dict[str, Any]) -> ImportResult:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return import_tasks("preference", path)


@pytest.mark.parametrize(
    ("row", "instruction"),
    [
        # Code that goes on behind a prompt of code.
        ({"prompt": PROMPT, "chosen": ANSWER, "rejected": OTHER, "language": "python"}, ""),
        # Whole functions without a prompt.
        ({"chosen": GOOD, "rejected": BAD, "lang": "py"}, ""),
        # Whole functions behind prose.
        ({"prompt": PROSE, "chosen": GOOD, "rejected": BAD, "language": "Python"}, PROSE),
        # Code in a message goes on from code as well.
        (
            {
                "prompt": [said(PROMPT, "user")],
                "chosen": [said(ANSWER)],
                "rejected": [said(OTHER)],
                "language": "python",
            },
            "",
        ),
        # Code blocks name their language.
        ({"prompt": PROSE, "chosen": fenced(GOOD), "rejected": fenced(BAD)}, PROSE),
        # Messages, the prompt of its own, at the head of both, or in both places.
        (
            {
                "prompt": [said("Be brief.", "system"), said(PROSE, "user")],
                "chosen": [said(fenced(GOOD))],
                "rejected": [said(fenced(BAD))],
            },
            PROSE,
        ),
        (
            {
                "chosen": [said(PROSE, "user"), said(fenced(GOOD))],
                "rejected": [said(PROSE, "user"), said(fenced(BAD))],
            },
            PROSE,
        ),
        (
            {
                "prompt": PROSE,
                "chosen": [said(PROSE, "user"), said(GOOD)],
                "rejected": [said(PROSE, "user"), said(BAD)],
                "language": "python",
            },
            PROSE,
        ),
    ],
)
def test_every_form_is_one_task(tmp_path: Path, row: dict[str, Any], instruction: str) -> None:
    (task,) = load(tmp_path, {**row, "cwe": "cwe-078"}).tasks
    head = f"# {instruction}\n" if instruction else ""
    assert task.golden is not None
    assert task.vulnerable is not None
    assert task.program(task.golden) == head + GOOD
    assert task.program(task.vulnerable) == head + BAD
    assert task.prompt == head + PROMPT.rstrip()
    assert (task.language, task.cwe, task.instruction) == ("python", ("CWE-78",), instruction)
    assert task.meta["faults"] == []


def test_an_imported_pair_is_a_task_like_others(tmp_path: Path) -> None:
    row = {"id": "a-1", "prompt": PROSE, "chosen": fenced(GOOD), "rejected": fenced(BAD)}
    result = load(tmp_path, {**row, "license": "MIT"})
    write_tasks(tmp_path / "tasks.jsonl", result.tasks)
    assert read_tasks(tmp_path / "tasks.jsonl") == result.tasks
    (task,) = result.tasks
    assert (task.id, task.license, task.split) == ("preference/a-1", "MIT", "train")
    assert task.meta["faults"] == [NO_CWE]


@pytest.mark.parametrize(
    ("prompt", "answer", "head"),
    [
        ("# Write greet", GOOD, "# Write greet\n"),  # no line break between the two
        ("import subprocess\n", GOOD, "import subprocess\n"),
        ("def greet(name): return ", "str(name)\n", "def greet(name): return "),
    ],
)
def test_an_answer_goes_on_from_code(tmp_path: Path, prompt: str, answer: str, head: str) -> None:
    other = answer.replace("name", "nobody")
    row = {"prompt": prompt, "chosen": answer, "rejected": other, "language": "python"}
    (task,) = load(tmp_path, row).tasks
    assert task.golden is not None
    assert task.instruction == ""
    assert task.program(task.golden) == head + answer


def test_a_sentence_is_no_code(tmp_path: Path) -> None:
    """Ruby would read it as a call."""
    code = "def f(a)\n  system('echo', a)\nend\n"
    other = code.replace("'echo', a", '"echo #{a}"')
    row = {
        "prompt": "write a method that says hello",
        "chosen": code,
        "rejected": other,
        "lang": "rb",
        "cwe": 78.0,
    }
    (task,) = load(tmp_path, row).tasks
    assert task.instruction == "write a method that says hello"
    assert task.cwe == ("CWE-78",)


def test_ids_are_told_apart(tmp_path: Path) -> None:
    one = {"chosen": GOOD, "rejected": BAD, "language": "python"}
    two = {**one, "chosen": GOOD + "\n\nx = 1\n"}
    for name, row in (("a.train.jsonl", one), ("a.test.jsonl", two)):
        (tmp_path / name).write_text(json.dumps({**row, "id": None}) + "\n", encoding="utf-8")
    ids = {task.id for task in import_tasks("preference", tmp_path).tasks}
    assert ids == {"preference/a.train/0", "preference/a.test/0"}
    again = load(tmp_path, {**one, "id": 7}, {**two, "id": 7}).tasks
    assert [task.id for task in again] == ["preference/7", "preference/7-2"]


def test_several_blocks_are_flagged(tmp_path: Path) -> None:
    install = "```sh\npip install greet\n```\n"
    row = {"prompt": PROSE, "chosen": install + fenced(GOOD), "rejected": fenced(BAD), "cwe": 78}
    (task,) = load(tmp_path, row).tasks
    assert task.golden is not None
    assert task.program(task.golden).endswith(GOOD)
    assert task.meta["faults"] == [SEVERAL_BLOCKS]


def test_what_is_no_pair_of_programs_is_counted(tmp_path: Path) -> None:
    turns = [said(PROSE, "user"), said("Which language?"), said("Python.", "user")]
    result = load(
        tmp_path,
        {"prompt": PROSE, "chosen": fenced(GOOD), "rejected": "I cannot help with that."},
        {"prompt": turns, "chosen": [said(fenced(GOOD))], "rejected": [said(fenced(BAD))]},
        {"chosen": GOOD, "rejected": BAD},
        {"chosen": GOOD, "rejected": BAD, "language": "cobol"},
        {"chosen": GOOD, "rejected": GOOD, "language": "python"},
        {
            "prompt": [said(PROSE, "user"), said("Which language?"), said(PROSE, "user")],
            "chosen": [said(fenced(GOOD))],
            "rejected": [said(fenced(BAD))],
        },
        {
            "chosen": [said(PROSE, "user"), said(fenced(GOOD))],
            "rejected": [said("Greet.", "user"), said(fenced(BAD))],
        },
        {"prompt": PROSE, "chosen": fenced(GOOD), "rejected": fenced(BAD, "js")},
        {"chosen": f"```python\n{GOOD}", "rejected": f"```python\n{BAD}", "language": "python"},
    )
    assert result.tasks == []
    assert result.report.dropped == {
        "language not supported": 2,
        ONE_FENCED: 1,
        SEVERAL_TURNS: 2,
        OTHER_QUESTION: 1,
        TWO_LANGUAGES: 1,
        OPEN_FENCE: 1,
        "identical pair": 1,
    }
    told = {line.detail for line in result.report.lines}
    assert {"cobol", "none is named; add a field 'language'"} <= told


@pytest.mark.parametrize(
    ("row", "said_of_it"),
    [
        ({"chosen": GOOD}, "'rejected' is missing"),
        ({"chosen": GOOD, "rejected": 1}, "'rejected' must be a string"),
        ({"chosen": [GOOD], "rejected": BAD}, "is a list, but not of messages"),
        ({"chosen": [], "rejected": BAD}, "does not end in a message of the assistant's"),
        ({"chosen": [said(GOOD, "user")], "rejected": BAD}, "does not end in a message of the"),
        ({"chosen": [{"role": "assistant"}], "rejected": BAD}, "'content' is missing"),
    ],
)
def test_a_record_of_another_form_is_named(
    tmp_path: Path, row: dict[str, Any], said_of_it: str
) -> None:
    with pytest.raises(TaskError, match=rf"pairs\.jsonl:1: .*{said_of_it}"):
        load(tmp_path, row)
