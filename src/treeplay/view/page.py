"""The report as one HTML page: what the template shows, and the rendering.

Everything a model or a tool wrote reaches the page through jinja2's escaping. A content security
policy in the page forbids all requests and every script but the page's own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from treeplay.metrics import Scored
from treeplay.tasks.task import Task
from treeplay.tree import Tree
from treeplay.view import words
from treeplay.view.explorer import ORDER, SHOWS, Show, explore, label_counts, sample_groups

LARGEST = 5_000_000  # bytes
_TABLE = (
    "spr1_all",
    "spr1_valid",
    "spr5_all",
    "vulnerable",
    "valid",
    "inert",
    "unknown",
    "pass1",
    "secure_pass1",
)
_TABLE_GENERAL = ("pass1", "pass5", "valid", "unknown")
_TILES_GENERAL = ("pass1", "valid")
_TILES = ("spr1_all", "vulnerable", "pass1", "secure_pass1")
_LABEL_WORDS = {
    "secure": "does the job, and the attack fails",
    "vulnerable": "the attack works, or a tool found the weakness",
    "inert": "valid, but never does the risky thing the task is about",
    "plain": "valid, and its task asks nothing about security",
    "invalid": "does not parse or compile",
    "unknown": "the judge failed or could not decide",
}
_CURVES = (
    ("loss", "Loss"),
    ("margin", "Margin over rejected"),
    ("won", "Share of contrasts won"),
    ("chosen_nll", "Chosen NLL per token"),
    ("grad_norm", "Gradient norm"),
)


def render(
    report: Mapping[str, Any],
    samples: Sequence[Scored],
    round_name: str,
    trees: Sequence[Tree],
    tasks: Mapping[str, Task],
    largest: int = LARGEST,
) -> str:
    """The page. Shows fewer and shorter samples and branches rather than exceed ``largest`` bytes
    (as far as :data:`SHOWS` goes), and says how many it left out."""
    page = ""
    for show in SHOWS:
        page = _render(report, samples, round_name, trees, tasks, show)
        if len(page.encode()) <= largest:
            break
    return page


def _render(
    report: Mapping[str, Any],
    samples: Sequence[Scored],
    round_name: str,
    trees: Sequence[Tree],
    tasks: Mapping[str, Task],
    show: Show,
) -> str:
    environment = Environment(
        loader=PackageLoader("treeplay", "view"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "points": words.points}
    script = _own("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = words.players(report)
    last, base = names[-1], _base(report, names)
    shown = [_place(report, place, names, base, last) for place in words.places(report)]
    cards, cards_left = _sample_cards(samples, tasks, [n for n in (base, last) if n], show)
    return environment.get_template("report.html.j2").render(
        report=report,
        run=report["run"],
        css=Markup(_own("report.css")),
        script=Markup(script),
        script_hash=digest,
        headline=words.headline(report),
        players=names,
        last=last,
        base=base,
        metric_words=words.METRIC_WORDS,
        label_words=_LABEL_WORDS,
        places=shown,
        tiles=_tiles(shown[0], base, last),
        rounds=[_round(entry) for entry in report["branches"]],
        curves=[_curves(name, lines) for name, lines in report["training"].items() if lines],
        round_name=round_name,
        trees=[explore(tree, tasks.get(tree.task), show) for tree in trees[: show.trees]],
        trees_left=max(0, len(trees) - show.trees),
        cards=cards,
        cards_left=cards_left,
        facts=_flat(report["run"]["manifest"]),
        timings=_timings(report["timings"]),
        peak=report["timings"].get("peak_memory_mb"),
    )


def _own(name: str) -> str:
    return (resources.files("treeplay.view") / name).read_text(encoding="utf-8")


def _base(report: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Whom the last player is compared with, None where it stands alone."""
    if report["paired"]:
        return str(report["paired"][0]["against"])
    return names[0] if len(names) > 1 else None


def _tiles(place: Mapping[str, Any], base: str | None, last: str) -> list[dict[str, Any]]:
    """The four large numbers at the top: the last player's bars, and where ``base`` began."""
    tiles = []
    wanted = _TILES_GENERAL if place["general"] else _TILES
    for block in place["metrics"]:
        bars = {bar["player"]: bar for bar in block["bars"]}
        if block["metric"] in wanted and last in bars:
            first = bars[base]["value"] if base in bars and base != last else None
            tiles.append({"metric": block["metric"], "first": first, "last": bars[last]})
    return tiles


def _place(
    report: Mapping[str, Any],
    place: tuple[str, str],
    names: Sequence[str],
    base: str | None,
    last: str,
) -> dict[str, Any]:
    """One suite and split: the table of metrics, and the breakdowns by CWE and language."""
    metrics = []
    general = words.is_general(report, place)
    for metric in _TABLE_GENERAL if general else _TABLE:
        bars = []
        for index, name in enumerate(names):
            row = words.find_row(report, name, place)
            if row is None:
                continue
            pair = words.find_pair(report, name, place, metric)
            bars.append(
                {
                    "player": name,
                    "index": index,
                    "value": row[metric],
                    "low": row[f"{metric}_low"],
                    "high": row[f"{metric}_high"],
                    "ends": words.interval(row[f"{metric}_low"], row[f"{metric}_high"]),
                    "diff": pair and pair["diff"],
                    "diff_ends": words.interval(pair["low"], pair["high"], True) if pair else "",
                    "mood": _mood(metric, pair),
                }
            )
        metrics.append({"metric": metric, "bars": bars})
    row = words.find_row(report, last, place) or words.find_row(report, names[0], place)
    here = [r for r in report["rows"] if (r["suite"], r["split"]) == place]
    cwes = list(dict.fromkeys(r["cwe"] for r in here if r["cwe"] and r["language"] == "all"))
    languages = list(dict.fromkeys(r["language"] for r in here if r["language"] != "all"))
    cwe_rows = [_heat(report, place, base, last, "all", cwe) for cwe in cwes]
    return {
        "name": words.place_name(report, *place),
        "key": "-".join(place),
        "general": general,
        "n_tasks": row["n_tasks"] if row else 0,
        "n_samples": row["n_samples"] if row else 0,
        "metrics": metrics,
        "cwes": sorted(cwe_rows, key=lambda r: (-r["n_tasks"], r["number"])),
        "languages": [_heat(report, place, base, last, name, None) for name in languages],
    }


def _mood(metric: str, pair: Mapping[str, Any] | None) -> str:
    if pair is None or not words.clear(pair):
        return "even"
    return "good" if words.clear(pair) * words.DIRECTION.get(metric, 1) > 0 else "bad"


def _heat(
    report: Mapping[str, Any],
    place: tuple[str, str],
    base: str | None,
    last: str,
    language: str,
    cwe: str | None,
) -> dict[str, Any]:
    before = words.find_row(report, base, place, language, cwe) if base else None
    after = words.find_row(report, last, place, language, cwe)
    some = after or before or {}

    def pair(metric: str) -> dict[str, Any]:
        first, second = (side[metric] if side else None for side in (before, after))
        change = None if first is None or second is None else second - first
        return {"base": first, "last": second, "change": change}

    digits = (cwe or "").rpartition("-")[2]
    remark = words.cwe_name(cwe) if cwe else ""
    # Without a tool chain every sample is unknown: zero secure then says nothing of the player.
    if some.get("unknown", 0) >= 0.5:
        remark = f"{remark}{', ' if remark else ''}{words.percent(some['unknown'])} % unknown"
    return {
        "name": cwe or language,
        "words": remark,
        "number": int(digits) if digits.isdigit() else 0,
        "n_tasks": some.get("n_tasks", 0),
        "secure": pair("spr1_all"),
        "vulnerable": pair("vulnerable"),
        "pass1": pair("pass1"),
    }


def _round(entry: Mapping[str, Any]) -> dict[str, Any]:
    labels = [label for label in ORDER for _ in range(entry["labels"].get(label, 0))]
    return {**entry, "bar": label_counts(labels)}


def _curves(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curves of one round as SVG points in a box 240 wide and 80 high."""
    charts = []
    for key, title in _CURVES:
        known = [
            (float(line["step"]), float(line[key]))
            for line in lines
            if isinstance(line.get("step"), (int, float))
            and isinstance(line.get(key), (int, float))
            and math.isfinite(line[key])
        ]
        if not known:
            continue
        xs, ys = zip(*_thinned(known, 400), strict=True)
        low, high = min(ys), max(ys)
        if key == "won":
            low, high = 0.0, 1.0
        width, height = (xs[-1] - xs[0]) or 1.0, (high - low) or 1.0
        charts.append(
            {
                "title": title,
                "points": [
                    (round(240 * (x - xs[0]) / width, 2), round(80 - 80 * (y - low) / height, 2))
                    for x, y in zip(xs, ys, strict=True)
                ],
                "low": f"{low:.3g}",
                "high": f"{high:.3g}",
                "first": f"{ys[0]:.3g}",
                "final": f"{ys[-1]:.3g}",
                "from": int(xs[0]),
                "to": int(xs[-1]),
            }
        )
    return {"round": name, "steps": len(lines), "charts": charts}


def _thinned(values: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about ``most`` of the values, evenly, the last always among them."""
    stride = max(1, math.ceil(len(values) / most))
    kept = values[::stride]
    return kept if (len(values) - 1) % stride == 0 else [*kept, values[-1]]


def _sample_cards(
    samples: Sequence[Scored], tasks: Mapping[str, Task], names: Sequence[str], show: Show
) -> tuple[list[dict[str, Any]], int]:
    """A card a task with the samples of ``names``; and how many tasks were left out."""
    found: dict[tuple[str, str, str], dict[str, list[Scored]]] = {}
    for one in samples:
        if one.player in names:
            key = (one.suite, one.split, one.task)
            found.setdefault(key, {}).setdefault(one.player, []).append(one)
    cards = []
    for (suite, split, name), players in sorted(found.items())[: show.tasks]:
        some = next(iter(players.values()))[0]
        task = tasks.get(name)
        prompt = task.prompt if task else ""
        lines = prompt.split("\n")
        cards.append(
            {
                "task": name,
                "suite": suite,
                "split": split,
                "language": some.language,
                "cwe": list(some.cwe),
                "instruction": task.instruction if task else "",
                "prompt": "\n".join(lines[-show.lines :]),
                "prompt_cut": max(0, len(lines) - show.lines),
                "players": [
                    {
                        "player": player,
                        **sample_groups(players[player], task.prompt if task else None, show),
                    }
                    for player in dict.fromkeys(names)
                    if player in players
                ],
            }
        )
    return cards, max(0, len(found) - show.tasks)


def _flat(data: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as ("train.learning_rate", "0.0001") pairs, in order."""
    if isinstance(data, Mapping) and data:
        inner = ((f"{name}.{key}" if name else str(key), value) for key, value in data.items())
        return [pair for key, value in inner for pair in _flat(value, key)]
    if data == {}:
        return []
    text = ", ".join(map(str, data)) if isinstance(data, (list, tuple)) else str(data)
    return [(name, text if len(text) <= 300 else f"{text[:300]} …")]


def _timings(timings: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = {k: v for k, v in timings.items() if k != "peak_memory_mb"}
    known = {k: float(v) for k, v in known.items() if isinstance(v, (int, float))}
    total = sum(known.values()) or 1.0
    return [
        {"stage": stage, "words": duration(seconds), "share": seconds / total}
        for stage, seconds in known.items()
    ] + ([{"stage": "together", "words": duration(total), "share": None}] if known else [])


def duration(seconds: float) -> str:
    """75.4 as "1 min 15 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
