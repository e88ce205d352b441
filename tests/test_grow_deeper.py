"""Nodes on branches that went wrong late."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand import Grown, hand_tree, spelled, verdict_of, with_branch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grow import BAD, CONFIG, POLICY, QUERY, TASK, grown_with, writes

from treeplay import grow as grow_module
from treeplay.grow import deepen, grow, line_offset
from treeplay.policy.model import decode
from treeplay.policy.sample import Request
from treeplay.tree import Node


def test_a_late_mistake_gets_a_node_at_its_statement() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    assert deep.branches == tree.branches
    node = deep.nodes[1]
    assert (node.id, node.branch, node.source, node.cwe) == (1, 0, "late", "CWE-89")
    before = "\n    query = start(name)\n"
    assert spelled(POLICY, deep, node) == before
    assert node.offset == len(before)
    assert node.position == len(deep.prompt_ids) + len(before)
    assert deep.prefix(node) == deep.path(0)[: node.position]


@pytest.mark.parametrize(
    "one",
    [
        Grown(0, BAD, "vulnerable", line=0),  # wrong at once: the node is there already
        Grown(0, BAD, "vulnerable"),  # wrong, nobody knows where
        Grown(0, BAD, "secure", line=1),
        Grown(0, BAD, "invalid", line=1),
        Grown(0, BAD, None, line=1),
    ],
)
def test_other_branches_get_no_node(one: Grown) -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [one])
    assert deepen([TASK], [tree]) == [tree]


def test_a_finding_in_the_grafted_rest_gives_no_node() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, "query = name\n", "vulnerable", line=1)])
    rest = "    cur = db.execute(query, (name,))\n    return cur.fetchall()\n"
    grafted = replace(tree.branches[0], answer="\n    query = name\n" + rest, completion="graft")
    tree = replace(tree, branches=(grafted,))
    assert deepen([TASK], [tree]) == [tree]


def test_deepening_twice_adds_nothing() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    deep = deepen([TASK], [tree])
    assert deepen([TASK], deep) == deep


def test_growing_at_a_late_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the new node is grown; its answers begin with the branch's text; and a mistake made
    later still goes one level deeper."""
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    wrong = "    cur = open(name)\n    return cur.read(name)\n"
    safe = "    cur = db.execute(query, [name])\n    return cur\n"
    grown = grown_with(monkeypatch, deep, wrong + "\n\nx = 1\n", safe + "\n\nx = 1\n")
    assert grown.branches[0] == tree.branches[0]
    assert [(b.id, b.node) for b in grown.branches[1:]] == [(1, 1), (2, 1)]
    start = "\n    query = start(name)\n"
    assert [b.answer.rstrip("\n") + "\n" for b in grown.branches[1:]] == [
        start + wrong,
        start + safe,
    ]
    assert grown.branches[1].starts[0] == len(start)
    judged = replace(
        grown,
        branches=(
            grown.branches[0],
            replace(
                grown.branches[1], verdict=verdict_of(TASK, Grown(1, "", "vulnerable", line=2))
            ),
            replace(grown.branches[2], verdict=verdict_of(TASK, Grown(1, "", "secure"))),
        ),
    )
    (deeper,) = deepen([TASK], [judged])
    last = deeper.nodes[-1]
    assert (len(deeper.nodes), last.branch, last.source) == (3, 1, "late")
    assert spelled(POLICY, deeper, last) == start + "    cur = open(name)\n"
    assert last.offset == len(start + "    cur = open(name)\n")


def test_late_nodes_are_asked_with_their_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    asked: list[Request] = []
    monkeypatch.setattr(grow_module, "sample", writes("    cur = 1\n", asked=asked))
    grow(POLICY, [TASK], [deep], replace(CONFIG, branches=1), 0)
    (request,) = asked
    assert [row.position for row in request.rows] == [len(request.path)]
    assert request.path == deep.prefix(deep.nodes[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["x = 1", "y = 'é€'", "if x:\n        y = 2", 'z = """a\n b"""', "f(\n  1)"]
        ),
        min_size=2,
        max_size=5,
    ),
    st.data(),
)
def test_a_late_node_stands_where_a_statement_begins(
    statements: list[str], data: st.DataObject
) -> None:
    text = "\n    ".join(statements) + "\n"
    line = data.draw(st.integers(0, text.count("\n") - 1))
    ascii_text = text.replace("é€", "ee")  # one token a character
    one = Grown(0, ascii_text, "vulnerable", line=line)
    tree = hand_tree(POLICY, TASK, [QUERY], [one])
    (deep,) = deepen([TASK], [tree])
    starts = ["", *("\n    ".join(statements[:n]) + "\n" for n in range(1, len(statements)))]
    lines = [start.count("\n") for start in starts]
    holding = max(n for n, first in enumerate(lines) if first <= line)
    if holding == 0:
        assert deep.nodes == tree.nodes
        return
    assert spelled(POLICY, deep, deep.nodes[1]) == "\n    " + starts[holding].replace("é€", "ee")
    assert deep.nodes[1].offset == len("\n    " + starts[holding].replace("é€", "ee"))


def test_line_offsets() -> None:
    prompt_lines = TASK.prompt.count("\n") + 1
    answer = TASK.golden or ""
    assert line_offset(TASK, answer, 1) == 0
    assert line_offset(TASK, answer, prompt_lines) == 0
    assert line_offset(TASK, answer, prompt_lines + 1) == 1
    assert answer[line_offset(TASK, answer, prompt_lines + 2) :].startswith("    cur")
    assert line_offset(TASK, answer, 10_000) <= len(answer)


def test_a_tree_knows_its_paths() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    deep = with_branch(POLICY, TASK, deep, Grown(1, "    cur = 1\n"))
    assert decode(POLICY, deep.path(None)) == TASK.prompt + (TASK.golden or "")
    assert decode(POLICY, deep.path(1)) == (
        TASK.prompt + "\n    query = start(name)\n    cur = 1\n"
    )
    root = Node(9, None, len(deep.prompt_ids), 0, "root", None)
    assert deep.prefix(root) == deep.prompt_ids
