"""The command line. Each command is a few lines: read the configuration, call the library, print.

Exit status: 0 done, 1 a check failed, 2 bad input (one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treeplay.cli_experiment import experiment
from treeplay.cli_judge import judge_app
from treeplay.cli_told import err, out, told
from treeplay.errors import TreeplayError
from treeplay.words import printable

app = typer.Typer(
    help="Teach a code model to stop writing vulnerabilities, by tree-like self-play.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tasks_app = typer.Typer(help="The starter pack, and tasks of your own.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(judge_app, name="judge")
app.command()(experiment)

SOURCE = "'starter', a JSONL file, or TOML files."
Recipe = Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings over the recipe's, as key=value.")
]
Resume = Annotated[bool, typer.Option(help="Go on with the run in the run folder.")]
Track = Annotated[
    str,
    typer.Option(
        help="Trackers that are told all figures, comma separated: tensorboard, wandb, trackio, "
        "mlflow or another of Accelerate's."
    ),
]
Round = Annotated[int, typer.Option("--round", help="Which round.", min=1)]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"treeplay {version('treeplay')}", markup=False)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@told
def play(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the resolved configuration and an estimate, and stop.")
    ] = False,
    track: Track = "",
) -> None:
    """Play all rounds: grow, judge, contrast, train, evaluate, report."""
    if dry_run:
        _dry_run(recipe, overrides, track)
        return
    with closing(_game(recipe, overrides, resume, anew=resume, track=track)) as game:
        try:
            game.play()
        except TreeplayError:
            if game.run.manifest.get("ended"):  # a training failed; what was evaluated is there
                _report(game.run.folder)
            raise
    if not game.suites:
        out.print(f"nothing was evaluated, as tasks.eval is empty: {game.run.folder}", markup=False)
        return
    _report(game.run.folder)


@app.command()
@told
def grow(recipe: Recipe, overrides: Overrides = None, round: Round = 1) -> None:
    """Grow and judge the trees of one round."""
    with closing(_game(recipe, overrides, resume=True)) as game:
        trees = game.grow(round)
    count = sum(len(tree.branches) for tree in trees)
    made = f"{len(trees)} trees, {count} branches: {game.run.folder}/round-{round}/judged.jsonl"
    out.print(made, markup=False)


@app.command()
@told
def train(recipe: Recipe, overrides: Overrides = None, round: Round = 1, track: Track = "") -> None:
    """Train the player of one round (growing its trees first where they are missing)."""
    with closing(_game(recipe, overrides, resume=True, track=track)) as game:
        out.print(f"adapter: {game.train(round)}", markup=False)


@app.command("eval")
@told
def evaluate(
    recipe: Annotated[str | None, typer.Argument(help="A recipe, to evaluate its run.")] = None,
    overrides: Overrides = None,
    round: Annotated[
        int | None, typer.Option("--round", help="0, the default, is the base model.", min=0)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder or GGUF file.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder of a PEFT adapter on it.")] = None,
    tasks: Annotated[str | None, typer.Option(help=SOURCE)] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples a task; 10, if not said.", min=1)
    ] = None,
    folder: Annotated[str | None, typer.Option("--out", help="Where to write.")] = None,
    form: Annotated[str | None, typer.Option(help="full (if not said), statement, token.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the player in the report: else 'player'.")
    ] = None,
    resume: Resume = False,
) -> None:
    """Evaluate a player of a run (RECIPE --round N), or any model (--model M --tasks FILE)."""
    if model is not None and recipe is not None and "=" in recipe:
        overrides = [recipe, *(overrides or [])]  # a setting, not a recipe
        recipe = None
    if (recipe is None) == (model is None):
        raise TreeplayError("eval takes a recipe, or --model with --tasks; give one of the two")
    _check_name(name or "")
    if recipe is not None:
        others = {
            "--adapter": adapter,
            "--tasks": tasks,
            "--samples": samples,
            "--out": folder,
            "--form": form,
            "--name": name,
        }
        if given := [option for option, value in others.items() if value is not None]:
            raise TreeplayError(
                f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} for eval --model; a "
                "recipe's run is evaluated as the recipe says (give key=value to change it)"
            )
        with closing(_game(recipe, overrides, resume=True)) as game:
            game.evaluate(round or 0)
        _report(game.run.folder)
        return
    if tasks is None or folder is None:
        raise TreeplayError("eval --model also needs --tasks FILE.jsonl and --out FOLDER")
    if round is not None:
        raise TreeplayError("--round is for eval RECIPE; the player of eval --model is the model")
    settings: dict[str, Any] = {
        "model.name": model,
        "model.adapter": adapter,
        "eval.samples": samples,
        "tasks.form": form,
        "out": folder,
    }
    settings["tasks.eval"] = [tasks]
    given = [f"{key}={_quoted(value)}" for key, value in settings.items() if value is not None]
    for key in settings:
        if any(one.startswith(f"{key}=") for one in overrides or ()):
            raise TreeplayError(f"{key} is what an option of eval --model says; give it only there")
    given += overrides or []
    player = name or "player"
    with closing(_game(None, given, resume, anew=resume, name=player, training=False)) as game:
        game.evaluate(0)
    _report(game.run.folder)


def _check_name(name: str) -> None:
    """A player's name is a part of file names."""
    if name.startswith(".") or not set(name).isdisjoint("/\\\0"):
        raise TreeplayError(
            f"--name {name}: a player's name must be good for a file name, without slashes and "
            f"not beginning with a dot; {name.rpartition('/')[2].lstrip('.') or 'player'}, say"
        )


@app.command()
@told
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Make report.json and report.html of a run folder again, and print the table."""
    _report(folder)


@app.command()
@told
def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    target: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    round: Annotated[
        int | None, typer.Option("--round", help="Which round: else the last.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the base model lies, if it was moved.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16: else as it was played.")
    ] = None,
) -> None:
    """Write a trained player as a model of its own: the adapter merged into the base model's
    weights (safetensors), with the tokenizer and a model card."""
    from typing import get_args

    from treeplay.export import export as write
    from treeplay.policy.model import Dtype
    from treeplay.words import nearest

    kind = next((known for known in get_args(Dtype) if known == dtype), None)
    if dtype and kind is None:
        raise TreeplayError(f"--dtype {dtype}: {nearest(dtype, get_args(Dtype))}")
    out.print(f"model: {write(folder, target, round, model=model, dtype=kind)}", markup=False)


@app.command()
@told
def doctor() -> None:
    """Say what this machine has of what treeplay can use, and how to get the rest."""
    from treeplay.doctor import examine

    checks = examine()
    for check in checks:
        mark = "ok" if check.ok else ("MISSING" if check.needed else "no")
        out.print(f"{check.name:<18} {mark:<8} {check.detail}", markup=False)
    if any(check.needed and not check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
@told
def recipes() -> None:
    """List the recipes that come with treeplay."""
    from treeplay.config import recipe_names, recipe_title

    for name in recipe_names():
        out.print(f"{name:<10} {recipe_title(name)}", markup=False)


@tasks_app.command("list")
@told
def tasks_list(
    source: Annotated[str, typer.Argument(help=SOURCE)] = "starter",
) -> None:
    """List tasks: id, split, CWE, tests."""
    from treeplay.tasks.select import load_tasks

    table = Table(box=None)
    for column in ("id", "language", "split", "CWE", "tests", "statements"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for task in load_tasks(source):
        table.add_row(
            Text(printable(task.id)),
            task.language,
            task.split,
            ", ".join(task.cwe),
            "yes" if task.tests else "no",
            str(task.statements or "-"),
        )
    (out if out.is_terminal else Console(width=200)).print(table)  # whole ids into a pipe


@tasks_app.command("validate")
@told
def tasks_validate(
    source: Annotated[str, typer.Argument(help=SOURCE)] = "starter",
    strict: Annotated[bool, typer.Option(help="Fail where a toolchain is missing.")] = False,
    workers: Annotated[int, typer.Option(help="Tasks run at the same time.", min=1)] = 2,
) -> None:
    """Prove every task by running it: golden passes, vulnerable is exploited, doing nothing
    passes neither, and no evaluation task is close to a training task."""
    from treeplay.sandbox import Sandbox, check_sandbox
    from treeplay.tasks.select import load_tasks
    from treeplay.tasks.validate import line, summary, validate

    check_sandbox()
    found = validate(
        load_tasks(source),
        Sandbox(),
        workers=workers,
        done=lambda check: out.print(line(check), markup=False),
    )
    out.print(summary(found), markup=False)
    if found.failed(strict):
        raise typer.Exit(1)


@tasks_app.command("fetch")
@told
def tasks_fetch(
    folder: Annotated[Path, typer.Argument(help="Folder to put the git checkouts in.")],
    kinds: Annotated[
        list[str] | None, typer.Argument(help="Data sets, as tasks import names them; else all.")
    ] = None,
) -> None:
    """Fetch public data sets at the revisions that were used: for tasks import and experiment."""
    from treeplay.errors import ConfigError
    from treeplay.tasks.fetch import SOURCES, fetch
    from treeplay.words import nearest

    for kind in kinds or ():
        if kind not in SOURCES:
            raise ConfigError(f"unknown data set {kind!r}; {nearest(kind, SOURCES)}")
    chosen = {kind: SOURCES[kind] for kind in kinds or SOURCES}
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder, chosen, lambda line: out.print(line, markup=False))
    for kind, source in chosen.items():
        out.print(
            f"  {kind:<13} {folder / source.folder / source.path}  (licence: {source.license})",
            markup=False,
        )


@tasks_app.command("import")
@told
def tasks_import(
    kind: Annotated[
        str,
        typer.Argument(
            help="git (fixes in a repository's history), preference (any pairs of answers), tsp, "
            "safecoder, sven, seccodeplt, securityeval, cweval, humaneval or mbpp."
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The data set's file or folder, or a repository.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write.")],
    languages: Annotated[str, typer.Option(help="Keep these only, comma separated.")] = "",
    max_chars: Annotated[
        int, typer.Option(help="Leave out longer tasks (prompt and golden answer).", min=1)
    ] = 1_000_000,
    details: Annotated[bool, typer.Option(help="List every item with a fault.")] = False,
) -> None:
    """Import a public data set; its known faults are counted and reported."""
    from treeplay.tasks.importers import import_tasks
    from treeplay.tasks.jsonl import write_tasks
    from treeplay.words import nearest

    if target.resolve() == path.resolve():
        raise TreeplayError(f"--out {target} is the file to import; name another file to write")
    result = import_tasks(kind, path)
    wanted = {name.strip() for name in languages.split(",") if name.strip()}
    there = {task.language for task in result.tasks}
    if strange := sorted(wanted - there):
        raise TreeplayError(
            f"--languages: {path} has no task in {strange[0]!r}; {nearest(strange[0], there)}"
        )
    spoken = [task for task in result.tasks if not wanted or task.language in wanted]
    kept = [task for task in spoken if len(task.prompt + (task.golden or "")) <= max_chars]
    if not kept:
        out.print(printable(str(result.report)), markup=False)
        raise TreeplayError(f"{path}: no task is left of it, so nothing was written")
    write_tasks(target, kept)
    out.print(printable(str(result.report) if details else result.report.summary()), markup=False)
    if len(kept) < len(spoken):
        out.print(f"{len(spoken) - len(kept)} longer than {max_chars} characters left out")
    out.print(f"{len(kept)} tasks: {target}", markup=False)


def _game(
    recipe: str | None,
    overrides: list[str] | None,
    resume: bool,
    *,
    anew: bool = False,
    name: str = "base",
    training: bool = True,
    track: str = "",
) -> Any:
    from treeplay.config import load_config
    from treeplay.play import Game
    from treeplay.progress import Reporter
    from treeplay.run import open_run
    from treeplay.track import open_tracks, tracker_names

    config = load_config(recipe, overrides or [])
    trackers = tracker_names(track)
    reporter = Reporter(err)
    if anew and not (Path(config.out) / "manifest.json").is_file():
        reporter.say(f"there is no run in {config.out} to go on with; a new one begins")
    run = open_run(config, resume=resume, anew=anew)
    reporter.tracks = open_tracks(trackers, run, reporter.say)
    try:
        return Game(run, reporter, name=name, training=training)
    except BaseException:
        reporter.tracks.close()
        raise


def _quoted(value: Any) -> str:
    """A value as JSON: YAML in which no path is taken for a number or a mapping."""
    return json.dumps(value, ensure_ascii=False)


def _dry_run(recipe: str, overrides: list[str] | None, track: str) -> None:
    import tempfile
    from dataclasses import replace

    from treeplay.config import load_config, to_yaml
    from treeplay.estimate import estimate
    from treeplay.play import Game
    from treeplay.progress import Reporter
    from treeplay.run import open_run
    from treeplay.track import tracker_names

    config = load_config(recipe, overrides or [])
    tracker_names(track)
    out.print(to_yaml(config), markup=False)
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(replace(config, out=folder + "/run"), resume=False)
        for line in estimate(Game(run, Reporter(err))).lines():
            out.print(line, markup=False)


def _report(folder: Path) -> None:
    from treeplay.report import build_report, print_table

    print_table(build_report(folder), out)
    out.print(f"report: {folder / 'report.html'}", markup=False)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
