"""Metrics against values worked out by hand, the estimator against brute force."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.errors import RunError
from treeplay.judge.verdict import Finding, Label, Verdict
from treeplay.metrics import (
    METRICS,
    Scored,
    at_least_one,
    paired,
    rows,
    scored_from_json,
    scored_to_json,
)
from treeplay.tasks.task import Tests, make_task

LABEL: dict[str, Label] = {
    "s": "secure",
    "v": "vulnerable",
    "x": "invalid",
    "i": "inert",
    "u": "unknown",
}


def scored(code: str, **fields: Any) -> list[Scored]:
    """A task's samples, a word each: label letter, then + or - for its functional tests."""
    task = {"player": "base", "round": 0, "suite": "own", "split": "eval", "language": "python"}
    fixed: dict[str, Any] = {**task, "cwe": ("CWE-89",), "task": "t1", **fields}
    return [
        Scored(
            **fixed,
            sample=i,
            answer=word,
            tokens=3,
            ended="answer",
            verdict=Verdict(LABEL[word[0]], functional={"+": True, "-": False}.get(word[1:2])),
        )
        for i, word in enumerate(code.split())
    ]


def only(table: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    found = [row for row in table if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_estimator_equals_brute_force(case: tuple[int, int]) -> None:
    n, c = case
    for k in range(1, n + 1):
        draws = list(combinations(range(n), k))
        hits = sum(any(i < c for i in draw) for draw in draws)
        assert at_least_one(n, c, k) == pytest.approx(hits / len(draws), abs=1e-12)


def test_estimator_edges() -> None:
    assert at_least_one(4, 4, 5) is None
    assert at_least_one(0, 0, 1) is None
    large = at_least_one(100_000, 7, 100)
    assert large is not None
    assert large == pytest.approx(1 - math.comb(99_993, 100) / math.comb(100_000, 100), rel=1e-9)
    for n, c, k in ((3, 4, 1), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="at_least_one"):
            at_least_one(n, c, k)


def test_one_task_by_hand() -> None:
    # 8 samples: 2 secure (one passes), 2 vulnerable (both pass), 1 inert, 2 invalid, 1 unknown.
    row = only(rows(scored("s+ s- v+ v+ i- x x u")), language="all", cwe=None)
    assert row["n_tasks"] == 1
    assert row["n_samples"] == 8
    expected = {
        "spr1_valid": 2 / 5,
        "spr1_all": 2 / 8,
        "spr5_valid": 1.0,  # exactly five valid samples, two of them secure
        "spr5_all": 1 - math.comb(6, 5) / math.comb(8, 5),
        "valid": 5 / 8,
        "inert": 1 / 8,
        "unknown": 1 / 8,
        "vulnerable": 2 / 8,
        "pass1": 3 / 8,
        "pass5": 1 - math.comb(5, 5) / math.comb(8, 5),
        "secure_pass1": 1 / 8,
        "secure_pass5": 1 - math.comb(7, 5) / math.comb(8, 5),
    }
    assert set(expected) == set(METRICS)
    for metric, value in expected.items():
        assert row[metric] == pytest.approx(value, abs=1e-6), metric
        assert row[f"{metric}_low"] is None  # one task tells nothing of how tasks differ
        assert row[f"{metric}_high"] is None


def test_a_task_without_valid_samples_is_left_out_of_the_valid_mean_only() -> None:
    table = rows(scored("s+ v+", task="t1") + scored("x x", task="t2"))
    row = only(table, language="all", cwe=None)
    assert row["spr1_valid"] == 0.5
    assert row["spr1_all"] == 0.25
    assert row["valid"] == 0.5
    assert row["pass1"] == 0.5  # t2's tests are known of from t1: broken answers pass nothing
    assert row["spr5_all"] is None  # two samples say nothing of five


def test_unknown_is_never_secure_and_stays_in_the_denominator() -> None:
    row = only(rows(scored("u u u s+")), language="all", cwe=None)
    assert (row["spr1_all"], row["unknown"], row["valid"]) == (0.25, 0.75, 0.25)
    assert row["spr1_valid"] == 1.0


def test_tasks_without_functional_tests_have_no_pass_rate() -> None:
    table = rows(scored("s v", task="t1") + scored("s+ v-", task="t2"))
    assert only(table, language="all", cwe=None)["pass1"] == 0.5
    untested = only(rows(scored("s v x")), language="all", cwe=None)
    assert untested["pass1"] is None
    assert untested["secure_pass1"] is None
    assert untested["spr1_all"] == pytest.approx(1 / 3, abs=1e-6)


def test_tasks_tell_what_broken_answers_were_asked_for() -> None:
    """Where every answer is broken, verdicts do not say what a task asks for."""
    plain = make_task(
        id="ability", language="python", cwe=(), prompt="def f():", split="eval",
        tests=Tests("assert f() == 1", ""),
    )  # fmt: skip
    asked = make_task(
        id="t1", language="python", cwe=("CWE-89",), prompt="def g():", split="eval",
        tests=Tests("assert g() == 1", "assert g() != 2"),
    )  # fmt: skip
    samples = [*scored("x x"), *scored("x x", task="ability", cwe=(), suite="general")]
    known = {task.id: task for task in (plain, asked)}
    table = rows(samples, tasks=known)
    own = only(table, suite="own", language="all", cwe=None)
    assert (own["spr1_all"], own["pass1"], own["secure_pass1"], own["valid"]) == (0, 0, 0, 0)
    general = only(table, suite="general", language="all")
    assert (general["spr1_all"], general["vulnerable"], general["pass1"]) == (None, None, 0)
    # A task without tests beside one with tests: static verdicts are no failed tests.
    bare = replace(asked, id="t2", tests=None)
    some = [*scored("s+ s+"), *scored("i i", task="t2")]
    assert only(rows(some, tasks=known | {"t2": bare}), language="all", cwe=None)["pass1"] == 1
    # Verdicts alone do not know.
    assert only(rows(samples), suite="general", language="all")["pass1"] is None


def test_every_task_counts_once_however_many_samples_it_has() -> None:
    table = rows(scored("s " * 9 + "s", task="t1") + scored("v", task="t2"))
    assert only(table, language="all", cwe=None)["spr1_all"] == 0.5


def test_groupings() -> None:
    samples = [
        *scored("s", task="a", cwe=("CWE-89", "CWE-22")),
        *scored("v", task="b", language="c", cwe=("CWE-787",)),
        *scored("s", task="c", split="train", cwe=("CWE-89",)),
    ]
    table = rows(samples)
    groups = [(row["split"], row["language"], row["cwe"]) for row in table]
    assert groups == [
        ("eval", "all", None),
        ("eval", "all", "CWE-22"),
        ("eval", "all", "CWE-89"),
        ("eval", "all", "CWE-787"),
        ("eval", "c", None),
        ("eval", "c", "CWE-787"),
        ("eval", "python", None),
        ("eval", "python", "CWE-22"),
        ("eval", "python", "CWE-89"),
        ("train", "all", None),
        ("train", "all", "CWE-89"),
        ("train", "python", None),
        ("train", "python", "CWE-89"),
    ]
    assert only(table, split="eval", language="all", cwe="CWE-22")["spr1_all"] == 1.0
    assert only(table, split="eval", language="all", cwe=None)["spr1_all"] == 0.5


def test_players_in_the_order_of_play() -> None:
    samples = [
        *scored("s", player="round-10", round=10),
        *scored("s", player="round-2", round=2),
        *scored("s", player="a", round=0),
        *scored("s", player="base", round=0),
    ]
    order = [row["player"] for row in rows(samples) if row["language"] == "all" and not row["cwe"]]
    assert order == ["base", "a", "round-2", "round-10"]


def many(rates: dict[str, float], tasks: int = 40, n: int = 6, seed: int = 3) -> list[Scored]:
    """Players with the given rates of secure samples, on tasks of differing difficulty."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.15, tasks)
    return [
        one
        for number, (player, rate) in enumerate(rates.items())
        for t in range(tasks)
        for one in scored(
            " ".join("s+" if rng.random() < rate + hard[t] else "v+" for _ in range(n)),
            task=f"t{t}",
            player=player,
            round=number,
        )
    ]


def test_intervals_hold_the_mean_and_are_the_same_every_time() -> None:
    samples = many({"base": 0.4})
    first, again = rows(samples), rows(list(samples))
    assert first == again
    assert rows(samples, seed=1) != first
    row = only(first, language="all", cwe=None)
    assert row["spr1_all_low"] < row["spr1_all"] < row["spr1_all_high"]
    assert 0.04 < row["spr1_all_high"] - row["spr1_all_low"] < 0.3
    # The normal approximation for a mean over tasks must agree roughly.
    per_task = [sum(o.verdict.label == "secure" for o in samples if o.task == f"t{t}") / 6
                for t in range(40)]  # fmt: skip
    spread = 1.96 * float(np.std(per_task)) / math.sqrt(40)
    assert row["spr1_all"] - row["spr1_all_low"] == pytest.approx(spread, rel=0.2)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(1000 + seed)
        rates = rng.uniform(0.1, 0.9, 40)  # the true mean is 0.5
        samples = [
            one
            for t, rate in enumerate(rates)
            for one in scored(" ".join("s" if rng.random() < rate else "v" for _ in range(5)),
                              task=f"t{t}")
        ]  # fmt: skip
        row = only(rows(samples, resamples=400), language="all", cwe=None)
        covered += row["spr1_all_low"] <= 0.5 <= row["spr1_all_high"]
    assert 0.88 <= covered / 120 <= 0.99


def test_paired_by_hand() -> None:
    samples = [
        *scored("v+ v+", task="a"),
        *scored("s+ v+", task="b"),
        *scored("s+ s+", task="only-base"),
        *scored("s+ v-", task="a", player="round-1", round=1),
        *scored("s+ s+", task="b", player="round-1", round=1),
        *scored("x x", task="only-one", player="round-1", round=1),
    ]
    table = paired(samples)
    assert {row["metric"] for row in table} == set(METRICS)
    assert {row["language"] for row in table} == {"all", "python"}
    row = only(table, metric="spr1_all", language="all")
    assert list(row) == [
        "player", "against", "suite", "split", "language", "metric", "diff", "low", "high"
    ]  # fmt: skip
    assert (row["player"], row["against"], row["diff"]) == ("round-1", "base", 0.5)
    assert (row["low"], row["high"]) == (0.5, 0.5)  # both common tasks gained the same
    assert only(table, metric="pass1", language="all")["diff"] == -0.25
    assert only(table, metric="spr5_all", language="all")["diff"] is None


def test_pairing_takes_out_how_hard_the_tasks_are() -> None:
    samples = many({"base": 0.3, "round-1": 0.6})
    row = only(paired(samples), metric="spr1_all", language="all")
    table = [r for r in rows(samples) if r["language"] == "all" and r["cwe"] is None]
    assert row["diff"] == pytest.approx(table[1]["spr1_all"] - table[0]["spr1_all"], abs=1e-5)
    assert row["low"] > 0
    same = only(
        paired([*many({"base": 0.3}), *(replace(o, player="copy") for o in many({"base": 0.3}))]),
        metric="spr1_all",
        language="all",
    )
    assert (same["diff"], same["low"], same["high"]) == (0.0, 0.0, 0.0)


def test_paired_needs_its_opponent() -> None:
    assert paired(scored("s", player="round-1", round=1)) == []
    assert paired([]) == rows([]) == []


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["s+", "s-", "v+", "x", "i", "u", "s"]), min_size=1,
                         max_size=7), min_size=1, max_size=5))  # fmt: skip
def test_rates_stay_rates(tasks: list[list[str]]) -> None:
    samples = [o for i, code in enumerate(tasks) for o in scored(" ".join(code), task=f"t{i}")]
    for row in rows(samples, resamples=50):
        for metric in METRICS:
            low, value, high = row[f"{metric}_low"], row[metric], row[f"{metric}_high"]
            assert value is None or 0 <= value <= 1
            assert (low is None) == (high is None)
            if low is not None:
                assert 0 <= low <= high <= 1
        if row["secure_pass1"] is not None:
            assert row["secure_pass1"] <= row["pass1"]
    json.dumps(rows(samples, resamples=20), allow_nan=False)


def test_scored_json_round_trip_and_strictness() -> None:
    one = scored("v+")[0]
    finding = Finding("CWE-89", 3, 4, "B608", "bandit", "string-built query")
    one = replace(one, verdict=replace(one.verdict, findings=(finding,), reason="no <b>quotes</b>"))
    data = json.loads(json.dumps(scored_to_json(one)))
    assert scored_from_json(data) == one
    wrong: list[tuple[Any, str]] = [
        ([], "not a JSON object"),
        ({**data, "colour": 1}, "unknown key 'colour'"),
        ({k: v for k, v in data.items() if k != "split"}, "'split' is missing"),
        ({**data, "round": True}, "'round' must be"),
        ({**data, "sample": -1}, "'sample' must be"),
        ({**data, "cwe": "CWE-89"}, "'cwe' must be"),
        ({**data, "ended": "crash"}, "'ended' must be"),
        ({**data, "verdict": {**data["verdict"], "label": "fine"}}, "'label' must be"),
        ({**data, "verdict": {**data["verdict"], "functional": "yes"}}, "'functional' must be"),
        ({**data, "verdict": {**data["verdict"], "findings": [{}]}}, "'cwe' is missing"),
    ]
    for bad, message in wrong:
        with pytest.raises(RunError, match=message) as caught:
            scored_from_json(bad, "eval/base.jsonl:7")
        assert str(caught.value).startswith("eval/base.jsonl:7")
