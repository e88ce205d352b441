"""The ordinary code that comes with treeplay: every text parses alone, and does what it says."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
from conftest import CHAT, byte_tokenizer, tiny_llama

from treeplay.anchors import anchors_of_text
from treeplay.contrast import ContrastConfig
from treeplay.judge.execute import execute_program, toolchain
from treeplay.judge.validity import check_valid_many
from treeplay.ordinary import LANGUAGES, ordinary_code, some_ordinary_code
from treeplay.ordinary.anchors import ASKED, beginning, ordinary_anchors
from treeplay.play_tasks import contaminated
from treeplay.policy.model import Policy, encode_path
from treeplay.sandbox import Sandbox
from treeplay.tasks.pack import load_pack
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Tests, make_task


def test_there_is_enough_of_it_and_no_text_twice() -> None:
    texts = ordinary_code()
    counts = Counter(one.language for one in texts)
    assert len(texts) >= 60
    assert min(counts[language] for language in LANGUAGES) >= 15
    assert len({one.name for one in texts}) == len({one.code for one in texts}) == len(texts)
    assert max(len(one.code) for one in texts) < 1000


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_parses_alone(language: str, sandbox: Sandbox) -> None:
    texts = [one for one in ordinary_code() if one.language == language]
    head = "package main\n" if language == "go" else ""
    for one, valid in zip(
        texts,
        check_valid_many(language, [head + one.code for one in texts], sandbox),
        strict=True,
    ):
        if valid.valid is None:
            pytest.skip(valid.detail)
        assert valid.valid, (one.name, valid.detail)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_check_holds(language: str, sandbox: Sandbox) -> None:
    if missing := toolchain(language):
        pytest.skip(missing)
    texts = [one for one in ordinary_code() if one.language == language]
    program = "\n".join(one.code for one in texts)
    if language == "python":
        test = "from solution import *\n"
        test += "".join(f"assert {one.check}, {one.name!r}\n" for one in texts)
    elif language == "c":
        test = "void run_tests(void) {\n"
        test += "".join(f"CHECK(({one.check}));\n" for one in texts) + "}\n"
    elif language == "go":
        # Imports stand before everything else, each once.
        imports = sorted(set(re.findall(r'^import ".*"$', program, re.MULTILINE)))
        body = re.sub(r'^import ".*"$', "", program, flags=re.MULTILINE)
        program = "package main\n" + "\n".join(imports) + "\n" + body
        test = "func runTests() {\n"
        test += "".join(f'check({one.check}, "{one.name}")\n' for one in texts) + "}\n"
    else:
        held = ", ".join(f"['{one.name}', {one.check}]" for one in texts)
        program += f"\nmodule.exports = async () => [{held}];\n"
        test = "for (const [name, held] of await solution()) assert(held, name);\n"
    task = make_task(id="all", language=language, cwe=(), prompt="//", tests=Tests(test, ""))
    outcome = execute_program(task, program, sandbox).functional
    assert outcome.outcome == "pass", outcome.detail


def test_drawing_is_even_and_of_the_seed() -> None:
    drawn = some_ordinary_code(8, seed=1)
    assert Counter(name.partition("/")[0] for name in drawn) == dict.fromkeys(LANGUAGES, 2)
    assert drawn == some_ordinary_code(8, seed=1)
    assert drawn != some_ordinary_code(8, seed=2)
    assert set(some_ordinary_code(5, 0, ("go",))) < {f"go/{n}" for n in go_names()}
    assert len(some_ordinary_code(10_000, 0)) == len(ordinary_code())
    assert len(some_ordinary_code(4, 0, ("ruby",))) == 4  # none of ruby: any will do


def go_names() -> set[str]:
    return {one.name.partition("/")[2] for one in ordinary_code() if one.language == "go"}


@pytest.mark.parametrize("kind", ["likelihood", "kl"])
def test_texts_become_anchors(kind: str) -> None:
    policy = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
    drawn = some_ordinary_code(2, seed=0)
    anchors = anchors_of_text(policy, drawn, 0.5, "kl" if kind == "kl" else "likelihood")
    assert [anchor.task for anchor in anchors] == [f"ordinary/{name}" for name in drawn]
    for anchor, text in zip(anchors, drawn.values(), strict=True):
        decoded = policy.tokenizer.decode(anchor.prefix + anchor.chosen)
        assert text.startswith(decoded.removeprefix("<s>"))
        assert (anchor.rejected, anchor.weight, anchor.kl) == ((), 0.5, kind == "kl")


def test_a_text_is_asked_for_from_its_first_body_on() -> None:
    without = []
    for one in ordinary_code():
        task = beginning(one.name, one.code)
        if task is None:
            without.append(one.name)
            continue
        assert one.code.startswith(task.prompt)
        assert task.prompt.endswith(('"""', ":", "{")), one.name
        header = task.prompt.removesuffix("{").strip().splitlines()[-1]
        assert one.language == "python" or "(" in header, one.name  # no struct's or class's brace
        assert len(task.prompt) < len(one.code)
    assert without == ["javascript/gcd"]  # in one line


@pytest.mark.parametrize("style", ["complete", "chat"])
def test_the_opponent_s_own_answers_become_anchors(style: Literal["complete", "chat"]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    policy = Policy(tiny_llama(), tokenizer, style, "tiny")
    config = ContrastConfig(ordinary=6, ordinary_weight=0.5, ordinary_text="own")
    found = ordinary_anchors(policy, config, seed=3, languages=("python", "go"))
    anchors = found.anchors
    assert found.sampled == sum(len(a.chosen) for a in anchors)
    assert [a.task for a in anchors] == [
        f"ordinary/{name}" for name in some_ordinary_code(6, 3, ("python", "go"))
    ]
    for anchor in anchors:
        language, name = anchor.task.split("/")[1:]
        (one,) = (o for o in ordinary_code() if o.name == f"{language}/{name}")
        task = beginning(one.name, one.code)
        assert task is not None
        assert anchor.prefix == encode_path(policy, task).ids
        assert 0 < len(anchor.chosen) <= ASKED.max_tokens
        assert (anchor.rejected, anchor.weight, anchor.kl, anchor.node) == ((), 0.5, True, -1)
    assert found == ordinary_anchors(policy, config, seed=3, languages=("python", "go"))
    assert found != ordinary_anchors(policy, config, seed=4, languages=("python", "go"))
    # One at a time is the same as all at once: each draw has a seed of its own.
    (first, *_) = anchors
    alone = ordinary_anchors(policy, replace(config, ordinary=1), seed=3, languages=("python",))
    assert [a.chosen for a in alone.anchors if a.task == first.task] == [first.chosen]
    # Nobody learns by heart to go on where an answer was cut off.
    likely = ordinary_anchors(
        policy, replace(config, ordinary_kind="likelihood"), seed=3, languages=("python", "go")
    )
    whole = [a.chosen for a in anchors if len(a.chosen) < ASKED.max_tokens]
    assert [a.chosen for a in likely.anchors] == whole
    assert not any(anchor.kl for anchor in likely.anchors)
    assert likely.sampled == found.sampled > sum(map(len, whole))  # cut answers cost tokens too


def test_what_does_not_fit_is_not_asked_for() -> None:
    policy = Policy(tiny_llama(max_position_embeddings=220), byte_tokenizer(), "complete", "tiny")
    config = ContrastConfig(ordinary=20, ordinary_text="own")
    anchors = ordinary_anchors(policy, config, seed=0).anchors
    assert 0 < len(anchors) < 20
    assert all(len(a.prefix) + len(a.chosen) <= 220 for a in anchors)


def test_ordinary_code_that_is_evaluated_is_told() -> None:
    known = ordinary_code()[0]
    copied = make_task(id="copy", language=known.language, cwe=(), prompt=known.code)
    pack = Suite("pack", tuple(load_pack()))
    assert contaminated([], [Suite("s", (copied,)), pack], False) == []
    (said,) = contaminated([], [Suite("s", (copied,)), pack], True)  # nothing of the pack
    assert said.endswith(f"with the training task ordinary/{known.name}")
