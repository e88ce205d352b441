"""From run folders to ``results/PROTOCOL/MODEL/ARM/SEED.json``.

The file has the form of ``report.json`` (a run a fold) without samples and trees, and instead
``tasks``: for every evaluated task how many of its samples got which verdict. All tables are made
from these counts, so anybody can make them again without the model, or make others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from treeplay.errors import RunError
from treeplay.metrics import Scored
from treeplay.report import build_report, read_run
from treeplay.run import code_digest, read_json, read_jsonl, write_text
from treeplay.tasks.select import Suite

LABELS = ("secure", "vulnerable", "inert", "unknown", "invalid", "plain")
# tested: has functional tests; general: asks nothing about security. passed: samples that pass the
# functional tests; both: that are secure as well. chars, tokens: means over the samples.
COLUMNS = (
    *("fold", "suite", "split", "language", "cwe", "task", "tested", "general", "n"),
    *LABELS,
    *("passed", "both", "chars", "tokens", "cut"),
)


def task_rows(samples: Sequence[Scored], suites: Sequence[Suite], fold: int) -> list[list[Any]]:
    """One row a suite and task, in the order of :data:`COLUMNS`."""
    known = {(suite.name, task.id): task for suite in suites for task in suite.tasks}
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in samples:
        groups.setdefault((one.suite, one.task), []).append(one)
    rows: list[list[Any]] = []
    for key, some in groups.items():
        task, n = known[key], len(some)
        labels = [one.verdict.label for one in some]
        passed = [one.verdict.functional is True for one in some]
        secure = [label == "secure" for label in labels]
        rows.append(
            [
                *(fold, key[0], some[0].split, task.language, list(task.cwe), key[1]),
                *(task.tests is not None, task.general, n),
                *(sum(label == name for label in labels) for name in LABELS),
                sum(passed),
                sum(a and b for a, b in zip(passed, secure, strict=True)),
                round(sum(len(one.answer) for one in some) / n, 1),
                round(sum(one.tokens for one in some) / n, 1),
                sum(one.ended == "length" for one in some),
            ]
        )
    return rows


def collect(folder: Path, suites: Sequence[Suite], fold: int, final: bool) -> dict[str, Any]:
    """What the results keep of one run folder: of its last player, or with ``final`` false of
    the base model. ``report.json`` and ``report.html`` are made in the folder for people."""
    if final and not any((folder / "eval").glob("round-*.jsonl")):
        ended = read_json(folder / "manifest.json").get("ended")
        why = f", since {ended['reason']}" if ended else ""
        raise RunError(f"no player was trained and evaluated{why}")
    report = build_report(folder)
    samples = read_run(folder).samples
    last = max(one.round for one in samples) if final else 0
    config = report["run"]["manifest"].get("config", {})
    return {
        "fold": fold,
        "run": {
            **{key: report["run"][key] for key in ("model", "method", "seed")},
            "rounds": last,
            "ended": report["run"]["ended"],
            "warnings": report["run"]["manifest"].get("warnings", []),
            "config": config,
            "versions": report["run"]["manifest"].get("versions", {}),
            "code": report["run"]["manifest"].get("code", []),
            "identities": report["run"]["manifest"].get("identities", {}),
        },
        "rows": [row for row in report["rows"] if row["cwe"] is None and row["round"] == last],
        "branches": report["branches"],
        "training": {name: _training(rows) for name, rows in report["training"].items()},
        "timings": report["timings"],
        "used": used(folder),
        "tasks": task_rows([one for one in samples if one.round == last], suites, fold),
    }


def _training(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, and the figures of the first and of the last one; of GRPO also the groups of answers
    that there was something to learn from."""
    if not rows:
        return {"steps": 0}
    known = {"steps": len(rows), "first": rows[0], "last": rows[-1]}
    if "groups" in rows[0]:
        known["groups"] = sum(row["groups"] for row in rows)
    return known


def used(folder: Path) -> dict[str, int]:
    """What a run's training took: ``sampled`` tokens that were written for it (branches, rollouts
    and answers that looked for nodes and golden paths, answers that chose a snapshot, own answers
    to ordinary tasks), ``nodes`` that branches were sampled at, and ``gradient`` tokens: sequences
    through forward and backward, every one counted whole, whether or not it shared a pass, at every
    learning rate tried."""
    sampled = nodes = gradient = 0
    for path in sorted(folder.glob("round-*/judged.jsonl")):
        trees = list(read_jsonl(path))
        nodes += sum(len(tree["nodes"]) for tree in trees)
        sampled += sum(_written(tree) for tree in trees)
        golden, learnt = path.with_name("golden.json"), path.with_name("nodes.json")
        if golden.is_file():
            sampled += int(read_json(golden)["sampled_tokens"])
        if learnt.is_file() and (probe := read_json(learnt).get("probe")):
            # Rollouts at nodes are branches by now.
            planted = read_jsonl(path.with_name("planted.jsonl"))
            sampled += int(probe["sampled_tokens"]) - sum(_written(tree) for tree in planted)
    for path in sorted(folder.glob("round-*/contrasts.json")):
        sampled += int(read_json(path).get("ordinary_tokens", 0))
    for path in [*folder.glob("held/*.answers"), *folder.glob("round-*/rate-*/held/*.answers")]:
        sampled += sum(int(row["tokens"]) for row in read_jsonl(path))
    for path in sorted(folder.glob("round-*")):
        logs = sorted(path.glob("rate-*/train.jsonl")) or [path / "train.jsonl"]
        for row in (row for log in logs if log.is_file() for row in read_jsonl(log)):
            sampled += int(row.get("sampled", 0))
            gradient += int(row.get("learnt", 0))
    return {"sampled": sampled, "nodes": nodes, "gradient": gradient}


def _written(tree: Mapping[str, Any]) -> int:
    """Tokens of a tree's branches; those of a trie were counted as whole answers."""
    at = {node["id"] for node in tree["nodes"] if node["source"] != "trie"}
    return sum(len(branch["ids"]) for branch in tree["branches"] if branch["node"] in at)


def write_result(path: Path, runs: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> None:
    """Write one result: ``told`` (protocol, arm, seed, faults, ...), the ``runs`` of its folds, and
    their tasks together, a line each."""
    head = {
        "treeplay": version("treeplay"),
        "code": code_digest(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **told,
        "runs": [{k: v for k, v in run.items() if k != "tasks"} for run in runs],
        "columns": list(COLUMNS),
    }
    rows = [json.dumps(row, ensure_ascii=False) for run in runs for row in run["tasks"]]
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    body = ",\n  ".join(rows)
    write_text(path, text.removesuffix("\n}") + f',\n "tasks": [\n  {body}\n ]\n}}\n')


def without_paths(value: Any, folders: Iterable[tuple[Path, str]]) -> Any:
    """``value`` with the folders of this machine replaced by names."""
    if isinstance(value, Mapping):
        return {key: without_paths(inner, folders) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner, folders) for inner in value]
    if isinstance(value, str):
        for folder, name in folders:
            value = value.replace(str(folder), name)
    return value
