"""One SVG a study: every arm's SPR@1 and vulnerable rate with intervals, a panel a group.

Drawn by hand, so that the file is small, the same on every machine, and readable in a diff.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from treeplay.experiments.results import Group, Study
from treeplay.experiments.stats import Estimate, estimate

# (measure, what it is called, colour: dark enough for small marks on white, apart also in grey)
SHOWN = (("spr1_all", "SPR@1", "#1a7f4b"), ("vulnerable", "vulnerable", "#c2410c"))
WIDE, LABEL, GAP, ROW, TOP = 250, 165, 44, 26, 62
INK, FAINT = "#24292f", "#d0d7de"


def study_plot(study: Study) -> str:
    """The SVG of a study: panels side by side, three a row."""
    arms = [arm for arm in study.arms if study.seeds(arm)]
    groups = [g for g in study.main_groups() if _has(study, g, arms)]
    columns = max(1, min(3, len(groups)))
    high = TOP + ROW * len(arms) + 34
    rows = -(-len(groups) // columns)
    width = LABEL + columns * (WIDE + GAP) + 10
    height = rows * high + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" '
        f'role="img" aria-label="{escape(_said(study, arms), {chr(34): "&quot;"})}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, group in enumerate(groups):
        x = LABEL + (index % columns) * (WIDE + GAP)
        y = (index // columns) * high
        out += _panel(study, group, arms, x, y, labels=index % columns == 0)
    out += _legend(LABEL, height - 12)
    return "\n".join([*out, "</svg>", ""])


def _has(study: Study, group: Group, arms: Sequence[str]) -> bool:
    found = (estimate(study.values(arm, group, SHOWN[0][0]), resamples=1) for arm in arms)
    return any(one.value is not None for one in found)


def _said(study: Study, arms: Sequence[str]) -> str:
    return f"SPR@1 and vulnerable rate of {', '.join(arms)} with 95 % intervals, {study.protocol}"


def _panel(
    study: Study, group: Group, arms: Sequence[str], x: int, y: int, *, labels: bool
) -> list[str]:
    found = {
        (arm, measure): estimate(study.values(arm, group, measure), group.clusters)
        for arm in arms
        for measure, _, _ in SHOWN
    }
    most = max((one.high or one.value or 0.0 for one in found.values()), default=0.0)
    end = next(edge for edge in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if most <= edge + 1e-9)
    bottom = y + TOP + ROW * len(arms)
    out = [
        f'<text x="{x}" y="{y + 22}" font-weight="bold" fill="{INK}">{escape(group.name)}</text>',
        f'<text x="{x}" y="{y + 38}" font-size="11" fill="{INK}">{len(group.keys)} tasks</text>',
    ]
    for tick in range(5):
        at = x + WIDE * tick / 4
        out += [
            f'<line x1="{at:.1f}" y1="{y + TOP - 12}" x2="{at:.1f}" y2="{bottom}" '
            f'stroke="{FAINT}"/>',
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" font-size="11" '
            f'fill="{INK}">{100 * end * tick / 4:g} %</text>',
        ]
    for row, arm in enumerate(arms):
        middle = y + TOP + ROW * row + ROW / 2 - 8
        if labels:
            out.append(
                f'<text x="{x - 12}" y="{middle + 4:.1f}" text-anchor="end" '
                f'fill="{INK}">{escape(arm + study.fewer(study.seeds(arm)))}</text>'
            )
        for number, (measure, _, colour) in enumerate(SHOWN):
            at = middle - 4 + 8 * number
            out += _mark(found[arm, measure], x, at, WIDE / end, colour, square=number == 1)
    return out


def _mark(
    found: Estimate, x: int, y: float, scale: float, colour: str, *, square: bool
) -> list[str]:
    if found.value is None:
        return []
    out = []
    if found.low is not None and found.high is not None:
        out.append(
            f'<line x1="{x + found.low * scale:.1f}" y1="{y:.1f}" '
            f'x2="{x + found.high * scale:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="1.6"/>'
        )
    at = x + found.value * scale
    if square:
        out.append(f'<rect x="{at - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{colour}"/>')
    else:
        out.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return out


def _legend(x: int, y: int) -> list[str]:
    out = []
    for number, (_, name, colour) in enumerate(SHOWN):
        at = x + 110 * number
        shape = _mark(Estimate(0.0, None, None, 0, 0), at, y - 4, 1, colour, square=number == 1)
        out += [*shape, f'<text x="{at + 10}" y="{y}" fill="{INK}">{name}</text>']
    return [*out, f'<text x="{x + 230}" y="{y}" fill="{INK}">bars: 95 % interval</text>']
