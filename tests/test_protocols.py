"""Protocols on the real data sets, where they are there: every size has what it evaluates."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from treeplay.experiments.data import prepare
from treeplay.experiments.protocol import SIZES, Size, load_protocol, protocol_names
from treeplay.tasks.jsonl import read_tasks

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "seccodeplt.jsonl").is_file(),
    reason=f"{DATA} is not there; name a folder of public data sets with TREEPLAY_DATA",
)


@pytest.mark.parametrize("size", SIZES)
def test_development_tasks_are_left_over_in_every_size(size: Size, tmp_path: Path) -> None:
    (fold,) = prepare(load_protocol("ablation"), DATA, tmp_path, size, lambda _: None)
    trained = {task.id for task in read_tasks(fold.train)}
    for entry in fold.eval:
        left = read_tasks(Path(entry.partition("@")[0]))
        assert left
        assert not trained & {task.id for task in left}


@pytest.mark.parametrize("name", protocol_names())
def test_every_suite_with_pairs_is_asked_in_both_forms(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    for fold in prepare(protocol, DATA, tmp_path, "cpu", lambda _: None):
        forms: dict[str, set[str]] = {}
        paired = set()
        for entry in fold.eval:  # DATA/FORM/SUITE.jsonl@FORM,...
            path = Path(entry.partition("@")[0])
            suite = path.stem
            forms.setdefault(suite, set()).add(path.parent.name)
            tasks = read_tasks(path)
            if any(task.golden and task.vulnerable for task in tasks):
                paired.add(suite)
        assert paired
        assert not {suite for suite in paired if forms[suite] != {"token", "full"}}


def test_static_suites_are_those_of_the_same_tasks_without_their_tests(tmp_path: Path) -> None:
    (fold,) = prepare(load_protocol("transfer"), DATA, tmp_path, "cpu", lambda _: None)
    for language in ("javascript", "go"):
        folder = fold.train.parent / "token"
        tested = read_tasks(folder / f"cweval-{language}.jsonl")
        static = read_tasks(folder / f"cweval-{language}-static.jsonl")
        assert static == [replace(task, tests=None) for task in tested]
        assert all(task.tests for task in tested)
