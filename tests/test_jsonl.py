"""Strict task files: what is written comes back, what is wrong is named."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.errors import TaskError
from treeplay.tasks.jsonl import KEYS, read_tasks, task_to_json, write_tasks
from treeplay.tasks.task import LANGUAGES, SPLITS, RiskNote, Task, make_task
from treeplay.tasks.task import Tests as Groups  # pytest would collect the name

text = st.text(max_size=40)
cwe = st.integers(1, 1400).map(lambda number: f"CWE-{number}")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
tasks = st.builds(
    make_task,
    id=st.text(min_size=1, max_size=20),
    language=st.sampled_from(LANGUAGES),
    cwe=st.lists(cwe, max_size=3).map(tuple),
    prompt=text.filter(lambda value: value.strip() != ""),
    golden=st.none() | text,
    vulnerable=st.none() | text,
    suffix=text,
    statements=st.none() | st.integers(1, 9),
    split=st.sampled_from(SPLITS),
    instruction=text,
    tests=st.none() | st.builds(Groups, functional=text, security=text),
    exercise=st.none() | text.map(re.escape),
    notes=st.lists(
        st.builds(RiskNote, code=text, cwe=st.none() | cwe, description=text), max_size=3
    ).map(tuple),
    source=text,
    license=text,
    meta=st.dictionaries(text, json_values, max_size=3),
)


def small(**more: Any) -> dict[str, Any]:
    return {"id": "a", "language": "python", "cwe": ["CWE-89"], "prompt": "def f():", **more}


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_an_answer_of_white_space_is_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [small(golden="", vulnerable=" \n", prompt="f(\n")])
    (task,) = read_tasks(path)
    assert (task.golden, task.vulnerable) == (None, None)


@settings(max_examples=150, deadline=None)
@given(st.lists(tasks, min_size=1, max_size=4, unique_by=lambda task: task.id))
def test_what_is_written_comes_back(written: list[Task]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.jsonl"
        write_tasks(path, written)
        assert read_tasks(path) == written
        first = path.read_bytes()
        write_tasks(path, read_tasks(path))
        assert path.read_bytes() == first
        assert os.listdir(folder) == ["tasks.jsonl"]


def test_every_field_is_written() -> None:
    assert tuple(task_to_json(make_task(id="a", language="c", cwe=(), prompt="x"))) == KEYS


def test_missing_optional_keys_have_defaults(tmp_path: Path) -> None:
    assert read_tasks(write_lines(tmp_path / "t.jsonl", [small()])) == [
        Task(id="a", language="python", cwe=("CWE-89",), prompt="def f():")
    ]


def test_broken_line_37_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [json.dumps(small(id=f"t{number}")) for number in range(1, 51)]
    lines[36] = lines[36][:-5]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"t\.jsonl:37: not valid JSON") as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)


def test_empty_lines_count_but_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n" + json.dumps(small()) + "\n\n{]\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"t\.jsonl:4: "):
        read_tasks(path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sufix": "x"}, "unknown key 'sufix' in a task; did you mean 'suffix'"),
        ({"golden": 3}, "'golden' must be a string or null, not a number"),
        ({"cwe": "CWE-89"}, "'cwe' must be a list of strings, not a string"),
        ({"cwe": [89]}, "'cwe' must be a list of strings"),
        ({"cwe": ["89"]}, "'89' is no CWE name"),
        ({"statements": "2"}, "'statements' must be a whole number or null, not '2'"),
        ({"statements": True}, "'statements' must be a whole number or null, not True"),
        ({"statements": 0}, "statements is 0"),
        ({"tests": {"functional": "x"}}, "'tests' has no key 'security'"),
        ({"tests": {"functional": "x", "secure": "y"}}, "did you mean 'security'"),
        ({"tests": {"functional": "x", "security": None}}, "'security' must be a string"),
        ({"notes": [{"code": "x", "cwe": 79}]}, "'cwe' must be a string or null"),
        ({"notes": {"code": "x"}}, "'notes' must be a list of objects, not an object"),
        ({"meta": []}, "'meta' must be an object, not a list"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"language": "cobol"}, "unknown language 'cobol'"),
        ({"prompt": None}, "'prompt' must be a string, not null"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", [small(id="first"), small(**more)])
    with pytest.raises(TaskError) as caught:
        read_tasks(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "a", "id": "b"}', "the key 'id' occurs twice"),
        (b'{"id": NaN}', "NaN is no JSON number"),
        (b"[1, 2]", "a task must be a JSON object, not a list"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b'{"language": "c"}', "a task has no key 'id'"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(TaskError) as caught:
        read_tasks(path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert words in str(caught.value)


def test_missing_and_empty_files_and_twins(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TaskError, match="holds no tasks"):
        read_tasks(tmp_path / "empty.jsonl")
    with pytest.raises(TaskError, match=r":2: the id 'a' is already used in line 1"):
        read_tasks(write_lines(tmp_path / "twins.jsonl", [small(), small()]))


@pytest.mark.parametrize("meta", [{"a": (1, 2)}, {"a": {1}}, {"a": float("nan")}, {1: "a"}])
def test_meta_that_json_would_change_is_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    path = tmp_path / "t.jsonl"
    write_tasks(path, [make_task(**small(id="old", cwe=()))])
    before = path.read_bytes()
    with pytest.raises(TaskError, match="'bad'"):
        write_tasks(path, [make_task(**small(id="bad", cwe=(), meta=meta))])
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "t.jsonl"
    write_tasks(path, [make_task(**small(id="old", cwe=()))])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskError, match="No space left on device"):
        write_tasks(path, [make_task(**small(id="new", cwe=()))])
    assert [task.id for task in read_tasks(path)] == ["old"]
    assert os.listdir(tmp_path) == ["t.jsonl"]
