"""The packaged CWE table: MITRE's relations, our policy over them, and the script that makes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from treeplay.errors import ConfigError
from treeplay.judge import cwe
from treeplay.judge.cwe import ancestors, cwe_matches, cwe_name, cwe_number

ROOT = Path(__file__).parents[1]
JUDGE = ROOT / "src/treeplay/judge"
CATALOGUE = """<?xml version="1.0" encoding="UTF-8"?>
<Weakness_Catalog Name="CWE" Version="9.9" Date="2030-01-01" xmlns="http://cwe.mitre.org/cwe-7">
<Weaknesses>
<Weakness ID="2" Name="Ünder" Status="Draft"><Related_Weaknesses>
<Related_Weakness Nature="ChildOf" CWE_ID="7" View_ID="1000"/>
<Related_Weakness Nature="ChildOf" CWE_ID="1" View_ID="1000" Ordinal="Primary"/>
<Related_Weakness Nature="ChildOf" CWE_ID="8" View_ID="699" Ordinal="Primary"/>
<Related_Weakness Nature="CanPrecede" CWE_ID="9" View_ID="1000"/>
</Related_Weaknesses></Weakness>
<Weakness ID="1" Name="Over" Status="Stable"/>
<Weakness ID="3" Name="DEPRECATED: Gone" Status="Deprecated"/>
</Weaknesses>
<Categories><Category ID="40" Name="Kind" Status="Draft"/></Categories>
</Weakness_Catalog>
"""


@pytest.mark.parametrize(
    ("child", "parents"),
    [
        (78, {77}),
        (89, {943}),
        (79, {74}),
        (787, {119}),
        (416, {825}),
        (918, {441}),
        (22, {706, 668}),
        (321, {798}),
        (664, set()),  # a pillar
    ],
)
def test_mitres_relations(child: int, parents: set[int]) -> None:
    assert ancestors(child, 1) == parents


def test_ancestors_go_so_many_steps() -> None:
    assert ancestors(80, 1) == {79}
    assert ancestors(80, 3) == {79, 74, 707}
    assert ancestors(424242) == frozenset()


def test_names() -> None:
    assert cwe_name("CWE-798") == "Use of Hard-coded Credentials"
    assert cwe_name("cwe-601") == "URL Redirection to Untrusted Site ('Open Redirect')"
    assert "Denial of Service" in cwe_name("730")  # a category
    assert cwe_name("CWE-424242") == cwe_name("nonsense") == ""


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("CWE-209", "CWE-200", True),
        ("CWE-259", "CWE-321", True),
        ("CWE-798", "CWE-330", False),  # only by way of CWE-344
        ("CWE-1104", "CWE-477", False),
        ("CWE-306", "CWE-295", False),  # both under CWE-287
    ],
)
def test_no_way_leads_through_what_is_too_broad(found: str, wanted: str, same: bool) -> None:
    assert cwe_matches(found, wanted) is same
    assert cwe_matches(wanted, found) is same


def test_the_policy_names_real_weaknesses() -> None:
    numbers = cwe.TOO_BROAD.union(*cwe.ALIASES)
    assert [one for one in sorted(numbers) if not cwe_name(str(one))] == []
    pillars = {284, 435, 664, 682, 691, 693, 697, 703, 707, 710}
    assert pillars <= cwe.TOO_BROAD


def test_every_cwe_of_rules_and_tasks_is_in_the_table() -> None:
    named: dict[str, str] = {}
    for path in sorted(JUDGE.glob("rules/**/*.yaml")):
        named.update(dict.fromkeys(re.findall(r"\bCWE-\d+", path.read_text()), path.name))
    for path in sorted(ROOT.glob("src/treeplay/tasks/pack/*/*.toml")):
        named.update(dict.fromkeys(re.findall(r"\bCWE-\d+", path.read_text()), path.name))
    assert len(named) > 50
    assert {name: path for name, path in named.items() if not cwe_name(name)} == {}


def test_the_table_says_where_it_is_from() -> None:
    data = json.loads(cwe.TABLE.read_text(encoding="utf-8"))
    assert data["version"]
    assert data["source"].startswith("https://cwe.mitre.org/")
    assert "The MITRE Corporation" in data["terms"]
    assert f"version {data['version']}" in (ROOT / "NOTICE").read_text()
    assert len(data["weaknesses"]) > 900
    for number, (name, *parents) in data["weaknesses"].items():
        assert name
        assert cwe_number(number) not in parents
        assert all(str(parent) in data["weaknesses"] for parent in parents), number


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"weaknesses": {"1": 3}}', "[]"])
def test_a_damaged_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "cwe.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(cwe, "TABLE", path)
    cwe._table.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"cwe\.json: the CWE table cannot be read"):
            cwe_name("CWE-79")
    finally:
        cwe._table.cache_clear()


def make_table(catalogue: Path, out: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts/make_cwe_table.py"), str(catalogue), str(out)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_script_reads_mitres_catalogue(tmp_path: Path) -> None:
    source, out = tmp_path / "cwec.xml", tmp_path / "out.json"
    source.write_text(CATALOGUE, encoding="utf-8")
    done = make_table(source, out)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text(encoding="utf-8"))
    assert (data["version"], data["date"]) == ("9.9", "2030-01-01")
    assert data["weaknesses"] == {"1": ["Over"], "2": ["Ünder", 1, 7]}
    assert data["categories"] == {"40": ["Kind"]}


def test_script_refuses_anything_else(tmp_path: Path) -> None:
    source = tmp_path / "cwec.xml"
    for text in ("<a/>", "no XML", CATALOGUE.replace("<Weakness ", "<Other ")):
        source.write_text(text, encoding="utf-8")
        done = make_table(source, tmp_path / "out.json")
        assert done.returncode == 1
        assert done.stderr.startswith("cannot read the catalogue")
        assert not (tmp_path / "out.json").exists()
