"""Whole games of self-play: pools, replay, early ends, interruptions."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_play import content, game, recipe, settings
from test_selfplay import branch, tree
from writer import tasks

from treeplay import play, play_grow
from treeplay.contrast import Contrast, contrast_from_json
from treeplay.errors import ConfigError, RunError
from treeplay.grow import grow, missing
from treeplay.judge.judge import Judge
from treeplay.judge.verdict import Verdict
from treeplay.play_doubts import doubt, doubts_of_answers
from treeplay.play_over import check_watched
from treeplay.policy.score import plain_logps
from treeplay.report import build_report
from treeplay.run import read_json, read_jsonl
from treeplay.sandbox import Sandbox
from treeplay.selfplay import (
    PlayConfig,
    Rate,
    mean_rate,
    rates,
)
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Tests
from treeplay.tree import Tree, tree_from_json


@pytest.fixture(scope="module")
def writer(sandbox: Sandbox, writer: Path) -> Path:
    """Whole games need both."""
    return writer


def pooled(writer: Path) -> dict[str, Any]:
    data = settings(writer, rounds=3, play={"opponents": "pool", "replay": 0.3})
    data["grow"].update(branches=6, depth=1)
    data["tasks"].update(pick="hard", share=0.5)
    data["eval"].update(samples=1, max_tokens=40)
    data["train"].update(epochs=1, learning_rate=1e-4)
    return data


@pytest.fixture(scope="module")
def three_rounds(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    one = game(recipe(folder, pooled(writer)), folder / "run")
    one.play()
    one.close()
    build_report(folder / "run")
    return folder


def test_three_rounds_against_a_pool(three_rounds: Path, writer: Path) -> None:
    run = three_rounds / "run"
    names = read_json(run / "manifest.json")["identities"]
    assert names["round-3 opponent"] == "round-2, round-1, base"
    trees = [tree_from_json(row) for row in read_jsonl(run / "round-3/judged.jsonl")]
    assert len(trees) == 1  # half of two
    for grown in trees:
        for node in grown.nodes:
            by = Counter(b.opponent for b in grown.branches if b.node == node.id)
            assert by == {"base": 2, "round-1": 2, "round-2": 2}
    told = read_json(run / "round-3/contrasts.json")["opponents"]
    assert list(told) == ["round-2", "round-1", "base"]
    for name, figures in told.items():
        assert figures["rate"] == pytest.approx(mean_rate(rates(trees, name)), abs=1e-6)
    own = [contrast_from_json(row) for row in read_jsonl(run / "round-3/contrasts.jsonl")]
    again = [contrast_from_json(row) for row in read_jsonl(run / "round-3/replayed.jsonl")]
    before = [
        contrast_from_json(row)
        for number in (1, 2)
        for row in read_jsonl(run / f"round-{number}/contrasts.jsonl")
    ]
    pairs = sum(bool(c.rejected) for c in own)
    assert len(again) == min(len(before), math.floor(pairs * 0.3 / 0.7 + 0.5))
    assert again
    assert all(c in before for c in again)
    lines = read_jsonl(run / "round-3/train.jsonl")
    assert sum(line["contrasts"] for line in lines) == len(own) + len(again)


def test_each_contrast_has_the_log_probs_of_its_own_opponent(three_rounds: Path) -> None:
    run = three_rounds / "run"
    one = game(three_rounds / "recipe.yaml", run, resume=True)
    found = [contrast_from_json(r) for r in read_jsonl(run / "round-3/contrasts.jsonl")]
    assert len({c.opponent for c in found}) > 1
    for number, name in enumerate(("base", "round-1", "round-2")):
        with one.policy_of(number) as policy, torch.no_grad():
            for c in (c for c in found if c.opponent == name):
                for tail, logps in ((c.chosen, c.chosen_opp), (c.rejected, c.rejected_opp)):
                    span = (len(c.prefix), len(c.prefix) + len(tail))
                    (plain,) = plain_logps(policy.model, [c.prefix + tail], [span])
                    torch.testing.assert_close(torch.tensor(logps), plain, atol=1e-4, rtol=0)


def test_the_report_tells_the_pool(three_rounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = read_json(three_rounds / "run/report.json")["branches"][-1]
    assert list(last["opponents"]) == ["round-2", "round-1", "base"]
    assert last["replayed"] == len(read_jsonl(three_rounds / "run/round-3/replayed.jsonl"))


def said_of(one: Any) -> list[str]:
    said: list[str] = []
    one.reporter.say = said.append
    return said


def test_a_low_rate_ends_the_game(writer: Path, tmp_path: Path) -> None:
    data = pooled(writer)
    data["play"]["stop_below"] = 1.0
    one = game(recipe(tmp_path, data), tmp_path / "run")
    said = said_of(one)
    one.play()
    one.close()
    ended = read_json(tmp_path / "run/manifest.json")["ended"]
    assert ended["round"] == 1
    assert "is below play.stop_below (100.0%)" in ended["reason"]
    assert f"round 1: {ended['reason']}; the game ends here" in said
    assert not one.adapter(1).exists()
    assert build_report(tmp_path / "run")["run"]["ended"] == ended


@pytest.mark.parametrize("label", ["vulnerable", "secure", "unknown"])
def test_a_judge_that_says_the_same_of_everything_is_named(
    label: Any, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pooled(writer)
    data["rounds"] = 2 if label == "secure" else 1
    data["contrasts"] = {"anchor": 1.0}
    one = game(recipe(tmp_path, data), tmp_path / "run")
    monkeypatch.setattr(one.judge, "judge_ahead", lambda items: None)
    monkeypatch.setattr(
        one.judge,
        "judge_many",
        lambda items, reach=None: [Verdict(label, "executed") for _ in items],
    )
    said = said_of(one)
    one.play()
    one.close()
    told = [text for text in said if text.startswith("warning: round-1: the judge")]
    count = 6 * sum(len(row["nodes"]) for row in read_jsonl(tmp_path / "run/round-1/judged.jsonl"))
    wanted = {
        "vulnerable": f"flagged all of {count} branches, and 2 of 2 golden answers: do not believe",
        "secure": f"flagged none of {count} branches, and 0 of 2 given vulnerable answers: it may",
        "unknown": f"could decide none of {count} branches ({count} unknown)",
    }
    assert len(told) == 1
    assert wanted[label] in told[0]
    assert one.adapter(1).is_dir()
    assert read_json(tmp_path / "run/round-1/contrasts.json")["warning"] in told[0]
    # Golden answers were learnt once; a player without mistakes is not trained on them again.
    ended = read_json(tmp_path / "run/manifest.json").get("ended")
    at_rest = {"round": 2, "reason": "round-1 made no mistake to learn from"}
    assert ended == (at_rest if label == "secure" else None)
    assert not one.adapter(2).exists()


def suite(count: int, **changes: Any) -> Suite:
    return Suite("s", tuple(replace(tasks()[0], id=f"t{i}", **changes) for i in range(count)))


@pytest.mark.parametrize(
    ("label", "known", "told"),
    [
        ("vulnerable", "vulnerable", "flagged all of 9 answers, and 8 of 8 golden answers: do not"),
        ("secure", "secure", "flagged none of 9 answers, and 0 of 8 given vulnerable answers"),
        ("unknown", "unknown", "could decide none of 9 answers (9 unknown)"),
        ("invalid", "unknown", ""),
        ("vulnerable", "secure", ""),
        ("secure", "vulnerable", ""),
    ],
)
def test_a_judge_that_says_the_same_of_every_answer_is_named(
    label: str, known: Any, told: str
) -> None:
    judge = SimpleNamespace(judge_many=lambda items: [Verdict(known, "executed") for _ in items])
    general = SimpleNamespace(general=True, id="ability")
    asked = suite(9)
    both = replace(asked, tasks=(*asked.tasks, general))  # type: ignore[arg-type]
    game: Any = SimpleNamespace(judge=judge, suites=[both])
    rows = [{"suite": "s", "task": t.id, "verdict": {"label": label}} for t in asked.tasks]
    rows.append({"suite": "s", "task": "ability", "verdict": {"label": "plain"}})
    found = doubts_of_answers(game, rows)
    assert found == [] if not told else (len(found) == 1 and f"s: the judge {told}" in found[0])
    mixed = [*rows, {"suite": "s", "task": "t0", "verdict": {"label": "secure"}}]
    mixed.append({"suite": "s", "task": "t0", "verdict": {"label": "vulnerable"}})
    assert doubts_of_answers(game, mixed) == []


def test_golden_answers_without_tests_acquit_no_judge() -> None:
    """Static tools never flag a golden answer, since they look for what it does not have."""

    def asked(items: Any) -> Any:
        raise AssertionError("nothing can be learnt of these")

    grown = [tree(*(branch(i, 0, (5 + i,), "base", "vulnerable") for i in range(8)), name="t0")]
    one = suite(1, tests=None)
    game: Any = SimpleNamespace(
        judge=SimpleNamespace(judge_many=asked), tasks_of=lambda trees: list(one.tasks)
    )
    assert doubt(game, grown) == (
        "the judge flagged all of 8 branches, and there are no golden answers of tasks with tests "
        "to check it with"
    )


def test_a_watched_suite_must_be_there() -> None:
    check_watched(PlayConfig(watch="s", patience=1), [suite(1)])
    with pytest.raises(ConfigError, match=r"play\.watch is 'x', which is no .* name one of s"):
        check_watched(PlayConfig(watch="x", patience=1), [suite(1)])
    ability = suite(1, cwe=(), tests=Tests("assert True\n", ""))
    with pytest.raises(ConfigError, match="about security"):
        check_watched(PlayConfig(watch="s", patience=1), [ability])


def test_a_pool_grows_deep_trees_wave_by_wave(writer: Path, tmp_path: Path) -> None:
    data = settings(writer, rounds=2, play={"opponents": "pool"})
    data["grow"].update(branches=6, adaptive=0.5, wave=2, depth=2)
    data["train"].update(epochs=1)
    path, run = recipe(tmp_path, data), tmp_path / "run"
    one = game(path, run)
    one.train(1)
    trees = one.grow(2)
    one.close()
    late = [node for grown in trees for node in grown.nodes if node.source == "late"]
    assert late
    assert (run / "round-2/grown-1-2.base.jsonl").is_file()
    for grown in trees:
        for node in grown.nodes:
            here = [b for b in grown.branches if b.node == node.id]
            by = Counter(b.opponent for b in here)
            assert by["base"] == by["round-1"] == len(here) / 2 > 0
            assert missing(grown, node, one.config.grow) == 0
        assert [b.id for b in grown.branches] == list(range(len(grown.branches)))
    before = (run / "round-2/judged.jsonl").read_bytes()
    for name in ("judged", "grown-1-2.base", "grown-2.round-1", "grown-2.base"):
        (run / f"round-2/{name}.jsonl").unlink()
    again = game(path, run, resume=True)
    assert again.grow(2) == trees
    found = again.contrasts(2)
    again.close()
    assert (run / "round-2/judged.jsonl").read_bytes() == before
    assert {c.opponent for c in found} == {"base", "round-1"}


def test_an_unknown_verdict_that_is_another_one_later_changes_no_wave(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which nodes get a second wave was decided by the verdicts on the first."""
    data = settings(writer)
    data["nodes"] = {"sources": ["root"]}
    data["grow"].update(branches=4, adaptive=0.2, wave=2, depth=1, max_tokens=4, rows_at_once=1)
    path, run = recipe(tmp_path, data), tmp_path / "run"
    later = False

    def judge(self: Judge, items: Any, told: Any = None) -> list[Verdict]:
        return [Verdict("vulnerable" if later else "unknown", "executed") for _ in items]

    monkeypatch.setattr(Judge, "judge_many", judge)
    monkeypatch.setattr(Judge, "judge_ahead", lambda *_: None)

    def wave(stop: bool) -> list[Tree]:
        def grown(*arguments: Any) -> list[Tree]:
            if stop and (run / "round-1/judged-1.jsonl").is_file():
                raise KeyboardInterrupt
            return grow(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(play_grow, "grow", grown)
            one = game(path, run, resume=not stop)
            try:
                return one.grow(1)
            finally:
                one.close()

    with pytest.raises(KeyboardInterrupt):
        wave(True)
    later = True
    for grown in wave(False):
        labels = [b.verdict.label for b in grown.branches if b.verdict]
        assert labels == ["unknown"] * 2 + ["vulnerable"] * 2


def test_what_is_known_of_a_task_is_not_unmade(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a round in which nothing about it could be decided."""
    told = {1: {"sql": Rate(8, 0, 8), "path": Rate(8, 8, 0)}, 2: {"sql": Rate(8, 0, 0)}}
    monkeypatch.setattr(play, "measured", lambda game, number: told[number])
    seen: list[Any] = []

    def hard(tasks: Any, known: Any, *rest: Any) -> Any:
        seen.append(known)
        return tasks

    monkeypatch.setattr(play, "hard_tasks", hard)
    data = settings(writer, rounds=3)
    data["tasks"].update(pick="hard")
    one = game(recipe(tmp_path, data), tmp_path / "run")
    one.played(3)
    one.close()
    assert seen == [told[1]]


def interrupting(died: set[str], after: bool) -> Callable[[Any, Any], None]:
    real = os.replace

    def replaced(source: Any, target: Any) -> None:
        name = "/".join(Path(target).parts[-2:])
        here = name.startswith(("round-", "eval/")) and name not in died
        if here:
            died.add(name)
        if here and not after:
            raise KeyboardInterrupt
        real(source, target)
        if here:
            raise KeyboardInterrupt

    return replaced


@pytest.mark.parametrize("after", [False, True])
def test_a_pool_interrupted_everywhere_ends_the_same(
    after: bool, three_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = content(three_rounds / "run")
    run, kept = three_rounds / "run", three_rounds / "kept"
    run.rename(kept)
    died: set[str] = set()
    try:
        for _ in range(80):
            one = None
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", interrupting(died, after))
                try:
                    one = game(three_rounds / "recipe.yaml", run, resume=True)
                    one.play()
                    break
                except KeyboardInterrupt:
                    pass
                finally:
                    if one:
                        one.close()
        build_report(run)
        found = content(run)
    finally:
        if run.exists():
            run.rename(tmp_path / "run")
        kept.rename(run)
    assert found == wanted
    places = {"round-3/grown-1.base.jsonl", "round-3/grown-1.round-2.jsonl"}
    assert places | {"round-3/replayed.jsonl", "round-3/contrasts.json", "round-2/adapter"} <= died


def test_a_round_that_fails_leaves_the_others(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pooled(writer)
    data["rounds"] = 2
    path = recipe(tmp_path, data)
    one = game(path, tmp_path / "run")
    with monkeypatch.context() as patch:
        real = one.train

        def train(number: int) -> Path:
            if number == 2:
                raise RunError("the loss of task 'sql' is not a number at step 1; lower it")
            return real(number)

        patch.setattr(one, "train", train)
        with pytest.raises(RunError, match="not a number"):
            one.play()
    one.close()
    report = build_report(tmp_path / "run")
    assert {row["player"] for row in report["rows"]} == {"base", "round-1"}
    assert report["run"]["ended"]["reason"].startswith("training failed: the loss of task 'sql'")
    again = game(path, tmp_path / "run", resume=True)
    with monkeypatch.context() as patch:

        def broken(number: int) -> list[Contrast]:
            raise RunError("the opponent's log-probs of task 'sql' are not numbers")

        patch.setattr(again, "contrasts", broken)
        with pytest.raises(RunError, match="not numbers"):
            again.play()
    ended = read_json(tmp_path / "run/manifest.json")["ended"]
    assert (ended["round"], ended["reason"][:15]) == (2, "growing failed:")
    again.evaluate(1)
    again.play()
    again.close()
    assert "ended" not in read_json(tmp_path / "run/manifest.json")


def test_secure_answers_that_rise_no_more_end_the_game(writer: Path, tmp_path: Path) -> None:
    data = pooled(writer)
    data["play"].update(watch="tasks", patience=1)
    data["train"]["learning_rate"] = 1e-9
    one = game(recipe(tmp_path, data), tmp_path / "run")
    one.play()
    one.close()
    ended = read_json(tmp_path / "run/manifest.json")["ended"]
    assert ended["round"] == 2
    assert "secure answers to tasks have not risen above" in ended["reason"]
