"""The evaluation of a run, and those that were put aside because something else is asked now.

    eval/           answers to what is asked now
    eval-1/, ...    answers to what was asked before, with the report and tasks of that time and
                    ``asked.json`` (how it was asked, warnings, timings)

Players that are there are asked anew, not trained again. Who asks as before has the answers of
then back.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from treeplay.config import to_dict
from treeplay.run import Run, read_json, write_json

# What an evaluation makes beside its folder.
MADE = ("report.json", "report.html", "tasks.jsonl")
# A matter of memory: answers stay, but not half a stage, whose groups it decides.
GROUPS = "eval.rows_at_once"
NAME = "evaluation tasks"


def settle(run: Run, tasks: str) -> str:
    """Have ``eval/`` of an open run hold answers to what is asked now; ``tasks`` is the digest of
    the evaluation tasks. Returns what a person should be told, if anything.

    Raises :class:`RunError` where the tasks differ from those of the run's beginning and may not.
    """
    names, changed = run.manifest["identities"], list(run.changed)
    if run.anew and names.get(NAME, tasks) != tasks:
        changed.append(NAME)
    if not changed:
        run.name(NAME, tasks)
        return ""
    said = ""
    if changed == [GROUPS]:
        for part in (run.folder / "eval").glob("*.part"):
            part.unlink()
    else:
        said = f"{', '.join(changed)} changed: "
        said += _exchange(run, _asked(to_dict(run.config), tasks))
        run.manifest.pop("ended", None)
        write_json(run.folder / "timings.json", run.timings)
    run.manifest["config"] = to_dict(run.config)
    names[NAME] = tasks
    write_json(run.folder / "manifest.json", run.manifest)
    return said


def _asked(config: dict[str, Any], tasks: str) -> dict[str, Any]:
    how = {key: value for key, value in config["eval"].items() if f"eval.{key}" != GROUPS}
    return {**how, "suites": config["tasks"]["eval"], "tasks": tasks}


def _exchange(run: Run, now: dict[str, Any]) -> str:
    """Put the evaluation that is there aside, and take back one that asked as ``now``."""
    folder, place = run.folder, run.folder / "eval"
    told = "players are evaluated anew"
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
        told += f", {aside.name} holds the evaluation before"
    for name in MADE:  # of an evaluation that ended before its first answer
        (folder / name).unlink(missing_ok=True)
    run.manifest.pop("warnings", None)
    run.timings = {stage: s for stage, s in run.timings.items() if " eval " not in stage}
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
            return told.replace("players are evaluated anew", f"{name} is in use again")
    return told


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.move(source / name, target / name)
