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
        if not (run.folder / "eval").is_dir():  # killed as it was put aside, or nothing was asked
            return _take_back(run, _asked(run.manifest["config"], tasks))
        return ""
    said = ""
    aside: Path | None = None
    known = dict(run.manifest.get("suites", {}))
    if changed == [GROUPS]:
        _drop_halves(run.folder / "eval")
    else:
        aside = _put_aside(run)
        said = f", {aside.name} holds the evaluation before" if aside else ""
    # Written before anything is taken back: a run that is killed in between has answers to nothing
    # rather than those to other questions.
    run.manifest["config"] = to_dict(run.config)
    names[NAME] = tasks
    run.manifest["suites"] = dict(suites)
    write_json(run.folder / "manifest.json", run.manifest)
    if changed == [GROUPS]:
        return ""
    same = [suite for suite, asked in suites.items() if known.get(suite) == asked]
    told = _take_back(run, _asked(run.manifest["config"], tasks))
    if not told and aside and _keep(run, aside, [*known, *suites], same):
        told = f"players are evaluated anew but for {', '.join(same)}"
    write_json(run.folder / "timings.json", run.timings)
    return f"{', '.join(changed)} changed: {told or 'players are evaluated anew'}{said}"


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
    return _unplaced({**how, "suites": config["tasks"]["eval"], "tasks": tasks})


def _unplaced(asked: dict[str, Any]) -> dict[str, Any]:
    """``asked`` wherever the task files lie."""
    return {**asked, "suites": [Path(entry).name for entry in asked["suites"]]}


def _put_aside(run: Run) -> Path | None:
    """Move the evaluation that is there away, with all that is made of it; returns where to."""
    folder, place = run.folder, run.folder / "eval"
    aside: Path | None = None
    timings = {stage: s for stage, s in run.timings.items() if " eval " in stage}
    if place.is_dir():
        aside = next(p for n in count(1) if not (p := folder / f"eval-{n}").exists())
        kept = {
            "asked": _asked(run.manifest["config"], run.manifest["identities"].get(NAME, "")),
            "warnings": run.manifest.get("warnings", []),
            "timings": timings,
        }
        write_json(place / "asked.json", kept)
        _move(MADE, folder, place)
        place.rename(aside)
    for name in MADE:  # of an evaluation that ended before its first answer
        (folder / name).unlink(missing_ok=True)
    for key in ("warnings", "ended"):
        run.manifest.pop(key, None)
    run.timings = {stage: s for stage, s in run.timings.items() if stage not in timings}
    return aside


def _take_back(run: Run, now: dict[str, Any]) -> str:
    """Have the evaluation that asked as ``now`` in use again; returns what is told of it, nothing
    where there is none."""
    folder, place = run.folder, run.folder / "eval"
    for old in sorted(folder.glob("eval-*/asked.json")):
        kept = read_json(old)
        if _unplaced(kept["asked"]) == now:
            old.parent.rename(place)
            (place / "asked.json").unlink()
            _drop_halves(place)
            _move(MADE, place, folder)
            if kept["warnings"]:
                run.manifest["warnings"] = kept["warnings"]
                write_json(folder / "manifest.json", run.manifest)
            run.timings |= kept["timings"]
            return f"{old.parent.name} is in use again"
    return ""


def _drop_halves(place: Path) -> None:
    """Remove half stages, whose groups may have been others."""
    for pattern in ("*.part", "*.sampled"):
        for part in place.glob(pattern):
            part.unlink()


def _keep(run: Run, aside: Path, every: Sequence[str], same: Sequence[str]) -> bool:
    """Copy the answers to the ``same`` suites back, whole or not at all; whether there are some."""
    found = _answers(aside, every, same)
    for path in found:
        part = run.path("eval", f"{path.name}.tmp")
        shutil.copyfile(path, part)
        part.replace(part.with_name(path.name))
    return bool(found)


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
