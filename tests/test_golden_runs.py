"""Whole runs without references: golden paths of the opponent's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File
from shutil import copy
from typing import Any

import pytest
import yaml
from writer import tasks

from treeplay.config import load_config
from treeplay.errors import ConfigError, RunError
from treeplay.experiments.runs import TREES
from treeplay.golden import rooted
from treeplay.grow import grow as really_grow
from treeplay.judge.judge import Judge
from treeplay.play import Game
from treeplay.play_rates import measured
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.progress import Reporter
from treeplay.run import open_run, read_json, read_jsonl
from treeplay.sandbox import Sandbox
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.task import make_task
from treeplay.tree import Branch, tree_from_json
from treeplay.trie import vulnerable
from treeplay.view.explorer import SHOWS, explore


@pytest.fixture(scope="module")
def bare_writer(writer: File, sandbox: Sandbox) -> File:
    """The model, and beside it tasks without references."""
    bare = [replace(t, golden=None, vulnerable=None) for t in tasks() if t.split == "train"]
    # One that the model has never seen, and cannot answer.
    bare.append(replace(bare[0], id="unheard", prompt="def unheard_of(db, name, more):\n"))
    write_tasks(writer / "bare.jsonl", bare)
    return writer


def settings(writer: File, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(writer), "threads": 1},
        "tasks": {
            "train": str(writer / "bare.jsonl"),
            "eval": [str(writer / "tasks.jsonl")],
        },
        "golden": {"source": "self", "samples": 8, "max_tokens": 90, "rows_at_once": 8},
        "nodes": {"sources": ["diff"], "place": "both"},
        "grow": {"branches": 3, "rows_at_once": 8, "max_tokens": 90, "completion": "model"},
        "train": {"epochs": 1, "learning_rate": 2e-4, "lora": {"r": 4}},
        "eval": {"samples": 1, "rows_at_once": 4, "max_tokens": 60},
        **changes,
    }


def game(folder: File, data: dict[str, Any], name: str, *more: str, resume: bool = False) -> Game:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    config = load_config(path, [f"out={folder / name}", *more])
    return Game(open_run(config, resume=resume), Reporter(quiet=True))


def test_a_run_without_references(bare_writer: File, tmp_path: File) -> None:
    said: list[str] = []
    one = game(tmp_path, settings(bare_writer), "run", "grow.depth=2")
    one.reporter.say = said.append  # type: ignore[method-assign,assignment]
    assert {task.id for task in one.tasks} == {"sql", "path", "unheard"}
    contrasts = one.contrasts(1)
    one.train(1)
    one.close()
    folder = tmp_path / "run/round-1"
    rows = read_jsonl(folder / "golden.jsonl")
    counts = read_json(folder / "golden.json")
    assert counts["tasks"] == 3
    assert counts["samples"] == 24
    left = [row["task"] for row in rows if not row["accepted"]]
    assert "unheard" in left
    assert counts["accepted"] == 3 - len(left)
    told = [line for line in said if "no accepted answer" in line]
    assert len(told) == 1
    assert f"{len(left)} of 3" in told[0]
    trees = [tree_from_json(row) for row in read_jsonl(folder / "judged.jsonl")]
    assert {tree.task for tree in trees} == {"sql", "path"} - set(left)
    by_task = {row["task"]: tree_from_json(row["samples"]) for row in rows}
    judge = Judge(Sandbox())
    given = {task.id: task for task in one.tasks}
    from_trie = 0
    for tree in trees:
        (ids,) = {
            s.ids[: len(tree.golden_ids)]
            for s in by_task[tree.task].branches
            if s.answer == tree.golden and s.ids[: len(tree.golden_ids)] == tree.golden_ids
        }
        assert ids == tree.golden_ids  # as sampled
        verdict = judge.judge_one(given[tree.task], tree.golden)
        assert verdict.label == "secure"
        assert verdict.functional
        wholes = {tree.prompt_ids + s.ids for s in by_task[tree.task].branches}
        for b in tree.branches:
            assert b.verdict is not None
            if tree.nodes[b.node].source == "trie":
                from_trie += 1
                assert tree.path(b.id) in wholes
        assert {node.source for node in tree.nodes} - {"trie"}  # and others grew beside them
        page = explore(tree, given[tree.task], SHOWS[0])
        shown = [node for line in page["lines"] for node in line["nodes"]]
        assert {node["id"] for node in shown} == {n.id for n in tree.nodes if n.branch is None}
        assert sum(node["total"] for node in shown) <= len(tree.branches)
    assert from_trie
    assert any(
        tree.nodes[c.node].source == "trie" and c.rejected
        for c in contrasts
        for tree in trees
        if tree.task == c.task and c.node >= 0
    )


def test_a_stopped_golden_stage_goes_on_to_the_same(
    bare_writer: File, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = settings(bare_writer)
    data["golden"].update(source="repair", attempts=2, mends=3)
    import treeplay.golden_stage as stage

    judge_many: Any = Judge.judge_many
    judged = []

    def counted(self: Judge, items: Any, *args: Any) -> Any:
        judged.append([answer for _, answer in items])
        return judge_many(self, items, *args)

    monkeypatch.setattr(Judge, "judge_many", counted)
    whole = game(tmp_path, data, "whole")
    trees = whole.grow(1)
    whole.close()
    once = judged.copy()
    judged.clear()
    real: Any = really_grow
    calls = []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, "grow", stopped)
    for _ in range(12):
        one = game(tmp_path, data, "stopped", resume=bool(calls))
        try:
            assert one.grow(1) == trees
            break
        except KeyboardInterrupt:
            continue
        finally:
            one.close()
    else:
        pytest.fail("it makes no way")
    assert len(calls) > 3
    assert judged == once  # an unknown verdict might be another one the second time
    for path in (tmp_path / "whole/round-1").iterdir():
        assert (tmp_path / "stopped/round-1" / path.name).read_bytes() == path.read_bytes()


def test_trees_that_another_run_grew_are_measured_alike(bare_writer: File, tmp_path: File) -> None:
    first = game(tmp_path, settings(bare_writer), "first")
    first.grow(1)
    second = game(tmp_path, settings(bare_writer), "second")
    for name in ("round-1/judged.jsonl", *TREES):
        if (tmp_path / "first" / name).is_file():
            (tmp_path / "second/round-1").mkdir(exist_ok=True)
            copy(tmp_path / "first" / name, tmp_path / "second" / name)
    assert measured(second, 1) == measured(first, 1)
    first.close()
    second.close()


def test_repairs_are_tried_until_one_is_accepted(
    bare_writer: File, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is tiny and mends nothing, so what it writes is put into its mouth: at the second
    attempt, the golden answer of the first task."""
    import treeplay.golden_stage as stage

    data = settings(bare_writer)
    data["golden"].update(source="repair", attempts=3, mends=2)
    one = game(tmp_path, data, "run")
    answers = {task.id: task.golden or "" for task in tasks()}
    real: Any = really_grow

    def grow(policy: Policy, some: Any, trees: Any, config: Any, seed: int, tokens: Any) -> Any:
        made = real(policy, some, trees, config, seed, tokens)
        if config.branches != 2:
            return made
        asked.append([len(tree.prompt_ids) for tree in trees])
        if len(asked) == 1:
            return made
        return [
            replace(tree, branches=tuple(_says(policy, b, answers[tree.task]) for b in t.branches))
            for tree, t in zip(made, made, strict=True)
        ]

    asked: list[list[int]] = []
    monkeypatch.setattr(stage, "grow", grow)
    trees = one.grow(1)
    one.close()
    rows = {row["task"]: row for row in read_jsonl(tmp_path / "run/round-1/golden.jsonl")}
    mended = [task for task, row in rows.items() if row["mended"]]
    assert mended
    counts = read_json(tmp_path / "run/round-1/golden.json")
    assert counts["mended"] == len(mended)
    assert counts["with_mistakes"] >= len(mended)
    for tree in trees:
        if tree.task in mended:
            assert tree.golden == answers[tree.task]
            path = encode_path(one.policy, one.tasks_of([tree])[0], tree.golden)
            assert tree.prompt_ids + tree.golden_ids == path.ids
            assert any(b.verdict and b.verdict.label == "vulnerable" for b in tree.branches)
    # Nobody is asked again once a repair was accepted.
    assert len(asked) == 2 or len(asked[2]) < len(asked[0])


def _says(policy: Policy, one: Branch, text: str) -> Branch:
    ids = tuple(policy.tokenizer(text)["input_ids"])
    starts = tuple(len(decode(policy, ids[:i])) for i in range(len(ids)))
    return replace(
        one, ids=ids, logps=(-0.1,) * len(ids), starts=starts, text=text, answer=text, ended="eos"
    )


@pytest.mark.parametrize("method", ["sft", "dpo", "spin"])
def test_other_methods_without_references(method: str, bare_writer: File, tmp_path: File) -> None:
    data = settings(bare_writer, method=method)
    del data["grow"]["branches"], data["nodes"]
    one = game(tmp_path, data, "run")
    contrasts = one.contrasts(1)
    end = one.policy.tokenizer.eos_token_id
    one.close()
    trees = {
        row["task"]: tree_from_json(row)
        for row in read_jsonl(tmp_path / "run/round-1/judged.jsonl")
    }
    assert contrasts
    for c in contrasts:
        tree = trees[c.task]
        assert c.chosen == (*tree.golden_ids, end)
        assert bool(c.rejected) == (method != "sft")
        if method == "dpo":
            assert c.rejected[-1] == end
            whole = c.prefix + c.rejected[:-1]
            wrong = [tree.path(b.id) for b in tree.branches if vulnerable(b)]
            assert any(path[: len(whole)] == whole for path in wrong)


def test_no_accepted_answer_at_all_is_said(bare_writer: File, tmp_path: File) -> None:
    data = settings(bare_writer)
    data["golden"]["max_tokens"] = 3
    one = game(tmp_path, data, "run")
    told = r"accept none of 24 answers of base to 3 training tasks \(\d+ \w+.*\); .*golden\.samples"
    with pytest.raises(RunError, match=told):
        one.grow(1)
    one.close()
    assert read_json(tmp_path / "run/round-1/golden.json")["accepted"] == 0


def test_settings_out_of_range(tmp_path: File) -> None:
    for setting in ("samples=0", "attempts=0", "mends=0", "max_tokens=0", "top_p=0"):
        with pytest.raises(ConfigError, match=r"golden\."):
            load_config("cpu-demo", [f"golden.{setting}"])
    with pytest.raises(ConfigError, match=r"golden\.temperature"):
        load_config("cpu-demo", ["golden.temperature=-1"])
    with pytest.raises(ConfigError, match=r"golden\.source"):
        load_config("cpu-demo", ["golden.source=oracle"])


def test_brace_answers_end_without_a_reference() -> None:
    """What the suffix closes, the answer leaves open."""
    task = make_task(
        id="c",
        language="c",
        cwe=("CWE-787",),
        prompt="int f(int n) {\n    if (n) {",
        suffix="    }\n    return 0;\n}\n",
    )
    text = "\n        while (n) { n--; }\n        g();\n    }\n    h();\n"
    cut = cut_answer(task, text)
    assert cut.complete
    assert "while" in cut.text
    with_golden = replace(task, golden="\n        g();\n")
    assert cut_answer(with_golden, text) == cut
    assert rooted(task, (1, 2)).nodes[0].position == 2
