"""The committed results pages: made from the committed results, and quoted rightly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_results_page import line

from treeplay.experiments.page import BEGIN, page_files

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_made_from_the_committed_results() -> None:
    if not list((ROOT / "results").glob("*/*/*/*.json")):
        pytest.skip("no results are committed")
    files = page_files(ROOT / "results", ROOT / "docs" / "results.md")
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"make {path} again"
    assert set((ROOT / "docs" / "results").iterdir()) <= set(files)


NUMBER = r"[+\u2212]?(?:\d+(?:\.\d+)?|\u221e)"
INTERVAL = rf"\[{NUMBER}, {NUMBER}\]"


def test_intervals_quoted_by_hand_are_those_of_the_tables() -> None:
    """With the estimates that stand before them. Above the tables; below them are runs of their
    own."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    by_hand, _, made = page.partition(BEGIN)
    made += "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "results").glob("*.md"))
    by_hand = " ".join(by_hand.split())
    quoted = re.findall(INTERVAL, by_hand)
    assert len(quoted) > 20
    assert not [one for one in quoted if one not in made]
    told = set(re.findall(rf"({NUMBER}) ({INTERVAL})", made))
    told |= {(value.lstrip("+\u2212"), interval) for value, interval in told}
    pairs = re.findall(rf"({NUMBER})(?: times| points| %)? ({INTERVAL})", by_hand)
    assert len(pairs) > 20
    assert not [pair for pair in pairs if pair not in told]


def test_rates_in_the_readme_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    made = page.partition(BEGIN)[2].partition("### `main`, smollm2")[0]
    heads = line(made, "arm", "SPR@1")
    in_full = page.partition("## General ability in full")[2]
    row_of = r"^\| `?([\w-]+)`?(?: \(.*\))? \| ([\d.]+) \["
    ability = dict(re.findall(row_of, in_full, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`[^|]*((?:\| [\d.]* *){5})\|$", readme, re.MULTILINE)
    assert len(rows) > 5
    for arm, told in rows:
        cells = dict(zip(heads, line(made, f"`{arm}`"), strict=True))
        shown = [cells[name].split()[0] for name in ("SPR@1", "vulnerable", "valid", "pass@1")]
        given = [cell.strip() for cell in told.split("|")[1:]]
        assert given == [*shown, ability.get(arm, "")], arm
