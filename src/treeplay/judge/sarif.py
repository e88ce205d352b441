"""SARIF 2.1.0, the exchange format of analysers: any tool's log, read.

The reader takes what tools really write: CWEs stand in the tags of rules, in their properties or
their relations to a taxonomy, in the rule's number or its help address; rules are named by id, by
index, or by their place in an extension. The format: OASIS, "Static Analysis Results Interchange
Format (SARIF) Version 2.1.0"; paragraphs are given where a decision follows one. Our own logs are
written by :mod:`treeplay.judge.sarif_write`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from treeplay.errors import TreeplayError
from treeplay.judge.cwe import cwe_number
from treeplay.judge.verdict import Finding

_CWE = re.compile(r"cwe[-_ :/]*0*([1-9]\d{0,3})(?!\d)", re.IGNORECASE)
_MITRE = re.compile(r"cwe\.mitre\.org/data/definitions/0*([1-9]\d{0,3})(?!\d)", re.IGNORECASE)
_PROPERTIES = ("cwe", "cwes", "cweId", "cwe-id", "cwe_id", "CWE", "tags")


class SarifError(TreeplayError):
    """A text is no SARIF log that can be read."""


@dataclass(frozen=True)
class Reported:
    """One result of a log: a finding with every CWE its tool names for it, the likeliest first."""

    path: str
    cwe: tuple[str, ...]
    line_start: int
    line_end: int
    rule: str
    tool: str
    message: str

    def finding(self, cwe: str | None, tool: str = "") -> Finding:
        """As a finding of one of its CWEs, in the name of ``tool`` (its own by default)."""
        name = tool or self.tool
        return Finding(cwe, self.line_start, self.line_end, self.rule, name, self.message)


@dataclass(frozen=True)
class SarifLog:
    """What a log says. Paths are as in the log, percent codes resolved, ``file://`` taken off.

    ``failed``: why the tool did not do its work, "" when it says it did. ``failed_paths``: the
    files that it says it could not look at, and why.
    """

    reported: tuple[Reported, ...] = ()
    failed: str = ""
    failed_paths: Mapping[str, str] = field(default_factory=dict)


def read_sarif(text: str) -> SarifLog:
    """Read a log of version 2.1.0, of one run or several.

    Left out: results that are no failures (``kind`` pass, ``level`` none), and those that a
    baseline says are gone. Suppressed results stay: whoever writes the program could write the
    suppression. Raises :class:`SarifError` for anything that is no such log.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or "runs" not in data:
            raise SarifError("this is JSON, but no SARIF log: it has no 'runs'")
        version = data.get("version")
        if version != "2.1.0":
            raise SarifError(f"this SARIF log has version {version!r}; only 2.1.0 can be read")
        # an empty or missing list of runs says that nothing was done (3.13.4)
        runs = [_Run(run) for run in data["runs"] or ()]
        reported = tuple(one for run in runs for one in run.reported())
        failures = [run.failure() for run in runs] or ["the log holds no run"]
        paths = {path: why for run in runs for path, why in run.failed_paths()}
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SarifError(f"this SARIF log is no whole JSON: {reason}") from error
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        kind = f"{type(error).__name__}: {error}"[:100]
        raise SarifError(f"this SARIF log is not built as SARIF is ({kind})") from error
    return SarifLog(reported, next(filter(None, failures), ""), paths)


class _Run:
    """One run of a log."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        driver = data["tool"]["driver"]
        self.tool = str(driver["name"])
        self.components = [driver, *(data["tool"].get("extensions") or ())]
        self.rules = {
            rule["id"]: rule
            for component in reversed(self.components)
            for rule in component.get("rules") or ()
        }
        self.invocations = data.get("invocations") or ()

    def reported(self) -> Iterable[Reported]:
        for result in self.data.get("results") or ():
            if result.get("kind", "fail") not in ("fail", "open", "review"):
                continue
            if result.get("level") == "none" or result.get("baselineState") == "absent":
                continue
            rule = self._rule(result)
            rule_id = str(result.get("ruleId") or rule.get("id") or "")
            path, first, last = self._place(result)
            yield Reported(
                path=path,
                cwe=self._cwe(result, rule, rule_id),
                line_start=first,
                line_end=max(first, last),
                rule=rule_id,
                tool=self.tool,
                message=_message(result["message"], rule),
            )

    def failure(self) -> str:
        """Why this run cannot be believed, "" when it can."""
        for invocation in self.invocations:
            told = [
                _message(note["message"], {})
                for note in _notes(invocation)
                if note.get("level") == "error" and not note.get("locations")
            ]
            if not invocation.get("executionSuccessful", True):
                reason = invocation.get("exitCodeDescription") or next(iter(told), "")
                return f"{self.tool} says that it failed" + (f": {reason}" if reason else "")
            if told:
                return f"{self.tool}: {told[0]}"
        # no list of results, unlike an empty one, says that nothing was looked for (3.14.23)
        if self.data.get("results") is None:
            return f"{self.tool} gives no results, not even an empty list"
        return ""

    def failed_paths(self) -> Iterable[tuple[str, str]]:
        for invocation in self.invocations:
            for note in _notes(invocation):
                if note.get("level") == "error" and note.get("locations"):
                    path, _, _ = self._place(note)
                    yield path, _message(note["message"], {})

    def _rule(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The description of a result's rule (3.27.5 to 3.27.7), empty when there is none."""
        reference = result.get("rule") or {}
        index = result.get("ruleIndex", reference.get("index", -1))
        place = (reference.get("toolComponent") or {}).get("index", -1)
        rules = self.components[place + 1].get("rules") or () if place >= -1 else ()
        if 0 <= index < len(rules):
            return dict(rules[index])
        name = str(result.get("ruleId") or reference.get("id") or "")
        while name:  # "CA1000/1" is a part of the rule "CA1000" (3.52.4)
            if name in self.rules:
                return dict(self.rules[name])
            name = name.rpartition("/")[0]
        return {}

    def _cwe(
        self, result: Mapping[str, Any], rule: Mapping[str, Any], rule_id: str
    ) -> tuple[str, ...]:
        numbers: list[str] = []
        for reference in result.get("taxa") or ():
            numbers += self._taxon(reference)
        numbers += _in_properties(result) + _in_properties(rule)
        for relation in rule.get("relationships") or ():
            numbers += self._taxon(relation["target"])
        if not numbers:
            numbers += _MITRE.findall(str(rule.get("helpUri", "")))
            numbers += _CWE.findall(rule_id)
        return tuple(dict.fromkeys(f"CWE-{int(number)}" for number in numbers))

    def _taxon(self, reference: Mapping[str, Any]) -> list[str]:
        """The CWE that a reference into a taxonomy means (3.54): by its id, or by its place."""
        component = reference.get("toolComponent") or {}
        taxonomies = self.data.get("taxonomies") or ()
        place = component.get("index", -1)
        taxonomy = taxonomies[place] if 0 <= place < len(taxonomies) else {}
        name = reference.get("id")
        taxa = taxonomy.get("taxa") or ()
        if name is None and 0 <= reference.get("index", -1) < len(taxa):
            name = taxa[reference["index"]]["id"]
        found = _CWE.findall(str(name or ""))
        of_cwe = "cwe" in str(component.get("name") or taxonomy.get("name") or "").lower()
        if not found and of_cwe and cwe_number(str(name or "")):
            found = [str(cwe_number(str(name)))]
        return found

    def _place(self, holder: Mapping[str, Any]) -> tuple[str, int, int]:
        """(path, first line, last line) of the first location that names a file."""
        for location in holder.get("locations") or ():
            physical = location.get("physicalLocation") or {}
            path = self._path(physical.get("artifactLocation") or {})
            if path:
                region = physical.get("region") or {}
                first = max(1, int(region.get("startLine", 1)))
                return path, first, int(region.get("endLine", first))
        return "", 1, 1

    def _path(self, place: Mapping[str, Any], depth: int = 0) -> str:
        artifacts = self.data.get("artifacts") or ()
        uri, index = place.get("uri"), place.get("index", -1)
        if uri is None and 0 <= index < len(artifacts):
            place = artifacts[index].get("location") or {}
            uri = place.get("uri")
        if uri is None:
            return ""
        path = _path_of(uri)
        base = (self.data.get("originalUriBaseIds") or {}).get(place.get("uriBaseId"))
        if base and depth < 8 and not path.startswith("/"):
            above = self._path(base, depth + 1)
            path = f"{above.rstrip('/')}/{path}" if above else path
        return path


def _path_of(uri: str) -> str:
    parts = urlsplit(uri)
    path = unquote(parts.path if parts.scheme == "file" else uri)
    return path.removeprefix("./")


def _notes(invocation: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds = ("toolExecutionNotifications", "toolConfigurationNotifications")
    return [note for kind in kinds for note in invocation.get(kind) or ()]


def _in_properties(holder: Mapping[str, Any]) -> list[str]:
    properties = holder.get("properties") or {}
    found: list[str] = []
    for key in _PROPERTIES:
        value = properties.get(key)
        for item in value if isinstance(value, list) else [value]:
            found += _CWE.findall(str(item))
            if key != "tags" and not isinstance(item, bool) and cwe_number(str(item)):
                found.append(str(cwe_number(str(item))))
    return found


def _message(message: Mapping[str, Any], rule: Mapping[str, Any]) -> str:
    """The text of a message, found among its rule's when only named (3.11.6), on one line."""
    text = message.get("text") or message.get("markdown")
    if text is None and "id" in message:
        strings = rule.get("messageStrings") or {}
        text = (strings.get(message["id"]) or {}).get("text", "")
        for place, value in enumerate(message.get("arguments") or ()):
            text = text.replace(f"{{{place}}}", str(value))
    return " ".join(str(text or "").split())[:300]
