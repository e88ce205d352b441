"""Folds of held-out weaknesses: nothing that is asked was trained on under another number."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from tinydata import make_data

from treeplay.experiments.data import prepare, split_cwes
from treeplay.experiments.protocol import load_protocol
from treeplay.judge.cwe import ancestors, cwe_matches, cwe_number

# Those of the starter pack and of SecCodePLT.
NUMBERS = """
22 74 77 78 79 89 94 95 113 117 119 125 134 179 190 200 295 327 328 330 338 347 352 377 476 502 601
611 732 770 787 862 863 915 918 1321 1333
"""
CWES = [f"CWE-{number}" for number in NUMBERS.split()]


def kin(one: str, other: str) -> bool:
    """Whether one is a kind of the other by MITRE's relations, however far down, or its alias."""
    a, b = cwe_number(one), cwe_number(other)
    assert a is not None
    assert b is not None
    return cwe_matches(one, other) or a in ancestors(b, 20) or b in ancestors(a, 20)


def test_no_fold_is_trained_on_a_kind_of_what_it_holds_out() -> None:
    folds = split_cwes(CWES, 5)
    assert len(folds) == 5
    assert not [
        (one, other)
        for fold, rest in combinations(folds, 2)
        for one in fold
        for other in rest
        if kin(one, other)
    ]
    assert next(fold for fold in folds if "CWE-862" in fold) >= {"CWE-862", "CWE-863"}
    # Injection is a class of what three folds hold out: it is in none of them.
    assert set(CWES) - frozenset().union(*folds) == {"CWE-74"}
    assert max(map(len, folds)) - min(map(len, folds)) <= 3


def test_the_order_in_which_weaknesses_are_named_does_not_matter() -> None:
    assert split_cwes(reversed(CWES), 5) == split_cwes(CWES, 5)
    # A class whose kinds are of one family, or are not there, is a weakness like any other.
    assert frozenset({"CWE-77", "CWE-78"}) in split_cwes(["CWE-78", "CWE-77", "CWE-22"], 2)
    assert frozenset({"CWE-74"}) in split_cwes(["CWE-74", "CWE-22"], 2)


@pytest.mark.usefixtures("sandbox")
def test_tasks_of_what_is_held_out_are_asked_and_not_trained_on(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    found = prepare(load_protocol("unseen"), data, tmp_path / "out", "cpu", lambda said: None)
    asked: set[str] = set()
    for fold in found:
        held = set(fold.facts["held_out"])
        trained = [set(json.loads(line)["cwe"]) for line in fold.train.open()]
        assert not [cwes for cwes in trained if any(kin(c, h) for c in cwes for h in held)]
        for path in fold.train.parent.glob("*/*.jsonl"):
            for line in path.open():
                task = json.loads(line)
                assert held & set(task["cwe"])
                asked.add(task["id"])
    assert len(asked) > 30
