"""From judged records to a calibration: how often each rule fired on which side, who was silent.

Only pairs count for a rule, so that both sides are there as often. Only the tools' findings of the
record's own CWE count, as in the pipeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treeplay.judge.bench.records import Record
from treeplay.judge.calibration import ALL, STRENGTH, Calibration, Fired, Silent
from treeplay.judge.ensemble import Opinion, Policy, weigh
from treeplay.judge.static import spoken
from treeplay.judge.verdict import Finding, Verdict


@dataclass(frozen=True)
class Measured:
    """One side of a record with what the tools and its tests said (None: not asked)."""

    record: Record
    vulnerable: bool
    opinion: Opinion | None
    executed: Verdict | None


def calibrate(
    measured: Sequence[Measured], policy: Policy, threshold: float, made: Mapping[str, Any]
) -> Calibration:
    """Counts over the records; silence is that of ``policy`` under the counts just made."""
    pairs = _pairs(measured)
    fired = _total(pairs)
    tools: dict[str, set[str]] = {}
    for one in measured:
        if one.opinion is not None:
            tools.setdefault(one.record.language, set()).update(one.opinion.looked)
    known = {language: tuple(sorted(names)) for language, names in sorted(tools.items())}
    marginal = Calibration(fired=fired)
    first = Calibration(fired=fired, left=_decision_list(pairs, marginal), tools=known)
    silent: dict[str, Silent] = {}
    for one in measured:
        if one.opinion is None or not one.opinion.looked:
            continue
        language = one.record.language
        kept = weigh(
            one.opinion.findings,
            one.opinion.looked,
            language,
            policy,
            first,
            threshold,
            whole=not one.opinion.missed,
        ).findings
        quiet = int(not kept)
        count = Silent(quiet, 1, 0, 0) if one.vulnerable else Silent(0, 0, quiet, 1)
        for cwe in dict.fromkeys((ALL, one.record.cwe or ALL)):
            key = f"{spoken(language, one.opinion)}/{cwe}"
            silent[key] = silent.get(key, Silent()) + count
    right = [
        one.executed.label == ("vulnerable" if one.vulnerable else "secure")
        for one in measured
        if one.executed is not None
    ]
    return replace(first, silent=silent, executed=(sum(right), len(right)), made=made)


class _Hits(dict[str, "Counter[str]"]):
    def __missing__(self, key: str) -> Counter[str]:
        return Counter()


@dataclass(frozen=True)
class _Pair:
    """What fired on the sides of a pair, and which sides are still without a better rule."""

    bad: _Hits
    good: _Hits
    bad_left: bool = True
    good_left: bool = True


def _pairs(measured: Sequence[Measured]) -> list[_Pair]:
    sides: dict[str, dict[bool, Measured]] = {}
    for one in measured:
        if one.opinion is not None:
            sides.setdefault(f"{one.record.dataset}\0{one.record.id}", {})[one.vulnerable] = one
    return [
        _Pair(_hits(both[True]), _hits(both[False])) for both in sides.values() if len(both) > 1
    ]


def _total(pairs: Sequence[_Pair]) -> dict[str, Fired]:
    total: dict[str, Fired] = {}
    for pair in pairs:
        for key in pair.bad.keys() | pair.good.keys():
            bad, good = pair.bad[key], pair.good[key]
            total[key] = total.get(key, Fired()) + Fired(
                int(pair.bad_left and bool(bad)),
                int(pair.good_left and bool(good)),
                int(pair.bad_left and bool(bad - good)),
                int(pair.good_left and bool(good - bad)),
            )
    return total


def _decision_list(pairs: Sequence[_Pair], marginal: Calibration) -> dict[str, Fired]:
    """Counts of every rule on the sides where no rule before it fired; the next rule is always the
    one that is most precise on what is left."""
    left = list(pairs)
    counts: dict[str, Fired] = {}
    while True:
        now = {key: one for key, one in _total(left).items() if key not in counts}
        if not now:
            return counts
        key = max(
            sorted(now), key=lambda key: (_rate(key, now[key], marginal), now[key].vulnerable)
        )
        counts[key] = now[key]
        left = [
            replace(
                pair,
                bad_left=pair.bad_left and key not in pair.bad,
                good_left=pair.good_left and key not in pair.good,
            )
            for pair in left
        ]


def _rate(key: str, seen: Fired, marginal: Calibration) -> float:
    language, tool, rule, cwe = key.split("/")
    finding = Finding(cwe, 1, 1, rule, tool, "")
    known = marginal.precision(finding, language)
    return (seen.vulnerable + STRENGTH * known) / (seen.vulnerable + seen.secure + STRENGTH)


def _hits(side: Measured) -> _Hits:
    """Texts of the lines that each ``language/tool/rule/cwe`` fired on."""
    record, opinion = side.record, side.opinion
    text = (record.vulnerable if side.vulnerable else record.secure) or ""
    lines = text.splitlines()
    hits = _Hits()
    for one in opinion.findings if opinion else ():
        key = "/".join((record.language, one.tool, one.rule.replace("/", "."), one.cwe or ALL))
        hits.setdefault(key, Counter())[_line(lines, one)] += 1
    return hits


def _line(lines: Sequence[str], finding: Finding) -> str:
    return "".join("".join(lines[finding.line_start - 1 : finding.line_end]).split())
