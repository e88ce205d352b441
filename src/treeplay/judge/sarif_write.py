"""Verdicts as a SARIF 2.1.0 log, for editors, code hosts and other tools.

The reader, and what it takes from such a log, is in :mod:`treeplay.judge.sarif`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from treeplay.judge.cwe import cwe_name, cwe_number
from treeplay.judge.verdict import Finding, Verdict

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def write_sarif(
    entries: Sequence[tuple[str, Verdict]],
    *,
    texts: Mapping[str, str] | None = None,
    version: str = "",
) -> dict[str, Any]:
    """A log of verdicts on files: (path, verdict) each, paths relative or absolute, "-" for stdin.

    Every finding is a result: an error in a program held vulnerable, a warning elsewhere. What
    could not be looked at is a notification (an error when nothing came of the program at all).
    Verdict, evidence and confidence stand in the properties of the file and of its results.
    ``texts`` (path to program) makes fingerprints of the line's text, which last when lines move.
    """
    book = _Book()
    results: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    artifacts: list[dict[str, Any]] = []
    for path, verdict in entries:
        place = {"uri": _uri(path), "index": len(artifacts)}
        said = {
            "label": verdict.label,
            "evidence": verdict.evidence,
            "confidence": verdict.confidence,
            "reason": verdict.reason,
            "notLooked": list(verdict.not_looked),
        }
        said = {key: value for key, value in said.items() if value not in (None, "", [])}
        artifacts.append({"location": {"uri": place["uri"]}, "properties": said})
        lines = (texts or {}).get(path, "").split("\n")
        seen: dict[str, int] = {}
        for finding in verdict.findings:
            results.append(_result(book, place, verdict, finding, lines, seen))
        missed = [("warning", reason) for reason in verdict.not_looked]
        if verdict.label == "unknown":
            missed.insert(0, ("error", verdict.reason or "nothing could look at this program"))
        location = [{"physicalLocation": {"artifactLocation": place}}]
        for level, reason in missed:
            notes.append({"level": level, "message": {"text": reason}, "locations": location})
    driver: dict[str, Any] = {"name": "treeplay", "rules": book.rules}
    if version:
        driver["version"] = version
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "artifacts": artifacts,
        "results": results,
        "columnKind": "unicodeCodePoints",
    }
    if book.taxa:
        driver["supportedTaxonomies"] = [{"name": "CWE", "index": 0}]
        run["taxonomies"] = [
            {
                "name": "CWE",
                "organization": "MITRE",
                "informationUri": "https://cwe.mitre.org/",
                "shortDescription": {"text": "Common Weakness Enumeration"},
                "isComprehensive": False,
                "taxa": book.taxa,
            }
        ]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


class _Book:
    """The rules and CWEs met so far, and their places in the log."""

    def __init__(self) -> None:
        self.rules: list[dict[str, Any]] = []
        self.taxa: list[dict[str, Any]] = []
        self._rule_at: dict[tuple[str, str | None], int] = {}
        self._taxon_at: dict[str, int] = {}

    def taxon(self, cwe: str) -> dict[str, Any]:
        number = str(cwe_number(cwe))
        if number not in self._taxon_at:
            self._taxon_at[number] = len(self.taxa)
            name = cwe_name(cwe)
            described = {"shortDescription": {"text": name}} if name else {}
            self.taxa.append({"id": number, "helpUri": _mitre(number), **described})
        place = {"name": "CWE", "index": 0}
        return {"id": number, "index": self._taxon_at[number], "toolComponent": place}

    def rule(self, finding: Finding) -> tuple[str, int]:
        """(id, place) of a finding's rule. One rule may stand for several CWEs: one entry each."""
        number = cwe_number(finding.cwe or "")
        key = (f"{finding.tool}/{finding.rule}", None if number is None else f"CWE-{number}")
        name = key[0]
        if key in self._rule_at:
            place = self._rule_at[key]
            return self.rules[place]["id"], place
        if any(other == name for other, _ in self._rule_at):
            name = f"{name}/{key[1] or 'other'}"
        rule: dict[str, Any] = {
            "id": name,
            "shortDescription": {"text": finding.message or finding.rule},
            "properties": {"tags": ["security"], "tool": finding.tool},
        }
        if number is not None:
            rule["helpUri"] = _mitre(str(number))
            rule["properties"]["tags"].append(f"external/cwe/cwe-{number:03d}")
            target = self.taxon(f"CWE-{number}")
            rule["relationships"] = [{"target": target, "kinds": ["relevant"]}]
        self._rule_at[key] = len(self.rules)
        self.rules.append(rule)
        return name, self._rule_at[key]


def _result(
    book: _Book,
    place: Mapping[str, Any],
    verdict: Verdict,
    finding: Finding,
    lines: Sequence[str],
    seen: dict[str, int],
) -> dict[str, Any]:
    name, index = book.rule(finding)
    first = max(1, finding.line_start)
    line = "".join("".join(lines[first - 1 : finding.line_end]).split())
    mark = hashlib.sha256(f"{name}\0{line}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    seen[mark] = seen.get(mark, 0) + 1
    region = {"startLine": first, "endLine": max(first, finding.line_end)}
    properties = {"tool": finding.tool, "evidence": verdict.evidence}
    result: dict[str, Any] = {
        "ruleId": name,
        "ruleIndex": index,
        "level": "error" if verdict.label == "vulnerable" else "warning",
        "message": {"text": finding.message or finding.rule},
        "locations": [{"physicalLocation": {"artifactLocation": dict(place), "region": region}}],
        "partialFingerprints": {"treeplayLine/v1": f"{mark}:{seen[mark]}"},
        "properties": properties,
    }
    if finding.cwe and cwe_number(finding.cwe):
        result["taxa"] = [book.taxon(finding.cwe)]
    if verdict.confidence is not None:
        result["rank"] = round(100 * verdict.confidence, 1)
        result["properties"] = {**properties, "confidence": verdict.confidence}
    return result


def _uri(path: str) -> str:
    if path == "-":
        return "stdin"
    name = quote(path.replace("\\", "/").encode("utf-8", "surrogateescape"))
    return f"file://{name}" if path.startswith("/") else name


def _mitre(number: str) -> str:
    return f"https://cwe.mitre.org/data/definitions/{number}.html"
