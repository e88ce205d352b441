"""Rates of a judge on labelled programs, each with its interval.

A program is flagged when the verdict is vulnerable, decided when it is vulnerable or secure.

* recall: flagged share of the vulnerable programs
* precision: vulnerable share of the flagged programs (of records as they are, not re-balanced)
* false_positive_rate: flagged share of the secure programs
* pair_accuracy: share of the pairs whose vulnerable side is flagged and whose secure side is not
* coverage: decided share of all programs
* line_distance: lines between a finding and the nearest line that the fix changed, 0 within it;
  mean over the flagged vulnerable sides of pairs
* brier: mean squared difference between the confidence in a verdict and whether it is right (1, 0)

Intervals of shares are Wilson's (1927) score intervals, those of means are 95 % percentile
bootstrap intervals over programs with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARES = ("recall", "precision", "false_positive_rate", "pair_accuracy", "coverage")
MEANS = ("line_distance", "brier")
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_RESAMPLES = 1000


@dataclass(frozen=True)
class Side:
    """What one tool (or the ensemble) said of one side of one record.

    ``flagged`` and ``decided`` as in the module's text; ``confidence`` in 0..1 or None;
    ``distance`` in lines or None.
    """

    tool: str
    dataset: str
    language: str
    cwe: str | None
    record: str
    vulnerable: bool
    flagged: bool
    decided: bool
    confidence: float | None = None
    distance: int | None = None


def make_rows(
    sides: Sequence[Side], per_second: dict[tuple[str, str, str], float]
) -> list[dict[str, Any]]:
    """One row for every tool, data set, language and CWE, and with cwe None one over all CWEs.

    ``per_second``: programs a second by (tool, dataset, language). Rates are 0..1, or None where
    nothing counts for them.
    """
    groups: dict[tuple[str, str, str, str | None], list[Side]] = {}
    for side in sides:
        keys = [None, side.cwe] if side.cwe is not None else [None]
        for cwe in keys:
            groups.setdefault((side.tool, side.dataset, side.language, cwe), []).append(side)
    return [
        {
            "tool": key[0],
            "dataset": key[1],
            "language": key[2],
            "cwe": key[3],
            **_rates(group),
            "per_second": per_second.get(key[:3]),
        }
        for key, group in sorted(groups.items(), key=lambda item: _order(item[0]))
    ]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for ``hits`` of ``n`` (n > 0), both ends in 0..1."""
    share = hits / n
    middle = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n)) / (1 + _Z * _Z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _rates(sides: Sequence[Side]) -> dict[str, Any]:
    bad = [one for one in sides if one.vulnerable]
    good = [one for one in sides if not one.vulnerable]
    flags: dict[str, dict[bool, bool]] = {}
    for one in sides:
        flags.setdefault(one.record, {})[one.vulnerable] = one.flagged
    pairs = [both for both in flags.values() if len(both) == 2]
    caught = sum(one.flagged for one in bad)
    alarms = sum(one.flagged for one in good)
    row: dict[str, Any] = {
        "n_vulnerable": len(bad),
        "n_secure": len(good),
        "n_pairs": len(pairs),
    }
    _share(row, "recall", caught, len(bad))
    # without secure programs nothing could have been flagged wrongly
    _share(row, "precision", caught, caught + alarms if good and bad else 0)
    _share(row, "false_positive_rate", alarms, len(good))
    _share(row, "pair_accuracy", sum(p[True] and not p[False] for p in pairs), len(pairs))
    _share(row, "coverage", sum(one.decided for one in sides), len(sides))
    _mean(row, "line_distance", [one.distance for one in bad if one.distance is not None])
    _mean(
        row,
        "brier",
        [
            (one.confidence - (one.flagged == one.vulnerable)) ** 2
            for one in sides
            if one.decided and one.confidence is not None
        ],
    )
    return row


def _share(row: dict[str, Any], name: str, hits: int, n: int) -> None:
    low, high = wilson(hits, n) if n else (None, None)
    row[name] = _rounded(hits / n) if n else None
    row[f"{name}_low"], row[f"{name}_high"] = _rounded(low), _rounded(high)


def _mean(row: dict[str, Any], name: str, values: Sequence[float]) -> None:
    low = high = mean = None
    if values:
        array = np.asarray(values, dtype=float)
        mean = float(array.mean())
        draws = np.random.default_rng(0).integers(0, len(array), (_RESAMPLES, len(array)))
        low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5]).tolist()
    row[name] = _rounded(mean)
    row[f"{name}_low"], row[f"{name}_high"] = _rounded(low), _rounded(high)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _order(key: tuple[str, str, str, str | None]) -> tuple[Any, ...]:
    tool, dataset, language, cwe = key
    number = int(cwe[4:]) if cwe else 0
    return dataset, language, number, tool != "ensemble", tool
