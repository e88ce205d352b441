"""SARIF: real logs of other tools are read, our own are valid and say what the verdicts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from treeplay.judge.sarif import SarifError, read_sarif
from treeplay.judge.sarif_write import write_sarif
from treeplay.judge.verdict import Finding, Verdict

DATA = Path(__file__).with_name("data") / "sarif"


def real(name: str) -> list[tuple[str, tuple[str, ...], int, int, str]]:
    log = read_sarif((DATA / f"{name}.sarif").read_text())
    assert log.failed == ""
    assert log.failed_paths == {}
    assert all(one.message and one.tool for one in log.reported)
    return [(one.path, one.cwe, one.line_start, one.line_end, one.rule) for one in log.reported]


def test_real_logs() -> None:
    assert real("semgrep") == [("py/run.py", ("CWE-502",), 13, 13, "eval-of-input")]
    assert real("njsscan") == [
        ("run.js", ("CWE-78",), 5, 5, "generic_os_command_exec"),
        ("run.js", ("CWE-95",), 7, 7, "eval_nodejs"),
    ]
    assert real("flawfinder") == [
        ("c/copy.c", ("CWE-119", "CWE-120"), 5, 5, "FF1013"),
        ("c/copy.c", ("CWE-120",), 6, 6, "FF1001"),
        ("c/copy.c", ("CWE-134",), 7, 7, "FF1016"),
    ]
    home = "/home/user/code/"
    assert real("ruff") == [
        (home + "py/run.py", (), 9, 9, "S602"),
        (home + "py/run.py", (), 13, 13, "S301"),
    ]
    assert [(path, rule) for path, _, _, _, rule in real("eslint")] == [
        (home + "js/run.js", "security/detect-child-process"),
        (home + "js/run.js", "security/detect-non-literal-fs-filename"),
        (home + "js/run.js", "security/detect-eval-with-expression"),
    ]
    assert [(line, rule) for _, _, line, _, rule in real("bandit")] == [
        (1, "B403"),
        (2, "B404"),
        (9, "B602"),
        (13, "B301"),
    ]


def test_a_real_tool_that_failed_says_so() -> None:
    log = read_sarif((DATA / "njsscan-failed.sarif").read_text())
    assert log.reported == ()
    assert log.failed == "nodejsscan says that it failed"


def run_of(**more: Any) -> str:
    run = {"tool": {"driver": {"name": "t", "rules": more.pop("rules", [])}}, "results": [], **more}
    return json.dumps({"version": "2.1.0", "runs": [run]})


def result(**more: Any) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": "a%20b.c"}, "region": {"startLine": 3, "endLine": 5}}
    return {"message": {"text": "m"}, "locations": [{"physicalLocation": place}], **more}


@pytest.mark.parametrize(
    ("rule", "more", "cwe"),
    [
        ({"properties": {"tags": ["security", "external/cwe/cwe-089"]}}, {}, ("CWE-89",)),
        ({"properties": {"tags": ["CWE-1004"]}}, {}, ("CWE-1004",)),
        ({"properties": {"tags": ["CWE-78: OS Command", "CWE-77"]}}, {}, ("CWE-78", "CWE-77")),
        ({"properties": {"cwe": "79"}}, {}, ("CWE-79",)),
        ({"properties": {"cwe": ["CWE-022", 23]}}, {}, ("CWE-22", "CWE-23")),
        ({"properties": {"security-severity": "7.8", "tags": ["owasp-a1:2021"]}}, {}, ()),
        ({"helpUri": "https://cwe.mitre.org/data/definitions/611.html"}, {}, ("CWE-611",)),
        ({"helpUri": "https://example.org/611.html"}, {}, ()),
        ({}, {"ruleId": "CWE-476/null"}, ("CWE-476",)),
        ({}, {"properties": {"cwe": "CWE-190"}}, ("CWE-190",)),
        ({}, {"taxa": [{"id": "416", "toolComponent": {"name": "CWE"}}]}, ("CWE-416",)),
        ({}, {"taxa": [{"id": "416", "toolComponent": {"name": "OWASP"}}]}, ()),
        ({}, {"taxa": [{"index": 0, "toolComponent": {"index": 0}}]}, ("CWE-401",)),
        (
            {"relationships": [{"target": {"id": "CWE-120", "toolComponent": {"name": "CWE"}}}]},
            {},
            ("CWE-120",),
        ),
    ],
)
def test_cwes_wherever_they_stand(
    rule: dict[str, Any], more: dict[str, Any], cwe: tuple[str, ...]
) -> None:
    taxonomies = [{"name": "CWE", "taxa": [{"id": "401"}]}]
    one = result(**{"ruleId": "r", **more})
    text = run_of(rules=[{"id": "r", **rule}], results=[one], taxonomies=taxonomies)
    (seen,) = read_sarif(text).reported
    assert seen.cwe == cwe
    assert (seen.path, seen.line_start, seen.line_end) == ("a b.c", 3, 5)
    assert seen.finding("CWE-1", "mine").tool == "mine"


def test_rules_by_index_extension_and_hierarchy() -> None:
    """The way CodeQL writes: rules in an extension, messages and bases apart."""
    named = {"id": "cpp/x", "properties": {"tags": ["external/cwe/cwe-787"]}}
    strings = {"default": {"text": "{0} is {1}"}}
    run = {
        "tool": {
            "driver": {"name": "CodeQL", "rules": [{"id": "other"}]},
            "extensions": [{"name": "pack", "rules": [named, {"id": "CA1", "name": "n"}]}],
        },
        "artifacts": [{"location": {"uri": "src/a.c", "uriBaseId": "%SRCROOT%"}}],
        "originalUriBaseIds": {"%SRCROOT%": {"uri": "file:///home/me/"}},
        "results": [
            {
                "rule": {"index": 0, "toolComponent": {"index": 0}},
                "message": {"text": "m"},
                "locations": [{"physicalLocation": {"artifactLocation": {"index": 0}}}],
            },
            {
                "ruleId": "CA1/2",
                "message": {"id": "default", "arguments": ["x", "evil"]},
                "locations": [{"logicalLocations": []}],
            },
        ],
    }
    run["tool"]["extensions"][0]["rules"][1]["messageStrings"] = strings  # type: ignore[index]
    first, second = read_sarif(json.dumps({"version": "2.1.0", "runs": [run]})).reported
    assert (first.rule, first.cwe, first.path) == ("cpp/x", ("CWE-787",), "/home/me/src/a.c")
    assert first.line_start == first.line_end == 1
    assert (second.rule, second.message, second.path) == ("CA1/2", "x is evil", "")


def test_only_failures_count_and_suppressions_do_not() -> None:
    kept = [result(ruleId="a"), result(ruleId="b", suppressions=[{"kind": "inSource"}])]
    gone = [result(kind="pass"), result(level="none"), result(baselineState="absent")]
    log = read_sarif(run_of(results=[*gone, *kept]))
    assert [one.rule for one in log.reported] == ["a", "b"]


@pytest.mark.parametrize(
    ("run", "failed", "paths"),
    [
        ({"invocations": [{"executionSuccessful": True}]}, "", {}),
        (
            {"invocations": [{"executionSuccessful": False, "exitCodeDescription": "oom"}]},
            "t says that it failed: oom",
            {},
        ),
        (
            {
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {"level": "note", "message": {"text": "n"}},
                            {**result(), "level": "error", "message": {"text": "no parse"}},
                        ],
                    }
                ]
            },
            "",
            {"a b.c": "no parse"},
        ),
        (
            {
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolConfigurationNotifications": [
                            {"level": "error", "message": {"text": "bad rule"}}
                        ],
                    }
                ]
            },
            "t: bad rule",
            {},
        ),
        ({"results": None}, "t gives no results, not even an empty list", {}),
    ],
)
def test_failures(run: dict[str, Any], failed: str, paths: dict[str, str]) -> None:
    log = read_sarif(run_of(**run))
    assert (log.failed, log.failed_paths) == (failed, paths)


def test_one_failed_run_of_two_is_a_failure() -> None:
    data = json.loads(run_of())
    data["runs"].append({"tool": {"driver": {"name": "u"}}})
    assert read_sarif(json.dumps(data)).failed.startswith("u gives no results")
    assert read_sarif('{"version": "2.1.0", "runs": []}').failed == "the log holds no run"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no whole JSON"),
        (run_of(results=[result()])[:-30], "no whole JSON"),
        ("[" * 100_000, "no whole JSON"),
        ("[]", "no SARIF log"),
        ('{"results": []}', "no SARIF log"),
        ('{"version": "1.0.0", "runs": []}', "only 2.1.0"),
        ('{"version": "2.1.0", "runs": [{}]}', "not built as SARIF"),
        (run_of(results=[{"ruleId": "no message"}]), "not built as SARIF"),
        (run_of(results=["x"]), "not built as SARIF"),
        (run_of(results=[result(locations=[{"physicalLocation": 3}])]), "not built as SARIF"),
    ],
)
def test_what_is_no_log(text: str, said: str) -> None:
    with pytest.raises(SarifError, match=said):
        read_sarif(text)


SQL = Finding("CWE-89", 2, 3, "B608", "bandit", "string-built query")
VERDICTS = [
    ("src/a b.py", Verdict("vulnerable", "static", (SQL, SQL), None, "a path", 0.875)),
    (
        "/abs/c.c",
        Verdict(
            "secure",
            "executed",
            (
                Finding(None, 0, 0, "style", "cppcheck", ""),
                Finding("CWE-564", 9, 4, "B608", "bandit", "x"),
                Finding("CWE-9999", 1, 1, "B608", "bandit", "x"),
            ),
            not_looked=("gcc: it does not compile",),
        ),
    ),
    ("-", Verdict("unknown", reason="the sandbox is missing")),
]
TEXT = "a\n  x = 1\n  y\n"


def test_written_logs_are_valid() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((DATA / "sarif-schema-2.1.0.json").read_text())
    checker = jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())
    for log in (write_sarif(VERDICTS, texts={"src/a b.py": TEXT}, version="1.0"), write_sarif([])):
        assert [error.message for error in checker.iter_errors(log)] == []
    broken = write_sarif(VERDICTS)
    broken["runs"][0]["results"][0]["level"] = "evil"
    assert not checker.is_valid(broken)  # the schema is really asked


def test_written_logs_read_back() -> None:
    log = read_sarif(json.dumps(write_sarif(VERDICTS)))
    seen = [(one.path, one.cwe, one.line_start, one.line_end, one.rule) for one in log.reported]
    assert seen == [
        ("src/a b.py", ("CWE-89",), 2, 3, "bandit/B608"),
        ("src/a b.py", ("CWE-89",), 2, 3, "bandit/B608"),
        ("/abs/c.c", (), 1, 1, "cppcheck/style"),
        ("/abs/c.c", ("CWE-564",), 9, 9, "bandit/B608/CWE-564"),
        ("/abs/c.c", ("CWE-9999",), 1, 1, "bandit/B608/CWE-9999"),
    ]
    assert log.failed == ""
    assert log.failed_paths == {"stdin": "the sandbox is missing"}


def test_what_a_written_log_says() -> None:
    run = write_sarif(VERDICTS, texts={"src/a b.py": TEXT})["runs"][0]
    first, second, third = run["results"][:3]
    assert (first["level"], third["level"]) == ("error", "warning")
    assert first["rank"] == 87.5
    assert first["properties"] == {"tool": "bandit", "evidence": "static", "confidence": 0.875}
    rule = run["tool"]["driver"]["rules"][first["ruleIndex"]]
    assert rule["id"] == first["ruleId"]
    assert rule["helpUri"] == "https://cwe.mitre.org/data/definitions/89.html"
    assert "external/cwe/cwe-089" in rule["properties"]["tags"]
    assert "SQL" in run["taxonomies"][0]["taxa"][0]["shortDescription"]["text"]
    assert run["artifacts"][0]["properties"]["label"] == "vulnerable"
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert [(one["level"], one["message"]["text"]) for one in notes] == [
        ("warning", "gcc: it does not compile"),
        ("error", "the sandbox is missing"),
    ]
    prints = [one["partialFingerprints"]["treeplayLine/v1"] for one in (first, second)]
    assert prints[0] != prints[1]
    moved = Finding("CWE-89", 4, 5, "B608", "bandit", "string-built query")
    again = write_sarif(
        [("src/a b.py", Verdict("vulnerable", "static", (moved,)))],
        texts={"src/a b.py": "new\n\n" + TEXT},
    )
    assert again["runs"][0]["results"][0]["partialFingerprints"]["treeplayLine/v1"] == prints[0]
