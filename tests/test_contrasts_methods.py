"""Contrasts of the methods beside tsp, anchors, and how contrasts are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal, get_args

import pytest
from conftest import CHAT, byte_tokenizer, tiny_llama
from hand import Grown, hand_tree, with_branch
from test_contrasts import (
    BAD,
    END,
    GOOD,
    LOCAL,
    POLICY,
    QUERY,
    TASK,
    drawn,
    pairs,
    text,
    tree_of,
)

from treeplay.anchors import anchors_of_text, freed, kl_anchor
from treeplay.contrast import Contrast, ContrastConfig, contrast_from_json, contrast_to_json
from treeplay.contrasts import METHODS, NEEDS_VULNERABLE, check_references, draw_contrasts
from treeplay.errors import TaskError
from treeplay.golden import choose, own_task, plant_own, rooted
from treeplay.judge.verdict import LABELS
from treeplay.nodes import NodeConfig
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.tasks.task import Task


@pytest.mark.parametrize("method", ["tsp-paper", "spin"])
def test_the_paper_rejects_every_branch_unseen(method: str) -> None:
    grown = [
        Grown(0, f"query = {i}\n    return 0\n", label, 0, "answer")
        for i, label in enumerate([*LABELS, None])
    ]
    golden = Grown(0, (TASK.golden or "")[QUERY:], "secure")
    found = draw_contrasts(method, POLICY, [TASK], [tree_of(*grown, golden)], LOCAL)
    assert pairs(list(found.contrasts)) == [
        ((TASK.golden or "")[QUERY:], f"query = {i}\n    return 0\n")
        for i in range(len(LABELS) + 1)
    ]
    assert {c.weight for c in found.contrasts} == {1.0}
    assert found.counts["branches_unjudged"] == len(LABELS) + 2


@pytest.mark.parametrize("method", ["tsp-paper", "spin"])
def test_the_golden_answer_with_its_end_is_not_rejected(method: str) -> None:
    golden = Grown(0, (TASK.golden or "")[QUERY:], None, ended="eos")
    tree = tree_of(golden, replace(golden, text="query = 1\n    return 0\n"))
    (one,) = drawn(tree, method=method)
    assert one.rejected == tree.branches[1].ids  # another answer keeps its end


@pytest.mark.parametrize("style", ["complete", "chat"])
def test_both_sides_of_a_whole_answer_are_closed_alike(style: Literal["complete", "chat"]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    policy = Policy(POLICY.model, tokenizer, style, "tiny")
    wrong = "query = 1\n    return 0\n"
    golden = (TASK.golden or "")[QUERY:]
    fence = "```" if style == "chat" else ""
    config = ContrastConfig(extent="full")
    for method in ("tsp", "tsp-paper", "spin"):
        branches = [Grown(0, wrong, line=0), Grown(0, golden, "secure"), Grown(0, golden)]
        for some in (branches[:2], branches[:1]):
            tree = hand_tree(policy, TASK, [QUERY], some)
            (one,) = draw_contrasts(method, policy, [TASK], [tree], config).contrasts
            assert one.chosen[-1] == one.rejected[-1] == END
            assert decode(policy, one.chosen) == golden + fence
            assert decode(policy, one.rejected) == wrong + fence
        # The golden answer once more, whatever its verdict, is nothing to prefer or to reject.
        tree = hand_tree(policy, TASK, [QUERY], branches[2:])
        assert draw_contrasts(method, policy, [TASK], [tree], config).contrasts == ()


def test_sft_is_the_golden_answer_alone() -> None:
    (one,) = drawn(tree_of(BAD), method="sft")
    assert text(one.prefix) == TASK.prompt
    assert (text(one.chosen), one.chosen[-1], one.rejected) == (TASK.golden, END, ())
    assert one.node == -1


def test_dpo_is_the_given_pair() -> None:
    tree = tree_of(BAD)
    (one,) = drawn(tree, method="dpo")
    assert one.prefix == tree.prompt_ids
    assert pairs([one]) == [(TASK.golden, TASK.vulnerable)]
    assert one.chosen[-1] == one.rejected[-1] == END
    found = draw_contrasts("dpo", POLICY, [replace(TASK, vulnerable=None)], [tree], LOCAL)
    assert found.contrasts == ()
    assert found.counts["without_vulnerable_reference"] == 1


def test_every_method_has_its_contrasts() -> None:
    from treeplay.config import Method
    from treeplay.play_train import TRAINERS

    assert set(METHODS) == set(get_args(Method)) - set(TRAINERS)


def test_an_anchor_by_kl_leaves_the_decisions_free() -> None:
    tree = tree_of(BAD)
    config = ContrastConfig(anchor=0.5, anchor_kind="kl")
    anchor, pair = drawn(tree, config)
    whole = (*tree.prompt_ids, *tree.golden_ids, END)
    assert (anchor.prefix, anchor.chosen, anchor.rejected) == (whole[:1], whole[1:], ())
    assert (anchor.kl, anchor.weight, pair.kl) == (True, 0.5, False)
    kept = [token for token, m in zip(anchor.chosen, anchor.chosen_mask, strict=True) if m]
    golden = TASK.golden or ""
    # The prompt but its first letter, the answer up to the node, and what follows the statement.
    end = QUERY + len(f"query = {GOOD}")
    assert text(tuple(kept)) == TASK.prompt[1:] + golden[:QUERY] + golden[end:]
    (alone,) = drawn(tree_of(), config)
    assert set(alone.chosen_mask) == {1}


def test_states_that_a_contrast_shares_with_the_anchor() -> None:
    ids = (1, 2, 3, 4, 5, 6)
    contrasts = [
        Contrast("t", 0, (1, 2), (9,), (3, 4, 8), 1.0),  # parts from the path behind the 4
        Contrast("t", 1, (1, 7), (3,), (4,), 1.0),  # of another path
    ]
    assert kl_anchor("t", ids, 1.0, contrasts).chosen_mask == (1, 0, 0, 0, 1)
    # Pairs of earlier rounds that are met again free theirs too.
    anchor = kl_anchor("t", ids, 1.0, contrasts[1:])
    assert anchor.chosen_mask == (1, 1, 1, 1, 1)
    (opened,) = freed([anchor], contrasts)
    assert opened == replace(anchor, chosen_mask=(1, 0, 0, 0, 1))
    closed = kl_anchor("t", ids, 1.0, contrasts)
    other = [replace(contrast, task="u") for contrast in contrasts]
    later = [Contrast("t", 0, (1, 2, 3, 4, 5), (6,), (7,), 1.0)]
    assert freed([anchor, *contrasts], other) == [anchor, *contrasts]
    assert freed([closed], later)[0].chosen_mask == (1, 0, 0, 0, 0)


def test_ordinary_text_gives_anchors() -> None:
    small = replace(POLICY, model=tiny_llama(max_position_embeddings=8))
    one, two = anchors_of_text(small, {"a": "x = 1", "long": "0123456789", "b": "x"}, 0.3, "kl")
    assert (one.task, one.node, one.weight, one.kl) == ("ordinary/a", -1, 0.3, True)
    assert (text(one.prefix), text(one.chosen), one.rejected) == ("x", " = 1", ())
    assert text(two.prefix + two.chosen) == "01234567"
    (likely,) = anchors_of_text(POLICY, {"a": "x = 1"}, 0.3, "likelihood")
    assert (likely.kl, likely.chosen_mask) == (False, ())


def other_way(task: Task) -> Task:
    return replace(task, golden=task.vulnerable, vulnerable=task.golden)


def test_safecoder_marks_what_changed() -> None:
    counts = draw_contrasts("safecoder", POLICY, [TASK], [tree_of()], LOCAL)
    (one,) = counts.contrasts

    def marked(ids: tuple[int, ...], mask: tuple[int, ...]) -> str:
        return text(tuple(token for token, m in zip(ids, mask, strict=True) if m))

    assert text(one.chosen) == TASK.golden
    assert text(one.rejected) == TASK.vulnerable
    assert marked(one.chosen, one.chosen_mask) == "?, (name,)"
    assert marked(one.rejected, one.rejected_mask) == "f'{name}'"
    # A fix that only adds, or only takes away, marks one side; the other has a mask of zeros, which
    # is not the same as none.
    more = replace(TASK, vulnerable="    return 1\n", golden="    check(name)\n    return 1\n")
    for task, sides in ((more, (True, False)), (other_way(more), (False, True))):
        tree = hand_tree(POLICY, task, [0], [])
        (one,) = draw_contrasts("safecoder", POLICY, [task], [tree], LOCAL).contrasts
        assert (len(one.chosen_mask), len(one.rejected_mask)) == (
            len(one.chosen),
            len(one.rejected),
        )
        assert (any(one.chosen_mask), any(one.rejected_mask)) == sides
        assert contrast_from_json(json.loads(json.dumps(contrast_to_json(one)))) == one
        kept = marked(one.chosen, one.chosen_mask) or marked(one.rejected, one.rejected_mask)
        assert kept.split() == ["check(name)"]
    same = replace(TASK, vulnerable=TASK.golden)
    found = draw_contrasts("safecoder", POLICY, [same], [tree_of()], LOCAL)
    assert found.contrasts == ()
    assert found.counts["without_changed_tokens"] == 1


@pytest.mark.parametrize("method", NEEDS_VULNERABLE)
def test_data_without_vulnerable_answers_are_named(method: str) -> None:
    bare = replace(TASK, vulnerable=None)
    with pytest.raises(TaskError, match=rf"method {method} .* none of the 2 .* of data\.jsonl has"):
        check_references(method, [bare, bare], "data.jsonl")
    check_references(method, [bare, TASK], "data.jsonl")
    check_references("tsp", [bare], "data.jsonl")


def test_contrasts_of_old_files_are_read() -> None:
    old = {"task": "t", "node": 0, "prefix": [1], "chosen": [2], "rejected": [3], "weight": 1.0}
    old |= {"chosen_opp": [-0.5], "rejected_opp": [-1.5]}
    one = Contrast("t", 0, (1,), (2,), (3,), 1.0, (-0.5,), (-1.5,))
    assert contrast_from_json(old) == one
    assert json.loads(json.dumps(contrast_to_json(one))) == old  # and nothing is said needlessly
    rare = replace(one, rejected=(), kl=True, chosen_mask=(0,))
    assert contrast_from_json(json.loads(json.dumps(contrast_to_json(rare)))) == rare


def test_contrasts_keep_through_json() -> None:

    for method in METHODS:
        for one in drawn(tree_of(BAD, Grown(0, "query = safe(name)\n", "secure")), method=method):
            scored = replace(one, chosen_opp=(-0.5,) * len(one.chosen))
            assert contrast_from_json(json.loads(json.dumps(contrast_to_json(scored)))) == scored


def test_a_mistake_that_was_cut_off_is_not_closed() -> None:
    tree = rooted(TASK, encode_path(POLICY, TASK).ids)
    good = Grown(0, f"\n{TASK.golden}\n\nx = 1", "secure")
    tree = with_branch(POLICY, TASK, tree, good)
    for cut in (False, True):
        wrong = Grown(0, f"\n{TASK.vulnerable}"[:70], "vulnerable", line=0)
        wrong = replace(wrong, ended="length" if cut else "answer")
        own = choose(with_branch(POLICY, TASK, tree, wrong))
        planted = plant_own(POLICY, TASK, own, NodeConfig(), True)
        assert planted
        mine = own_task(TASK, planted)
        (one,) = draw_contrasts("dpo", POLICY, [mine], [planted], LOCAL).contrasts
        assert one.chosen[-1] == END
        assert (one.rejected[-1] == END) == (not cut)
