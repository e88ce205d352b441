"""Weights by value: worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from conftest import byte_tokenizer, tiny_llama
from hand import Grown, at, hand_task, hand_tree
from hypothesis import given
from hypothesis import strategies as st

from treeplay.config import load_config
from treeplay.contrast import Contrast, ContrastConfig
from treeplay.contrasts import tsp
from treeplay.errors import ConfigError
from treeplay.policy.model import Policy
from treeplay.tree import Probe, Tree
from treeplay.values import Share, drop

POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
TASK = hand_task()
GOLDEN_LINE = '    query = "SELECT * FROM t WHERE n = ?"\n'
BAD = "query = f\"SELECT * FROM t WHERE n = '{name}'\"\n"
GOOD = 'query = "SELECT * FROM t WHERE n=?"\n'
REST = "    cur = db.execute(query)\n    return cur.fetchall()\n"


def test_the_formula_by_hand() -> None:
    # V(s) 3/4, V(s+a) 1/4; 1/n = 1/4 + 1/4, n = 2, and one rollout of doubt
    assert drop(Share(4, 3), Share(4, 1), 1.0) == pytest.approx(0.5 * 2 / 3)
    assert drop(Share(4, 3), Share(4, 1), 0.0) == pytest.approx(0.5)
    # nothing left to chance behind the choice: n = 8
    assert drop(Share(8, 8), None, 1.0) == pytest.approx(8 / 9)
    assert drop(Share(8, 4), None, 0.0) == 0.5
    # a choice that makes it worse, and nothing known
    assert drop(Share(4, 1), Share(4, 3), 1.0) == 0.0
    assert drop(Share(0, 0), None, 1.0) == 0.0
    assert drop(Share(4, 4), Share(0, 0), 1.0) == 0.0


counts = st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(counts, st.none() | counts, st.floats(0, 100))
def test_within_bounds_and_shrunk(
    state: tuple[int, int], after: tuple[int, int] | None, prior: float
) -> None:
    behind = Share(*after) if after else None
    weight = drop(Share(*state), behind, prior)
    raw = drop(Share(*state), behind, 0.0)
    assert 0 <= weight <= raw <= 1
    # more rollouts of the same shares are believed more
    more = Share(10 * after[0], 10 * after[1]) if after else None
    assert drop(Share(10 * state[0], 10 * state[1]), more, prior) >= weight - 1e-12


def drawn(tree: Tree, **changes: object) -> list[Contrast]:
    config = replace(ContrastConfig(weights="value"), **changes)  # type: ignore[arg-type]
    return tsp(POLICY, TASK, tree, config, Counter())


def test_a_grafted_choice_is_certain() -> None:
    grown = [
        *[Grown(0, BAD, "vulnerable", 0, completion="graft") for _ in range(3)],
        Grown(0, GOOD, "secure", completion="graft"),
        Grown(0, "query = (\n", "invalid", completion="graft"),
    ]
    tree = hand_tree(POLICY, TASK, [at(TASK, "query =")], grown)
    contrasts = drawn(tree)
    assert len(contrasts) == 2  # golden and the secure sibling over the one mistake
    assert all(c.weight == pytest.approx(0.75 * 4 / 5) for c in contrasts)
    rate = drawn(tree, weights="rate")
    assert [replace(c, weight=0.75) for c in contrasts] == rate
    assert {c.weight for c in drawn(tree, weights="uniform")} == {1.0}


def test_a_choice_that_later_goes_wrong_is_worth_less() -> None:
    """Three rollouts take the same secure statement; one of them goes wrong later."""
    grown = [
        Grown(0, BAD + REST, "vulnerable", 0),
        Grown(0, BAD + REST, "vulnerable", 0),
        Grown(0, GOOD + REST, "secure"),
        Grown(0, GOOD + "    return []\n", "secure"),
        Grown(0, GOOD + "    cur = db.execute(name)\n", "vulnerable", 1),
    ]
    tree = hand_tree(POLICY, TASK, [at(TASK, "query =")], grown)
    contrasts = {POLICY.tokenizer.decode(c.chosen): c.weight for c in drawn(tree)}
    # the sibling: V(s) = 3/5, V(s+a) = 1/3 of 3; 1/n = 1/5 + 1/3
    count = 1 / (1 / 5 + 1 / 3)
    sibling = (3 / 5 - 1 / 3) * count / (count + 1)
    assert contrasts[GOOD.strip()] == pytest.approx(sibling)
    # golden: no rollout went that way, so it stands in for one
    count = 1 / (1 / 5 + 1)
    assert contrasts[GOLDEN_LINE.strip()] == pytest.approx(3 / 5 * count / (count + 1))


def test_rollouts_behind_the_golden_statement_count() -> None:
    grown = [Grown(0, BAD + REST, "vulnerable", 0)] * 3 + [Grown(0, GOOD + REST, "secure")]
    tree = hand_tree(POLICY, TASK, [at(TASK, "query =")], grown)
    offset = at(TASK, "cur =")
    position = len(tree.prompt_ids) + tree.golden_starts.index(offset)
    probed = replace(tree, probes=(Probe(position, offset, 4, 2),))
    golden = next(c for c in drawn(probed) if c.chosen == drawn(tree)[0].chosen)
    # V(s) = 3/4 of 4, V(s+a) = 2/4 of 4
    assert golden.weight == pytest.approx((3 / 4 - 2 / 4) * 2 / 3)
    # a statement further down says nothing of this one
    far = at(TASK, "return")
    position = len(tree.prompt_ids) + tree.golden_starts.index(far)
    other = replace(tree, probes=(Probe(position, far, 4, 4),))
    assert drawn(other) == drawn(tree)


def test_the_next_node_s_branches_count_too() -> None:
    second = [Grown(1, "cur = db.execute(name)\n", "vulnerable", 1)] * 2
    second += [Grown(1, "cur = db.execute(query, [name])\n", "secure")] * 2
    first = [Grown(0, BAD + REST, "vulnerable", 0)] * 3 + [Grown(0, GOOD + REST, "secure")]
    tree = hand_tree(POLICY, TASK, [at(TASK, "query ="), at(TASK, "cur =")], first + second)
    golden = next(c for c in drawn(tree) if c.node == 0)
    assert golden.weight == pytest.approx((3 / 4 - 2 / 4) * 2 / 3)


def test_a_choice_without_a_drop_teaches_nothing() -> None:
    grown = [Grown(0, BAD + REST, "vulnerable", 0), Grown(0, GOOD + REST, "secure")]
    tree = hand_tree(POLICY, TASK, [at(TASK, "query =")], grown)
    offset = at(TASK, "cur =")
    position = len(tree.prompt_ids) + tree.golden_starts.index(offset)
    worse = replace(tree, probes=(Probe(position, offset, 4, 4),))
    counts: Counter[str] = Counter()
    config = ContrastConfig(weights="value", siblings=False)
    assert tsp(POLICY, TASK, worse, config, counts) == []
    assert counts["without_a_drop"] == 1
    assert len(tsp(POLICY, TASK, worse, replace(config, weights="rate"), counts)) == 1


def test_the_prior_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"contrasts\.value_prior is -1"):
        load_config(None, ["contrasts.value_prior=-1"])
