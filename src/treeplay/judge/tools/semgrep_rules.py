"""Semgrep rules as data: the packaged ones, read strictly, and folders of somebody's own.

The packaged rules are ``judge/rules/semgrep/*.yaml``. Each is a Semgrep rule whose metadata names
its CWEs (the first is the one a finding names by default) and examples that must and must not be
flagged, and whose id starts with its language (``py-``, ``js-``, ``go-``, ``c-`` for C and C++).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from treeplay.errors import ConfigError
from treeplay.judge.cwe import matches_any
from treeplay.judge.rules import RULES_DIR

SEMGREP_RULES_DIR = RULES_DIR / "semgrep"
# what Semgrep calls a language -> what we call it
LANGUAGE_OF = {
    "python": ("python",),
    "python3": ("python",),
    "py": ("python",),
    "c": ("c",),
    "cpp": ("cpp",),
    "c++": ("cpp",),
    "javascript": ("javascript",),
    "js": ("javascript",),
    "go": ("go",),
    "golang": ("go",),
}
ALL = ("python", "c", "cpp", "javascript", "go")
TEXTUAL = ("regex", "generic", "none")  # rules of these run on any text
PREFIXES = {"python": "py-", "javascript": "js-", "go": "go-", "c": "c-", "cpp": "c-"}
_CWE = re.compile(r"CWE-(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class SemgrepRule:
    """One rule. ``body`` is what Semgrep is given: the rule without its metadata."""

    id: str
    languages: tuple[str, ...]
    cwe: tuple[str, ...]
    message: str
    body: dict[str, Any]
    match: tuple[str, ...] = ()
    no_match: tuple[str, ...] = ()


@cache
def load_semgrep_rules(folder: Path = SEMGREP_RULES_DIR) -> tuple[SemgrepRule, ...]:
    """All rules of ``folder``, read once and checked as the packaged ones must be.

    Raises :class:`ConfigError` naming file and rule: no rules, a missing CWE, message or example,
    an unknown language, an id with the wrong prefix or one that exists already.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(f"{folder}: no rule files (*.yaml) here; reinstall treeplay")
    return _load(paths, strict=True)


@cache
def load_own_rules(paths: tuple[Path, ...]) -> tuple[SemgrepRule, ...]:
    """Rules of somebody's own: Semgrep YAML files, or folders searched for them at any depth.

    Nothing but what Semgrep asks for is required; CWEs are taken from ``metadata.cwe`` in any of
    the usual spellings (``"CWE-89: ..."``, a list or one text), and a rule for languages that are
    not judged here is left out. Raises :class:`ConfigError` for a file that is missing or no YAML,
    and when there are no rules at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(one for one in path.rglob("*") if _is_rules(one.name))
        else:
            files.append(path)
    rules = _load(files, strict=False)
    if not rules:
        raise ConfigError(f"{', '.join(map(str, paths))}: no Semgrep rules for {', '.join(ALL)}")
    return rules


def rules_for(
    rules: Sequence[SemgrepRule], language: str, asked: Sequence[tuple[str, ...]]
) -> list[SemgrepRule]:
    """The rules of a language that any of the questions ``asked`` (CWEs each, () for all) needs."""
    return [
        rule
        for rule in rules
        if language in rule.languages and any(_answers(rule, wanted) for wanted in asked)
    ]


def rules_file(rules: Sequence[SemgrepRule]) -> tuple[str, str]:
    """(name, text) of one file with all ``rules``; the name changes with the text.

    JSON, which Semgrep reads as well as YAML and many times faster.
    """
    text = json.dumps({"rules": [rule.body for rule in rules]}, ensure_ascii=True)
    return f"rules-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json", text


def rules_digest(rules: Sequence[SemgrepRule]) -> str:
    """Twelve hex digits that change with any rule or its CWEs."""
    named = [[rule.id, list(rule.cwe), rule.body] for rule in rules]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def _is_rules(name: str) -> bool:
    # x.test.yaml is what Semgrep calls the input of a test of x.yaml
    return name.endswith((".yaml", ".yml")) and not name.endswith((".test.yaml", ".test.yml"))


def _answers(rule: SemgrepRule, wanted: tuple[str, ...]) -> bool:
    return not wanted or any(matches_any(name, wanted) for name in rule.cwe)


def _load(paths: Sequence[Path], *, strict: bool) -> tuple[SemgrepRule, ...]:
    rules: dict[str, SemgrepRule] = {}
    for path in paths:
        try:
            # a date or a number where text belongs is caught below, or means nothing to us
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error
        entries = data.get("rules") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            if strict:
                raise ConfigError(f"{path}: expected a mapping with the list 'rules'")
            continue  # a folder of rules often holds other YAML too
        for number, entry in enumerate(entries, 1):
            rule = _rule(entry, f"{path}: rule {number}", strict)
            if rule is None:
                continue
            if rule.id in rules:
                raise ConfigError(f"{path}: a second rule {rule.id!r}; give every rule its own id")
            rules[rule.id] = rule
    return tuple(rules.values())


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _rule(entry: Any, where: str, strict: bool) -> SemgrepRule | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise ConfigError(f"{where}: expected a mapping with a text 'id'")
    where = f"{where} ({entry['id']})"
    names = entry.get("languages")
    if not _texts(names) or not names:
        raise ConfigError(f"{where}: 'languages' must be a list such as [python]")
    languages = _languages(names)
    metadata = entry.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    cwe = metadata.get("cwe") or []
    cwe = [cwe] if isinstance(cwe, str) else cwe
    numbers = [found for name in cwe if (found := _CWE.search(str(name)))]
    examples = metadata.get("examples")
    if strict:
        _check(entry, cwe, examples, names, where)
    elif not languages:
        return None
    examples = examples if strict and isinstance(examples, dict) else {}
    body = {key: value for key, value in entry.items() if key != "metadata"}
    return SemgrepRule(
        id=entry["id"],
        languages=languages,
        cwe=tuple(dict.fromkeys(f"CWE-{int(found[1])}" for found in numbers)),
        message=" ".join(str(entry.get("message", "")).split()),
        body=body,
        match=tuple(examples.get("match", ())),
        no_match=tuple(examples.get("no_match", ())),
    )


def _languages(names: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        here = ALL if name in TEXTUAL else LANGUAGE_OF.get(name.lower(), ())
        found.update(dict.fromkeys(here))
    return tuple(found)


def _check(entry: dict[str, Any], cwe: Any, examples: Any, names: list[str], where: str) -> None:
    """What a packaged rule must have beyond what Semgrep asks for."""
    for name in names:
        if name not in PREFIXES:
            raise ConfigError(f"{where}: unknown language {name!r}; use one of {', '.join(ALL)}")
        if not entry["id"].startswith(PREFIXES[name]):
            raise ConfigError(f"{where}: the id of a {name} rule must start with {PREFIXES[name]}")
    if not isinstance(entry.get("message"), str) or not entry["message"].strip():
        raise ConfigError(f"{where}: missing message; say in one clause what is wrong")
    if not _texts(cwe) or not cwe or not all(re.fullmatch(r"CWE-[1-9]\d*", name) for name in cwe):
        raise ConfigError(f"{where}: metadata.cwe must be a list of names like CWE-89, not {cwe!r}")
    if not isinstance(examples, dict) or set(examples) != {"match", "no_match"}:
        raise ConfigError(f"{where}: metadata.examples must hold match and no_match")
    for kind, texts in examples.items():
        if not _texts(texts) or not texts:
            raise ConfigError(f"{where}: metadata.examples.{kind} must list at least one text")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
