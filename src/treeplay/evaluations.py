"""The evaluation of a run, and those that were put aside because something else is asked now.

    eval/           answers to what is asked now
    eval-1/, ...    answers to what was asked before, with the report and tasks of that time and
                    ``asked.json`` (how it was asked, warnings, timings)

Players that are there are asked anew, not trained again. Who asks as before has the answers of
then back, and suites of which the same is asked as before keep theirs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from treeplay.config import to_dict
from treeplay.evaluate import EvalConfig
from treeplay.run import Run, read_json, write_json
from treeplay.tasks.jsonl import task_to_json
from treeplay.tasks.select import Suite
from treeplay.tasks.task import Task

# What an evaluation makes beside its folder.
MADE = ("report.json", "report.html", "tasks.jsonl")
# A matter of memory: answers stay, but not half a stage, whose groups it decides.
GROUPS = "eval.rows_at_once"
NAME = "evaluation tasks"


def settle(run: Run, tasks: str, suites: Mapping[str, str]) -> str:
    """Have ``eval/`` of an open run hold answers to what is asked now; ``tasks`` is the digest of
    the evaluation tasks, ``suites`` that of what each is asked (:func:`question`). Returns what a
    person should be told, if anything.

    Raises :class:`RunError` where the tasks differ from those of the run's beginning and may not.
    """
    names, changed = run.manifest["identities"], list(run.changed)
    if run.anew and names.get(NAME, tasks) != tasks:
        changed.append(NAME)
    if not changed:
        run.name(NAME, tasks)
        run.manifest["suites"] = dict(suites)
        write_json(run.folder / "manifest.json", run.manifest)
        return ""
    said = ""
    if changed == [GROUPS]:
        for part in (run.folder / "eval").glob("*.part"):
            part.unlink()
    else:
        said = f"{', '.join(changed)} changed: "
        said += _exchange(run, _asked(to_dict(run.config), tasks), suites)
        run.manifest.pop("ended", None)
        write_json(run.folder / "timings.json", run.timings)
    run.manifest["config"] = to_dict(run.config)
    names[NAME] = tasks
    run.manifest["suites"] = dict(suites)
    write_json(run.folder / "manifest.json", run.manifest)
    return said


def question(config: EvalConfig, suite: Suite) -> str:
    """A digest of all that decides a player's answers to ``suite``: tasks, and how it is asked."""
    how = {k: v for k, v in vars(asked_as(config, suite)).items() if f"eval.{k}" != GROUPS}
    return tasks_digest(suite.tasks, json.dumps(how, sort_keys=True))


def asked_as(config: EvalConfig, suite: Suite) -> EvalConfig:
    """``config`` with the suite's own settings."""
    return replace(
        config,
        samples=suite.samples or config.samples,
        max_tokens=suite.max_tokens or config.max_tokens,
    )


def tasks_digest(tasks: Sequence[Task], more: str = "") -> str:
    """A digest of everything there is about ``tasks``, in their order."""
    lines = [json.dumps(task_to_json(task)) for task in tasks]
    return hashlib.sha256("\n".join([*lines, *([more] if more else [])]).encode()).hexdigest()[:16]


def _asked(config: dict[str, Any], tasks: str) -> dict[str, Any]:
    how = {key: value for key, value in config["eval"].items() if f"eval.{key}" != GROUPS}
    return {**how, "suites": config["tasks"]["eval"], "tasks": tasks}


def _exchange(run: Run, now: dict[str, Any], suites: Mapping[str, str]) -> str:
    """Put the evaluation that is there aside, and take back one that asked as ``now``, or those of
    its answers that still hold."""
    folder, place = run.folder, run.folder / "eval"
    aside: Path | None = None
    told = ""
    if place.is_dir():
        aside = next(p for n in count(1) if not (p := folder / f"eval-{n}").exists())
        kept = {
            "asked": _asked(run.manifest["config"], run.manifest["identities"].get(NAME, "")),
            "warnings": run.manifest.get("warnings", []),
            "timings": {stage: s for stage, s in run.timings.items() if " eval " in stage},
        }
        write_json(place / "asked.json", kept)
        _move(MADE, folder, place)
        place.rename(aside)
        told = f", {aside.name} holds the evaluation before"
    for name in MADE:  # of an evaluation that ended before its first answer
        (folder / name).unlink(missing_ok=True)
    run.manifest.pop("warnings", None)
    before = {stage: s for stage, s in run.timings.items() if " eval " in stage}
    run.timings = {stage: s for stage, s in run.timings.items() if stage not in before}
    for old in sorted(folder.glob("eval-*/asked.json")):
        kept = read_json(old)
        if kept["asked"] == now:
            name = old.parent.name
            old.unlink()
            old.parent.rename(place)
            _move(MADE, place, folder)
            if kept["warnings"]:
                run.manifest["warnings"] = kept["warnings"]
            run.timings |= kept["timings"]
            return f"{name} is in use again{told}"
    known = run.manifest.get("suites", {})
    same = [suite for suite, asked in suites.items() if known.get(suite) == asked]
    kept_files = _answers(aside, [*known, *suites], same) if aside else []
    for path in kept_files:
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / path.name)
    if not kept_files:
        return f"players are evaluated anew{told}"
    run.timings |= before  # the answers took that
    return f"players are evaluated anew but for {', '.join(same)}{told}"


def _answers(folder: Path, every: Sequence[str], wanted: Sequence[str]) -> list[Path]:
    """The finished answers of all players to the ``wanted`` of ``every`` suite."""
    found = []
    for path in sorted(folder.glob("*.answers")):
        suites = [suite for suite in every if path.name.endswith(f".{suite}.answers")]
        if suites and max(suites, key=len) in wanted:
            found.append(path)
    return found


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.move(source / name, target / name)
