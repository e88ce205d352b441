"""Budgets of tokens: what was used, what arms are given, and runs begun before it was known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treeplay.config import load_config
from treeplay.errors import ConfigError
from treeplay.experiments import runs
from treeplay.experiments.budget import budget_of, other_rule
from treeplay.experiments.collect import used
from treeplay.experiments.costs import cost
from treeplay.experiments.data import Prepared
from treeplay.experiments.plan import Plan, plan_digest
from treeplay.experiments.protocol import load_protocol
from treeplay.progress import Reporter
from treeplay.run import open_run, write_json, write_jsonl, write_text

pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


def test_every_token_that_training_took_is_counted(tmp_path: Path) -> None:
    def tree(*branches: tuple[int, int]) -> dict[str, Any]:
        """Branches as (node, tokens); node 1 is one of a trie of samples."""
        nodes = [{"id": 0, "source": "probe"}, {"id": 1, "source": "trie"}]
        return {
            "nodes": nodes,
            "branches": [{"node": node, "ids": [7] * count} for node, count in branches],
        }

    one = tmp_path / "round-1"
    write_jsonl(one / "judged.jsonl", [tree((0, 3), (0, 4), (1, 50)), tree((0, 5))])
    write_jsonl(one / "train.jsonl", [{"learnt": 100}, {"learnt": 20, "sampled": 1}])
    assert used(tmp_path) == {"sampled": 13, "nodes": 4, "gradient": 120}
    # Rollouts: 40 tokens, of which the first branch's 3 are among the branches.
    write_json(one / "nodes.json", {"probe": {"sampled_tokens": 40}})
    write_jsonl(one / "planted.jsonl", [tree((0, 3), (1, 50)), tree()])
    assert used(tmp_path)["sampled"] == 13 + 40 - 3
    write_json(one / "golden.json", {"sampled_tokens": 90})
    assert used(tmp_path)["sampled"] == 50 + 90
    # Two learning rates, of which one was kept: both took tokens, and so did their marks.
    write_jsonl(one / "rate-0.1" / "train.jsonl", [{"learnt": 100}, {"learnt": 20, "sampled": 1}])
    write_jsonl(one / "rate-0.2" / "train.jsonl", [{"learnt": 70}])
    write_jsonl(tmp_path / "held" / "base.answers", [{"tokens": 2}])
    write_jsonl(one / "rate-0.2" / "held" / "epoch-1.answers", [{"tokens": 6}])
    assert used(tmp_path) == {"sampled": 148, "nodes": 4, "gradient": 190}
    write_json(one / "contrasts.json", {"ordinary_tokens": 10})
    assert used(tmp_path)["sampled"] == 158


def test_arms_are_given_the_tokens_of_the_reference(tmp_path: Path) -> None:
    protocol = load_protocol("main")
    folds = (Prepared(tmp_path / "train.jsonl", (), {"digests": {}}),)
    arms = ("tsp", "sft", "spin", "tsp-paper", "grpo", "tdpo")
    plan = Plan(protocol, "cpu", "smollm2", arms, (0,), folds, tmp_path, tmp_path / "results", ())

    def given(arm: str) -> tuple[str, ...]:
        return budget_of(plan, plan.cells(arm, 0)[0])

    assert given("spin") == ()  # nothing is known yet
    spent = {"sampled": 7000, "nodes": 88, "gradient": 90123}
    played = [{"fold": 0, "used": spent}]
    told = {"faults": [], "digest": plan_digest(plan, "tsp", 0), "runs": played}
    write_json(plan.result("tsp", 0), told)
    assert given("tsp") == given("base") == ()
    assert given("sft") == given("tdpo") == ("train.budget=90123",)
    branches = ("train.budget=90123", "grow.budget=7000", "grow.branches=1000", "grow.wave=1")
    assert given("spin") == given("tsp-paper") == branches
    assert given("grpo") == ("train.budget=90123", "grpo.budget=7000")
    # What was given tokens by another rule, or far from as many, is no result of this one.
    for rule, other in (
        (["train.budget=90999", "grow.budget=6500", "grow.branches=1000", "grow.wave=1"], False),
        (["train.budget=90999", "grow.budget=6000", "grow.branches=1000", "grow.wave=1"], True),
        (["train.budget=90123", "grow.branches=1"], True),
        ([], True),
    ):
        old = {"runs": [{"fold": 0, "budget": rule}]}
        assert other_rule(plan, plan.cells("spin", 0)[0], old) == other
    # Before the reference was played, nothing can be said of it.
    write_json(plan.result("tsp", 0), {**told, "runs": []})
    assert not other_rule(plan, plan.cells("spin", 0)[0], {"runs": [{"fold": 0, "budget": []}]})
    write_json(plan.result("tsp", 0), {**told, "digest": "other", "faults": [{"fold": 1}]})
    assert given("spin") == ()  # it will be played again
    write_json(plan.result("tsp", 0), {**told, "faults": [{"fold": 1}]})
    assert given("spin") == branches  # of this fold it has a run
    write_json(plan.result("tsp", 0), {**told, "digest": "other"})
    with pytest.raises(ConfigError, match=r"tsp/0\.json, whose tokens are the budget of spin"):
        given("spin")
    write_json(plan.result("tsp", 0), told)
    config = plan.config(plan.cells("spin", 0)[0], given("spin"))
    assert (config.grow.budget, config.grow.wave, config.train.budget) == (7000, 1, 90123)
    # The plan's cost goes by it: up to half a wave more, of 160 tokens for each of 50 tasks.
    facts = {"train": {"starter": 50}, "suites": {}}
    cell = replace(plan.cells("spin", 0)[0], data=replace(folds[0], facts=facts))
    assert (cost(plan, cell).grow_tokens, cost(plan, cell).train_tokens) == (7000 + 8000, 90123)


def test_the_revision_of_a_model_is_where_it_lies(tmp_path: Path) -> None:
    """Which weights it has, every result tells by the commit."""
    protocol = load_protocol("main")
    folds = (Prepared(tmp_path / "train.jsonl", (), {"digests": {}}),)
    places = (tmp_path, tmp_path / "results")
    one, other, third = (
        plan_digest(
            Plan(protocol, "cpu", "org/tiny", ("tsp",), (0,), folds, *places, more), "tsp", 0
        )
        for more in ((), ("model.revision=v1",), ("train.beta=0.3",))
    )
    assert one == other != third


def test_a_run_begun_before_its_budget_was_known_is_put_aside(tmp_path: Path) -> None:
    folder = tmp_path / "sft" / "0"
    asked = [f"out={folder}", "method=sft"]
    open_run(load_config(None, [*asked, "train.budget=5"]), resume=False)
    write_text(folder / "eval" / "base.jsonl", "{}\n")
    reporter = Reporter(quiet=True)
    for same in (asked, [*asked, "train.budget=6", "train.beta=0.3"]):
        kept = load_config(None, ["train.budget=5", *same])
        runs._put_aside(folder, kept, reporter)
        assert folder.is_dir()
    now = load_config(None, [*asked, "train.budget=6"])
    runs._put_aside(folder, now, reporter)
    assert not folder.exists()
    assert (tmp_path / "sft" / "0.old" / "eval" / "base.jsonl").is_file()
    runs._put_aside(folder, now, reporter)  # nothing is there
    assert open_run(now, resume=False).folder == folder
