"""Play the runs of a plan one by one. A fault of one is recorded and the rest goes on.

Every run is an ordinary run folder (``treeplay report`` shows it) and is resumed like one. The
base model is evaluated once a seed, and runs that would grow the same trees share them: the
finished stage file is copied, and its digest kept beside it in ``shared.json``.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeplay.config import Config, differing_keys, to_dict, with_newer_keys, without_places
from treeplay.contrast import Contrast
from treeplay.contrasts import NEEDS_VULNERABLE
from treeplay.errors import ConfigError, RunError, TaskError, TreeplayError
from treeplay.experiments.budget import BUDGETS, budget_of
from treeplay.experiments.collect import collect, without_paths, write_result
from treeplay.experiments.kept import made_with_other, weights_here
from treeplay.experiments.plan import BASE, Cell, Plan, plan_digest
from treeplay.hold import BusyError, hold
from treeplay.play import Game
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.play_rates import measured
from treeplay.play_train import learns_from_contrasts
from treeplay.progress import Reporter
from treeplay.run import evaluates, open_run, read_json, write_json, write_text
from treeplay.selfplay import mean_rate

# A round's trees, and the counts of what it took to find their nodes and golden paths.
TREES = (
    "round-1/golden.json",
    "round-1/golden.jsonl",
    "round-1/nodes.json",
    "round-1/planted.jsonl",
)
# Sections that decide how the base model answers, and those that decide how trees grow.
EVALUATED = ("seed", "model", "judge", "eval")
GROWN = ("seed", "model", "judge", "nodes", "grow", "golden")


@dataclass(frozen=True)
class Outcome:
    """What became of an arm and a seed: its file, and a sentence for every fault."""

    arm: str
    seed: int
    path: Path
    faults: tuple[str, ...]
    played: bool


def run_plan(plan: Plan, reporter: Reporter) -> list[Outcome]:
    """Play everything that has no result yet (a result with faults is tried again).

    Raises :class:`ConfigError` for results there that other settings or models made, and
    :class:`BusyError` where another process plays one of the runs.
    """
    found = []
    units = plan.units()
    model = weights_here(plan)
    for arm, seed in units:  # all of them, before hours are spent on one
        if other := _not_ours(plan, arm, seed, model):
            raise ConfigError(other)
    for number, (arm, seed) in enumerate(units, start=1):
        path = plan.result(arm, seed)
        if _has_result(path):
            other = _not_ours(plan, arm, seed, model)  # the reference may have a result by now
            found.append(Outcome(arm, seed, path, (other,) if other else (), False))
            continue
        reporter.say(f"== {number} of {len(units)}: {plan.protocol.name}, {arm}, seed {seed}")
        runs, faults = [], []
        for cell in plan.cells(arm, seed):
            try:
                runs.append(_play(plan, cell, reporter))
            except BusyError:  # its result is on its way: not a fault of the run
                raise
            except TreeplayError as error:
                faults.append({"fold": cell.fold, "fault": str(error)})
            except Exception as error:  # one broken run must not end the others
                write_text(cell.folder.with_name(cell.folder.name + ".trace"), _trace())
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                faults.append({"fold": cell.fold, "fault": text})
            gc.collect()
        for fault in faults:
            reporter.say(f"failed: {arm}, seed {seed}: {fault['fault']}")
        named = ((plan.out, "OUT"), (Path(plan.model), Path(plan.model).name))
        folders = [(folder, name) for folder, name in named if folder.is_absolute()]
        told = {
            "protocol": plan.protocol.name,
            "model": plan.model_name,
            "arm": arm,
            "seed": seed,
            "size": plan.size,
            "digest": plan_digest(plan, arm, seed),
            "overrides": list(plan.overrides),
            "faults": faults,
            "data": [_told(cell) for cell in plan.cells(arm, seed)],
        }
        write_result(path, without_paths(runs, folders), without_paths(told, folders))
        faulty = tuple(str(fault["fault"]) for fault in faults)
        found.append(Outcome(arm, seed, path, faulty, True))
    return found


def _has_result(path: Path) -> bool:
    return path.is_file() and not read_json(path)["faults"]


def _not_ours(plan: Plan, arm: str, seed: int, model: str) -> str:
    """A sentence where there is a result that this plan would not make. Raises :class:`RunError`
    for one that cannot be read."""
    path = plan.result(arm, seed)
    other = _has_result(path) and made_with_other(plan, arm, seed, read_json(path), model)
    if not other:
        return ""
    return f"{path} was made with {other}; remove it, or choose another folder with --results"


def _trace() -> str:
    return traceback.format_exc()


def _told(cell: Cell) -> dict[str, Any]:
    return {"fold": cell.fold, **{k: v for k, v in cell.data.facts.items() if k != "asked"}}


def _play(plan: Plan, cell: Cell, reporter: Reporter) -> dict[str, Any]:
    """Play one run and collect it."""
    fault = cell.data.facts.get("fault")
    if fault and cell.arm != BASE:
        raise TaskError(f"fold {cell.fold}: {fault}")
    if not cell.data.eval:
        raise TaskError(f"fold {cell.fold} has no task to evaluate")
    budget = budget_of(plan, cell)
    config = plan.config(cell, budget)
    _put_aside(cell.folder, config, reporter)
    run = open_run(config, resume=(cell.folder / "manifest.json").is_file(), anew=True)
    training = cell.arm != BASE
    with closing(Game(run, reporter, training=training)) as game:
        if not training:
            game.evaluate(0)
        else:
            _borrow_base(plan, cell, game)
            _borrow_trees(plan, cell, game)
            base = not _known(plan, cell)
            if base:
                game.evaluate(0)
            _look_for_faults(game)
            game.play(base)
        found = collect(cell.folder, game.suites, cell.fold, final=training)
    return {**found, "budget": list(budget)}


def _put_aside(folder: Path, config: Config, reporter: Reporter) -> None:
    """Move a run away that was begun before the tokens of the reference were known; it has no
    result, and could not go on."""
    held = hold(folder) if folder.is_dir() else None  # nothing is moved that is at work
    old = _settings(folder)
    keys = differing_keys(old, _of(config)) if old is not None else []
    if not set(keys) & set(BUDGETS) or any(not evaluates(key) for key in set(keys) - set(BUDGETS)):
        return
    aside = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    del held
    reporter.say(f"{folder} was begun with another {', '.join(keys)}; it is {aside.name} now")


def _look_for_faults(game: Game) -> None:
    """Raises :class:`TaskError` where the data do not have what the method learns from, before
    anything is trained."""
    method = game.config.method
    if not learns_from_contrasts(method) or game.adapter(1).is_dir():
        return
    trees = game.grow(1)
    if method not in WITHOUT_BRANCHES and not any(tree.nodes for tree in trees):
        if mean_rate(measured(game, 1)) == 0:
            raise TaskError(
                f"{game.player(0)} made no mistake that the judge can see, so none of the "
                f"{len(trees)} training tasks has a risk node; train on other tasks, or raise "
                "golden.samples or nodes.probe.rollouts"
            )
        raise TaskError(
            f"none of the {len(trees)} training tasks has a risk node for method {method}; add to "
            "nodes.sources, or train on other tasks"
        )
    contrasts: Sequence[Contrast] = game.contrasts(1)
    if method in NEEDS_VULNERABLE and not any(contrast.rejected for contrast in contrasts):
        raise TaskError(
            f"method {method} learns from pairs, and none of the {len(trees)} training tasks has "
            "a golden and a vulnerable answer; train on tasks that do"
        )


def _borrow_base(plan: Plan, cell: Cell, game: Game) -> None:
    """Copy the base model's judged answers from its own run, where that asked the same."""
    source = next(c for c in plan.cells(BASE, cell.seed) if c.fold == cell.fold).folder
    old, now = _settings(source), _of(game.config)
    same = old is not None and all(old[key] == now[key] for key in EVALUATED)
    if same and old is not None and _asked(old) == _asked(now):
        _borrow(source, game, "eval/base.jsonl")


def _known(plan: Plan, cell: Cell) -> bool:
    """Whether the base model has a result already: though its run may be gone, as where results
    were kept and runs were not, it need not be asked once more."""
    path = plan.result(BASE, cell.seed)
    found = read_json(path) if path.is_file() else {"faults": [""]}
    return not found["faults"] and found["digest"] == plan_digest(plan, BASE, cell.seed)


def _asked(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config["tasks"].items() if k not in ("train", "limit")}


def _borrow_trees(plan: Plan, cell: Cell, game: Game) -> None:
    """Copy the trees of round 1 from a run of the same seed, of this call or an earlier one, that
    grew them by the same settings and had them judged alike."""
    if not learns_from_contrasts(game.config.method):
        return
    now = _of(game.config)
    for arm in dict.fromkeys([*plan.arms, *plan.protocol.arms]):
        source = next(c for c in plan.cells(arm, cell.seed) if c.fold == cell.fold).folder
        old = _settings(source) if arm != cell.arm else None
        if (
            old is not None
            and _kind(old["method"]) == _kind(game.config.method)
            and all(old.get(key) == now.get(key) for key in GROWN)
            and old["tasks"] == now["tasks"]
            and _borrow(source, game, "round-1/judged.jsonl")
        ):
            for name in TREES:
                _borrow(source, game, name)
            return


def _kind(method: str) -> str:
    """Methods of a kind make the same trees of the same settings. Those that read vulnerable
    answers may leave out tasks for which these are too long."""
    if method in WITHOUT_BRANCHES:
        return "pairs" if method in NEEDS_VULNERABLE else "no branches"
    return "not judged" if method in UNJUDGED else "judged"


def _borrow(source: Path, game: Game, name: str) -> bool:
    """Copy a finished stage file, or check that the one copied before is still the same.

    Raises :class:`RunError` where it changed, or where the two runs are of different models.
    """
    target, record = game.run.folder / name, game.run.folder / "shared.json"
    shared = read_json(record) if record.is_file() else {}
    if target.is_file():
        if name in shared and shared[name] != _digest(target):
            raise RunError(f"{target} is not what was copied there; remove the folder of this run")
        return True
    if shared.pop(name, None):  # it was put aside since
        write_json(record, shared)
    if not (source / name).is_file():
        return False
    theirs = read_json(source / "manifest.json")["identities"]
    ours = game.run.manifest["identities"]
    asked = "evaluation tasks" if name.startswith("eval/") else "training tasks"
    for role in ("base", "tokenizer", "judge", asked):
        if theirs.get(role) != ours.get(role):
            return False
    shared[name] = _digest(source / name)
    write_json(record, shared)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".tmp")
    shutil.copyfile(source / name, part)
    part.replace(target)
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _settings(folder: Path) -> dict[str, Any] | None:
    """Those of a run, wherever its model and tasks lay then; ``None`` where there is no run."""
    path = folder / "manifest.json"
    return without_places(with_newer_keys(read_json(path)["config"])) if path.is_file() else None


def _of(config: Config) -> dict[str, Any]:
    return without_places(to_dict(config))
