"""Which weakness is a kind of which.

Analysers name the same mistake by different numbers: one says CWE-120, another CWE-787, the task
says CWE-119. The relations are MITRE's: ``data/cwe-1000.json`` holds the whole research view
(CWE-1000, "Research Concepts", relations ChildOf), made by ``scripts/make_cwe_table.py``. What is
ours is below: which numbers mean one and the same mistake in practice, and which say too little.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from treeplay.errors import ConfigError

TABLE = Path(__file__).with_name("data") / "cwe-1000.json"

# Numbers that tools and data sets use for one and the same mistake, though the view keeps them
# apart. Siblings by MITRE's taxonomy (a stack overflow, an out-of-bounds write, a wrong length) are
# one line of code to an analyser, and which of them it names is its authors' taste. CWE-730 is a
# category that data sets use for slow regular expressions.
ALIASES: tuple[frozenset[int], ...] = (
    frozenset({118, 119, 120, 121, 122, 124, 125, 126, 127, 129, 131, 786, 787, 788, 805, 823}),
    frozenset({190, 191, 680, 131}),
    frozenset({326, 327, 328, 759, 760, 780, 916}),
    frozenset({330, 331, 335, 336, 337, 338, 340}),
    frozenset({22, 23, 36, 73, 99, 641}),
    frozenset({77, 78, 88}),
    frozenset({79, 80, 83, 87}),
    frozenset({94, 95, 96, 1336}),
    frozenset({93, 113}),
    frozenset({377, 378, 379}),
    frozenset({276, 277, 278, 279, 281, 732}),
    frozenset({407, 730, 1333}),
    frozenset({476, 690}),
    frozenset({259, 321, 798}),
    frozenset({915, 1321}),
    frozenset({611, 776, 827}),
)

# Pillars and wide classes: true of nearly everything, so sharing one says nothing. A class under
# which a person would look for one kind of mistake (CWE-119, CWE-200, CWE-330) is not among them.
# No way up leads through one either: CWE-798 (a password in the text) comes under CWE-330 (weak
# randomness) by way of CWE-344 alone, and no analyser means the one by the other.
TOO_BROAD = frozenset(
    {20, 74, 94, 116, 118, 284, 285, 287, 345, 664, 668, 669, 693, 703, 706, 707, 710}
    | {610, 642, 670, 672, 682, 691, 754, 755, 913, 943, 404, 400}
    | {138, 221, 228, 269, 344, 435, 436, 573, 657, 662, 665, 666, 671, 673, 675, 684, 696}
    | {697, 705, 758, 799, 923, 1059, 1061, 1076, 1078, 1120, 1164, 1177, 1357, 1390, 1391}
)
STEPS = 2


def cwe_number(name: str) -> int | None:
    """89 for ``"CWE-89"`` (also ``"cwe-089"`` and ``"89"``); None for anything else."""
    digits = name.strip().upper().removeprefix("CWE-")
    return int(digits) if digits.isascii() and digits.isdigit() else None


@cache
def _table() -> tuple[dict[int, str], dict[int, tuple[int, ...]]]:
    """Names of weaknesses and categories, and the parents of weaknesses."""
    names: dict[int, str] = {}
    parents: dict[int, tuple[int, ...]] = {}
    try:
        data = json.loads(TABLE.read_text(encoding="utf-8"))
        for number, (name, *above) in data["weaknesses"].items():
            names[int(number)], parents[int(number)] = str(name), tuple(map(int, above))
        for number, (name,) in data["categories"].items():
            names[int(number)] = str(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{TABLE}: the CWE table cannot be read; reinstall treeplay") from error
    return names, parents


def cwe_name(name: str) -> str:
    """MITRE's name of a weakness or category, "" for a number that the CWE list does not have.

    ``cwe_name("CWE-601")`` is "URL Redirection to Untrusted Site ('Open Redirect')".
    Raises :class:`ConfigError` when the packaged table cannot be read.
    """
    number = cwe_number(name)
    return "" if number is None else _table()[0].get(number, "")


def ancestors(number: int, steps: int = STEPS) -> frozenset[int]:
    """All CWEs above ``number`` within so many ChildOf steps, itself left out."""
    return _climb(number, steps, frozenset())


def _climb(number: int, steps: int, closed: frozenset[int]) -> frozenset[int]:
    """The same; what lies above a ``closed`` one is not looked at."""
    parents = _table()[1]
    found: set[int] = set()
    level = {number}
    for _ in range(steps):
        level = {above for below in level - closed for above in parents.get(below, ())}
        found |= level
    return frozenset(found - {number})


@cache
def cwe_matches(found: str, wanted: str) -> bool:
    """Does a finding of the CWE ``found`` speak of the weakness ``wanted``?

    True when they are equal, in one alias group, or one is an ancestor of the other within two
    steps, unless that ancestor, or the one between, is too broad to say anything (CWE-20, CWE-74,
    CWE-668...).
    """
    a, b = cwe_number(found), cwe_number(wanted)
    if a is None or b is None:
        return False
    if a == b or any(a in group and b in group for group in ALIASES):
        return True
    return b in _kinds_of(a) or a in _kinds_of(b)


@cache
def _kinds_of(number: int) -> frozenset[int]:
    """What a weakness is a kind of: its ancestors that still say something."""
    if number in TOO_BROAD:
        return frozenset()
    return _climb(number, STEPS, TOO_BROAD) - TOO_BROAD


def matches_any(found: str, wanted: tuple[str, ...]) -> bool:
    """:func:`cwe_matches` against any of ``wanted``; an empty ``wanted`` accepts everything."""
    return not wanted or any(cwe_matches(found, one) for one in wanted)
