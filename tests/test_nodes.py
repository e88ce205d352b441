"""Risk nodes: on token boundaries of the golden path, where the sources say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import byte_tokenizer, tiny_llama
from hand import GOLDEN, at, hand_task
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.errors import TaskError
from treeplay.grow import plant
from treeplay.nodes import NodeConfig, boundary, find_nodes, statement_start
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.tasks.task import RiskNote, Task
from treeplay.tree import Node

POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
TASK = hand_task()


def nodes_of(task: Task, config: NodeConfig) -> list[Node]:
    return find_nodes(task, encode_path(POLICY, task, task.golden or ""), config)


def texts(task: Task, nodes: list[Node]) -> list[str]:
    """What the golden answer goes on with behind each node."""
    return [(task.golden or "")[node.offset :] for node in nodes]


def test_root() -> None:
    for place in ("statement", "token", "both"):
        (node,) = nodes_of(TASK, NodeConfig(("root",), place))
        assert (node.offset, node.source, node.cwe, node.branch) == (0, "root", "CWE-89", None)
        assert node.position == encode_path(POLICY, TASK).n_prompt


def test_diff_is_where_the_pair_parts() -> None:
    (token,) = nodes_of(TASK, NodeConfig(("diff",), "token"))
    assert texts(TASK, [token])[0].startswith('"SELECT * FROM t WHERE n = ?"')
    (start,) = nodes_of(TASK, NodeConfig(("diff",), "statement"))
    assert texts(TASK, [start])[0].startswith('query = "SELECT')
    both = nodes_of(TASK, NodeConfig(("diff",), "both"))
    assert [n.position for n in both] == [start.position, token.position]
    assert [n.id for n in both] == [0, 1]


def test_annotated_lines() -> None:
    note = RiskNote("cur = db.execute(query, (name,))", "CWE-564")
    task = replace(TASK, notes=(note,))
    (node,) = nodes_of(task, NodeConfig(("annotated",), "statement"))
    assert texts(task, [node])[0].startswith("cur = db.execute")
    assert (node.source, node.cwe) == ("annotated", "CWE-564")
    assert nodes_of(TASK, NodeConfig(("annotated",))) == []


def test_sinks_of_the_task_s_cwe_only() -> None:
    nodes = nodes_of(TASK, NodeConfig(("sink",), "token"))
    assert nodes
    assert [text.split("(")[0] for text in texts(TASK, nodes)][-1] == "db.execute"
    assert {n.source for n in nodes} == {"sink"}
    assert nodes_of(replace(TASK, cwe=("CWE-502",)), NodeConfig(("sink",))) == []


def test_sources_in_order_of_precedence_and_at_most_so_many() -> None:
    config = NodeConfig(("sink", "diff", "root"), "token", per_task=10)
    every = nodes_of(TASK, config)
    assert [n.source for n in every] == ["root", "sink", "diff", "sink"]
    assert [n.id for n in every] == [0, 1, 2, 3]
    assert [n.position for n in every] == sorted(n.position for n in every)
    assert [n.source for n in nodes_of(TASK, replace(config, per_task=1))] == ["sink"]
    assert [n.source for n in nodes_of(TASK, replace(config, per_task=2))] == ["sink", "sink"]
    first = replace(config, sources=("diff", "sink"), per_task=2)
    assert [n.source for n in nodes_of(TASK, first)] == ["sink", "diff"]


def test_no_pair_and_no_golden_give_no_node() -> None:
    assert nodes_of(replace(TASK, vulnerable=None), NodeConfig(("diff",))) == []
    assert nodes_of(replace(TASK, vulnerable=TASK.golden), NodeConfig(("diff",))) == []
    assert nodes_of(replace(TASK, golden=None), NodeConfig(("root", "diff"))) == []


def test_statement_start_leaves_white_space_out() -> None:
    golden = TASK.golden or ""
    assert golden[statement_start(TASK, golden, at(TASK, "execute")) :].startswith("cur = db")
    assert golden[statement_start(TASK, golden, 0) :].startswith("query")
    assert golden[statement_start(TASK, golden, len(golden) - 1) :].startswith("return")


def test_a_character_is_never_split() -> None:
    """Its bytes are tokens with one start; a prefix that ends among them spells nothing."""
    task = hand_task(golden='    name = "é€😀x"\n', vulnerable='    name = "é€🙈x"\n')
    (node,) = nodes_of(task, NodeConfig(("diff",), "token"))
    path = encode_path(POLICY, task, task.golden or "")
    assert decode(POLICY, path.ids[path.n_prompt : node.position]) == '\n    name = "é€'
    assert node.offset == len('\n    name = "é€')


LINES = st.lists(
    st.sampled_from(
        [
            "x = 1",
            'db.execute("é€" + name)',
            "for i in x:\n        y = '😀'",
            "return db",
            's = """a\n  b"""',
        ]
    ),
    min_size=1,
    max_size=5,
).map(lambda lines: "".join(f"    {line}\n" for line in lines))


@settings(max_examples=60, deadline=None)
@given(LINES, LINES, st.sampled_from(["statement", "token", "both"]))
def test_nodes_are_token_boundaries_that_spell_the_golden_text(
    golden: str, vulnerable: str, place: str
) -> None:
    task = hand_task(golden=golden, vulnerable=vulnerable)
    config = NodeConfig(("root", "sink", "diff"), place, per_task=9)  # type: ignore[arg-type]
    tree = plant(POLICY, task, config, room=8)
    assert len({node.position for node in tree.nodes}) == len(tree.nodes)
    for number, node in enumerate(tree.nodes):
        assert node.id == number
        assert node.position >= len(tree.prompt_ids)
        prefix = tree.prefix(node)
        assert prefix == (tree.prompt_ids + tree.golden_ids)[: node.position]
        spelled = decode(POLICY, prefix[len(tree.prompt_ids) :])
        assert spelled == (task.golden or "")[: node.offset]
        assert tree.golden_starts[node.position - len(tree.prompt_ids)] == node.offset


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_boundary_holds_the_character(data: st.DataObject) -> None:
    answer = "\n    " + data.draw(st.text(max_size=12))
    path = encode_path(POLICY, TASK, answer)
    offset = data.draw(st.integers(0, len(answer) - 1))
    position = boundary(path, offset)
    assert path.n_prompt <= position < len(path.ids)
    assert path.starts[position] == offset  # bytes are never longer than a character


def test_a_tree_that_does_not_fit_is_refused() -> None:
    length = len(encode_path(POLICY, TASK, TASK.golden or "").ids)
    plant(POLICY, TASK, NodeConfig(), room=1024 - length)
    with pytest.raises(TaskError, match=r"'py-089-find'.*too_long=skip"):
        plant(POLICY, TASK, NodeConfig(), room=1025 - length)


def test_the_golden_answer_begins_with_the_prompt_s_white_space() -> None:
    assert TASK.golden == "\n" + GOLDEN
    assert not TASK.prompt.endswith("\n")
