"""The opponent's log-probs: scored, or those from sampling where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import tiny_llama
from test_groups import CONFIG, policy_of, trees

from treeplay.contrast import Contrast
from treeplay.opponent import DRIFT, score_opponent, with_sampled
from treeplay.train import TrainConfig, contrast_logps
from treeplay.tree import Branch, Node, Tree

REUSE = replace(CONFIG, reference="reuse", max_tokens=120)


@pytest.fixture(scope="module")
def scored() -> list[Contrast]:
    return score_opponent(policy_of(tiny_llama()), trees(7, 4), CONFIG)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of the continuations of every forward pass."""
    counts: list[int] = []

    def logps(model: Any, contrasts: Sequence[Contrast], packed: bool) -> Any:
        counts.append(sum(len(c.chosen) + len(c.rejected) for c in contrasts))
        return contrast_logps(model, contrasts, packed)

    monkeypatch.setattr("treeplay.opponent.contrast_logps", logps)
    return counts


def sampled(scored: Sequence[Contrast], off: float = 0.0) -> list[Contrast]:
    """As drawn, with log-probs for the rejected sides alone."""
    return [
        replace(c, chosen_opp=(), rejected_opp=tuple(x + off for x in c.rejected_opp))
        for c in scored
    ]


def test_sampled_log_probs_are_kept_and_the_rest_is_scored(
    scored: list[Contrast], tokens: list[int]
) -> None:
    marked = [
        replace(c, rejected_opp=tuple(x + DRIFT / 2 for x in c.rejected_opp))
        for c in sampled(scored)
    ]
    said: list[str] = []
    progress: list[int] = []
    out = score_opponent(
        policy_of(tiny_llama()), marked, REUSE, lambda n, t: progress.append(n), said.append
    )
    assert not said
    assert sum(progress) == len(scored)
    for one, given, truth in zip(out, marked, scored, strict=True):
        assert (one.prefix, one.chosen, one.rejected) == (
            truth.prefix,
            truth.chosen,
            truth.rejected,
        )
        assert one.chosen_opp == pytest.approx(truth.chosen_opp, abs=1e-4)
        if one.task == "t0":  # the tree that was scored to compare
            assert one.rejected_opp == pytest.approx(truth.rejected_opp, abs=1e-4)
        else:
            assert one.rejected_opp == given.rejected_opp
    first = [c for c in scored if c.task == "t0"]
    assert sum(tokens) == sum(len(c.chosen) for c in scored) + sum(len(c.rejected) for c in first)


def test_they_are_those_of_the_player_that_is_the_contrast_s_opponent() -> None:
    node = Node(0, None, 2, 0, "root", None)
    both = [
        Branch(i, 0, (5, 6), (logp, logp), (0, 1), "ab", "ab", "model", "answer", opponent=by)
        for i, (by, logp) in enumerate((("base", -1.0), ("round-1", -2.0)))
    ]
    tree = Tree("t", (1, 2), (3, 4), (0, 1), "cd", (node,), tuple(both))
    one = Contrast("t", 0, (1, 2), (3, 4), (5,), 1.0)
    for by, logps in (("base", (-1.0,)), ("round-1", (-2.0,)), ("round-2", ())):
        (found,) = with_sampled([replace(one, opponent=by)], [tree])
        assert (found.chosen_opp, found.rejected_opp) == ((), logps)


def test_log_probs_that_drift_are_scored_again(scored: list[Contrast], tokens: list[int]) -> None:
    said: list[str] = []
    out = score_opponent(
        policy_of(tiny_llama()), sampled(scored, 3 * DRIFT), REUSE, say=said.append
    )
    assert len(said) == 1
    assert "off by up to 0.003 nats a token; the opponent is scored instead" in said[0]
    check(out, scored)
    assert sum(tokens) == sum(len(c.chosen) + len(c.rejected) for c in scored)  # none twice


def check(out: Sequence[Contrast], truth: Sequence[Contrast], atol: float = 1e-4) -> None:
    for one, other in zip(out, truth, strict=True):
        assert one.chosen_opp == pytest.approx(other.chosen_opp, abs=atol)
        assert one.rejected_opp == pytest.approx(other.rejected_opp, abs=atol)


@pytest.mark.parametrize("config", [CONFIG, REUSE])
def test_they_are_not_used_where_they_were_not_asked_for_or_not_safe(
    scored: list[Contrast], config: TrainConfig
) -> None:
    reuse = config.reference == "reuse"
    said: list[str] = []
    model = tiny_llama()
    wrong = sampled(scored, 1e-4 if reuse else 9.0)
    out = score_opponent(
        policy_of(model.bfloat16() if reuse else model), wrong, config, None, said.append
    )
    assert said == (
        ["train.reference=reuse needs model.dtype=float32; the opponent is scored instead"]
        if reuse
        else []
    )
    check(out, scored, 0.2 if reuse else 1e-4)
    assert all(
        a.rejected_opp != b.rejected_opp for a, b in zip(out, wrong, strict=True) if a.rejected
    )


def test_everything_known_needs_only_the_comparison(
    scored: list[Contrast], tokens: list[int]
) -> None:
    assert score_opponent(policy_of(tiny_llama()), scored, REUSE)[20:] == scored[20:]
    first = [c for c in scored if c.task == "t0"]
    assert sum(tokens) == sum(len(c.chosen) + len(c.rejected) for c in first)


def test_branches_give_their_log_probs_to_what_they_begin_with() -> None:
    def branch(number: int, node: int, ids: tuple[int, ...]) -> Branch:
        logps = tuple(-1.0 - number - i / 10 for i in range(len(ids)))
        return Branch(number, node, ids, logps, tuple(range(len(ids))), "", "", "graft", "answer")

    nodes = (Node(0, None, 2, 0, "root", None), Node(1, None, 3, 1, "sink", None))
    branches = (branch(0, 0, (7, 8, 9)), branch(1, 0, (7, 9)), branch(2, 1, (9, 9)))
    tree = Tree("t", (1, 2), (3, 4), (0, 1), "", nodes, branches)
    contrasts = [
        Contrast("t", 0, (1, 2), (3, 4), (7, 8), 1.0),
        Contrast("t", 0, (1, 2), (7, 9), (7, 8, 9), 1.0),
        Contrast("t", 1, (1, 2, 3), (4,), (7, 8), 1.0),  # of another node
        Contrast("t", -1, (1, 2), (7, 8), (), 1.0),
        Contrast("u", 0, (1, 2), (7, 8), (9, 9), 1.0),
    ]
    out = with_sampled(contrasts, [tree])
    assert [c.chosen_opp for c in out] == [(), (-2.0, -2.1), (), (), ()]
    assert [c.rejected_opp for c in out] == [(-1.0, -1.1), (-1.0, -1.1, -1.2), (), (), ()]
