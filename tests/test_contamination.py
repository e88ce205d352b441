"""Shared n-grams between sets of tasks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeplay.tasks.contamination import Shared, code_tokens, shared_ngrams, task_ngrams
from treeplay.tasks.importers import import_tasks
from treeplay.tasks.task import Task, make_task

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def task(name: str, words: str, golden: str | None = None, vulnerable: str | None = None) -> Task:
    return make_task(
        id=name, language="python", cwe=(), prompt=words, golden=golden, vulnerable=vulnerable
    )


def numbered(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_tokens_are_words_numbers_and_single_marks() -> None:
    assert code_tokens("if a_1<=0x1F:\n\tb(3.14,'é')") == [
        *("if", "a_1", "<", "=", "0x1F", ":", "b", "(", "3.14", ",", "'", "é", "'", ")"),
    ]


def test_white_space_does_not_matter() -> None:
    one, other = task("a", numbered(0, 20)), task("b", numbered(0, 20).replace(" ", "\n    "))
    assert shared_ngrams([one], [other]) == [Shared("b", 1.0, "a")]


def test_the_fraction_is_of_the_tasks_own_distinct_ngrams() -> None:
    # 32 tokens have 20 n-grams of 13; the first 14 tokens hold 2 of them.
    train = [task("far", numbered(100, 140)), task("near", numbered(0, 14) + " end")]
    assert shared_ngrams(train, [task("b", numbered(0, 32))]) == [Shared("b", 2 / 20, "near")]


def test_the_nearest_task_shares_most() -> None:
    train = [task("some", numbered(0, 15)), task("most", numbered(0, 25))]
    assert shared_ngrams(train, [task("b", numbered(0, 30))])[0].nearest_id == "most"


def test_fewer_than_thirteen_tokens_share_nothing() -> None:
    short = task("short", numbered(0, 12))
    assert shared_ngrams([short], [short]) == [Shared("short", 0.0, None)]
    assert shared_ngrams([], [task("b", numbered(0, 20))]) == [Shared("b", 0.0, None)]


def test_both_answers_count_and_the_seam_between_them_does_not() -> None:
    pair = task("pair", numbered(0, 10), " " + numbered(20, 30), " " + numbered(40, 50))
    bad = task("bad", numbered(0, 10) + " " + numbered(40, 50))
    assert shared_ngrams([pair], [bad])[0].fraction == 1.0
    assert len(task_ngrams(pair)) == 16
    seam = task("seam", numbered(20, 30) + " " + numbered(40, 50))
    assert shared_ngrams([pair], [seam])[0].fraction == 0.0


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=30).map(" ".join)


@given(st.lists(words, max_size=4), words, st.integers(1, 5))
def test_against_plain_counting(train: list[str], other: str, n: int) -> None:
    def grams(text: str) -> set[str]:
        parts = text.split()
        return {" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)}

    found = shared_ngrams(
        [task(str(i), text) for i, text in enumerate(train)], [task("o", other)], n
    )
    own = grams(other)
    seen = {gram for text in train for gram in grams(text)}
    assert found[0].fraction == pytest.approx(len(own & seen) / len(own) if own else 0.0)
    overlaps = [len(own & grams(text)) for text in train]
    best = max(overlaps, default=0)
    assert found[0].nearest_id == (str(overlaps.index(best)) if best else None)


def test_the_public_sets_are_clean_from_train_to_eval() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set TREEPLAY_DATA")
    train = import_tasks("tsp", DATA / "tsp.annotated.json").tasks
    evals = [
        *import_tasks("securityeval", DATA / "securityeval.eval.jsonl").tasks,
        *import_tasks("sven", DATA / "sven.eval.jsonl").tasks,
        *import_tasks("cweval", DATA / "cweval.eval.jsonl").tasks,
    ]
    shared = shared_ngrams(train, evals)
    assert [found for found in shared if found.fraction >= 0.1] == []
    again = shared_ngrams(train, train[:5])
    assert [found.fraction for found in again] == [1.0] * 5
