"""What tables are made of: Markdown lines, and numbers as they are written in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from treeplay.experiments.stats import Estimate

MINUS = "\u2212"


def estimate_cell(
    found: Estimate, scale: float, *, interval: bool = True, sign: bool = False, digits: int = 1
) -> str:
    """``value [low, high]``, times ``scale``; ``n/a`` where there is nothing to tell."""
    if found.value is None:
        return "n/a"

    def number(value: float) -> str:
        if math.isinf(value):
            return "∞"
        text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
        return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"

    text = number(found.value)
    if interval and found.low is not None and found.high is not None:
        text += f" [{number(found.low)}, {number(found.high)}]"
    return text


def p_cell(value: float) -> str:
    """A p-value to three places."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def table_head(cells: Sequence[str]) -> list[str]:
    """The two first lines of a Markdown table."""
    return [table_line(cells), "|" + "---|" * len(cells)]


def table_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """``lines`` below a title that opens them; Markdown stands between empty lines there."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>"]
