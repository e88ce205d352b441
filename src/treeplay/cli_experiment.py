"""``treeplay experiment``: play a protocol, or make the results page from what was played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treeplay.cli_told import err, out, told
from treeplay.errors import ConfigError

if TYPE_CHECKING:
    from treeplay.experiments.plan import Plan
    from treeplay.experiments.protocol import Protocol, Size
    from treeplay.progress import Reporter

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings of every run, as key=value.")]


@told
def experiment(
    name: Annotated[
        str | None, typer.Argument(help="main, unseen, transfer, ablation, paper or scale.")
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        Path, typer.Option(help="Folder of data sets: see tasks fetch.", envvar="TREEPLAY_DATA")
    ] = Path("data"),
    model: Annotated[str, typer.Option(help="Hub id, folder or GGUF file.")] = "smollm2",
    methods: Annotated[
        str, typer.Option(help="Arms to play, comma separated: else all. base is always played.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, comma separated.")] = "0,1,2",
    size: Annotated[str, typer.Option(help="cpu, gpu or smoke: how much of the data.")] = "cpu",
    folder: Annotated[Path, typer.Option("--out", help="Where the runs lie.")] = Path(
        "runs/experiments"
    ),
    results: Annotated[
        Path | None,
        typer.Option(help="Where results are written: results; of smoke runs OUT/smoke-results."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
    tables: Annotated[
        Path | None, typer.Option(help="Make the results pages from this folder and stop.")
    ] = None,
    page: Annotated[
        Path,
        typer.Option(
            help="The page that --tables writes into; pages of tables go into a folder of its name."
        ),
    ] = Path("docs/results.md"),
) -> None:
    """Compare methods on the same data, seeds and budgets. What was interrupted goes on."""
    if tables is not None:
        from treeplay.experiments.page import write_page

        for path in write_page(tables, page):
            out.print(f"written: {path}", markup=False)
        return
    if name is None:
        raise ConfigError("experiment takes a NAME, or --tables FOLDER")
    if results is None:
        results = folder / "smoke-results" if size == "smoke" else Path("results")
    from treeplay.experiments.costs import lines
    from treeplay.experiments.data import missing_files
    from treeplay.experiments.runs import run_plan

    asked = _asked(name, methods, seeds, size)
    if dry_run and (missing := missing_files(asked.protocol, data)):
        arms = ", ".join(asked.arms)
        out.print(f"experiment {name}: {asked.protocol.title}", markup=False)
        out.print(f"arms: {arms}; seeds: {', '.join(map(str, asked.seeds))}", markup=False)
        out.print(f"tasks and costs are not known yet: {missing}", markup=False)
        return
    plan, reporter = _plan(asked, overrides, data, model, folder, results)
    if dry_run:
        for line in lines(plan):
            out.print(line, markup=False)
        return
    outcomes = run_plan(plan, reporter)
    for one in outcomes:
        state = "failed" if one.faults else "done" if one.played else "there"
        out.print(f"{one.arm}, seed {one.seed}: {state}: {one.path}", markup=False)
        for fault in one.faults:
            out.print(f"  failed: {fault}", markup=False)
    if any(one.faults for one in outcomes):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Asked:
    protocol: Protocol
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    size: Size


def _asked(name: str, methods: str, seeds: str, size: str) -> _Asked:
    """What of a protocol is to be played. Raises :class:`ConfigError`."""
    from treeplay.experiments.plan import chosen_arms
    from treeplay.experiments.protocol import SIZES, load_protocol
    from treeplay.words import nearest

    chosen_size = next((known for known in SIZES if known == size), None)
    if chosen_size is None:
        raise ConfigError(f"--size {size}: {nearest(size, SIZES)}")
    try:
        numbers = tuple(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {seeds}: give whole numbers, like 0,1,2") from None
    wanted = [arm.strip() for arm in methods.split(",") if arm.strip()]
    protocol, arms = chosen_arms(load_protocol(name), wanted)
    return _Asked(protocol, arms, numbers, chosen_size)


# What a result is filed under, and what a protocol itself decides.
SETTLED = ("seed", "out", "method", "model.name", "tasks.train", "tasks.eval")


def _check_overrides(overrides: Sequence[str]) -> None:
    """Raises :class:`ConfigError` for what is no setting, and for what is not to be overridden."""
    from treeplay.config import check_overrides

    for key in check_overrides(overrides):
        if key in SETTLED:
            instead = {"seed": "--seeds", "out": "--out", "method": "--methods"}.get(key)
            instead = "--model" if key == "model.name" else instead
            raise ConfigError(
                f"{key} is not to be overridden in an experiment, whose results are filed under "
                f"it; {f'use {instead}' if instead else 'the protocol names the tasks'}"
            )


def _plan(
    asked: _Asked, overrides: list[str] | None, data: Path, model: str, folder: Path, results: Path
) -> tuple[Plan, Reporter]:
    from treeplay.experiments.data import prepare
    from treeplay.experiments.plan import Plan
    from treeplay.progress import Reporter

    _check_overrides(overrides or ())
    reporter = Reporter(err)
    where = folder / asked.protocol.name
    folds = prepare(asked.protocol, data, where, asked.size, reporter.say)
    return (
        Plan(
            protocol=asked.protocol,
            size=asked.size,
            model=model,
            arms=asked.arms,
            seeds=asked.seeds,
            folds=tuple(folds),
            out=folder,
            results=results,
            overrides=tuple(overrides or ()),
        ),
        reporter,
    )
