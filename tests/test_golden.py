"""Golden paths of the opponent's own: the trie of samples, repairs, and whole runs with them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from writer import tasks

from treeplay.contrast import ContrastConfig, Weights
from treeplay.contrasts import tsp
from treeplay.golden import mended_path, request
from treeplay.judge.verdict import Finding, Label, Verdict
from treeplay.policy.model import Policy, decode, encode_path
from treeplay.sandbox import Sandbox
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task, make_task
from treeplay.tree import Branch, Node, Tree, tree_from_json, tree_to_json
from treeplay.trie import Path, accepted, mistake, nearest, path_of, shared, trie, vulnerable
from treeplay.values import through

PROMPT = (7, 8)


def branch(number: int, ids: Sequence[int], label: Label, **changes: Any) -> Branch:
    """A sample whose token ``t`` is the letter ``chr(97 + t)``."""
    text = "".join(chr(97 + token) for token in ids)
    finding = (Finding("CWE-89", 1, 1, "r", "t", "m"),) if label == "vulnerable" else ()
    one = Branch(
        number,
        0,
        tuple(ids),
        tuple(-0.5 - token / 8 for token in ids),
        tuple(range(len(ids))),
        text,
        text,
        "model",
        "eos",
        Verdict(label, findings=finding),
    )
    return replace(one, **changes)


def sampled(*branches: Branch) -> Tree:
    return Tree("t", PROMPT, (), (), "", (Node(0, None, 2, 0, "root", None),), branches)


def test_where_samples_part_is_a_node() -> None:
    """By hand: two mistakes at one place, a late one on a secure sibling, and what is left out."""
    samples = sampled(
        branch(0, [1, 2, 3, 4], "secure"),
        branch(1, [1, 2, 5, 6], "vulnerable"),
        branch(2, [1, 2, 6], "invalid"),
        branch(3, [1, 9, 9], "secure"),  # nothing vulnerable parts there
        branch(4, [1, 2, 7, 1, 1], "secure"),
        branch(5, [1, 2, 7, 1, 2], "vulnerable"),
        branch(6, [1, 2, 7, 3], "inert"),
        branch(7, [1, 2, 3, 4], "secure"),  # the golden path again
    )
    tree = trie(samples, path_of(samples.branches[0]))
    assert tree.golden == "bcde"
    assert tree.prefix(tree.nodes[0]) == (7, 8, 1, 2)
    first, late = tree.nodes
    assert (first.branch, first.position, first.offset) == (None, 4, 2)
    assert (first.source, first.cwe) == ("trie", "CWE-89")
    at_first = {b.ids: b for b in tree.branches if b.node == first.id}
    assert at_first.keys() == {(5, 6), (6,), (7, 1, 1), (7, 3)}
    assert at_first[(5, 6)].text == "fg"
    assert at_first[(5, 6)].answer == "bcfg"
    assert at_first[(5, 6)].logps == (-0.5 - 5 / 8, -0.5 - 6 / 8)
    # Of the last two: the vulnerable one parts from its secure sibling, later.
    assert late.branch == at_first[(7, 1, 1)].id
    assert tree.prefix(late) == (7, 8, 1, 2, 7, 1)
    at_late = {b.ids: b.verdict.label for b in tree.branches if b.node == late.id and b.verdict}
    assert at_late == {(1,): "secure", (2,): "vulnerable"}
    # Judged samples that came by, and the vulnerable ones of them: also those that went on.
    assert (first.passed, late.passed) == ((5, 2), (2, 1))
    assert (first.stayed, late.stayed) == ((2, 0), (1, 0))
    assert tree_from_json(json.loads(json.dumps(tree_to_json(tree)))) == tree


def test_the_trie_spells_its_samples() -> None:
    """Whatever was sampled: paths of branches are samples, to the token and to the log-prob; every
    vulnerable sample is there once, and parts from the accepted one that it keeps to longest."""
    labels: tuple[Label, ...] = ("secure", "vulnerable", "vulnerable", "invalid", "inert")
    seen = deep = followed = 0
    for seed in range(300):
        draw = random.Random(seed)
        count = draw.randint(2, 14)
        every = sampled(
            *(
                branch(
                    i,
                    [draw.randint(1, 3) for _ in range(draw.randint(1, 7))],
                    draw.choice(labels),
                )
                for i in range(count)
            )
        )
        # The same tokens are one answer, and have one verdict.
        known: dict[tuple[int, ...], Verdict | None] = {}
        samples = replace(
            every,
            branches=tuple(
                replace(b, verdict=known.setdefault(b.ids, b.verdict)) for b in every.branches
            ),
        )
        good = [b for b in samples.branches if accepted(b)]
        bad = [b for b in samples.branches if vulnerable(b)]
        if not good:
            continue
        golden = path_of(nearest(good, bad))
        tree = trie(samples, golden)
        by_ids = {b.ids: b for b in samples.branches}
        assert [node.id for node in tree.nodes] == list(range(len(tree.nodes)))
        assert [b.id for b in tree.branches] == list(range(len(tree.branches)))
        for one in tree.branches:
            node = tree.nodes[one.node]
            source = by_ids[tree.path(one.id)[len(PROMPT) :]]
            at = node.position - len(PROMPT)
            assert one.ids == source.ids[at:]
            assert one.logps == source.logps[at:]
            assert one.starts == source.starts[at:]
            assert source.text[: source.starts[at]] + one.text == source.text
            assert node.offset == source.starts[at]
            assert (one.answer, one.verdict) == (source.answer, source.verdict)
            # It leaves the path of its node there, unless it is that path's own rest.
            trunk = tree.path(node.branch)
            assert tree.prefix(node) == trunk[: node.position]
            own = node.branch is not None and tree.path(one.id) == trunk
            assert own or one.ids[0] != trunk[node.position]
        paths = [tree.path(b.id)[len(PROMPT) :] for b in tree.branches if vulnerable(b)]
        for one in bad:
            inside = golden.ids[: len(one.ids)] == one.ids or one.ids[: len(golden.ids)] == (
                golden.ids
            )
            best = max(shared(one.ids, other.ids) for other in good)
            ends = best in (len(one.ids), *(len(g.ids) for g in good))
            if not inside and not ends:
                assert paths.count(one.ids) == sum(b.ids == one.ids for b in bad)
                (there,) = {
                    tree.nodes[b.node].position - len(PROMPT)
                    for b in tree.branches
                    if tree.path(b.id)[len(PROMPT) :] == one.ids
                }
                assert there == best
                seen += 1
        wrong = mistake(tree)
        assert (wrong is None) == (not paths)
        if wrong:
            most = max(shared(ids, golden.ids) for ids in paths)
            assert wrong.ids in paths
            assert shared(wrong.ids, golden.ids) == most
            assert wrong.starts == tuple(range(len(wrong.ids)))
            assert wrong.text == "".join(chr(97 + token) for token in wrong.ids)
        for node in tree.nodes:
            deep += node.branch is not None
            here = [b for b in tree.branches if b.node == node.id]
            assert here
            state = tree.prefix(node)[len(PROMPT) :]
            by = [b for b in samples.branches if b.ids[: len(state)] == state]
            labelled = sum(vulnerable(b) or accepted(b) for b in by)
            assert node.passed == (labelled, sum(map(vulnerable, by)))
            path = tree.path(node.branch)[len(PROMPT) :]
            cut = any(path[: len(b.ids)] == b.ids != path for b in by)
            if len(path) >= len(state) + 2 and not cut:
                kept = [b for b in by if b.ids[: len(state) + 2] == path[: len(state) + 2]]
                went_on = through(tree, node, node.position + 2)
                assert went_on.vulnerable == sum(map(vulnerable, kept))
                assert went_on.judged >= sum(vulnerable(b) or accepted(b) for b in kept)
                followed += went_on.vulnerable > 0
            if node.branch is not None:
                # The path's own rest is there to be preferred; a mistake is there or further down.
                assert "secure" in {b.verdict.label for b in here if b.verdict}
                below = [
                    b
                    for b in paths
                    if b[: node.position - len(PROMPT)] == (tree.prefix(node)[len(PROMPT) :])
                ]
                assert below
    assert seen > 100
    assert deep > 20
    assert followed > 20


def test_a_trie_s_weights_are_of_all_samples_that_passed() -> None:
    """Ten samples; one mistake at the first token, another further down the golden path."""
    text = "\n    return 1\n"
    task = make_task(id="t", language="python", cwe=("CWE-89",), prompt="def f():", golden=text)
    golden = [ord(letter) - 97 for letter in text]

    def leaving(number: int, place: int, token: int, label: Label) -> Branch:
        return branch(number, [*golden[:place], token, *golden[place + 1 :]], label)

    samples = sampled(
        *(branch(number, golden, "secure") for number in range(7)),
        leaving(7, 5, 1, "vulnerable"),
        leaving(8, 5, 2, "secure"),
        leaving(9, 9, 1, "vulnerable"),
    )
    tree = trie(samples, path_of(samples.branches[0]))
    assert [node.passed for node in tree.nodes] == [(10, 2), (8, 1)]
    policy: Any = None  # is not asked
    kinds: tuple[Weights, ...] = ("rate", "value")
    drawn = {
        weights: {
            (c.node, c.chosen == tree.golden_ids[5 + 4 * c.node :][: len(c.chosen)]): c.weight
            for c in tsp(policy, task, tree, ContrastConfig(weights=weights), Counter())
        }
        for weights in kinds
    }
    # The secure sibling is met once, as is the golden answer; at the second node there is none.
    assert drawn["rate"] == {(0, True): 0.2, (0, False): 0.2, (1, True): 0.125}
    # Eight kept to the golden path at first, of whom one went wrong within the same statement.
    certain = 1 / (1 / 10 + 1 / 7)
    later = 1 / (1 / 8 + 1 / 7)
    sibling = 1 / (1 / 10 + 1)
    assert drawn["value"] == {
        (0, True): pytest.approx(0.2 * certain / (certain + 1)),
        (0, False): pytest.approx(0.2 * sibling / (sibling + 1)),
        (1, True): pytest.approx(0.125 * later / (later + 1)),
    }


def test_the_golden_path_ends_where_the_answer_does() -> None:
    def cut(text: str, answer: str, starts: tuple[int, ...]) -> int:
        ids = range(len(starts))
        one = branch(0, ids, "secure", text=text, answer=answer, starts=starts)
        return len(path_of(one).ids)

    assert cut("a\nb", "a\n", (0, 1, 2)) == 2
    assert cut("a\n\ndef", "a\n", (0, 1, 3)) == 1  # the line break belongs to what follows
    assert cut("a)\n\nx", "a)\n", (0, 1, 4)) == 2  # a bracket of the answer is in that token
    assert cut("a\n", "a\n", (0, 1, 2)) == 2  # an end mark spells nothing
    assert cut("ab", "ab", (0, 1)) == 2


def test_unfinished_and_broken_answers_are_not_accepted() -> None:
    assert accepted(branch(0, [1], "secure"))
    assert not accepted(branch(0, [1], "secure", ended="length"))
    assert not accepted(branch(0, [1], "secure", verdict=Verdict("secure", functional=False)))
    assert not accepted(branch(0, [1], "secure", verdict=None))
    assert not any(accepted(branch(0, [1], x)) for x in ("inert", "unknown", "vulnerable"))


# Asking for repairs.


def wrong_answer(task: Task) -> Branch:
    finding = Finding("CWE-89", 2, 2, "rule", "bandit", "a query\nfrom a string")
    verdict = Verdict("vulnerable", "static", (finding,))
    text = task.vulnerable or ""
    return Branch(0, 0, (1,), (-1.0,), (0,), text, text, "model", "eos", verdict)


def test_a_repair_is_asked_for_with_what_was_found(tiny_policy: Policy) -> None:
    task = tasks()[0]
    sandbox = Sandbox()
    asked = request(tiny_policy, task, wrong_answer(task), sandbox)
    assert asked.prompt.startswith(task.program(task.vulnerable or ""))
    assert asked.prompt.endswith("\n\n" + task.prompt)
    assert "\n# line 2: CWE-89 (" in asked.prompt
    assert "SQL" in asked.prompt
    assert ": a query from a string\n" in asked.prompt
    assert (task.golden or "") not in asked.prompt
    go = replace(task, language="go")
    assert "\n// line 2: CWE-89" in request(tiny_policy, go, wrong_answer(go), sandbox).prompt

    chat = replace(tiny_policy, style="chat")
    chat.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    asked = request(chat, task, wrong_answer(task), sandbox)
    assert asked.prompt == task.prompt
    text = decode(chat, encode_path(chat, asked).ids)
    assert text.endswith(f"<assistant>```python\n{task.prompt}")
    assert f"```python\n{task.program(task.vulnerable or '').strip()}\n```" in text
    assert "- line 2: CWE-89 (" in text


def test_an_exploit_is_told_without_a_look_at_references(tiny_policy: Policy) -> None:
    """Where an executed exploit lies is found by comparing with the reference; a model that has
    none must not be told that."""
    task = tasks()[1]
    found = Finding("CWE-22", 4, 4, "security-test", "tests", "read the secret")
    wrong = replace(
        wrong_answer(task), verdict=Verdict("vulnerable", "executed", (found,), True, "")
    )
    prompt = request(tiny_policy, task, wrong, Sandbox()).prompt
    assert "CWE-22 (" in prompt
    assert ": read the secret\n" in prompt
    assert "line 4" not in prompt


def test_a_repair_becomes_a_path_behind_the_task_s_prompt(tiny_policy: Policy) -> None:
    task = tasks()[0]
    asked = request(tiny_policy, task, wrong_answer(task), Sandbox())
    own = encode_path(tiny_policy, task, task.golden or "")
    ids = (*own.ids[own.n_prompt :], 0)
    text = decode(tiny_policy, ids)
    starts = tuple(range(len(ids)))
    answer = cut_answer(task, text).text
    mend = Branch(3, 0, ids, (), starts, text, answer, "model", "eos", Verdict("secure"))
    path = mended_path(tiny_policy, task, asked, mend)
    assert path == Path(ids[:-1], starts[:-1], answer)
    # Sampled ids that no tokenizer would make are kept as they are...
    odd = replace(mend, ids=(250, *ids[1:]))
    assert mended_path(tiny_policy, task, asked, odd).ids[0] == 250
    # ...but not where they were sampled behind other tokens than the prompt's.
    elsewhere = replace(asked, prompt=asked.prompt + " ")
    assert mended_path(tiny_policy, task, elsewhere, odd).ids == own.ids[own.n_prompt :]
