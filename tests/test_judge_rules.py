"""Rules: every rule's own examples, offsets in characters, the strict loader, CWE relations."""

from __future__ import annotations

from pathlib import Path

import pytest

from treeplay.errors import ConfigError
from treeplay.judge.cwe import ancestors, cwe_matches, matches_any
from treeplay.judge.rules import (
    Rule,
    covers,
    find_matches,
    find_sinks,
    find_vulnerable,
    load_rules,
    parses,
)

GOOD = """
language: python
utils:
  word: {kind: identifier}
rules:
  - id: one
    kind: vulnerable
    cwe: [CWE-95]
    message: no
    rule: {pattern: eval($X)}
    examples: {match: ["eval(x)"], no_match: ["f(x)"]}
"""


def hits(rule: Rule, text: str, language: str) -> bool:
    found = find_matches(language, text, rule.kind, rule.cwe[:1])
    return any(match.rule.id == rule.id for match in found)


@pytest.mark.parametrize("rule", load_rules(), ids=lambda rule: rule.id)
def test_examples(rule: Rule) -> None:
    languages = ("c", "cpp") if rule.language == "c" else (rule.language,)
    for language in languages:
        for text in rule.match:
            assert hits(rule, text, language), (language, text)
        for text in rule.no_match:
            assert not hits(rule, text, language), (language, text)


@pytest.mark.parametrize(
    ("language", "numbers"),
    [
        ("python", "22 78 79 89 94 113 117 295 327 328 330 338 377 502 601 611 732 918 1333"),
        ("c", "22 78 89 119 125 134 190 295 327 330 338 377 476 732 787"),
        ("javascript", "22 78 79 89 94 113 117 295 327 338 377 502 601 732 918 1321 1333"),
        ("go", "22 78 79 89 113 117 190 295 327 338 377 601 732 918"),
    ],
)
def test_cover(language: str, numbers: str) -> None:
    for number in numbers.split():
        assert covers(language, f"CWE-{number}"), number
        assert covers(language, f"CWE-{number}", "sink"), number


def test_offsets_are_characters() -> None:
    program = 'x = "é😀ß"\ndb.execute(f"select {x}")\n'
    (sink,) = [one for one in find_sinks("python", program, ["CWE-89"]) if "sql" in one.rule]
    assert program[sink.char_start : sink.char_end] == 'db.execute(f"select {x}")'
    assert sink.line == 2


def test_guards_are_sinks_only_when_asked_for() -> None:
    program = "def f(name):\n    if name:\n        pass\n"
    assert [one.rule for one in find_sinks("python", program, ["CWE-22"])] == ["py-guard"]
    assert find_sinks("python", program, ["CWE-22"], guards=False) == []


def test_finding_names_the_wanted_cwe_and_its_lines() -> None:
    program = "import os\n\n\ndef f(p):\n    os.chmod(\n        p,\n        0o777,\n    )\n"
    (found,) = find_vulnerable("python", program, ["CWE-276"])
    assert (found.line_start, found.line_end, found.cwe) == (5, 8, "CWE-732")
    assert find_vulnerable("python", program, ["CWE-89"]) == []


def test_parses_sees_errors_and_invented_tokens() -> None:
    assert parses("c", "int f(void) { return 1; }")
    assert not parses("c", "int f( { return 1 }")
    assert not parses("c", "int f(void) { return 1 }")
    assert parses("javascript", "let x = ''; f();")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("message: no", "mesage: no", "did you mean 'message'"),
        ("kind: vulnerable", "kind: bad", "use one of sink, guard, vulnerable"),
        ("[CWE-95]", "[95x]", "cwe must be a list"),
        ("[CWE-95]", "[]", "cwe must be a list"),
        ("pattern: eval($X)", "pattren: eval($X)", "ast-grep refuses it: unknown field `pattren`"),
        ("pattern: eval($X)", "kind: nokind", "Kind `nokind` is invalid"),
        ("pattern: eval($X)", "regex: '('", "unclosed group"),
        (', no_match: ["f(x)"]', "", "missing key 'no_match'"),
        ('["f(x)"]', "[]", "at least one match and one no_match"),
        ("language: python", "language: pyton", "unknown language 'pyton'"),
        ("language: python", "language: [", "cannot be read as YAML"),
        ("utils:", "util:", "did you mean 'utils'"),
    ],
)
def test_loader_refuses(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    (tmp_path / "x.yaml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_rules(tmp_path)
    assert said in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loader_refuses_doubles_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rule files"):
        load_rules(tmp_path / "absent")
    (tmp_path / "a.yaml").write_text(GOOD)
    assert [rule.id for rule in load_rules(tmp_path)] == ["one"]
    (tmp_path / "b.yaml").write_text(
        GOOD.replace("  word: {kind: identifier}", "  other: {kind: call}")
    )
    load_rules.cache_clear()
    with pytest.raises(ConfigError, match="a second rule 'one'"):
        load_rules(tmp_path)
    (tmp_path / "b.yaml").write_text(GOOD)
    load_rules.cache_clear()
    with pytest.raises(ConfigError, match="util 'word' exists already"):
        load_rules(tmp_path)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("CWE-89", "CWE-89", True),
        ("CWE-120", "CWE-787", True),
        ("CWE-121", "CWE-119", True),
        ("CWE-328", "CWE-327", True),
        ("CWE-338", "CWE-330", True),
        ("CWE-77", "CWE-78", True),
        ("CWE-95", "CWE-94", True),
        ("CWE-73", "CWE-22", True),
        ("CWE-20", "CWE-20", True),
        ("CWE-20", "CWE-1284", False),  # an ancestor, but too broad to say anything
        ("CWE-89", "CWE-78", False),  # both under CWE-74
        ("CWE-22", "CWE-732", False),  # both under CWE-668
        ("CWE-502", "CWE-89", False),
        ("CWE-1333", "CWE-400", False),
        ("nonsense", "CWE-89", False),
    ],
)
def test_cwe_matches(found: str, wanted: str, same: bool) -> None:
    assert cwe_matches(found, wanted) is same
    assert cwe_matches(wanted, found) is same


def test_cwe_relations() -> None:
    assert {77, 74} <= ancestors(78)
    assert 707 not in ancestors(78)
    assert matches_any("CWE-1", ())
    assert not matches_any("CWE-1", ("CWE-89",))
