"""Contrasts of hand-made trees: what is preferred to what, and how far each extent goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from conftest import byte_tokenizer, tiny_llama
from hand import Grown, at, hand_task, hand_tree, spelled, with_branch
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.contrast import Contrast, ContrastConfig
from treeplay.contrasts import METHODS, draw_contrasts
from treeplay.grow import deepen
from treeplay.judge.verdict import LABELS, Label, Verdict
from treeplay.policy.model import Policy, decode
from treeplay.tree import Branch, Tree

POLICY = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
TASK = hand_task()
QUERY = at(TASK, "query")
EXECUTE = at(TASK, "cur")
LOCAL = ContrastConfig()
END = POLICY.tokenizer.eos_token_id
GOOD = '"SELECT * FROM t WHERE n = ?"'


def drawn(tree: Tree, config: ContrastConfig = LOCAL, method: str = "tsp") -> list[Contrast]:
    return list(draw_contrasts(method, POLICY, [TASK], [tree], config).contrasts)


def text(ids: tuple[int, ...]) -> str:
    return decode(POLICY, ids)


def pairs(contrasts: list[Contrast]) -> list[tuple[str, str]]:
    return [(text(c.chosen), text(c.rejected)) for c in contrasts]


def tree_of(*grown: Grown, offsets: tuple[int, ...] = (QUERY,)) -> Tree:
    return hand_tree(POLICY, TASK, list(offsets), list(grown))


BAD = Grown(0, 'query = "... " + name\n    cur = 1\n    return 1\n', "vulnerable", line=0)


def test_golden_against_a_vulnerable_branch() -> None:
    tree = tree_of(BAD)
    (one,) = drawn(tree)
    assert pairs([one]) == [(f"query = {GOOD}", 'query = "... " + name')]
    assert one.prefix == tree.prefix(tree.nodes[0])
    assert spelled(POLICY, tree, tree.nodes[0]) == "\n    "
    assert (one.task, one.node, one.weight) == (TASK.id, 0, 1.0)


def test_the_local_extent_ends_with_the_statement_of_the_finding() -> None:
    long = 'query = "..."\n    cur = db.execute(\n        query + name,\n    )\n    return 1\n'
    for line in (1, 2, 3):  # any line of the second statement
        (one,) = drawn(tree_of(Grown(0, long, "vulnerable", line=line)))
        assert text(one.rejected) == long[: long.index("\n    return")]
    (first,) = drawn(tree_of(Grown(0, long, "vulnerable", line=0)))
    assert text(first.rejected) == 'query = "..."'
    (last,) = drawn(tree_of(Grown(0, long, "vulnerable", line=4)))
    assert text(last.rejected) == long.rstrip()
    # A finding before the node (the prompt's own line, say) decides nothing earlier than the node.
    (before,) = drawn(tree_of(Grown(0, long, "vulnerable", line=-3)))
    assert text(before.rejected) == 'query = "..."'
    (nowhere,) = drawn(tree_of(Grown(0, long, "vulnerable")))
    assert text(nowhere.rejected) == 'query = "..."'


def test_the_full_extent_is_the_whole_answer() -> None:
    more = BAD.text + "\n\ndef other():\n    pass\n"
    config = ContrastConfig(extent="full")
    golden = (TASK.golden or "")[QUERY:]
    (one,) = drawn(tree_of(replace(BAD, text=more)), config)
    assert pairs([one]) == [(golden, BAD.text)]
    assert one.rejected[-1] == one.chosen[-1] == END  # neither side is told by its end
    (short,) = drawn(tree_of(replace(BAD, ended="length")), config)
    assert short.rejected[-1] != END
    (ended,) = drawn(tree_of(replace(BAD, ended="eos")), config)
    assert ended.rejected == tree_of(replace(BAD, ended="eos")).branches[0].ids
    (local,) = drawn(tree_of(replace(BAD, text='query = "a" + name', ended="eos")))
    assert 0 not in local.rejected


def test_a_node_in_the_middle_of_a_statement() -> None:
    offset = at(TASK, GOOD)
    tree = tree_of(Grown(0, 'f"{name}"\n    return 1\n', "vulnerable", line=0), offsets=(offset,))
    assert pairs(drawn(tree)) == [(GOOD, 'f"{name}"')]


def test_a_grafted_branch_is_its_own_statement_only() -> None:
    """What follows it is golden, so a finding that lies there still speaks of the branch, and
    neither the golden rest nor an end mark is taken from what was sampled."""
    sampled = 'query = "..." + name\n    oops = 1\n    oops = 2\n'
    own = 'query = "..." + name'
    for line in (0, 1, 2):
        for config in (LOCAL, ContrastConfig(extent="full")):
            for ended in ("answer", "eos"):
                one = Grown(0, sampled, "vulnerable", line, ended, "graft")
                tree = tree_of(one)
                rest = (TASK.golden or "")[EXECUTE - 4 :]
                grafted = replace(tree.branches[0], answer=f"\n    {own}\n{rest}")
                (contrast,) = drawn(replace(tree, branches=(grafted,)), config)
                assert text(contrast.rejected) == own
                assert 0 not in contrast.rejected


def test_secure_siblings_are_preferred_too() -> None:
    safe = Grown(0, "query = safe(name)\n    return 2\n", "secure")
    assert pairs(drawn(tree_of(BAD, safe))) == [
        (f"query = {GOOD}", 'query = "... " + name'),
        ("query = safe(name)", 'query = "... " + name'),
    ]
    alone = drawn(tree_of(BAD, safe), ContrastConfig(siblings=False))
    assert pairs(alone) == [(f"query = {GOOD}", 'query = "... " + name')]


def test_a_secure_sibling_that_fails_the_tests_is_neither_preferred_nor_rejected() -> None:
    safe = Grown(0, "query = safe(name)\n    return 2\n", "secure")
    tree = tree_of(BAD, safe, replace(safe, label="vulnerable", line=0))
    failing = replace(tree.branches[1], verdict=Verdict("secure", "executed", (), False))
    tree = replace(tree, branches=(tree.branches[0], failing, tree.branches[2]))
    drawn_ = draw_contrasts("tsp", POLICY, [TASK], [tree], LOCAL)
    assert pairs(list(drawn_.contrasts)) == [(f"query = {GOOD}", 'query = "... " + name')]
    assert (drawn_.counts["secure_but_failing"], drawn_.counts["undecided"]) == (1, 1)


@pytest.mark.parametrize("method", ["tsp", "tsp-paper"])
@pytest.mark.parametrize("extent", ["local", "full"])
def test_who_sampled_the_rejected_side_is_known(
    method: str, extent: Literal["local", "full"]
) -> None:
    """Of whole answers too, which are closed, so that they are no beginning of what was sampled."""
    tree = tree_of(BAD, BAD, Grown(0, 'query = "b" + name\n    return 1\n', "vulnerable", 0))
    names = ("base", "round-1", "round-1")
    signed = [replace(b, opponent=by) for b, by in zip(tree.branches, names, strict=True)]
    tree = replace(tree, branches=tuple(signed))
    found = drawn(tree, ContrastConfig(extent=extent), method)
    both = ("base", "round-1")
    expected = [both, ("round-1",)] if method == "tsp" else [("base",), *[("round-1",)] * 2]
    assert [contrast.sampled_by for contrast in found] == expected


def test_the_given_vulnerable_answer_is_rejected_where_it_comes_by() -> None:
    given = "query = f\"SELECT * FROM t WHERE n = '{name}'\""
    config = ContrastConfig(given=True)
    (one,) = drawn(tree_of(), config)
    assert pairs([one]) == [(f"query = {GOOD}", given)]
    assert (one.sampled_by, one.weight) == ((), 1.0)
    both = drawn(tree_of(BAD), config)
    assert [r for _, r in pairs(both)] == [given, 'query = "... " + name']
    (whole,) = drawn(tree_of(), ContrastConfig("full", given=True))
    assert text(whole.rejected[:-1]) == (TASK.vulnerable or "")[QUERY:]
    assert whole.rejected[-1] == END
    # Behind the place where it parts from the golden answer it does not come by.
    assert drawn(tree_of(offsets=(EXECUTE,)), config) == []
    # Nothing is wrong with a decision that an opponent was secure by.
    secure = Grown(0, given + "\n    return safe(query)\n", "secure")
    assert drawn(tree_of(secure), config) == []
    # Nor does one weigh anything by a rate that is 0.
    assert drawn(tree_of(), ContrastConfig(weights="rate", given=True)) == []
    # At a node before it parts, it is learnt to the statement that it parts in.
    later = replace(TASK, vulnerable=(TASK.golden or "").replace("(name,)", "name"))
    found = draw_contrasts("tsp", POLICY, [later], [tree_of(BAD)], config).contrasts
    begin = f"query = {GOOD}"
    assert pairs(list(found)) == [
        (begin, (later.vulnerable or "")[QUERY:].partition("\n    return")[0]),
        (begin, 'query = "... " + name'),
    ]
    bare = replace(TASK, vulnerable=None)
    assert not draw_contrasts("tsp", POLICY, [bare], [tree_of()], config).contrasts


def test_equal_branches_count_once() -> None:
    assert len(drawn(tree_of(BAD, BAD, BAD))) == 1
    tail = replace(BAD, text=BAD.text.replace("return 1", "return 9"))
    assert len(drawn(tree_of(BAD, tail))) == 1  # they differ behind the extent


def test_more_mistakes_than_answers_and_the_other_way_round() -> None:
    bad = [Grown(0, f"query = {i} + name\n", "vulnerable", 0) for i in range(3)]
    safe = [Grown(0, f"query = safe({i})\n", "secure") for i in range(4)]
    few = drawn(tree_of(*bad, safe[0]))
    assert [r for _, r in pairs(few)] == [f"query = {i} + name" for i in range(3)]
    assert {c for c, _ in pairs(few)} == {f"query = {GOOD}", "query = safe(0)"}
    many = drawn(tree_of(bad[0], *safe))
    assert [c for c, _ in pairs(many)] == [f"query = {GOOD}"] + [
        f"query = safe({i})" for i in range(4)
    ]
    assert {r for _, r in pairs(many)} == {"query = 0 + name"}


def test_nothing_is_learnt_where_nothing_went_wrong() -> None:
    assert drawn(tree_of(Grown(0, "query = safe(name)\n", "secure"))) == []
    assert drawn(tree_of()) == []


def test_tokens_that_end_well_and_badly_decide_nothing() -> None:
    late = Grown(0, "query = same\n    cur = bad\n", "vulnerable", line=0)
    good = Grown(0, "query = same\n    cur = good\n", "secure")
    found = draw_contrasts("tsp", POLICY, [TASK], [tree_of(late, good)], LOCAL)
    assert found.contrasts == ()
    assert found.counts["undecided"] == 1
    golden = tree_of(Grown(0, (TASK.golden or "")[QUERY:], "vulnerable", line=0))
    assert drawn(golden) == []  # the golden text itself is never rejected


def test_rate_weights() -> None:
    labels: list[Label] = ["vulnerable", "secure", "secure", "invalid", "unknown", "inert"]
    grown = [Grown(0, f"query = f{i}(name)\n", label, 0) for i, label in enumerate(labels)]
    contrasts = drawn(tree_of(*grown, grown[0]), ContrastConfig(weights="rate"))
    assert {c.weight for c in contrasts} == {0.5}  # two of the four that are either
    assert {c.weight for c in drawn(tree_of(*grown, grown[0]))} == {1.0}


def test_branches_that_do_not_work_are_rejected_where_asked() -> None:
    invalid = Grown(0, "query = (\n", "invalid", completion="graft")
    failing = Grown(0, "query = 0\n", "inert", completion="graft")
    untested = Grown(0, "query = 1\n", "inert", completion="graft")
    cut = Grown(0, "query = 2 +", "invalid", ended="length", completion="graft")
    longer = Grown(0, "query = 3\n    cur = 4\n", "invalid")  # which statement broke it?
    tree = tree_of(invalid, failing, untested, cut, longer)
    branch = tree.branches[1]
    assert branch.verdict is not None
    seen = replace(branch, verdict=replace(branch.verdict, functional=False))
    tree = replace(tree, branches=(tree.branches[0], seen, *tree.branches[2:]))
    assert drawn(tree) == []
    found = drawn(tree, ContrastConfig(broken=0.5, weights="rate"))
    golden = f"query = {GOOD}"
    assert pairs(found) == [(golden, "query = ("), (golden, "query = 0")]
    assert {c.weight for c in found} == {0.5}
    whole = drawn(tree, ContrastConfig(broken=0.5, extent="full"))
    assert pairs(whole)[-1] == (golden + (TASK.golden or "").partition(GOOD)[2], longer.text)
    # The others are what they are without them.
    safe = Grown(0, "query = safe(name)\n", "secure", completion="graft")
    tree = with_branch(POLICY, TASK, with_branch(POLICY, TASK, tree, BAD), safe)
    for siblings in (True, False):
        plain = drawn(tree, ContrastConfig(siblings=siblings))
        both = drawn(tree, ContrastConfig(siblings=siblings, broken=0.5))
        assert both[: len(plain)] == plain
        chosen = "query = safe(name)" if siblings else golden
        assert pairs(both[len(plain) :]) == [(golden, "query = ("), (chosen, "query = 0")]


def test_what_works_and_what_is_vulnerable_is_not_broken_too() -> None:
    def grafted(text: str, label: Label) -> Grown:
        return Grown(0, text, label, 0, completion="graft")

    same = "query = same\n"
    config = ContrastConfig(broken=0.5)
    assert drawn(tree_of(grafted(same, "invalid"), grafted(same, "secure")), config) == []
    # Nor what a good one begins with: what broke it is that it ended there.
    begun = grafted("query = safe", "invalid")
    assert drawn(tree_of(begun, grafted("query = safe(name)\n", "secure")), config) == []
    assert drawn(tree_of(replace(grafted("query = other", "invalid"), ended="eos")), config) == []
    golden = grafted((TASK.golden or "")[QUERY:], "invalid")
    assert drawn(tree_of(golden), config) == []
    (one,) = drawn(tree_of(grafted(same, "invalid"), grafted(same, "vulnerable")), config)
    assert one.weight == 1.0
    assert text(one.rejected) == "query = same"


def test_labels_are_counted() -> None:
    grown = [Grown(0, f"query = f{i}(name)\n", label, 0) for i, label in enumerate(LABELS)]
    counts = draw_contrasts("tsp", POLICY, [TASK], [tree_of(*grown)], LOCAL).counts
    assert {k: v for k, v in counts.items() if k.startswith("branches_")} == {
        f"branches_{label}": 1 for label in LABELS
    }
    assert counts["contrasts"] == 2


GROWN = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from([*LABELS, None]),
        st.sampled_from([None, 0, 1, 2]),
        st.sampled_from(["answer", "eos", "length"]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    GROWN,
    st.sampled_from(["local", "full"]),
    st.sampled_from(["uniform", "rate"]),
    st.booleans(),
)
def test_what_is_never_done(
    grown: list[tuple[int, int, int, Label | None, int | None, str]],
    extent: str,
    weights: str,
    siblings: bool,
) -> None:
    """Secure branches are never rejected; invalid, inert and unknown ones are never used at all;
    golden tokens are never rejected; chosen is golden or the very text of a secure branch."""
    config = ContrastConfig(extent, weights, siblings)  # type: ignore[arg-type]
    offsets = (QUERY, EXECUTE)
    branches = [
        Grown(n, f"a = {i}\n    b = {j}\n    return 0\n", label, line, ended)  # type: ignore[arg-type]
        for n, i, j, label, line, ended in grown
    ]
    tree = tree_of(*branches, offsets=offsets)
    for contrast in drawn(tree, config):
        node = tree.nodes[contrast.node]
        here = [b for b in tree.branches if b.node == node.id and b.verdict]
        secure = [whole(b) for b in here if b.verdict and b.verdict.label == "secure"]
        vulnerable = [whole(b) for b in here if b.verdict and b.verdict.label == "vulnerable"]
        golden = (*tree.path(None), END)[node.position :]
        assert contrast.prefix == tree.prefix(node)
        assert contrast.chosen
        assert contrast.rejected
        assert contrast.chosen != contrast.rejected
        assert any(starts(ids, contrast.rejected) for ids in vulnerable)
        assert not starts(golden, contrast.rejected)
        from_golden = starts(golden, contrast.chosen)
        from_sibling = any(starts(ids, contrast.chosen) for ids in secure)
        assert from_golden or (siblings and from_sibling)
        extents = secure if extent == "full" else [first_statement(ids) for ids in secure]
        assert contrast.rejected not in extents
        assert 0 < contrast.weight <= 1


def whole(branch: Branch) -> tuple[int, ...]:
    """A branch that is an answer to its end, with the end mark."""
    return (*branch.ids, END) if branch.ended == "answer" else branch.ids


def starts(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return ids[: len(part)] == part


def first_statement(ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(POLICY.tokenizer(text(ids).split("\n")[0])["input_ids"])


def test_an_anchor_is_every_golden_answer_beside_the_contrasts() -> None:
    config = ContrastConfig(anchor=0.5)
    anchor, contrast = drawn(tree_of(BAD), config)
    assert (anchor.prefix, anchor.rejected, anchor.weight) == (tree_of().prompt_ids, (), 0.5)
    assert (text(anchor.chosen), anchor.chosen[-1]) == (TASK.golden, END)
    assert [contrast] == drawn(tree_of(BAD))
    assert drawn(tree_of(), config) == [anchor]


@pytest.mark.parametrize("kind", ["likelihood", "kl"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_have_an_anchor(method: str, kind: Literal["likelihood", "kl"]) -> None:
    bare = drawn(tree_of(BAD), method=method)
    found = drawn(tree_of(BAD), ContrastConfig(anchor=0.5, anchor_kind=kind), method)
    if method == "sft":  # the golden answer's likelihood is all that it learns
        assert found == bare
        return
    anchor, *others = found
    assert others == bare
    assert (anchor.weight, anchor.rejected, anchor.kl) == (0.5, (), kind == "kl")
    assert text(anchor.prefix + anchor.chosen) == TASK.prompt + (TASK.golden or "")


# Late nodes: a branch that went wrong in a later statement gets a node of its own.

LATE = Grown(0, "query = start(name)\n    cur = db.execute(query + name)\n    return 1\n", line=1)


def late_tree(*siblings: Grown) -> Tree:
    (tree,) = deepen([TASK], [tree_of(LATE)])
    assert [node.branch for node in tree.nodes] == [None, 0]
    for one in siblings:
        tree = with_branch(POLICY, TASK, tree, one)
    return tree


@pytest.mark.parametrize("siblings", [True, False])
def test_at_a_late_node_only_a_secure_sibling_is_preferred(siblings: bool) -> None:
    config = ContrastConfig(siblings=siblings)
    bad = Grown(1, "    cur = db.execute(query % name)\n    return 1\n", "vulnerable", line=1)
    safe = Grown(1, "    cur = db.execute(query, [name])\n    return 1\n", "secure")
    tree = late_tree(bad)
    assert {c.node for c in drawn(tree, config)} == {0}  # no golden text there, so no contrast
    tree = late_tree(bad, safe)
    found = [c for c in drawn(tree, config) if c.node == 1]
    # The mistake that the node was made for is one of them.
    own, other = "    cur = db.execute(query + name)", "    cur = db.execute(query % name)"
    good = "    cur = db.execute(query, [name])"
    assert pairs(found) == [(good, own), (good, other)]
    for late in found:
        assert late.prefix == tree.prefix(tree.nodes[1])
        assert text(late.prefix).endswith("query = start(name)\n")


def test_secure_siblings_alone_teach_at_a_late_node_what_went_wrong_there() -> None:
    safe = [Grown(1, f"    cur = db.execute(query, [{i}])\n", "secure") for i in range(4)]
    config = ContrastConfig(weights="rate")
    found = [c for c in drawn(late_tree(*safe), config) if c.node == 1]
    assert {r for _, r in pairs(found)} == {"    cur = db.execute(query + name)"}
    assert len({c for c, _ in pairs(found)}) == 4
    assert {c.weight for c in found} == {1 / 5}
    whole = ContrastConfig(extent="full")
    (full,) = [c for c in drawn(late_tree(safe[0]), whole) if c.node == 1]
    assert text(full.rejected) == "    cur = db.execute(query + name)\n    return 1\n"


KEPT = hand_task(
    id="keep",
    cwe=("CWE-732",),
    prompt="import os\n\n\ndef keep(path, data):\n",
    golden="    file = open(path, 'w')\n    file.write(data)\n    os.chmod(path, 0o600)\n",
    vulnerable="    file = open(path, 'w')\n    file.write(data)\n",
)
BEGUN = "file = open(path, 'w')\n    file.write(data)\n"


def test_what_the_golden_path_writes_itself_is_not_rejected() -> None:
    """An answer that lacks its last statement went wrong by what it does not write."""

    def found(tree: Tree, config: ContrastConfig) -> tuple[list[tuple[str, str]], int]:
        drawn = draw_contrasts("tsp", POLICY, [KEPT], [tree], config)
        return pairs(list(drawn.contrasts)), drawn.counts["undecided"]

    bare = hand_tree(POLICY, KEPT, [at(KEPT, "file")], [])
    assert found(bare, ContrastConfig(given=True)) == ([], 1)
    short = Grown(0, BEGUN, "vulnerable", line=1, ended="eos")
    tree = with_branch(POLICY, KEPT, bare, short)
    assert found(tree, LOCAL) == ([], 1)
    # Of a whole answer, its end is what the golden path does not write.
    ((chosen, rejected),), undecided = found(tree, ContrastConfig(extent="full"))
    assert (chosen.startswith(BEGUN), rejected.startswith(BEGUN), undecided) == (True, True, 0)
    # At a node on the branch the golden path's own statement is no mistake either.
    (late,) = deepen([KEPT], [tree])
    assert late.nodes[1].source == "late"
    other = Grown(1, "    os.chmod(path, 0o600)\n    file.write(data)\n", "secure")
    assert found(with_branch(POLICY, KEPT, late, other), LOCAL) == ([], 2)
    # Behind a chosen side that begins with it, it costs nothing: what they share cancels.
    tls = Grown(0, "file = open(path, 'w')\n    file.write(1)\n", "secure")
    both, _ = found(with_branch(POLICY, KEPT, tree, tls), LOCAL)
    assert both == []
