"""Where answers end, in every language of the pack."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeplay.tasks.answer import cut_answer, statement_ends
from treeplay.tasks.pack import load_pack
from treeplay.tasks.task import Task, make_task

PROMPTS = {
    "python": 'def f(a):\n    """Doc."""\n    cur = 1\n',
    "c": "int f(char *s) {\n  char b[8];\n",
    "javascript": "function f(s) {\n",
    "go": "func f(s string) string {\n",
}


def task(language: str, statements: int | None, **more: Any) -> Task:
    return make_task(
        id="t", language=language, cwe=(), prompt=PROMPTS[language], statements=statements, **more
    )


@pytest.mark.parametrize(
    ("language", "answer", "after"),
    [
        ("python", '\n    cur.execute("x",\n      (a,))\n', "    return 3\n"),
        ("python", "\n    if a:\n        b()\n    else:\n        c()\n", "    return 4\n"),
        ("python", "\n    # why\n    x = 1\n", "    y = 2\n"),
        ("python", "\n    with open(a) as f:\n        b = f.read()\n", "\n    return b\n"),
        ("python", "", "\n\ndef g():\n    pass\n"),
        ("c", "\n  strcpy(b, s);\n", "  foo();"),
        ("c", "\n  if (s[0] == ';') { x(); }\n  else { y(); }\n", "  z();"),
        ("c", "\n  if (s) x(); else y();\n", "  z();"),
        ("c", "\n  for (int i = 0; i < 3; i++)\n    b[i] = s[i];\n", "  b[3] = 0;"),
        ("c", "\n  int a[2] = {1, 2};\n", "  z();"),
        ("c", "", "\n}\nint main() {"),
        ("javascript", '\n  const r = s.replace(/[&<"]/g, (c) => ({ "&": "x" })[c]);\n', "  z()"),
        ("javascript", "\n  return /[\"'{]/.test(s);\n", "}\n"),
        ("javascript", "\n  const r = `a${s}`\n", "  z()"),
        ("go", '\n\tif err != nil {\n\t\treturn ""\n\t} else {\n\t\tx()\n\t}\n', "\ty()"),
        ("go", "\n\tfor i := 0; i < 3; i++ {\n\t\tx()\n\t}\n", "\ty()"),
        ("go", "\n\tx := foo(a,\n\t\tb)\n", "\ty()"),
    ],
)
def test_one_statement(language: str, answer: str, after: str) -> None:
    cut = cut_answer(task(language, 1, suffix="rest\n"), answer + after)
    assert (cut.text, cut.complete) == (answer, True)


@pytest.mark.parametrize(
    ("language", "answer", "after"),
    [
        ("python", '\n    x = """\nfoo\n"""\n    return 3\n', "\n\ndef g(): pass\n"),
        ("python", "\n    return 1\n", "\n# more\nprint(1)"),
        ("python", "\n    return 5\n", "```\nThis code"),
        ("c", '\n  puts("}");\n  if (s) { x(); }\n  return 0;\n}\n', "\nint main() {}"),
        ("javascript", "\n  return s;\n}\n", "f(1)"),
        ("go", "\n\treturn s\n}\n", "func g() {}"),
    ],
)
def test_to_the_end_of_the_function(language: str, answer: str, after: str) -> None:
    cut = cut_answer(task(language, None), answer + after)
    assert (cut.text, cut.complete) == (answer, True)


def test_an_unfinished_answer_is_whole_and_not_complete() -> None:
    assert not cut_answer(task("python", 1), "\n    x = foo(").complete
    assert not cut_answer(task("c", 1), "\n  if (a) return 1;").complete  # an else may follow
    assert cut_answer(task("python", None), "\n    return 5").text == "\n    return 5"


@pytest.mark.parametrize("one", load_pack(), ids=lambda t: t.id)
def test_pack_answers_end_where_they_say(one: Task) -> None:
    for answer in (one.golden, one.vulnerable):
        assert answer is not None
        for after in ("", one.suffix):
            assert cut_answer(one, answer + after).text.rstrip() == answer.rstrip()


@given(st.sampled_from(sorted(PROMPTS)), st.text("ab (){}[]\"'`;:=\n\\#/é", max_size=60))
def test_any_text_can_be_cut(language: str, text: str) -> None:
    for statements in (None, 1, 2):
        one = task(language, statements)
        cut = cut_answer(one, text)
        assert text.startswith(cut.text)
        ends = statement_ends(one, text)
        assert ends == sorted(ends)
        assert all(0 <= end <= len(text) for end in ends)
