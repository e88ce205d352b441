"""The search for statements that decide, held to an oracle that tries every statement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from conftest import byte_tokenizer, tiny_llama
from hand import GOLDEN, Grown, hand_task, hand_tree, with_branch
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.grow import GrowConfig, missing
from treeplay.nodes import NodeConfig, ProbeConfig, find_nodes
from treeplay.nodes_probe import (
    choose,
    path_of,
    probes_of,
    propose,
    reuse,
    risks_of,
    states_of,
    values_of,
    with_states,
)
from treeplay.policy.model import Policy
from treeplay.tree import Completion, Probe, Tree, tree_from_json, tree_to_json

POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
TASK = hand_task()
MANY = ProbeConfig(states=10_000, drop=1e-9)
Oracle = Callable[[int], float | None]


def search(
    oracle: Oracle,
    count: int,
    wanted: int,
    config: ProbeConfig = MANY,
    completion: Completion = "model",
) -> tuple[dict[int, float | None], int]:
    """(values of the states tried, levels)."""
    values: dict[int, float | None] = {}
    levels = 0
    while new := propose(values, count, wanted, config, completion):
        assert len(set(new)) == len(new)
        assert not set(new) & set(values)
        assert all(0 <= i < count for i in new)
        values.update({i: oracle(i) for i in new})
        levels += 1
    return values, levels


def every_drop(value: Sequence[float]) -> list[float]:
    """By brute force: how much each statement changes the value, most first."""
    pairs = zip(value, [*value[1:], 0.0], strict=True)
    return sorted((abs(a - b) for a, b in pairs), reverse=True)


shares = st.integers(0, 8).map(lambda n: n / 8)
falling = st.lists(shares, min_size=1, max_size=40).map(lambda v: sorted(v, reverse=True))
anything = st.lists(shares, min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(falling, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_where_the_value_never_rises_the_greatest_drops_are_found(
    value: list[float], wanted: int, spans: int, unjudged: int
) -> None:
    """Also where no rollout of the first states could be judged."""
    count = len(value)
    unjudged = min(unjudged, count - 1)
    seen = [None] * unjudged + value[unjudged:]
    tried, _ = search(seen.__getitem__, count, wanted, replace(MANY, spans=spans))
    found = choose(tried, count, wanted, MANY.drop, "model")
    best = [d for d in every_drop(value[unjudged:])[:wanted] if d > 0]
    assert [change for _, change in found] == pytest.approx(best)
    for i, change in found:  # each is the change that one statement makes
        assert change == value[i] - [*value, 0.0][i + 1]


@settings(max_examples=300, deadline=None)
@given(anything)
def test_elsewhere_a_change_of_at_least_the_mean_is_found(value: list[float]) -> None:
    count = len(value)
    tried, _ = search(value.__getitem__, count, 1, replace(MANY, spans=1))
    found = choose(tried, count, 1, MANY.drop, "model")
    if value[0] == 0:
        assert list(tried) == [0]
        assert found == []
        return
    ((state, change),) = found
    assert abs(change) >= value[0] / count - 1e-12
    whole = [*value, 0.0]
    near = [whole[i] - whole[i + 1] for i in (state, state - 1) if 0 <= i < count]
    assert change in near
    assert value[state] > 0


@given(st.integers(1, 200), st.data())
def test_one_step_takes_a_logarithm_of_states(count: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, count - 1))
    tried, _ = search(lambda i: float(i <= at), count, 1, replace(MANY, spans=1))
    assert choose(tried, count, 1, 0.1, "model") == [(at, 1.0)]
    assert len(tried) <= 1 + math.ceil(math.log2(count)) if count > 1 else len(tried) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.none() | shares, min_size=1, max_size=30),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from(["model", "graft"]),
)
def test_bounded_and_never_twice(
    value: list[float | None], states: int, spans: int, completion: Completion
) -> None:
    config = ProbeConfig(states=states, spans=spans)
    tried, _ = search(value.__getitem__, len(value), 2, config, completion)
    assert len(tried) <= min(states, len(value))
    found = choose(tried, len(value), 2, config.drop, completion)
    assert all((tried[i] or 0) > 0 and abs(change) >= config.drop for i, change in found)
    if completion == "graft" and states >= len(value):  # nothing is missed
        best = sorted((v for v in value if v is not None), reverse=True)[:2]
        assert [change for _, change in found] == [v for v in best if v >= config.drop]


def test_a_state_without_a_judged_rollout_is_passed_by() -> None:
    """All of them broken from the top: the search goes on below."""
    value = [None, None, None, 0.75, 0.75, 0.0]
    tried, _ = search(value.__getitem__, 6, 1)
    assert choose(tried, 6, 1, 0.1, "model")[0] == (4, 0.75)
    # What lies behind an unjudged first state hides nothing of the rest.
    late = [None, *[0.5] * 6, 0.5, 0.0]
    tried, _ = search(late.__getitem__, 9, 1, replace(MANY, spans=1))
    assert choose(tried, 9, 1, 0.1, "model") == [(7, 0.5)]
    nothing, _ = search(lambda i: None, 6, 1)
    assert choose(nothing, 6, 1, 0.1, "model") == []


def test_a_statement_that_raises_the_value_gives_the_state_behind_it() -> None:
    assert choose({0: 0.25, 1: 0.75, 2: 0.75}, 3, 1, 0.1, "model") == [(2, 0.75)]
    assert choose({0: 0.0, 1: 1.0, 2: 0.5}, 3, 3, 0.1, "model") == [(1, -1.0), (2, 0.5)]


def test_small_changes_are_noise() -> None:
    assert choose({0: 0.05}, 1, 3, 0.1, "model") == []
    assert propose({0: 0.05}, 9, 3, ProbeConfig(), "model") == []
    assert propose({0: 0.5}, 9, 3, ProbeConfig(), "model") == [4]


def test_grafted_states_are_spread() -> None:
    assert propose({}, 4, 1, ProbeConfig(), "graft") == [0, 1, 2, 3]
    assert propose({}, 16, 1, ProbeConfig(states=4), "graft") == [0, 4, 8, 12]
    assert choose({0: 0.25, 4: 0.0, 8: 1.0}, 16, 9, 0.1, "graft") == [(8, 1.0), (0, 0.25)]


# States and nodes of a real golden path.


def bare() -> Tree:
    return hand_tree(POLICY, TASK, [], [])


def test_states_are_the_statements_starts() -> None:
    tree = bare()
    states = states_of(TASK, tree)
    assert [tree.golden[offset:].split()[0] for _, offset in states] == ["query", "cur", "return"]
    path = path_of(tree)
    assert all(path.starts[position] == offset for position, offset in states)
    assert len(GOLDEN.splitlines()) == len(states)


def test_rollouts_at_nodes_become_branches_and_count() -> None:
    tree = bare()
    states = states_of(TASK, tree)
    probing = with_states(with_states(tree, [states[0]], "CWE-89"), [states[1]], "CWE-89")
    labels = ["vulnerable", "secure", "invalid", "vulnerable"]
    for node, label in [*((0, one) for one in labels), (1, "secure"), (1, "secure")]:
        probing = with_branch(POLICY, TASK, probing, Grown(node, f"x = {node}\n", label))  # type: ignore[arg-type]
    assert probes_of(probing) == (Probe(*states[0], 3, 2), Probe(*states[1], 2, 0))
    values = values_of(probes_of(probing), states)
    assert values == {0: 2 / 3, 1: 0.0}
    best = choose(values, 3, 2, 0.1, "model")
    learnt = {"probe": risks_of(best, states, TASK)}
    config = NodeConfig(("diff", "probe"), "both", per_task=5)
    nodes = find_nodes(TASK, path_of(tree), config, learnt)
    assert (nodes[0].offset, nodes[0].source) == (states[0][1], "diff")  # diff came first
    only = find_nodes(TASK, path_of(tree), replace(config, sources=("probe",)), learnt)
    assert [(n.position, n.source, n.cwe) for n in only] == [(states[0][0], "probe", "CWE-89")]
    branches = reuse(only, probing)
    assert [b.ids for b in branches] == [b.ids for b in probing.branches[:4]]
    assert [b.logps for b in branches] == [b.logps for b in probing.branches[:4]]
    assert [(b.id, b.node) for b in branches] == [(i, 0) for i in range(4)]
    whole = replace(tree, nodes=tuple(only), branches=branches, probes=probes_of(probing))
    assert missing(whole, only[0], GrowConfig(branches=6)) == 2
    assert missing(whole, only[0], GrowConfig(branches=3)) == 0
    assert missing(whole, only[0], GrowConfig(branches=3, adaptive=0.1)) == 0
    assert tree_from_json(tree_to_json(whole)) == whole


def test_an_old_tree_has_no_probes() -> None:
    data = tree_to_json(bare())
    del data["probes"]
    assert tree_from_json(data) == bare()
