"""Pools of opponents, replay, picked tasks, and how a game ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from writer import tasks

from treeplay.config import load_config
from treeplay.contrast import Contrast
from treeplay.errors import ConfigError
from treeplay.judge.verdict import Verdict
from treeplay.selfplay import (
    PlayConfig,
    Rate,
    hard_tasks,
    mean_rate,
    merged,
    pool_of,
    rates,
    replayed,
    seat,
    with_reference,
)
from treeplay.tree import Branch, Node, Tree


def branch(number: int, node: int, ids: tuple[int, ...], by: str, label: Any = None) -> Branch:
    verdict = Verdict(label, "executed") if label else None
    return Branch(number, node, ids, (), (), "", "", "model", "answer", verdict, by)


def tree(*branches: Branch, name: str = "t") -> Tree:
    nodes = tuple(Node(i, None, 1 + i, 0, "diff", None) for i in range(2))
    return Tree(name, (1,), (2, 3, 4), (0, 1, 2), "abc", nodes, branches)


def pair(rejected: tuple[int, ...], **changes: Any) -> Contrast:
    return replace(Contrast("t", 0, (1,), (2,), rejected, 1.0), **changes)


def test_the_pool_is_the_latest_first() -> None:
    assert pool_of(3, PlayConfig()) == (2,)
    assert pool_of(3, PlayConfig(opponents="pool")) == (2, 1, 0)
    assert pool_of(3, PlayConfig(opponents="pool", newest=2)) == (2, 1)
    assert pool_of(1, PlayConfig(opponents="pool")) == (0,)


def test_the_branches_of_a_node_are_shared_evenly() -> None:
    for node in range(20):
        seats = Counter(seat((2, 1, 0), 7, "t", node, number) for number in range(7))
        assert sorted(seats.values()) == [2, 2, 3]
    assert {seat((2, 1, 0), 7, "t", node, 0) for node in range(20)} == {0, 1, 2}


def test_branches_of_several_opponents_are_put_together_by_node() -> None:
    first = branch(0, 0, (5,), "base", "secure")
    before = tree(first)
    one = tree(first, branch(1, 0, (6,), "b"), branch(2, 1, (7,), "b"))
    other = tree(first, branch(1, 0, (8,), "a"))
    (whole,) = merged([before], [[one], [other]])
    found = [(b.id, b.node, b.ids, b.opponent) for b in whole.branches]
    assert found == [
        (0, 0, (5,), "base"),
        (1, 0, (6,), "b"),
        (2, 0, (8,), "a"),
        (3, 1, (7,), "b"),
    ]
    assert merged([before], [[one]]) == [one]


def test_a_contrast_is_measured_against_the_latest_who_made_the_mistake() -> None:
    who = [("base", "b"), ("base",), ("gone",), ()]
    named = with_reference([pair((5,), sampled_by=by) for by in who], ("b", "base"))
    assert [c.opponent for c in named] == ["b", "base", "b", "b"]
    assert {c.sampled_by for c in named} == {()}


def test_rates_are_those_of_one_player_and_of_decided_branches() -> None:
    grown = [
        tree(
            branch(0, 0, (5,), "b", "secure"),
            branch(1, 0, (6,), "b", "vulnerable"),
            branch(2, 0, (7,), "b", "invalid"),
            branch(3, 0, (8,), "base", "vulnerable"),
        ),
        tree(branch(0, 0, (5,), "b", "secure"), name="u"),
        tree(branch(0, 0, (5,), "b", "unknown"), name="v"),
        tree(branch(0, 0, (5,), "b"), name="unjudged"),
    ]
    found = rates(grown, "b")
    assert found == {"t": Rate(3, 1, 1), "u": Rate(1, 1, 0), "v": Rate(1, 0, 0)}
    assert found["v"].share is None
    assert mean_rate(found) == 0.25
    assert mean_rate({}) is None


def test_replayed_pairs_are_a_share_and_of_the_latest_round_they_are_in() -> None:
    own = [pair((5,)), pair((6,)), pair((7,)), pair((8,)), pair(())]
    there = [pair((n,), rejected_opp=(0.1,)) for n in (5, 6, 7, 8)]
    first = [*there, pair((9,), rejected_opp=(0.2,)), pair(())]
    second = [pair((9,), rejected_opp=(0.3,)), pair((10,))]
    for seed in range(20):  # none that the round has itself
        again = replayed(own, [first, second], 0.5, seed)
        assert again == [pair((9,), rejected_opp=(0.3,)), pair((10,))]
    assert len(replayed(own, [first, second], 0.2, 3)) == 1
    some = {replayed(own, [first, second], 0.2, seed)[0].rejected for seed in range(20)}
    assert some == {(9,), (10,)}  # by the seed
    assert replayed([pair(())], [first], 0.5, 3) == []


def test_harder_tasks_are_drawn_more_often_and_none_is_forgotten() -> None:
    many = [replace(tasks()[0], id=f"t{i}") for i in range(6)]
    measured = {"t0": Rate(8, 0, 8), "t1": Rate(8, 4, 4), "t2": Rate(8, 8, 0), "t3": Rate(8, 0, 0)}
    drawn: Counter[str] = Counter()
    for seed in range(400):
        some = hard_tasks(many, measured, 0.3, 0.1, seed)
        assert len(some) == 2
        assert some == [task for task in many if task in some]
        drawn.update(task.id for task in some)
    assert drawn["t0"] > drawn["t1"] > 2 * drawn["t2"] > 0
    assert all(drawn[f"t{i}"] > 20 for i in range(6))
    # One of two: the probability is a task's share of the weights (0.5 and 0.1).
    pairs = [hard_tasks(many[1:3], measured, 0.5, 0.1, seed)[0].id for seed in range(1200)]
    assert pairs.count("t1") / 1200 == pytest.approx(0.5 / 0.6, abs=0.04)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["method=sft", "play.opponents=pool"], r"no opponent samples branches for method sft"),
        (["method=spin", "play.stop_below=0.1"], r"play\.stop_below goes by measured .* spin"),
        (["method=dpo", "tasks.pick=hard"], r"tasks\.pick goes by measured .* dpo"),
        (["method=grpo", "play.replay=0.2"], r"grpo learns from no contrasts"),
        (["play.replay=1"], r"play\.replay is 1.*below 1"),
        (["play.patience=1"], r"play\.watch and play\.patience need one another"),
        (["tasks.share=0"], r"tasks\.share is 0.*above 0"),
        (["play.opponents=pool", "play.newest=-1"], r"play\.newest is -1"),
        (["play.newest=2"], r"play\.newest is 2, but play\.opponents is last"),
    ],
)
def test_settings_that_cannot_be(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(None, settings)
