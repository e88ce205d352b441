"""Every packaged Semgrep rule does what its examples say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from treeplay.errors import ConfigError
from treeplay.judge.tools.base import Program
from treeplay.judge.tools.semgrep import SEMGREP, semgrep_version
from treeplay.judge.tools.semgrep_rules import (
    ALL,
    load_own_rules,
    load_semgrep_rules,
    rules_file,
    rules_for,
)
from treeplay.sandbox import Sandbox

needs_semgrep = pytest.mark.skipif(semgrep_version() is None, reason="Semgrep is not installed")

RULE: dict[str, Any] = {
    "id": "py-x",
    "languages": ["python"],
    "severity": "ERROR",
    "message": "x is evil",
    "pattern": "eval($X)",
    "metadata": {"cwe": ["CWE-95"], "examples": {"match": ["eval(x)"], "no_match": ["f(x)"]}},
}


def write(folder: Path, *rules: Any, name: str = "python-x.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump({"rules": list(rules)}))
    return folder


@needs_semgrep
@pytest.mark.parametrize("language", ALL)
def test_examples(language: str) -> None:
    cases = [
        (rule.id, text, wanted)
        for rule in load_semgrep_rules()
        if language in rule.languages
        for texts, wanted in ((rule.match, True), (rule.no_match, False))
        for text in texts
    ]
    if not cases:
        pytest.skip(f"no rules for {language}")
    programs = [Program(language, text) for _, text, _ in cases]
    wrong = []
    for (rule_id, text, wanted), seen in zip(cases, SEMGREP.run(programs, Sandbox()), strict=True):
        flagged = rule_id in {finding.rule for finding in seen.findings}
        if seen.failed or flagged is not wanted:
            wrong.append((rule_id, "match" if wanted else "no_match", text, seen.failed))
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "x"}, "must start with py-"),
        ({"id": 3}, "text 'id'"),
        ({"languages": ["ruby"]}, "unknown language 'ruby'"),
        ({"languages": "python"}, "'languages' must be a list"),
        ({"message": " "}, "missing message"),
        ({"metadata": {"examples": {"match": ["a"], "no_match": ["b"]}}}, "metadata.cwe"),
        ({"metadata": {**RULE["metadata"], "cwe": ["CWE-089"]}}, "metadata.cwe"),
        ({"metadata": {"cwe": ["CWE-95"]}}, "match and no_match"),
        ({"metadata": {"cwe": ["CWE-95"], "examples": {"match": ["a"]}}}, "match and no_match"),
        (
            {"metadata": {"cwe": ["CWE-95"], "examples": {"match": [], "no_match": ["b"]}}},
            "examples.match must list",
        ),
    ],
)
def test_a_packaged_rule_that_is_wrong_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_semgrep_rules(write(tmp_path, RULE, {**RULE, "id": "py-y", **change}))
    assert said in str(caught.value)
    assert "python-x.yaml: rule 2" in str(caught.value)


def test_ids_are_unique_over_all_files(tmp_path: Path) -> None:
    write(tmp_path, RULE)
    with pytest.raises(ConfigError, match="a second rule 'py-x'"):
        load_semgrep_rules(write(tmp_path, RULE, name="python-y.yaml"))


def test_files_that_are_no_rules(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rule files"):
        load_semgrep_rules(tmp_path)
    (tmp_path / "python-a.yaml").write_text("rules: [")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_semgrep_rules(tmp_path / ".")
    with pytest.raises(ConfigError, match="No such file"):
        load_own_rules((tmp_path / "none.yaml",))


def test_own_rules_need_only_what_semgrep_needs(tmp_path: Path) -> None:
    own = {key: value for key, value in RULE.items() if key != "metadata"}
    long = {"cwe": ["CWE-95: Eval Injection", "cwe-78"], "references": ["x"]}
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", {**own, "id": "a.b"}, {**own, "id": "c", "metadata": long}, name="r.yml")
    write(tmp_path, {**own, "id": "d", "languages": ["ruby"]}, {**own, "languages": ["regex"]})
    (tmp_path / "notes.yaml").write_text("a: 1\n")
    (tmp_path / "r.test.yaml").write_text("rules: nonsense\n")
    rules = {rule.id: rule for rule in load_own_rules((tmp_path,))}
    assert set(rules) == {"a.b", "c", "py-x"}
    assert rules["a.b"].cwe == ()
    assert rules["c"].cwe == ("CWE-95", "CWE-78")
    assert rules["py-x"].languages == ALL
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="no Semgrep rules"):
        load_own_rules((tmp_path / "none",))


def test_only_rules_that_are_asked_for_are_merged(tmp_path: Path) -> None:
    other = {**RULE, "id": "py-y", "metadata": {**RULE["metadata"], "cwe": ["CWE-918"]}}
    rules = load_semgrep_rules(write(tmp_path, RULE, other))
    assert [one.id for one in rules_for(rules, "python", [("CWE-94",), ("CWE-95",)])] == ["py-x"]
    assert [one.id for one in rules_for(rules, "python", [("CWE-94",), ()])] == ["py-x", "py-y"]
    assert rules_for(rules, "go", [()]) == []
    assert rules_file(rules)[0] != rules_file(rules[:1])[0]
    assert "examples" not in rules_file(rules)[1]
