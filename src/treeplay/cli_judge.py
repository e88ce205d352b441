"""``treeplay judge``: programs on disk, and the bench that measures the judge itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from treeplay.cli_told import err, out, told
from treeplay.errors import ConfigError, TreeplayError
from treeplay.words import printable

if TYPE_CHECKING:
    from treeplay.judge.panel import JudgeConfig, Panel

FILES = "files"


class FilesUnlessNamed(TyperGroup):
    """``treeplay judge PATH`` means ``treeplay judge files PATH``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [FILES, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


judge_app = typer.Typer(
    cls=FilesUnlessNamed,
    help="Judge programs (treeplay judge PATH...), or measure the judge (treeplay judge bench).",
    no_args_is_help=True,
)

Policy = Annotated[
    str | None, typer.Option(help="How findings are weighed: any, majority or precision.")
]
Tools = Annotated[
    list[str] | None,
    typer.Option(help="Names of tools, comma separated; all that are here otherwise."),
]
Rules = Annotated[
    list[str] | None, typer.Option("--rules", help="More Semgrep rules: a file or folder.")
]
External = Annotated[
    list[str] | None, typer.Option("--external", help="YAML that describes a tool writing SARIF.")
]
Llm = Annotated[str | None, typer.Option("--llm", help="YAML that describes a model's endpoint.")]
Unsafe = Annotated[bool, typer.Option(help="Run tools and programs without a sandbox.")]
Calibrated = Annotated[str | None, typer.Option("--calibration", help="A calibration of your own.")]


@judge_app.command(FILES)
@told
def files(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, or - for standard input.")],
    language: Annotated[str, typer.Option(help="Of standard input and of unclear names.")] = "",
    cwe: Annotated[
        list[str] | None, typer.Option("--cwe", help="Ask for this weakness only (repeatable).")
    ] = None,
    form: Annotated[
        Literal["table", "json", "sarif"], typer.Option("--format", help="What to write.")
    ] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here.")] = None,
    error: Annotated[
        bool, typer.Option("--error", help="Exit with status 1 when a program is vulnerable.")
    ] = False,
    policy: Policy = None,
    tools: Tools = None,
    rules: Rules = None,
    external: External = None,
    llm: Llm = None,
    calibration: Calibrated = None,
    unsafe: Unsafe = False,
) -> None:
    """Judge files, folders or standard input."""
    from treeplay.judge.files import judge_sources, read_sources
    from treeplay.judge.sarif_write import write_sarif
    from treeplay.judge.show import print_verdicts, verdicts_to_json
    from treeplay.progress import Reporter

    if output is not None:
        _writing(output)  # now, not when all is judged
    names = tuple(_cwe(name) for name in cwe or ())
    sources = read_sources(paths, language, names)
    panel = _panel(policy, tools, rules, external, llm, calibration, unsafe)
    with Reporter(err, quiet=len(sources) == 1).stage("judge", len(sources)) as meter:
        verdicts = judge_sources(sources, panel, meter.advance)
    if form == "table" and output is None:
        print_verdicts(sources, verdicts, panel.identity(), out)
    elif form == "table":
        with _writing(output).open("w", encoding="utf-8") as handle:
            print_verdicts(sources, verdicts, panel.identity(), Console(file=handle, width=160))
    else:
        data = (
            verdicts_to_json(sources, verdicts, panel.identity())
            if form == "json"
            else write_sarif([(s.name, v) for s, v in zip(sources, verdicts, strict=True)])
        )
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        if output is None:
            typer.echo(text, nl=False)
        else:
            _writing(output).write_text(text, encoding="utf-8")
    if error and any(verdict.label == "vulnerable" for verdict in verdicts):
        raise typer.Exit(1)


@judge_app.command("bench")
@told
def bench(
    datasets: Annotated[list[Path], typer.Argument(help="JSONL files of labelled records.")],
    evidence: Annotated[
        Literal["static", "executed", "all"],
        typer.Option(help="Tools alone, the records' tests alone, or tests where there are some."),
    ] = "static",
    half: Annotated[
        Literal["all", "dev", "test"],
        typer.Option(help="Rules were written on dev (split by repository or scenario)."),
    ] = "all",
    languages: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    limit: Annotated[int, typer.Option(help="First records of a file only; 0: all.", min=0)] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write rows here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Write the counts of these records as a calibration.")
    ] = None,
    policy: Policy = None,
    tools: Tools = None,
    rules: Rules = None,
    external: External = None,
    llm: Llm = None,
    calibration: Calibrated = None,
    unsafe: Unsafe = False,
) -> None:
    """Measure the judge on labelled records: recall, precision, pair accuracy and more."""
    from treeplay.judge.bench.command import bench_files, print_bench, write_calibration
    from treeplay.judge.bench.page import bench_page
    from treeplay.progress import Reporter

    for path in (json_path, html, calibrate):
        if path is not None:
            _writing(path)
    panel = _panel(policy, tools, rules, external, llm, calibration, unsafe)
    wanted = [name.strip() for name in languages.split(",") if name.strip()]
    result = bench_files(datasets, panel, evidence, half, wanted, limit, Reporter(err))
    if json_path is not None:
        text = json.dumps(result.report, indent=1, ensure_ascii=False) + "\n"
        _writing(json_path).write_text(text, encoding="utf-8")
    if html is not None:
        _writing(html).write_text(bench_page(result.report), encoding="utf-8")
    if calibrate is not None:
        write_calibration(_writing(calibrate), result, panel)
    print_bench(result.report, out)


def _panel(
    policy: str | None,
    tools: list[str] | None,
    rules: list[str] | None,
    external: list[str] | None,
    llm: str | None,
    calibration: str | None,
    unsafe: bool,
) -> Panel:
    from dataclasses import fields

    from treeplay.judge.ensemble import POLICIES
    from treeplay.judge.llm_config import ENV_PREFIX
    from treeplay.judge.panel import JudgeConfig, Panel
    from treeplay.sandbox import Sandbox, check_sandbox
    from treeplay.words import nearest

    if policy is not None and policy not in POLICIES:
        raise ConfigError(f"--policy: {policy!r} is none; {nearest(policy, POLICIES)}")
    names = [name.strip() for name in ",".join(tools or ()).split(",") if name.strip()]
    given: dict[str, Any] = {
        "unsafe": unsafe,
        "policy": policy,
        "tools": tuple(names),
        "rules": tuple(rules or ()),
        "external": tuple(external or ()),
        "llm": llm,
        "calibration": calibration,
    }
    default: JudgeConfig = JudgeConfig()
    config = JudgeConfig(
        **{
            field.name: given.get(field.name) or getattr(default, field.name)
            for field in fields(JudgeConfig)
        }
    )
    if not unsafe:
        check_sandbox()
    if f"{ENV_PREFIX}BASE_URL" in os.environ and llm is None:
        err.print(
            f"warning: {ENV_PREFIX}BASE_URL is set, but no language model is asked: name a file "
            "with --llm (an empty one will do)",
            markup=False,
        )

    def tell(text: str) -> None:
        err.print(f"warning: {printable(text)}", markup=False)

    return Panel(Sandbox(unsafe=unsafe), config, tell=tell)


def _cwe(name: str) -> str:
    from treeplay.judge.cwe import cwe_number

    number = cwe_number(name)
    if number is None:
        raise ConfigError(f"--cwe: {name!r} is no CWE; write it as CWE-89")
    return f"CWE-{number}"


def _writing(path: Path | None) -> Path:
    """``path``, once it is known that it can be written."""
    target = cast(Path, path)
    new = not target.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a"):
            pass
        if new:  # nothing is left behind where no result comes
            target.unlink()
    except OSError as error:
        raise TreeplayError(f"{target}: cannot be written ({error.strerror})") from error
    return target
