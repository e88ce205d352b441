"""The decision form: what is given, what is asked, and that the program stays the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand import GOLDEN, VULNERABLE, hand_task
from hypothesis import given
from hypothesis import strategies as st

from treeplay.tasks.answer import cut_answer
from treeplay.tasks.decision import Form, decision_form, parting
from treeplay.tasks.pack import load_pack
from treeplay.tasks.task import Task, make_task

PACK = load_pack()


def test_full_is_the_task_itself() -> None:
    task = hand_task()
    assert decision_form(task, "full") is task


def test_statement_form_asks_for_the_differing_statements() -> None:
    task = hand_task(statements=None)
    out = decision_form(task, "statement")
    assert out is not None
    assert out.prompt == task.prompt
    assert (out.golden or "").strip().splitlines() == [
        'query = "SELECT * FROM t WHERE n = ?"',
        "    cur = db.execute(query, (name,))",
    ]
    assert out.statements == 2
    assert out.suffix.strip() == "return cur.fetchall()"


def test_statement_form_gives_what_comes_before() -> None:
    golden = GOLDEN.replace("(query, (name,))", "(query, (name,), 5)")
    task = hand_task(golden=GOLDEN, vulnerable=golden)
    out = decision_form(task, "statement")
    assert out is not None
    assert out.prompt.endswith('query = "SELECT * FROM t WHERE n = ?"')
    assert (out.golden or "").strip() == "cur = db.execute(query, (name,))"
    assert (out.vulnerable or "").strip() == "cur = db.execute(query, (name,), 5)"
    assert out.statements == 1


def test_token_form_asks_from_the_differing_word_on() -> None:
    task = hand_task(
        golden="    mode = 0o600\n    return mode\n",
        vulnerable="    mode = 0o644\n    return mode\n",
    )
    out = decision_form(task, "token")
    assert out is not None
    assert out.prompt.endswith("    mode =")
    assert (out.golden, out.vulnerable) == (" 0o600\n", " 0o644\n")
    assert out.statements == 1
    assert out.meta["form"] == "token"


def test_what_is_kept_and_what_is_not() -> None:
    task = hand_task(split="eval-seen", instruction="Do.", exercise="execute", meta={"a": 1})
    out = decision_form(task, "statement")
    assert out is not None
    assert (out.id, out.split, out.instruction, out.cwe) == (
        task.id,
        "eval-seen",
        "Do.",
        task.cwe,
    )
    assert out.meta == {"a": 1, "form": "statement"}
    assert out.exercise is None


@pytest.mark.parametrize("form", ["statement", "token"])
def test_without_a_pair_there_is_no_decision(form: Form) -> None:
    assert decision_form(hand_task(vulnerable=None), form) is None
    assert decision_form(hand_task(golden=None), form) is None
    assert decision_form(hand_task(vulnerable=GOLDEN), form) is None
    assert decision_form(hand_task(vulnerable=GOLDEN + "\n"), form) is None


def test_braces() -> None:
    task = make_task(
        id="c",
        language="c",
        cwe=("CWE-787",),
        prompt="void set(char *to, const char *from, int n)\n{\n",
        golden="    int k = n - 1;\n    strncpy(to, from, k);\n    to[k] = 0;\n}\n",
        vulnerable="    int k = n - 1;\n    strcpy(to, from);\n    to[k] = 0;\n}\n",
    )
    out = decision_form(task, "statement")
    assert out is not None
    assert out.prompt.endswith("int k = n - 1;")
    assert (out.golden or "").strip() == "strncpy(to, from, k);"
    assert (out.vulnerable or "").strip() == "strcpy(to, from);"
    assert out.suffix.split() == ["to[k]", "=", "0;", "}"]
    assert out.statements == 1


@pytest.mark.parametrize("form", ["statement", "token"])
def test_the_starter_pack_in_decision_form(form: Form) -> None:
    """The same programs, shorter answers, and every answer's end is seen where it is."""
    asked = [(task, decision_form(task, form)) for task in PACK]
    found = [(task, out) for task, out in asked if out is not None]
    assert len(found) >= 0.98 * len(PACK)
    for task, out in found:
        for whole, part in ((task.golden, out.golden), (task.vulnerable, out.vulnerable)):
            assert whole is not None
            assert part is not None
            assert out.program(part) == task.program(whole), task.id
            assert len(part) <= len(whole)
            assert cut_answer(out, part + out.suffix).text.rstrip() == part.rstrip(), task.id
        assert out.golden != out.vulnerable
        assert replace(out, meta={}).tests == task.tests


@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_parting(a: str, b: str) -> None:
    at = parting(a, b)
    assert a[:at] == b[:at]
    assert at == min(len(a), len(b)) or a[at] != b[at]


def test_a_decision_can_be_decided_again() -> None:
    """A task in decision form is a task like any other."""
    task = hand_task(golden=GOLDEN, vulnerable=VULNERABLE)
    once = decision_form(task, "statement")
    assert isinstance(once, Task)
    twice = decision_form(once, "statement")
    assert twice is not None
    assert twice.program(twice.golden or "") == task.program(task.golden or "")
