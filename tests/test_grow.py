"""Growing: seeded, on exact token prefixes, completed as asked, and deeper where it went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from hand import GOLDEN, Grown, at, hand_task, hand_tree, verdict_of

from treeplay import grow as grow_module
from treeplay.errors import TaskError
from treeplay.grow import GrowConfig, deepen, grow, missing, plant, wilson
from treeplay.nodes import NodeConfig
from treeplay.policy.model import Policy, decode
from treeplay.policy.sample import Done, Request, Sample, SampleConfig, Told
from treeplay.policy.score import plain_logps
from treeplay.policy.trunks import Kept
from treeplay.tasks.task import make_task
from treeplay.tree import Tree, tree_from_json, tree_to_json

POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
TASK = hand_task()
OTHER = hand_task(id="other", golden='    db.execute("é€", name)\n    return 1\n', vulnerable=None)
NODES = NodeConfig(("root", "diff", "sink"), "both", per_task=4)
CONFIG = GrowConfig(branches=3, max_tokens=6)
QUERY, EXECUTE = at(TASK, "query"), at(TASK, "cur")


def planted(*tasks: Any) -> list[Tree]:
    return [plant(POLICY, task, NODES, 8) for task in tasks]


def test_every_node_gets_its_branches() -> None:
    trees = grow(POLICY, [TASK, OTHER], planted(TASK, OTHER), CONFIG, 0)
    for tree in trees:
        assert len(tree.nodes) > 1
        assert [b.id for b in tree.branches] == list(range(len(tree.branches)))
        for node in tree.nodes:
            assert sum(b.node == node.id for b in tree.branches) == 3


@pytest.mark.parametrize("completion", ["model", "graft"])
def test_a_branch_continues_the_exact_prefix(completion: Any) -> None:
    """Its ids behind the node's prefix spell the answer's text before the node and its own; its
    raw log-probs are the plain model's."""
    config = replace(CONFIG, completion=completion)
    for tree in grow(POLICY, [TASK, OTHER], planted(TASK, OTHER), config, 0):
        for branch in tree.branches:
            node = tree.nodes[branch.node]
            prefix = tree.prefix(node)
            path = tree.path(branch.id)
            assert path == prefix + branch.ids
            assert decode(POLICY, path[len(tree.prompt_ids) :]) == (
                tree.golden[: node.offset] + branch.text
            )
            assert branch.starts[0] == node.offset
            assert list(branch.starts) == sorted(branch.starts)
            assert branch.answer.startswith(tree.golden[: node.offset])
            with torch.no_grad():
                (logps,) = plain_logps(POLICY.model, [path], [(len(prefix), len(path))])
            torch.testing.assert_close(torch.tensor(branch.logps), logps, atol=1e-4, rtol=0)


def test_the_same_seed_grows_the_same_tree_whatever_grows_beside_it() -> None:
    together = grow(POLICY, [TASK, OTHER], planted(TASK, OTHER), CONFIG, 5)
    alone = grow(POLICY, [OTHER], planted(OTHER), replace(CONFIG, rows_at_once=2), 5)
    ids = [[b.ids for b in tree.branches] for tree in (together[1], alone[0])]
    assert ids[0] == ids[1]
    assert grow(POLICY, [TASK, OTHER], planted(TASK, OTHER), CONFIG, 5) == together


def test_another_seed_grows_another_tree() -> None:
    one, two = (grow(POLICY, [TASK], planted(TASK), CONFIG, seed)[0] for seed in (1, 2))
    assert [b.ids for b in one.branches] != [b.ids for b in two.branches]
    assert one.nodes == two.nodes


def test_progress_counts_tokens_and_trees() -> None:
    counts: list[tuple[int, int]] = []
    trees = grow(
        POLICY, [TASK, OTHER], planted(TASK, OTHER), CONFIG, 0, lambda *told: counts.append(told)
    )
    tokens, finished = zip(*counts, strict=True)
    assert sum(tokens) == sum(len(b.ids) for tree in trees for b in tree.branches)
    assert sum(finished) == 2
    assert finished[0] == 0  # a branch has more than one token
    assert finished[-1] > 0


def test_a_grown_tree_keeps_through_json() -> None:
    import json

    (tree,) = grow(POLICY, [TASK], planted(TASK), CONFIG, 0)
    back = tree_from_json(json.loads(json.dumps(tree_to_json(tree))))
    rounded = [replace(b, logps=tuple(round(x, 6) for x in b.logps)) for b in tree.branches]
    assert back == replace(tree, branches=tuple(rounded))


Sampler = Callable[..., list[list[Sample]]]


def writes(*texts: str, asked: list[Request] | None = None) -> Sampler:
    """A sampler that writes these texts, a row each in turn, until the answer's end is seen."""

    def sampler(
        model: Any,
        requests: Sequence[Request],
        config: SampleConfig,
        stop_ids: frozenset[int],
        done: Callable[[int, int, Sequence[int]], bool],
        told: Any,
        kept: Kept | None,
    ) -> list[list[Sample]]:
        left = iter(texts)
        out = []
        for r, request in enumerate(requests):
            if asked is not None:
                asked.append(request)
            row_samples = []
            for i in range(len(request.rows)):
                ids: list[int] = []
                ended = "eos"
                for token in [*POLICY.tokenizer(next(left))["input_ids"], 0]:
                    ids.append(token)
                    if token and done(r, i, ids):
                        ended = "answer"
                        break
                row_samples.append(Sample(tuple(ids), (-1.0,) * len(ids), ended))  # type: ignore[arg-type]
            out.append(row_samples)
        return out

    return sampler


def grown_with(monkeypatch: pytest.MonkeyPatch, tree: Tree, *texts: str, **config: Any) -> Tree:
    monkeypatch.setattr(grow_module, "sample", writes(*texts))
    settings = replace(CONFIG, **{"branches": len(texts), **config})
    return grow(POLICY, [TASK], [tree], settings, 0)[0]


LONG = 'query = "..." + name\n    cur = 1\n    return cur\n\n\ndef more():\n    pass\n'


def test_model_completion_is_what_the_model_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grown_with(monkeypatch, hand_tree(POLICY, TASK, [QUERY], []), LONG, completion="model")
    (branch,) = tree.branches
    assert branch.answer == "\n    " + LONG[: LONG.index("\n\ndef")]
    assert branch.ended == "answer"
    assert branch.completion == "model"


@pytest.mark.parametrize(
    ("code", "text", "own"),
    [
        ("query", LONG, '\n    query = "..." + name\n'),
        ('"SELECT', '"..." + name\n    oops\n', '\n    query = "..." + name\n'),
        ("query", "query = 1", "\n    query = 1\n"),  # the model closed the text
        ("query", "query = (\n        1,\n    )\n    no\n", "\n    query = (\n        1,\n    )\n"),
    ],
)
def test_graft_puts_the_golden_rest_behind_the_branch_s_statement(
    monkeypatch: pytest.MonkeyPatch, code: str, text: str, own: str
) -> None:
    tree = hand_tree(POLICY, TASK, [at(TASK, code)], [])
    (branch,) = grown_with(monkeypatch, tree, text, completion="graft").branches
    rest = "    cur = db.execute(query, (name,))\n    return cur.fetchall()\n"
    assert branch.answer == own + rest
    compile(TASK.program(branch.answer), "program", "exec")


def test_graft_in_a_later_statement_and_at_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = GOLDEN.splitlines(keepends=True)[0]
    tree = hand_tree(POLICY, TASK, [EXECUTE, at(TASK, "return")], [])
    both = grown_with(monkeypatch, tree, "cur = bad(query)\n    x", "return 5\n    y", branches=1)
    second, last = both.branches
    assert second.answer == f"\n{first}    cur = bad(query)\n    return cur.fetchall()\n"
    assert last.answer == f"{(TASK.golden or '')[: at(TASK, 'return')]}return 5\n"
    assert [b.ended for b in both.branches] == ["answer", "answer"]


def test_a_whole_compound_statement_is_grafted(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(
        id="c",
        language="c",
        cwe=("CWE-787",),
        prompt="void set(char *to, const char *from, int n)\n{\n",
        golden="    if (n > 3) {\n        n = 3;\n    }\n    strncpy(to, from, n);\n}\n",
    )
    tree = hand_tree(POLICY, task, [at(task, "if")], [])
    monkeypatch.setattr(
        grow_module, "sample", writes("while (n > 3) {\n        n--;\n    }\n    strcpy(to")
    )
    (out,) = grow(POLICY, [task], [tree], replace(CONFIG, branches=1), 0)
    assert out.branches[0].answer == (
        "\n    while (n > 3) {\n        n--;\n    }\n    strncpy(to, from, n);\n}\n"
    )


BAD = "query = start(name)\n    cur = db.execute(query + name)\n    return 1\n"


# Waves: a node that is known well enough gets no more branches.


@pytest.mark.parametrize(
    ("labels", "adaptive", "expected"),
    [
        ("", 0.0, 16),
        ("s", 0.0, 0),
        ("", 0.4, 4),
        ("vvvv", 0.4, 4),  # 0.51 to 1
        ("vvvv", 0.5, 0),
        ("vvss", 0.1, 0),  # both kinds, surely
        ("vsss", 0.1, 4),
        ("iiiisss", 0.1, 4),
        ("v" * 14, 0.1, 2),  # 0.78 to 1; never more than there are to be
        ("v" * 14, 0.25, 0),
        ("v" * 16, 0.01, 0),
        # What decides nothing makes no rate known.
        ("iiiiiiii", 0.4, 4),
        ("uuuuvvv", 0.5, 4),
    ],
)
def test_how_many_branches_a_node_misses(labels: str, adaptive: float, expected: int) -> None:
    words: dict[str, Any] = {
        "v": "vulnerable",
        "s": "secure",
        "i": "invalid",
        "u": "unknown",
    }
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, words[one]) for one in labels])
    config = replace(CONFIG, branches=16, adaptive=adaptive, wave=4)
    assert missing(tree, tree.nodes[0], config) == expected


def test_wilsons_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    # Agresti and Coull (1998), two decimals
    assert [round(x, 3) for x in wilson(0, 10)] == [0.0, 0.278]
    assert [round(x, 3) for x in wilson(5, 10)] == [0.237, 0.763]
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_waves_sample_the_first_of_what_is_sampled_at_once() -> None:
    (whole,) = grow(POLICY, [TASK], planted(TASK), replace(CONFIG, branches=7), 3)
    config = replace(CONFIG, branches=7, adaptive=1e-9, wave=3)
    trees = planted(TASK)
    waves = 0
    kept = Kept(8)
    unsure = verdict_of(TASK, Grown(0, "", "invalid"))
    while any(missing(trees[0], node, config) for node in trees[0].nodes):
        trees = grow(POLICY, [TASK], trees, config, 3, kept=kept)
        branches = tuple(replace(branch, verdict=unsure) for branch in trees[0].branches)
        trees = [replace(trees[0], branches=branches)]
        waves += 1
    assert (waves, kept.hits, kept.misses) == (3, 2, 1)
    for node in whole.nodes:
        once, by_waves = (
            [(b.ids, b.answer) for b in tree.branches if b.node == node.id]
            for tree in (whole, trees[0])
        )
        assert once == by_waves
        assert len(once) == 7


def test_the_golden_path_is_read_once_for_all_levels() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    plain = grow(POLICY, [TASK], [deep], CONFIG, 1)
    kept = Kept(8)
    config = replace(CONFIG, depth=2)
    grow(POLICY, [TASK], [replace(tree, branches=())], config, 1, kept=kept)
    shared = grow(POLICY, [TASK], [deep], config, 1, kept=kept)
    assert (kept.hits, kept.misses) == (1, 1)
    assert [b.ids for b in shared[0].branches] == [b.ids for b in plain[0].branches]
    assert grow(POLICY, [TASK], [deep], config, 1) == shared  # to the last bit, nothing kept


def test_no_node_where_a_branch_would_not_fit() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [Grown(0, BAD, "vulnerable", line=1)])
    (deep,) = deepen([TASK], [tree])
    position = deep.nodes[1].position
    assert deepen([TASK], [tree], position) == [deep]
    assert deepen([TASK], [tree], position - 1) == [tree]


def test_a_node_before_the_first_token_is_refused() -> None:
    tree = hand_tree(POLICY, TASK, [QUERY], [])
    tree = replace(tree, nodes=(replace(tree.nodes[0], position=0),))
    with pytest.raises(TaskError, match="'py-089-find' has a risk node before its first token"):
        grow(POLICY, [TASK], [tree], CONFIG, 0)


def test_a_node_at_the_end_and_a_branch_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model closes the text at once: a branch with an end mark and no text."""
    tree = hand_tree(POLICY, TASK, [QUERY], [])
    end = len(tree.path(None))
    node = replace(tree.nodes[0], position=end, offset=len(tree.golden))
    tree = replace(tree, nodes=(node,))
    (out,) = grow(POLICY, [TASK], [tree], replace(CONFIG, completion="model"), 0)
    assert [b.node for b in out.branches] == [0, 0, 0]
    silent = replace(POLICY, model=tiny_llama(), sampler=closes_at_once)
    (out,) = grow(silent, [TASK], [tree], replace(CONFIG, completion="model"), 0)
    for branch in out.branches:
        assert (branch.ids, branch.text, branch.answer) == ((0,), "", tree.golden)


def closes_at_once(
    requests: Sequence[Request],
    config: SampleConfig,
    stop_ids: frozenset[int],
    done: Done | None = None,
    told: Told | None = None,
) -> list[list[Sample]]:
    return [[Sample((0,), (-1.0,), "eos") for _ in request.rows] for request in requests]
