"""What a judge says of one program: the words every later stage reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# plain: valid, and the task asks nothing about security (see ``functional``)
Label = Literal["secure", "vulnerable", "invalid", "inert", "unknown", "plain"]
# how an answer was looked at: run with tests, read by analysers, read by a language model
Evidence = Literal["executed", "static", "model", "none"]
LABELS: tuple[Label, ...] = ("secure", "vulnerable", "invalid", "inert", "unknown", "plain")


@dataclass(frozen=True)
class Finding:
    """One reason for a vulnerable verdict. Lines are 1-based in the whole program."""

    cwe: str | None
    line_start: int
    line_end: int
    rule: str
    tool: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """A label, the evidence it rests on, and the findings behind it.

    ``functional``: the functional tests passed (True), failed (False), or there were none or they
    could not be run (None). ``reason`` is one short sentence for a person. ``confidence``: the
    measured probability, 0..1, that such a label is right; None where nothing was measured.
    ``not_looked``: what did not look and why, one "tool: reason" each.
    """

    label: Label
    evidence: Evidence = "none"
    findings: tuple[Finding, ...] = ()
    functional: bool | None = None
    reason: str = ""
    confidence: float | None = None
    not_looked: tuple[str, ...] = ()


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """The JSON form kept in run folders; :func:`verdict_from_json` reads it back."""
    return asdict(verdict)


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    findings = tuple(Finding(**finding) for finding in data["findings"])
    missed = tuple(data.get("not_looked", ()))
    return Verdict(**{**data, "findings": findings, "not_looked": missed})
