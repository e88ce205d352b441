"""What the tools were worth when they were measured: how far to trust a finding, and silence.

``calibration.json`` beside this module holds counts from labelled records, made by ``treeplay judge
bench --calibrate``. Nothing in it is a setting: a rule that fires on fixed code as often as on
broken code has a precision of one half here, and the ``precision`` policy does not listen to it.

A rule's precision is also counted where no better rule fires (``left``): the counts of a decision
list (Rivest, Learning Decision Lists, 1987), made greedily, the most precise rule first. A crude
rule that finds what a fine one finds too, and false alarms besides, is worth something only where
the fine one could not look.

Every rate is pulled towards that of the next larger group (rule and CWE, rule, tool and language,
nothing known), as if the group's rate had been seen :data:`STRENGTH` times: the mean of a beta
distribution whose prior is the larger group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from treeplay.errors import ConfigError
from treeplay.judge.verdict import Finding

PATH = Path(__file__).with_name("calibration.json")
STRENGTH = 4.0
# A tool that nobody measured: better than a coin, or nobody would have made it.
UNMEASURED = 0.65
ALL = "*"
KEYS = ("made", "tools", "fired", "left", "silent", "executed")


@dataclass(frozen=True)
class Fired:
    """How often a rule fired on the vulnerable and on the secure side of as many pairs, and in how
    many pairs on that side alone (``only_``), which is what differential judging sees."""

    vulnerable: int = 0
    secure: int = 0
    only_vulnerable: int = 0
    only_secure: int = 0

    def __add__(self, other: Fired) -> Fired:
        return Fired(
            self.vulnerable + other.vulnerable,
            self.secure + other.secure,
            self.only_vulnerable + other.only_vulnerable,
            self.only_secure + other.only_secure,
        )


@dataclass(frozen=True)
class Silent:
    """Programs with no finding that counts: ``vulnerable`` of ``n_vulnerable``, and so on."""

    vulnerable: int = 0
    n_vulnerable: int = 0
    secure: int = 0
    n_secure: int = 0

    def __add__(self, other: Silent) -> Silent:
        return Silent(
            self.vulnerable + other.vulnerable,
            self.n_vulnerable + other.n_vulnerable,
            self.secure + other.secure,
            self.n_secure + other.n_secure,
        )


@dataclass(frozen=True)
class Calibration:
    """Counts by ``language/tool/rule/cwe`` (fired, left) and ``language/cwe`` (silent).

    ``left`` counts only programs on which no rule fired that stands before this one in the decision
    list; it holds where all of ``tools`` (language -> names) looked. ``executed``: (verdicts of
    executed tests that agree with their label, all of them). ``made`` says from what, for people.
    An empty calibration knows nothing.
    """

    fired: Mapping[str, Fired] = field(default_factory=dict)
    left: Mapping[str, Fired] = field(default_factory=dict)
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    silent: Mapping[str, Silent] = field(default_factory=dict)
    executed: tuple[int, int] = (0, 0)
    made: Mapping[str, Any] = field(default_factory=dict)

    def precision(
        self,
        finding: Finding,
        language: str,
        differential: bool = False,
        whole: bool = False,
    ) -> float:
        """The probability that code is vulnerable given this finding, if half of all code is.

        ``differential``: the finding is known to be absent from a secure version. ``whole``: every
        tool that was there for the calibration looked, so that the rate is that of programs on
        which no better rule fires.
        """
        rule = finding.rule.replace("/", ".")  # as in a key
        path = (language, finding.tool, rule, finding.cwe or ALL)
        rate = UNMEASURED
        seen = [self._sums.get(path[:depth], Fired()) for depth in (2, 3, 4)]
        if self.left and whole:
            seen.append(self.left.get("/".join(path), Fired()))
        for one in seen:
            good, bad = (
                (one.only_vulnerable, one.only_secure)
                if differential
                else (one.vulnerable, one.secure)
            )
            rate = (good + STRENGTH * rate) / (good + bad + STRENGTH)
        return rate

    def silence(self, language: str, cwe: Iterable[str], seen: bool | None = None) -> float:
        """The probability that code is secure given that no finding counts, if half of all is.

        Of several CWEs the one that is trusted least. ``seen``: the tools flag a version of this
        very program that is known to be vulnerable (None: not known).
        """
        names = list(cwe) or [ALL]
        return min(self._silence(language, name, seen) for name in names)

    def test_accuracy(self) -> float | None:
        """Share of executed verdicts that agree with their label; None when never measured."""
        right, n = self.executed
        return right / n if n else None

    def _silence(self, language: str, cwe: str, seen: bool | None) -> float:
        missed, quiet = 0.5, 0.5  # of the vulnerable and of the secure programs
        for key in dict.fromkeys((f"{language}/{ALL}", f"{language}/{cwe}")):
            one = self.silent.get(key, Silent())
            missed = (one.vulnerable + STRENGTH * missed) / (one.n_vulnerable + STRENGTH)
            quiet = (one.secure + STRENGTH * quiet) / (one.n_secure + STRENGTH)
        if seen is not None:
            missed = ((not seen) + STRENGTH * missed) / (1 + STRENGTH)
        return quiet / (quiet + missed)

    @cached_property
    def _sums(self) -> dict[tuple[str, ...], Fired]:
        total: dict[tuple[str, ...], Fired] = {}
        for key, counts in self.fired.items():
            path = tuple(key.split("/"))
            for depth in (2, 3, 4):
                total[path[:depth]] = total.get(path[:depth], Fired()) + counts
        return total


def load_calibration(path: Path | None = None) -> Calibration:
    """The packaged calibration, or that of a file made by ``treeplay judge bench --calibrate``.

    Raises :class:`ConfigError` naming the file for anything that is not such a file.
    """
    return _load(path or PATH)


def calibration_digest(calibration: Calibration) -> str:
    """Twelve hex digits that change with any count."""
    content = json.dumps(calibration_to_json(calibration), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    """The form of ``calibration.json``: four counts a key, in the order of the dataclasses."""

    def four(counts: Mapping[str, Fired]) -> dict[str, list[int]]:
        return {
            key: [one.vulnerable, one.secure, one.only_vulnerable, one.only_secure]
            for key, one in sorted(counts.items())
        }

    silent = {
        key: [one.vulnerable, one.n_vulnerable, one.secure, one.n_secure]
        for key, one in sorted(calibration.silent.items())
    }
    return {
        "made": dict(calibration.made),
        "executed": list(calibration.executed),
        "tools": {language: list(names) for language, names in calibration.tools.items()},
        "silent": silent,
        "fired": four(calibration.fired),
        "left": four(calibration.left),
    }


@cache
def _load(path: Path) -> Calibration:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a calibration ({error})") from error
    if not isinstance(data, dict) or sorted(data) != sorted(KEYS):
        raise ConfigError(
            f"{path}: a calibration holds {', '.join(KEYS)} and nothing else; make it with "
            "'treeplay judge bench --calibrate FILE'"
        )
    try:
        return Calibration(
            fired={key: Fired(*_four(counts)) for key, counts in data["fired"].items()},
            left={key: Fired(*_four(counts)) for key, counts in data["left"].items()},
            tools={language: tuple(names) for language, names in data["tools"].items()},
            silent={key: Silent(*_four(counts)) for key, counts in data["silent"].items()},
            executed=(int(data["executed"][0]), int(data["executed"][1])),
            made=data["made"],
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: a count in this calibration is broken ({error})") from error


def _four(counts: Any) -> tuple[int, int, int, int]:
    a, b, c, d = (int(count) for count in counts)
    return a, b, c, d
