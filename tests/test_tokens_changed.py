"""Changed tokens, counted by eye."""

from __future__ import annotations

import pytest
from hand import GOLDEN, VULNERABLE
from hypothesis import given
from hypothesis import strategies as st

from treeplay.policy.model import Policy, encode_path
from treeplay.tasks.task import Task
from treeplay.tokens_changed import Level, changed_mask, changed_spans


def pieces(answer: str, other: str, level: Level = "word") -> list[str]:
    return [answer[a:b] for a, b in changed_spans(answer, other, level)]


def test_words_that_differ() -> None:
    assert pieces(GOLDEN, VULNERABLE) == ["?", ", (name,)"]
    assert pieces("    return yaml.safe_load(f)\n", "    return yaml.load(f)\n") == ["safe_load"]


def test_lines_that_differ() -> None:
    assert pieces("a = 1\nb = 2\nc = 3\n", "a = 1\nb = 9\nc = 3\n", "line") == ["b = 2\n"]


def test_what_was_only_added_leaves_no_mark_on_the_other_side() -> None:
    secure, bare = "    check(p)\n    open(p)\n", "    open(p)\n"
    assert "check" in "".join(pieces(secure, bare))
    assert pieces(bare, secure) == []
    assert pieces(bare, secure, "line") == []


def test_all_is_everything_and_nothing_of_nothing() -> None:
    assert pieces("x = 1\n", "y", "all") == ["x = 1\n"]
    assert pieces("", "y", "all") == []


def test_white_space_alone_is_no_change() -> None:
    assert pieces("a  = 1\n\n", "a = 1\n") == []


@pytest.mark.parametrize("level", ["word", "line"])
@given(text=st.text(max_size=40), other=st.text(max_size=40))
def test_equal_texts_and_spans_within_the_text(level: Level, text: str, other: str) -> None:
    assert changed_spans(text, text, level) == []
    at = 0
    for start, end in changed_spans(text, other, level):
        assert at <= start < end <= len(text)
        at = end


def test_mask_over_tokens() -> None:
    # Tokens "pr", "om" of the prompt, then "ab", "cd", "é" in two pieces, "f".
    starts = (-4, -2, 0, 2, 4, 4, 5)
    assert changed_mask(starts, 6, [(3, 5)]) == (False, False, False, True, True, True, False)
    assert changed_mask(starts, 6, [(5, 6)]) == (*[False] * 6, True)
    assert changed_mask(starts, 6, []) == (False,) * 7


def test_a_token_that_begins_in_the_prompt_and_ends_in_the_answer() -> None:
    assert changed_mask((-3, -1, 2), 4, [(0, 1)]) == (False, True, False)


def test_mask_of_a_task(tiny_policy: Policy, sql_task: Task) -> None:
    assert sql_task.golden is not None
    assert sql_task.vulnerable is not None
    path = encode_path(tiny_policy, sql_task, sql_task.golden)
    spans = changed_spans(sql_task.golden, sql_task.vulnerable)
    mask = changed_mask(path.starts, len(sql_task.golden), spans)
    assert not any(mask[: path.n_prompt])
    kept = "".join(
        "|" if changed else sql_task.golden[start]
        for changed, start in zip(mask, path.starts, strict=True)
        if start >= 0
    )
    assert kept.startswith('\n    return db.execute("SELECT * FROM t WHERE n = |')
    assert kept.rstrip().endswith("|).fetchall()")
