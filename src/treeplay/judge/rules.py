"""Structural rules: where a risk can be (sinks, guards), what is wrong for certain (vulnerable).

The rules are data, ``rules/*.yaml`` beside this module, one language a file::

    language: python
    utils:                      # named pieces, shared by all files of the language
      literal: {kind: string}
    rules:
      - id: py-eval
        kind: vulnerable        # or sink (a risky call), guard (a check)
        cwe: [CWE-95, CWE-94]   # the first is the one that a finding names by default
        message: eval runs whatever text it is given
        rule: {pattern: eval($X)}          # an ast-grep rule object
        examples: {match: ["eval(x)"], no_match: ["f(x)"]}

Rules are matched by ast-grep on the syntax tree, in process. What this does not do: follow a
value across functions. A tree-sitter tree is made of any text, so broken programs are searched
too; whether they are valid is asked elsewhere.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from ast_grep_py import SgRoot

from treeplay.errors import ConfigError
from treeplay.judge.cwe import cwe_number, matches_any
from treeplay.judge.verdict import Finding
from treeplay.tasks.task import LANGUAGES

RULES_DIR = Path(__file__).with_name("rules")
TOOL = "rules"
FILE_KEYS = ("language", "utils", "rules")
RULE_KEYS = ("id", "kind", "cwe", "message", "rule", "constraints", "examples")
EXAMPLE_KEYS = ("match", "no_match")
Kind = Literal["sink", "guard", "vulnerable"]
# every C rule reads C++ as well
GRAMMARS = {"c": ("c", "cpp")}
KINDS: tuple[Kind, ...] = ("sink", "guard", "vulnerable")


@dataclass(frozen=True)
class Rule:
    """One rule as read. ``config`` is what ast-grep takes: rule, constraints, utils."""

    id: str
    kind: Kind
    language: str
    cwe: tuple[str, ...]
    message: str
    config: Mapping[str, Any]
    match: tuple[str, ...]
    no_match: tuple[str, ...]


@dataclass(frozen=True)
class Sink:
    """A place where a risk can be: character offsets into the program, 1-based line."""

    rule: str
    cwe: tuple[str, ...]
    char_start: int
    char_end: int
    line: int


@dataclass(frozen=True)
class Match:
    """One hit of a rule: character offsets, 1-based inclusive lines."""

    rule: Rule
    char_start: int
    char_end: int
    line_start: int
    line_end: int


def find_sinks(
    language: str, program: str, cwe: Sequence[str] = (), *, guards: bool = True
) -> list[Sink]:
    """Risky places in ``program`` in text order, those of the given CWEs (all when empty).

    With ``guards`` the checks too: leaving one out is a decision, but making one exercises nothing.
    """
    hits = find_matches(language, program, "sink", cwe)
    if guards:
        hits += find_matches(language, program, "guard", cwe)
    hits.sort(key=lambda hit: (hit.char_start, hit.char_end, hit.rule.id))
    return [
        Sink(hit.rule.id, hit.rule.cwe, hit.char_start, hit.char_end, hit.line_start)
        for hit in hits
    ]


def find_vulnerable(language: str, program: str, cwe: Sequence[str] = ()) -> list[Finding]:
    """Certain mistakes in ``program`` in text order, those of the given CWEs (all when empty)."""
    findings = []
    for hit in find_matches(language, program, "vulnerable", cwe):
        named = [name for name in hit.rule.cwe if matches_any(name, tuple(cwe))]
        findings.append(
            Finding(
                cwe=named[0],
                line_start=hit.line_start,
                line_end=hit.line_end,
                rule=hit.rule.id,
                tool=TOOL,
                message=hit.rule.message,
            )
        )
    return findings


def covers(language: str, cwe: str, kind: Kind = "vulnerable") -> bool:
    """Is there any rule of this kind for the CWE in this language?"""
    return any(
        matches_any(name, (cwe,)) for rule in _rules_for(language, kind) for name in rule.cwe
    )


def find_matches(language: str, program: str, kind: Kind, cwe: Sequence[str] = ()) -> list[Match]:
    """Every hit of every rule of this kind and of these CWEs (all when empty), in text order."""
    wanted = tuple(cwe)
    rules = [
        rule
        for rule in _rules_for(language, kind)
        if any(matches_any(name, wanted) for name in rule.cwe)
    ]
    if not rules:
        return []
    root = SgRoot(program, _grammar(language)).root()
    hits: dict[tuple[str, int, int], Match] = {}
    for rule in rules:
        for node in root.find_all(rule.config):
            span = node.range()
            start, end = span.start.index, span.end.index  # characters, not bytes
            hits[rule.id, start, end] = Match(
                rule, start, end, span.start.line + 1, span.end.line + 1
            )
    return sorted(hits.values(), key=lambda hit: (hit.char_start, hit.char_end, hit.rule.id))


def parses(language: str, program: str) -> bool:
    """Does tree-sitter read the text without an error node or a token it had to invent?

    Much weaker than a compiler: used where a program cannot compile alone (missing headers).
    """
    stack = [SgRoot(program, _grammar(language)).root()]
    while stack:
        node = stack.pop()
        if node.kind() == "ERROR":
            return False
        children = node.children()
        span = node.range()
        invented = span.start.index == span.end.index and node.is_leaf()
        if invented and not node.is_named():
            return False
        stack.extend(children)
    return True


@cache
def load_rules(folder: Path = RULES_DIR) -> tuple[Rule, ...]:
    """All rules in ``folder``, checked and compiled once.

    Raises :class:`ConfigError` naming the file and the rule for anything that is not as the module
    docstring says: an unknown key, a missing one, a second rule of one id, a rule that ast-grep
    refuses.
    """
    files = [(path, _read(path)) for path in sorted(folder.glob("*.yaml"))]
    if not files:
        raise ConfigError(f"{folder}: no rule files (*.yaml) here; reinstall treeplay")
    utils: dict[str, dict[str, Any]] = {}
    for path, data in files:
        shared = utils.setdefault(data["language"], {})
        for name, piece in (data.get("utils") or {}).items():
            if name in shared:
                raise ConfigError(f"{path}: util {name!r} exists already; give it another name")
            shared[name] = piece
    rules: dict[str, Rule] = {}
    for path, data in files:
        for number, entry in enumerate(data["rules"], 1):
            rule = _make_rule(entry, f"{path}: rule {number}", data["language"], utils)
            if rule.id in rules:
                raise ConfigError(f"{path}: a second rule {rule.id!r}; give every rule its own id")
            rules[rule.id] = rule
    return tuple(rules.values())


@cache
def rules_digest() -> str:
    """Twelve hex digits that change with any rule file."""
    total = hashlib.sha256()
    for path in sorted(RULES_DIR.glob("*.yaml")):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


@cache
def _rules_for(language: str, kind: Kind) -> tuple[Rule, ...]:
    known = next((one for one, both in GRAMMARS.items() if language in both), language)
    return tuple(rule for rule in load_rules() if rule.language == known and rule.kind == kind)


def _grammar(language: str) -> str:
    if language not in LANGUAGES:
        raise ConfigError(f"no rules can read {language!r}; use one of {', '.join(LANGUAGES)}")
    return language


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {_first_line(error)}") from error
    _check_keys(data, FILE_KEYS, ("language", "rules"), str(path))
    if data["language"] not in LANGUAGES:
        raise ConfigError(f"{path}: unknown language {data['language']!r}; use one of {LANGUAGES}")
    if not isinstance(data["rules"], list):
        raise ConfigError(f"{path}: 'rules' must be a list")
    if not isinstance(data.get("utils") or {}, dict):
        raise ConfigError(f"{path}: 'utils' must map names to rule objects")
    return dict(data)


def _make_rule(
    entry: Any, where: str, language: str, utils: Mapping[str, Mapping[str, Any]]
) -> Rule:
    _check_keys(entry, RULE_KEYS, ("id", "kind", "cwe", "message", "rule", "examples"), where)
    where = f"{where} ({entry['id']})"
    if entry["kind"] not in KINDS:
        raise ConfigError(f"{where}: kind is {entry['kind']!r}; use one of {', '.join(KINDS)}")
    cwe = entry["cwe"]
    if not _strings(cwe) or not cwe or any(cwe_number(name) is None for name in cwe):
        raise ConfigError(f"{where}: cwe must be a list of names like 'CWE-89', not {cwe!r}")
    examples = entry["examples"]
    _check_keys(examples, EXAMPLE_KEYS, EXAMPLE_KEYS, f"{where}: examples")
    if not all(_strings(examples[key]) and examples[key] for key in EXAMPLE_KEYS):
        raise ConfigError(f"{where}: examples must list at least one match and one no_match text")
    config: dict[str, Any] = {"rule": entry["rule"]}
    if entry.get("constraints"):
        config["constraints"] = entry["constraints"]
    if utils.get(language):
        config["utils"] = utils[language]
    try:
        for grammar in GRAMMARS.get(language, (language,)):
            SgRoot("", grammar).root().find_all(config)
    except Exception as error:
        raise ConfigError(f"{where}: ast-grep refuses it: {_cause(error)}") from error
    return Rule(
        id=str(entry["id"]),
        kind=entry["kind"],
        language=language,
        cwe=tuple(cwe),
        message=str(entry["message"]),
        config=config,
        match=tuple(examples["match"]),
        no_match=tuple(examples["no_match"]),
    )


def _check_keys(data: Any, known: Iterable[str], needed: Iterable[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping with {', '.join(needed)}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    missing = [key for key in needed if key not in data]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}; add it")


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cause(error: BaseException) -> str:
    """The innermost cause that ast-grep names, without its stack trace."""
    lines = [line.strip() for line in str(error).split("Stack backtrace")[0].splitlines()]
    lines = [line for line in lines if line]
    return lines[-1].lstrip("0123456789: ") if lines else type(error).__name__
