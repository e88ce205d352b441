"""Which weakness is a kind of which.

Analysers name the same mistake by different numbers: one says CWE-120, another CWE-787, the task
says CWE-119. This table holds the part of MITRE's research view (CWE-1000, "Research Concepts",
relations ChildOf) that the tasks, rules and tools here can meet, written down by hand.
"""

from __future__ import annotations

from functools import cache

# child -> parents, from CWE view 1000; only the entries that occur here and the way up from them
PARENTS: dict[int, tuple[int, ...]] = {
    15: (642, 610),
    20: (707,),
    22: (706, 668),
    23: (22,),
    36: (22,),
    73: (610, 642),
    74: (707,),
    77: (74,),
    78: (77,),
    79: (74,),
    80: (79,),
    83: (79,),
    87: (79,),
    88: (77,),
    89: (943,),
    90: (943,),
    91: (74,),
    93: (74,),
    94: (74, 913),
    95: (94,),
    96: (94,),
    98: (706, 829),
    99: (74,),
    113: (93, 436),
    116: (707,),
    117: (116,),
    119: (118,),
    120: (119,),
    121: (788, 787),
    122: (788, 787),
    124: (786, 787),
    125: (119,),
    126: (125, 788),
    127: (125, 786),
    129: (1285,),
    130: (240,),
    131: (682,),
    134: (668,),
    170: (707,),
    190: (682,),
    191: (682,),
    200: (668,),
    209: (200, 755),
    242: (1177,),
    259: (798,),
    250: (269, 657),
    276: (732,),
    277: (732,),
    278: (732,),
    279: (732,),
    281: (732,),
    284: (),
    285: (284,),
    287: (284,),
    295: (287,),
    296: (295,),
    297: (923, 295),
    298: (672,),
    299: (404,),
    306: (287,),
    311: (693,),
    319: (311,),
    321: (798,),
    323: (344,),
    326: (693,),
    327: (693,),
    328: (326, 327),
    329: (573, 1204),
    330: (693,),
    331: (330,),
    334: (330,),
    335: (330,),
    336: (335,),
    337: (335,),
    338: (330,),
    340: (330,),
    345: (693,),
    347: (345,),
    352: (345,),
    362: (691,),
    367: (362,),
    377: (668,),
    378: (377,),
    379: (377,),
    400: (664,),
    401: (772,),
    404: (664,),
    415: (825, 1341),
    416: (825,),
    426: (642, 673),
    434: (669,),
    466: (119,),
    470: (913, 610),
    471: (664,),
    476: (710, 754),
    477: (710,),
    494: (345, 669),
    502: (913,),
    522: (287, 668),
    532: (538,),
    538: (200,),
    601: (610,),
    606: (1284,),
    610: (664,),
    611: (610,),
    617: (670,),
    639: (863,),
    641: (99,),
    643: (943, 91),
    665: (664,),
    668: (664,),
    676: (1177,),
    680: (190,),
    681: (704,),
    682: (),
    690: (252,),
    693: (),
    704: (664,),
    706: (664,),
    707: (),
    732: (285, 668),
    754: (703,),
    755: (703,),
    759: (916,),
    760: (916,),
    770: (400, 665),
    772: (404,),
    776: (674, 405),
    780: (327,),
    786: (119,),
    787: (119,),
    788: (119,),
    789: (770, 1284),
    798: (344, 671, 287),
    805: (119,),
    806: (805,),
    823: (119,),
    824: (119,),
    825: (119, 672),
    827: (706, 829),
    829: (669,),
    862: (285,),
    863: (285,),
    913: (664,),
    915: (913,),
    916: (328,),
    917: (77,),
    918: (441, 610),
    942: (863, 923),
    943: (74,),
    1004: (732,),
    1284: (20,),
    1285: (20,),
    1286: (20,),
    1287: (20,),
    1321: (915,),
    1333: (407,),
    1336: (94,),
    407: (405,),
    405: (400,),
    730: (400,),
}

# numbers that tools use for one and the same mistake, though the view keeps them apart
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

# classes and pillars: true of nearly everything, so sharing them says nothing
TOO_BROAD = frozenset(
    {20, 74, 94, 116, 118, 284, 285, 287, 345, 664, 668, 669, 693, 703, 706, 707, 710}
    | {610, 642, 670, 672, 682, 691, 754, 755, 913, 943, 404, 400}
)
STEPS = 2


def cwe_number(name: str) -> int | None:
    """89 for ``"CWE-89"`` (also ``"cwe-089"`` and ``"89"``); None for anything else."""
    digits = name.strip().upper().removeprefix("CWE-")
    return int(digits) if digits.isascii() and digits.isdigit() else None


def ancestors(number: int, steps: int = STEPS) -> frozenset[int]:
    """All CWEs above ``number`` within so many ChildOf steps, itself left out."""
    found: set[int] = set()
    level = {number}
    for _ in range(steps):
        level = {parent for child in level for parent in PARENTS.get(child, ())}
        found |= level
    return frozenset(found - {number})


@cache
def cwe_matches(found: str, wanted: str) -> bool:
    """Does a finding of the CWE ``found`` speak of the weakness ``wanted``?

    True when they are equal, in one alias group, or one is an ancestor of the other within two
    steps, unless that ancestor is too broad to say anything (CWE-20, CWE-74, CWE-668...).
    """
    a, b = cwe_number(found), cwe_number(wanted)
    if a is None or b is None:
        return False
    if a == b or any(a in group and b in group for group in ALIASES):
        return True
    return (b not in TOO_BROAD and b in ancestors(a)) or (a not in TOO_BROAD and a in ancestors(b))


def matches_any(found: str, wanted: tuple[str, ...]) -> bool:
    """:func:`cwe_matches` against any of ``wanted``; an empty ``wanted`` accepts everything."""
    return not wanted or any(cwe_matches(found, one) for one in wanted)
