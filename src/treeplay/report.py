"""The report of a run folder: ``report.json`` for tools, ``report.html`` and a table for people.

Reads ``eval/*.jsonl`` (scored samples, needed) and what else the folder holds: ``manifest.json``,
``tasks.jsonl``, ``timings.json`` and, of every ``round-N``, ``judged.jsonl`` (trees),
``contrasts.json`` (counts) and ``train.jsonl`` (training figures).

``report.json`` is one object:

    treeplay, created   version of this package, time in UTC
    run                 folder, model, method, rounds, seed, where the game ended early, and the
                        whole manifest
    rows, paired        flat lists, see :mod:`treeplay.metrics`
    branches            per round: trees, nodes, branches by label, counts of the contrasts, what
                        the judge said of each opponent's branches, pairs of earlier rounds
    training            per round: the lines of train.jsonl
    timings             seconds per stage, and peak_memory_mb
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from treeplay.errors import RunError
from treeplay.judge.verdict import LABELS
from treeplay.metrics import Scored, paired, rows, scored_from_json
from treeplay.run import write_text
from treeplay.tasks.jsonl import read_lines, task_from_json
from treeplay.tasks.task import Task
from treeplay.tree import Tree, tree_from_json
from treeplay.view import words
from treeplay.view.page import render
from treeplay.words import printable


@dataclass(frozen=True)
class Run:
    """What a run folder holds. The mappings by round ("round-1"...) are in the order of play and
    have a key only for what is there."""

    folder: Path
    samples: tuple[Scored, ...]
    manifest: dict[str, Any]
    tasks: dict[str, Task]
    trees: dict[str, list[Tree]]
    contrasts: dict[str, dict[str, Any]]
    training: dict[str, list[dict[str, Any]]]
    timings: dict[str, float]


def build_report(run_folder: Path, against: str = "base") -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into the run folder and return the former.

    Raises :class:`RunError` where there are no scored samples, where a file is broken (named with
    its line), and where the report cannot be written.
    """
    run = read_run(run_folder)
    report = {
        "treeplay": version("treeplay"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": _summary(run),
        "rows": rows(run.samples, tasks=run.tasks),
        "paired": paired(run.samples, against, tasks=run.tasks),
        "branches": [
            _branches(name, run.trees.get(name), run.contrasts.get(name))
            | {"replayed": _count(run.folder / name / "replayed.jsonl")}
            for name in _rounds(run.folder)
            if name in run.trees or name in run.contrasts
        ],
        "training": run.training,
        "timings": run.timings,
    }
    trees = next(reversed(run.trees.values()), [])
    page = render(report, run.samples, next(reversed(run.trees), ""), trees, run.tasks)
    _write(run.folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _write(run.folder / "report.html", page)
    return report


def read_run(folder: Path) -> Run:
    """Everything a report needs. Raises :class:`RunError`."""
    folder = Path(folder)
    files = sorted((folder / "eval").glob("*.jsonl"))
    samples: list[Scored] = []
    seen: dict[tuple[str, str, str, int], str] = {}
    for path in files:
        for where, value in _lines(path):
            one = scored_from_json(value, where)
            key = (one.player, one.suite, one.task, one.sample)
            if key in seen:
                raise RunError(
                    f"{where}: sample {one.sample} of task {one.task!r} by {one.player!r} is "
                    f"already in {seen[key]}; remove the file that should not be there"
                )
            seen[key] = where
            samples.append(one)
    if not samples:
        raise RunError(
            f"{folder / 'eval'}: no scored samples here, so there is nothing to report; "
            "evaluate first (treeplay eval) or give another run folder"
        )
    rounds = _rounds(folder)
    held = {
        kind: {name: path for name in rounds if (path := folder / name / kind).is_file()}
        for kind in ("judged.jsonl", "contrasts.json", "train.jsonl")
    }
    return Run(
        folder,
        tuple(samples),
        _object(folder / "manifest.json"),
        _tasks(folder / "tasks.jsonl"),
        {name: _trees(path) for name, path in held["judged.jsonl"].items()},
        {name: _object(path) for name, path in held["contrasts.json"].items()},
        {n: [row for _, row in _lines(path)] for n, path in held["train.jsonl"].items()},
        _object(folder / "timings.json"),
    )


def _rounds(folder: Path) -> list[str]:
    found = [path.name for path in folder.glob("round-*") if path.name[6:].isdigit()]
    return sorted(found, key=lambda name: int(name[6:]))


def _tasks(path: Path) -> dict[str, Task]:
    """The tasks by id. A task may be there twice (trained on and evaluated, or in two suites); an
    id that stands for two different tasks is left out, for nobody could say which one is meant."""
    found: dict[str, Task] = {}
    unclear: set[str] = set()
    for number, value in read_lines(path) if path.is_file() else []:
        task = task_from_json(value, f"{path}:{number}")
        if found.setdefault(task.id, task) != task:
            unclear.add(task.id)
    return {name: task for name, task in found.items() if name not in unclear}


def _trees(path: Path) -> list[Tree]:
    trees = []
    for where, value in _lines(path):
        try:
            trees.append(tree_from_json(value))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{where}: not a tree ({error!r}); judge this round again") from None
    return trees


def _lines(path: Path) -> Iterable[tuple[str, Any]]:
    """("file:line", parsed value) for every line that is not empty."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _parsed(line, where)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    value = _parsed(_text(path), str(path))
    if not isinstance(value, dict):
        raise RunError(f"{path}: not a JSON object; remove it or make this stage again")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); make this stage again") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{where}: not valid JSON ({error}); make this stage again") from None


def _summary(run: Run) -> dict[str, Any]:
    """The few facts of the manifest that a reader asks for first, then all of it."""
    config = run.manifest.get("config")
    config = config if isinstance(config, Mapping) else {}

    def first(*names: str) -> Any:
        for name in names:
            for held in (run.manifest, config):
                value = held.get(name)
                if isinstance(value, Mapping):
                    inner = (value.get(key) for key in ("name", "id", "path", "base", "method"))
                    value = next((v for v in inner if v is not None), None)
                if value is not None:
                    return value
        return None

    return {
        "folder": _name(run.folder.resolve()),
        "model": first("model", "base", "policy"),
        "method": first("method", "contrasts"),
        "rounds": max(one.round for one in run.samples),
        "seed": first("seed", "seeds"),
        "ended": run.manifest.get("ended"),
        "manifest": run.manifest,
    }


def _name(folder: Path) -> str:
    """The folder's name; a number (the seed of an experiment's arm) stands behind its parent's."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name


def _branches(
    name: str, trees: list[Tree] | None, contrasts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Branches by label of one round; from the contrasts' counts where the trees are gone."""
    counts = dict((contrasts or {}).get("counts", {}))
    labels: Counter[str] = Counter()
    for tree in trees or ():
        labels.update(b.verdict.label if b.verdict else "unjudged" for b in tree.branches)
    if trees is None:
        labels.update({label: int(counts.get(f"branches_{label}", 0)) for label in LABELS})
    return {
        "round": name,
        "trees": None if trees is None else len(trees),
        "nodes": None if trees is None else sum(len(tree.nodes) for tree in trees),
        "branches": sum(labels.values()),
        "labels": {label: labels[label] for label in (*LABELS, "unjudged")},
        "contrasts": counts,
        "opponents": dict((contrasts or {}).get("opponents", {})),
        "warning": (contrasts or {}).get("warning", ""),
    }


def _count(path: Path) -> int:
    """Lines of a file that may not be there."""
    return sum(1 for _ in _lines(path)) if path.is_file() else 0


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    try:
        write_text(path, text)  # killed on the way, it leaves nothing that is not replaced later
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); check the folder and the free space"
        ) from None


_COLUMNS = (
    ("spr1_all", "SPR@1\nall"),
    ("spr1_valid", "SPR@1\nvalid"),
    ("spr5_all", "SPR@5\nall"),
    ("vulnerable", "vuln.\n"),
    ("valid", "valid\n"),
    ("inert", "inert\n"),
    ("unknown", "unkn.\n"),
    ("pass1", "pass\n@1"),
    ("secure_pass1", "secure\npass@1"),
)
_COLUMNS_GENERAL = (
    ("pass1", "pass\n@1"),
    ("pass5", "pass\n@5"),
    ("valid", "valid\n"),
    ("unknown", "unkn.\n"),
)
_BESIDE = ("spr1_valid", "vulnerable", "valid", "pass1", "secure_pass1")


def print_table(report: Mapping[str, Any], console: Console) -> None:
    """The players side by side for every suite and split, then what changed, in words.

    Fits 100 columns; on a narrower terminal the intervals move below their values.
    """
    wide = console.width >= 96
    names = words.players(report)
    for place in words.places(report):
        where = printable(words.place_name(report, *place))
        shown = [row for name in names if (row := words.find_row(report, name, place))]
        tasks = sorted({row["n_tasks"] for row in shown})
        count = " / ".join(map(str, tasks))
        console.print(
            f"\n[bold]{escape(where)}[/bold]: {count} task{'s' if tasks != [1] else ''}, "
            "percent, 95 % interval over tasks",
            highlight=False,
        )
        columns = _COLUMNS_GENERAL if words.is_general(report, place) else _COLUMNS
        console.print(_table(shown, columns, wide))
        for name in names:
            _print_differences(report, name, place, where, console)
    _print_opponents(report, console)
    console.print()


def _print_opponents(report: Mapping[str, Any], console: Console) -> None:
    """A line a round on the opponents' branches, and how the game ended if early."""
    for entry in report["branches"]:
        told = ", ".join(
            f"{name} {words.percent(figures['rate'])}"
            for name, figures in entry.get("opponents", {}).items()
            if figures["rate"] is not None
        )
        again = entry.get("replayed", 0)
        more = f"; {again} pairs of earlier rounds" if again else ""
        if told:
            text = f"{entry['round']}: vulnerable among the decided branches of {told}{more}"
            console.print(Text(text, style="dim"))
        if entry.get("warning"):
            console.print(Text(f"{entry['round']}: {entry['warning']}", style="yellow"))
    for warning in report["run"].get("manifest", {}).get("warnings", ()):
        console.print(Text(warning, style="yellow"))
    if ended := report["run"].get("ended"):
        console.print(Text(f"ended in round {ended['round']}: {ended['reason']}"))


def _table(
    shown: Iterable[Mapping[str, Any]], columns: tuple[tuple[str, str], ...], wide: bool
) -> Table:
    """The first of ``columns`` is shown with its interval."""
    first = columns[0][0]
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1 if wide else 0)
    )
    table.add_column("player\n", overflow="fold")
    for metric, header in columns:
        table.add_column(header, justify="left" if metric == first else "right", no_wrap=True)
    for row in shown:
        ends = words.interval(row[f"{first}_low"], row[f"{first}_high"]).replace(
            ", ", "\N{EN DASH}"
        )
        cells = [Text(str(row["player"]))]
        for metric, _ in columns:
            cell = Text(words.percent(row[metric]))
            if metric == first:
                cell.stylize("bold")
                cell.append((" " if wide else "\n") + ends, style="dim")
            cells.append(cell)
        table.add_row(*cells)
    return table


def _print_differences(
    report: Mapping[str, Any],
    player: str,
    place: tuple[str, str],
    where: str,
    console: Console,
) -> None:
    first = "pass1" if words.is_general(report, place) else "spr1_all"
    main = words.find_pair(report, player, place, first)
    if main is None:
        return
    lead = Text(f"{player} minus {main['against']} on {where}: ")
    colour = {1: "bold green", -1: "bold red", 0: "bold"}[words.clear(main)]
    lead.append(words.difference(main), style=colour)
    console.print(lead, soft_wrap=False)
    for metric in _BESIDE:
        if metric == first:
            continue
        pair = words.find_pair(report, player, place, metric)
        if pair is not None:
            console.print(
                Padding(Text(words.difference(pair), style="dim"), (0, 0, 0, 4), expand=False)
            )
