"""The bench as one self-contained HTML page: tables, an interval drawn beside every rate."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

COLUMNS = (
    ("recall", "recall", "flagged, of the vulnerable programs"),
    ("false_positive_rate", "false alarms", "flagged, of the secure programs"),
    ("precision", "precision", "vulnerable, of the flagged programs"),
    ("pair_accuracy", "pairs", "vulnerable side flagged and secure side not"),
    ("coverage", "decided", "called secure or vulnerable, not unknown"),
)


def bench_page(report: Mapping[str, Any]) -> str:
    """The page of a bench report (its JSON form). Text of records and tools is escaped."""
    environment = Environment(
        loader=PackageLoader("treeplay.view", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (resources.files("treeplay.view") / "report.css").read_text("utf-8")
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in report["rows"]:
        group = groups.setdefault((row["dataset"], row["language"]), {"all": [], "cwe": []})
        if row["cwe"] is None:
            group["all"].append(row)
        elif row["tool"] == "ensemble":
            group["cwe"].append(row)
    return environment.get_template("bench.html.j2").render(
        report=report, groups=groups, columns=COLUMNS, css=Markup(css)
    )
