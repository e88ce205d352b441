"""From judged records to a calibration: how often each rule fired on which side, who was silent.

Only pairs count for a rule, so that both sides are there as often. Only the tools' findings of the
record's own CWE count, as in the pipeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treeplay.judge.bench.records import Record
from treeplay.judge.calibration import ALL, Calibration, Fired, Silent
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
    fired = _fired(measured)
    first = Calibration(fired=fired)
    silent: dict[str, Silent] = {}
    for one in measured:
        if one.opinion is None or not one.opinion.looked:
            continue
        language = one.record.language
        kept = weigh(
            one.opinion.findings, one.opinion.looked, language, policy, first, threshold
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
    return Calibration(fired, silent, (sum(right), len(right)), made)


def _fired(measured: Sequence[Measured]) -> dict[str, Fired]:
    sides: dict[str, dict[bool, Measured]] = {}
    for one in measured:
        if one.opinion is not None:
            sides.setdefault(f"{one.record.dataset}\0{one.record.id}", {})[one.vulnerable] = one
    total: dict[str, Fired] = {}
    for both in sides.values():
        if len(both) < 2:
            continue
        bad, good = both[True], both[False]
        in_bad, in_good = _hits(bad), _hits(good)
        for key in in_bad.keys() | in_good.keys():
            only_bad, only_good = in_bad[key] - in_good[key], in_good[key] - in_bad[key]
            total[key] = total.get(key, Fired()) + Fired(
                int(key in in_bad), int(key in in_good), int(bool(only_bad)), int(bool(only_good))
            )
    return total


def _hits(side: Measured) -> dict[str, Counter[str]]:
    """Texts of the lines that each ``language/tool/rule/cwe`` fired on."""
    record, opinion = side.record, side.opinion
    text = (record.vulnerable if side.vulnerable else record.secure) or ""
    lines = text.splitlines()
    hits: dict[str, Counter[str]] = _Hits()
    for one in opinion.findings if opinion else ():
        key = "/".join((record.language, one.tool, one.rule.replace("/", "."), one.cwe or ALL))
        hits.setdefault(key, Counter())[_line(lines, one)] += 1
    return hits


class _Hits(dict[str, "Counter[str]"]):
    def __missing__(self, key: str) -> Counter[str]:
        return Counter()


def _line(lines: Sequence[str], finding: Finding) -> str:
    return "".join("".join(lines[finding.line_start - 1 : finding.line_end]).split())
