"""What players are asked may change: evaluations put aside, taken back, and kept in part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_run import begun

from treeplay.config import Config, load_config, to_dict
from treeplay.errors import RunError
from treeplay.evaluate import EvalConfig
from treeplay.evaluations import MADE, question, settle
from treeplay.run import open_run, read_json, write_json, write_text
from treeplay.tasks.select import Suite
from treeplay.tasks.task import make_task


def evaluated(folder: Path, config: Config, tasks: str, answers: str) -> str:
    """Open a run that asks like ``config``, and answer. Returns what is told."""
    run = open_run(config, resume=True, anew=True)
    told = settle(run, tasks, {})
    write_text(folder / "eval/base.jsonl", answers)
    for name in MADE:
        write_text(folder / name, answers)
    run.manifest["warnings"] = [answers]
    write_json(folder / "manifest.json", run.manifest)
    with run.timed("base eval sample"), run.timed("load"):
        pass
    return told


def test_what_is_asked_in_evaluation_may_change(tmp_path: Path) -> None:
    """What was made of other questions is put aside whole, and comes back with them."""
    folder = tmp_path / "run"
    first = begun(folder)
    second = load_config(None, [f"out={folder}", "tasks.eval=[mine]", "eval.samples=2"])
    assert evaluated(folder, first, "a", "1st") == ""
    before = read_json(folder / "manifest.json")
    told = evaluated(folder, second, "b", "2nd")
    assert told == (
        "tasks.eval, eval.samples, evaluation tasks changed: players are evaluated anew, eval-1 "
        "holds the evaluation before"
    )
    manifest = read_json(folder / "manifest.json")
    assert manifest["config"] == to_dict(second)
    assert manifest["identities"]["evaluation tasks"] == "b"
    assert (folder / "eval/base.jsonl").read_text() == "2nd"
    for name in ("base.jsonl", *MADE):
        assert (folder / "eval-1" / name).read_text() == "1st"
    # The same entries, but other tasks in the file.
    assert evaluated(folder, second, "c", "3rd").startswith("evaluation tasks changed: players")
    assert not open_run(second, resume=True, anew=True).changed
    run = open_run(first, resume=True, anew=True)
    assert settle(run, "a", {}) == (
        "tasks.eval, eval.samples, evaluation tasks changed: eval-1 is in use again, eval-3 holds "
        "the evaluation before"
    )
    assert read_json(folder / "manifest.json") == before
    for name in ("eval/base.jsonl", *MADE):
        assert (folder / name).read_text() == "1st"
    assert run.timings.keys() == {"base eval sample", "load", "peak_memory_mb"}
    assert read_json(folder / "timings.json") == run.timings
    assert sorted(p.name for p in folder.glob("eval*")) == ["eval", "eval-2", "eval-3"]


def test_suites_that_are_asked_as_before_keep_their_answers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = begun(folder)
    names = {
        f"{player}.{suite}.answers" for player in ("base", "round-1") for suite in ("s", "a.s")
    }
    run = open_run(config, resume=True, anew=True)
    settle(run, "a", {"s": "1", "a.s": "2"})
    for name in (*names, "round-2.s.answers.part"):
        write_text(folder / "eval" / name, name)
    with run.timed("base eval sample"):
        pass
    run = open_run(config, resume=True, anew=True)
    assert settle(run, "b", {"s": "1", "a.s": "3", "new": "4"}) == (
        "evaluation tasks changed: players are evaluated anew but for s, eval-1 holds the "
        "evaluation before"
    )
    # Neither the other suite, whose name ends alike, nor half a stage, nor what is made of all.
    kept = {"base.s.answers", "round-1.s.answers"}
    assert {path.name for path in (folder / "eval").iterdir()} == kept
    assert all((folder / "eval" / name).read_text() == name for name in kept)
    assert names < {path.name for path in (folder / "eval-1").iterdir()}
    assert "base eval sample" not in run.timings  # nobody knows which suite took how much of it
    # Who changes his mind again has what there was at first.
    run = open_run(config, resume=True, anew=True)
    assert "eval-1 is in use again" in settle(run, "a", {"s": "1", "a.s": "2"})
    assert names < {path.name for path in (folder / "eval").iterdir()}
    assert run.manifest["suites"] == {"s": "1", "a.s": "2"}


class Killed(BaseException):
    """What no error handling catches."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_evaluations_are_exchanged_mixes_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Whatever is in use afterwards are answers to what is asked; a suite has all or none."""
    folder = tmp_path / "run"
    config = begun(folder)
    asked = {"a": {"s": "1", "t": "2"}, "b": {"s": "1", "t": "3"}}

    def settled(which: str, *answers: str) -> None:
        settle(open_run(config, resume=True, anew=True), which, asked[which])
        for name in answers:
            write_text(folder / "eval" / name, which)

    def dies(*given: Path) -> Path:
        if not renames:
            given[-1].write_bytes(b"")  # a copy begun, and no more
            raise Killed
        moved.append(rename(*given))
        if len(moved) == renames:
            raise Killed
        return moved[-1]

    moved: list[Path] = []
    rename = Path.rename
    settled("a", "base.s.answers", "base.t.answers")
    if renames:
        settled("b", "base.t.answers")
    # From a to b, copying s; or from b to a: b's is put aside, then a's taken back.
    place = "pathlib.Path.rename" if renames else "treeplay.evaluations.shutil.copyfile"
    with monkeypatch.context() as patch:
        patch.setattr(place, dies)
        with pytest.raises(Killed):
            settled("a" if renames else "b")
    settled("b")
    answers = {path.name: path.read_text() for path in (folder / "eval").glob("*.answers")}
    assert answers == ({"base.s.answers": "a", "base.t.answers": "b"} if renames else {})
    settled("a")
    assert (folder / "eval/base.t.answers").read_text() == "a"


def test_half_a_stage_does_not_come_back(tmp_path: Path) -> None:
    """Its groups may have been others."""
    folder = tmp_path / "run"
    config = begun(folder)
    settle(open_run(config, resume=True, anew=True), "a", {"s": "1"})
    for name in ("base.s.answers.0.sampled.part", "round-1.s.answers.0.sampled"):
        write_text(folder / "eval" / name, "half")
    settle(open_run(config, resume=True, anew=True), "b", {"s": "2"})
    assert "eval-1 is in use again" in settle(
        open_run(config, resume=True, anew=True), "a", {"s": "1"}
    )
    assert [path.name for path in (folder / "eval").iterdir()] == ["base.jsonl"]


@pytest.mark.parametrize(
    ("config", "suite", "same"),
    [
        ({}, {}, True),
        ({"rows_at_once": 3}, {}, True),
        ({"samples": 9}, {}, False),
        ({"samples": 9}, {"samples": 4}, True),  # the suite's own settings decide
        ({"max_tokens": 9}, {}, False),
        ({"max_tokens": 9}, {"max_tokens": 50}, True),
        ({"temperature": 0.1}, {}, False),
        ({"top_p": 0.5}, {}, False),
        ({}, {"samples": 9}, False),
        ({}, {"max_tokens": 9}, False),
        ({}, {"tasks": ()}, False),
        ({}, {"tasks": (make_task(id="a", language="python", cwe=(), prompt="y = "),)}, False),
        ({}, {"name": "other"}, True),  # the name is the file's
    ],
)
def test_what_decides_answers_is_in_the_question(
    config: dict[str, Any], suite: dict[str, Any], same: bool
) -> None:
    asked = EvalConfig(samples=4, max_tokens=50)
    task = make_task(id="a", language="python", cwe=(), prompt="x = ")
    one = Suite("s", (task,))
    assert (
        question(asked, one) == question(replace(asked, **config), replace(one, **suite))
    ) == same


def test_an_evaluation_that_had_no_answer_is_not_put_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder)
    (folder / "eval/base.jsonl").unlink()
    (folder / "eval").rmdir()
    write_text(folder / "round-1/nodes.json", "{}")
    write_text(folder / "tasks.jsonl", "old")
    run = open_run(load_config(None, [f"out={folder}", "eval.samples=2"]), resume=True, anew=True)
    assert settle(run, "a", {}) == "eval.samples changed: players are evaluated anew"
    assert not (folder / "tasks.jsonl").exists()
    assert not list(folder.glob("eval-*"))


def test_fewer_rows_at_once_ask_nothing_else(tmp_path: Path) -> None:
    """Less memory: what is there stays, but for the half stage whose groups were others."""
    folder = tmp_path / "run"
    begun(folder)
    write_text(folder / "eval/round-1.s.answers.part", "half")
    config = load_config(None, [f"out={folder}", "eval.rows_at_once=2"])
    assert settle(open_run(config, resume=True, anew=True), "a", {}) == ""
    assert [p.name for p in (folder / "eval").iterdir()] == ["base.jsonl"]
    assert not open_run(config, resume=True).changed


def test_what_is_asked_is_only_changed_where_that_is_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = begun(folder)
    other = load_config(None, [f"out={folder}", "eval.samples=2"])
    hint = r"other settings: eval\.samples differ; .*all players asked anew \(play --resume\), or"
    with pytest.raises(RunError, match=hint):
        open_run(other, resume=True)
    with pytest.raises(RunError, match=r"other settings: seed, eval\.samples differ"):
        open_run(replace(other, seed=1), resume=True, anew=True)
    settle(open_run(config, resume=True), "a", {})
    with pytest.raises(RunError, match="evaluation tasks was a when the run began and is b now"):
        settle(open_run(config, resume=True), "b", {})
    assert (folder / "eval/base.jsonl").is_file()


@pytest.mark.parametrize("learnt", [["tasks.hold_out=0.1"], ["play.watch=mine", "play.patience=1"]])
def test_what_is_asked_may_not_change_where_it_decides_what_is_learnt(
    tmp_path: Path, learnt: list[str]
) -> None:
    begun(tmp_path / "run", *learnt)
    changed = load_config(None, [f"out={tmp_path / 'run'}", *learnt, "eval.max_tokens=9"])
    with pytest.raises(RunError, match=r"other settings: eval\.max_tokens differ"):
        open_run(changed, resume=True, anew=True)
