"""Many tools, one word: the policies that weigh what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from treeplay.judge.calibration import Calibration
from treeplay.judge.verdict import Finding

Policy = Literal["any", "majority", "precision"]
POLICIES: tuple[Policy, ...] = ("any", "majority", "precision")


@dataclass(frozen=True)
class Opinion:
    """What all tools together said of one program, findings of the asked CWEs only.

    ``looked``: the tools that look for these CWEs and did. ``missed``: those that would but could
    not, with the reason ("gcc: timed out"); of these, ``failed`` are those that failed on this
    program, and may not the next time (others are not there, or were switched off). ``absent``:
    tools that are not installed. ``completed``: at least one of them saw the program with context
    added by guess.
    """

    findings: tuple[Finding, ...] = ()
    looked: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    completed: bool = False
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weighed:
    """``findings``: those that count, the most precise first; none: nothing speaks against the
    program. ``confidence``: the probability that it is vulnerable, where some count. ``doubt``: the
    same by the best of those that do not count."""

    findings: tuple[Finding, ...]
    confidence: float
    doubt: float = 0.0


def weigh(
    findings: Sequence[Finding],
    looked: Sequence[str],
    language: str,
    policy: Policy,
    calibration: Calibration,
    threshold: float,
    *,
    differential: bool = False,
    whole: bool = False,
) -> Weighed:
    """Which findings count under ``policy``.

    ``any``: all. ``majority``: all, when more than half of the tools that looked have one.
    ``precision``: those whose measured precision (:meth:`Calibration.precision`, which explains
    ``whole``; half of all programs taken to be vulnerable) is at least ``threshold``.

    The confidence is the precision of the best finding: tools share their blind spots, so their
    findings are not added up as if independent.
    """
    rated = [(calibration.precision(one, language, differential, whole), one) for one in findings]
    rated.sort(key=lambda pair: (-pair[0], pair[1].line_start, pair[1].tool, pair[1].rule))
    every = rated
    if policy == "precision":
        rated = [pair for pair in rated if pair[0] >= threshold]
    elif policy == "majority":
        voted = {one.tool for one in findings}
        if 2 * len(voted) <= len(set(looked) | voted):
            rated = []
    doubt = max((rate for rate, one in every if (rate, one) not in rated), default=0.0)
    return Weighed(tuple(one for _, one in rated), rated[0][0] if rated else 0.0, doubt)


def trusted(trust: float, doubt: float, *, whole: bool) -> float:
    """The probability of being secure of a program of which no finding counts (``trust``, see
    :meth:`Calibration.silence`), given also the best of those that do not (``doubt``, its
    precision). With ``whole`` the precision was measured on such programs: its complement is the
    answer. Else the two are taken as independent evidence, and their odds are multiplied (Bayes).
    A finding never makes a program more secure."""
    if whole:
        return min(trust, 1 - doubt)
    secure, vulnerable = trust * (1 - doubt), (1 - trust) * doubt
    return min(trust, secure / (secure + vulnerable)) if doubt else trust
