"""What the terminal and the page call things, and how they put a difference into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# metric -> (short name, what it says)
METRIC_WORDS: dict[str, tuple[str, str]] = {
    "spr1_all": ("SPR@1", "samples that are secure"),
    "spr1_valid": ("SPR@1 valid", "secure, among samples that parse or compile"),
    "spr5_all": ("SPR@5", "at least one of five samples is secure"),
    "spr5_valid": ("SPR@5 valid", "the same, among samples that parse or compile"),
    "vulnerable": ("vulnerable", "samples that are vulnerable"),
    "valid": ("valid", "samples that parse or compile, and that the judge could decide"),
    "inert": ("inert", "valid, but never do what the task is about"),
    "unknown": ("unknown", "samples the judge could not decide"),
    "pass1": ("pass@1", "samples that pass the functional tests"),
    "pass5": ("pass@5", "at least one of five samples passes the functional tests"),
    "secure_pass1": ("secure-pass@1", "samples that are secure and pass the functional tests"),
    "secure_pass5": ("secure-pass@5", "at least one of five samples is secure and passes"),
}
# Higher is better, lower is better, or neither (0).
DIRECTION = {"vulnerable": -1, "inert": -1, "unknown": -1}

CWE_NAMES = {
    20: "input validation",
    22: "path traversal",
    59: "link following",
    77: "command injection",
    78: "OS command injection",
    79: "cross-site scripting",
    89: "SQL injection",
    90: "LDAP injection",
    94: "code injection",
    95: "eval injection",
    113: "header splitting",
    116: "output encoding",
    117: "log injection",
    119: "memory bounds",
    120: "buffer overflow",
    121: "stack overflow",
    122: "heap overflow",
    125: "out-of-bounds read",
    134: "format string",
    190: "integer overflow",
    200: "information exposure",
    209: "error message leak",
    287: "authentication",
    295: "certificate validation",
    306: "missing authentication",
    319: "cleartext transmission",
    326: "weak encryption",
    327: "broken cryptography",
    328: "weak hash",
    329: "predictable IV",
    330: "weak randomness",
    338: "weak random generator",
    347: "signature check",
    352: "request forgery (CSRF)",
    362: "race condition",
    367: "check-then-use race",
    377: "insecure temporary file",
    400: "resource exhaustion",
    415: "double free",
    416: "use after free",
    434: "file upload",
    476: "null pointer",
    502: "unsafe deserialization",
    522: "weak credential storage",
    601: "open redirect",
    611: "XML external entity",
    643: "XPath injection",
    732: "file permissions",
    760: "predictable salt",
    776: "entity expansion",
    787: "out-of-bounds write",
    798: "hard-coded credentials",
    862: "missing authorization",
    863: "wrong authorization",
    915: "mass assignment",
    918: "server-side request forgery",
    1321: "prototype pollution",
    1333: "slow regular expression",
    1336: "template injection",
}
DASH = "\N{EN DASH}"  # no value


def cwe_name(cwe: str) -> str:
    """A few words for a CWE, or "" when it is not in the list."""
    number = cwe.rpartition("-")[2]
    return CWE_NAMES.get(int(number), "") if number.isdigit() else ""


def percent(value: float | None) -> str:
    """0.521 as "52.1"; None as a dash."""
    return DASH if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """0.182 as "+18.2", with a true minus sign; None as a dash."""
    if value is None:
        return DASH
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """The interval in brackets, or "" where there is none."""
    if low is None or high is None:
        return ""
    show = points if signed else percent
    return f"[{show(low)}, {show(high)}]"


def places(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All (suite, split), unseen tasks before those of training, most telling first (of a split,
    that with more tasks); those of general ability behind the ones that ask about security."""
    size: dict[tuple[str, str], int] = {}
    for row in report["rows"]:
        place = (row["suite"], row["split"])
        size[place] = max(size.get(place, 0), row["n_tasks"])
    order = {"eval-seen": 0, "eval": 1, "eval-unseen": 2, "train": 9}
    ability = {place: is_general(report, place) for place in size}
    return sorted(
        size, key=lambda place: (ability[place], order.get(place[1], 3), -size[place], place)
    )


def is_general(report: Mapping[str, Any], place: tuple[str, str]) -> bool:
    """Whether the place asks nothing about security: only then has a row no SPR."""
    here = [row for row in report["rows"] if (row["suite"], row["split"]) == place]
    return all(row["spr1_all"] is None for row in here)


def place_name(report: Mapping[str, Any], suite: str, split: str) -> str:
    """ "eval-seen", or "starter eval-seen" where there are several suites."""
    several = len({row["suite"] for row in report["rows"]}) > 1
    return f"{suite} {split}" if several else split


def players(report: Mapping[str, Any]) -> list[str]:
    """All players in the order of the rows (by round, base first)."""
    return list(dict.fromkeys(row["player"] for row in report["rows"]))


def find_row(
    report: Mapping[str, Any],
    player: str,
    place: tuple[str, str],
    language: str = "all",
    cwe: str | None = None,
) -> dict[str, Any] | None:
    wanted = (player, *place, language, cwe)
    for row in report["rows"]:
        keys = (row["player"], row["suite"], row["split"], row["language"], row["cwe"])
        if keys == wanted:
            found: dict[str, Any] = row
            return found
    return None


def find_pair(
    report: Mapping[str, Any],
    player: str,
    place: tuple[str, str],
    metric: str,
    language: str = "all",
) -> dict[str, Any] | None:
    """The paired row, or None where there is none or it has no value."""
    wanted = (player, *place, language, metric)
    for row in report["paired"]:
        keys = (row["player"], row["suite"], row["split"], row["language"], row["metric"])
        if keys == wanted and row["diff"] is not None:
            found: dict[str, Any] = row
            return found
    return None


def clear(pair: Mapping[str, Any]) -> int:
    """1 or -1 where the interval lies above or below zero, else 0."""
    if pair["low"] is None or pair["high"] is None:
        return 0
    return 1 if pair["low"] > 0 else -1 if pair["high"] < 0 else 0


def difference(pair: Mapping[str, Any]) -> str:
    """ "SPR@1 +18.2 points [+9.1, +27.0]", with a remark where it could be chance."""
    name = METRIC_WORDS[pair["metric"]][0]
    text = f"{name} {points(pair['diff'])} points"
    if pair["low"] is None:
        return f"{text} (one task: no interval)"
    text += f" {interval(pair['low'], pair['high'], signed=True)}"
    return text if clear(pair) else f"{text} (contains zero)"


# What the headline compares: metric, what the samples do, better and worse.
_SECURE = ("spr1_all", "are secure", "more secure", "less secure")
_ABLE = ("pass1", "pass the tests", "more able", "less able")


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """The run in a few honest sentences: kind (better, worse, open, alone), title, text, cost."""
    place = places(report)[0]
    where = place_name(report, *place)
    names = players(report)
    last = names[-1]
    row = find_row(report, last, place)
    metric, does, more, less = _SECURE if not is_general(report, place) else _ABLE
    pair = find_pair(report, last, place, metric)
    if pair is None or row is None:
        return _alone(report, last, place, where)
    base = pair["against"]
    before = find_row(report, base, place)
    shares = (
        f"{percent(row[metric])} % of the samples of {last} {does}, "
        f"{percent(before[metric] if before else None)} % of those of {base}"
    )
    tasks = f"{row['n_tasks']} task{'s' if row['n_tasks'] != 1 else ''}"
    change = f"{points(pair['diff'])} points"
    kind = {1: "better", -1: "worse", 0: "open"}[clear(pair)]
    if pair["low"] is None:
        text = f"{shares}: {change}. With one task there is no interval, so this shows nothing yet."
    else:
        ends = f"95 % interval {points(pair['low'])} to {points(pair['high'])}"
        text = f"{shares}: {change} ({ends}, over {tasks})."
        if kind == "open":
            text += (
                f" The interval contains zero: this run does not show that {last} is {more}, "
                f"or {less}, than {base} here."
            )
    title = {
        "better": f"{last} is {more} than {base} on {where}",
        "worse": f"{last} is {less} than {base} on {where}",
        "open": f"No clear difference between {last} and {base} on {where}",
    }[kind]
    return {"kind": kind, "title": title, "text": text, "cost": _cost(report, last, place)}


def _alone(
    report: Mapping[str, Any], last: str, place: tuple[str, str], where: str
) -> dict[str, str]:
    row = find_row(report, last, place)
    if row is None:
        text = f"{last} has no samples there, so there is nothing to compare."
        return {"kind": "alone", "title": f"Nothing to say of {where}", "text": text, "cost": ""}
    metric, does, _, _ = _SECURE if not is_general(report, place) else _ABLE
    ends = interval(row[f"{metric}_low"], row[f"{metric}_high"])
    also = (
        f" and {percent(row['vulnerable'])} % vulnerable" if row["vulnerable"] is not None else ""
    )
    text = (
        f"{percent(row[metric])} % of its samples {does} {ends}{also}, over {row['n_tasks']} "
        "tasks. No other player answered these tasks, so there is nothing to compare."
    )
    return {"kind": "alone", "title": f"{last} on {where}", "text": text, "cost": ""}


def _cost(report: Mapping[str, Any], player: str, place: tuple[str, str]) -> str:
    """What the change cost: broken, inert or undecided answers in its place."""
    pairs = [
        pair
        for metric in ("vulnerable", "pass1", "valid", "inert", "unknown")
        if metric != "pass1" or not is_general(report, place)
        if (pair := find_pair(report, player, place, metric)) is not None
    ]
    harm = [p for p in pairs if clear(p) * DIRECTION.get(p["metric"], 1) < 0]
    text = "Alongside: " + "; ".join(difference(pair) for pair in pairs) + "."
    broken = [METRIC_WORDS[p["metric"]][0] for p in harm if p["metric"] != "vulnerable"]
    if broken:
        text += f" Clearly worse: {_listed(broken)}; read the result with this in mind."
    return text if pairs else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
