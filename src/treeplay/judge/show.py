"""Verdicts on files for the terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from treeplay.judge.files import Source
from treeplay.judge.verdict import LABELS, Verdict, verdict_to_json

STYLES = {"vulnerable": "bold red", "secure": "green", "invalid": "yellow", "unknown": "magenta"}


def print_verdicts(
    sources: Sequence[Source], verdicts: Sequence[Verdict], identity: str, out: Console
) -> None:
    """One line a file, its findings below it, and a line that counts."""
    for source, verdict in zip(sources, verdicts, strict=True):
        line = Text()
        line.append(f"{verdict.label:<10}", STYLES.get(verdict.label, ""))
        sure = "    " if verdict.confidence is None else f"{verdict.confidence:>4.0%}"
        line.append(f" {sure}  {_plain(source.name)}")
        if not verdict.findings:
            line.append(f"  {_plain(verdict.reason)}", "dim")
        out.print(line)
        for one in verdict.findings:
            where = f"{one.line_start}" + (
                f"-{one.line_end}" if one.line_end != one.line_start else ""
            )
            found = Text(f"    line {where}: {one.cwe or 'no CWE'} {_plain(one.message)} ")
            found.append(f"[{_plain(one.tool)}: {_plain(one.rule)}]", "dim")
            out.print(found)
    counts = Counter(verdict.label for verdict in verdicts)
    said = ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label])
    out.print(Text(f"{len(sources)} programs: {said}"))
    silent = sorted({reason for verdict in verdicts for reason in verdict.not_looked})
    if silent:
        out.print(Text(f"did not look: {_plain('; '.join(silent[:8]))}", "dim"))
    out.print(Text(f"looked: {identity}", "dim"))


def verdicts_to_json(
    sources: Sequence[Source], verdicts: Sequence[Verdict], identity: str
) -> dict[str, Any]:
    """``{"judge": what looked, "files": [{"path", "language", label, findings, ...}]}``."""
    return {
        "judge": identity,
        "files": [
            {"path": source.name, "language": source.program.language, **verdict_to_json(verdict)}
            for source, verdict in zip(sources, verdicts, strict=True)
        ],
    }


def _plain(text: str) -> str:
    """Text of others without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)
