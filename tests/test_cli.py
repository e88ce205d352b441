"""The command line: every command, and one sentence with an exit status for bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result
from writer import tasks

from treeplay.cli import app
from treeplay.config import recipe_names, recipe_title
from treeplay.errors import RunError, SandboxError
from treeplay.play import Game
from treeplay.sandbox import check_sandbox
from treeplay.tasks.jsonl import task_to_json, write_tasks
from treeplay.tasks.pack import load_pack


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Result, says: str, code: int = 2) -> str:
    """The one sentence on stderr; nothing else may be said as an error."""
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture
def sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(f"generated code cannot be run here: {error}")


@pytest.fixture
def recipe(writer: Path, tmp_path: Path, sandbox: None) -> Path:
    source = str(writer / "tasks.jsonl")
    data = {
        "method": "tsp",
        "out": str(tmp_path / "run"),
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "nodes": {"sources": ["diff"]},
        "grow": {"branches": 4, "max_tokens": 60},
        "train": {"epochs": 1, "checkpoint_steps": 1, "groups_per_step": 1, "lora": {"r": 4}},
        "eval": {"samples": 2, "max_tokens": 60},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


COMMANDS = [
    ["play"],
    ["grow"],
    ["train"],
    ["eval"],
    ["report"],
    ["doctor"],
    ["recipes"],
    ["tasks"],
    ["tasks", "list"],
    ["tasks", "validate"],
    ["tasks", "import"],
    ["tasks", "fetch"],
    ["export"],
    ["experiment"],
]


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    if command:
        assert command[-1] in run(*command[:-1], "--help").output


# Bad input.


def test_an_unknown_key(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + "sed: 3\n")
    line = recipe.read_text().count("\n")
    said = refused(run("play", recipe), r"unknown key 'sed'; did you mean 'seed'\?")
    assert f"{recipe}:{line}: " in said
    refused(run("play", "cpu-demo", "train.epoch=2"), "did you mean 'train.epochs'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("stage", "told"), [("train", "training"), ("contrasts", "growing")])
def test_a_round_that_fails_is_reported_with_what_was_played(
    stage: str, told: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Game, number: int) -> None:
        raise RunError(f"the loss of task 'sql' is not a number in round {number}")

    monkeypatch.setattr(Game, stage, broken)
    quick = ("grow.max_tokens=2", "grow.branches=1", "eval.max_tokens=4", "contrasts.anchor=1")
    result = run("play", recipe, *quick)
    refused(result, "the loss of task 'sql' is not a number")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {row["player"] for row in report["rows"]} == {"base"}
    assert report["run"]["ended"]["reason"].startswith(f"{told} failed: the loss")
    assert "ended in round 1" in " ".join(result.output.split())


def test_a_missing_recipe() -> None:
    refused(run("play", "nowhere.yaml"), r"cannot read the recipe nowhere\.yaml.*check the path")
    refused(run("play", "cpu-dem"), "no recipe 'cpu-dem'.*cpu-demo")
    assert run("play").exit_code == 2


def test_a_missing_model_and_then_the_right_one(recipe: Path, tmp_path: Path) -> None:
    refused(run("play", recipe, f"model.name={tmp_path}/gone"), "there is no model folder or file")
    assert run("grow", recipe).exit_code == 0  # what failed made nothing, so this is no other run


@pytest.mark.parametrize("content", [b"GGUF\x03\x00\x00\x00\x10", b"not a model at all"])
def test_a_broken_gguf(content: bytes, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    refused(run("play", recipe, f"model.name={tmp_path}/x.gguf"), r"x\.gguf.*(whole|again)")


def test_a_tokenizer_without_a_chat_template(recipe: Path) -> None:
    refused(run("play", recipe, "model.style=chat"), "no chat template; use model.style=complete")


def test_a_task_file_with_a_broken_line(recipe: Path, tmp_path: Path) -> None:
    base = task_to_json(tasks()[0])
    lines = [json.dumps({**base, "id": f"t{i}"}) for i in range(50)]
    lines[36] = lines[36][:100]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n")
    refused(run("play", recipe, f"tasks.train={path}"), rf"{path}:37: not valid JSON")
    refused(run("tasks", "list", path), rf"{path}:37: not valid JSON")
    lines[36] = json.dumps({**base, "id": "t36", "goldn": ""})
    path.write_text("\n".join(lines) + "\n")
    refused(run("tasks", "list", path), rf"{path}:37: .*'goldn'")


def test_a_golden_longer_than_the_context(recipe: Path, writer: Path, tmp_path: Path) -> None:
    long = {**task_to_json(tasks()[0]), "id": "long", "golden": "\n    x = 1" * 60 + "\n"}
    path = tmp_path / "long.jsonl"
    path.write_text((writer / "tasks.jsonl").read_text() + json.dumps(long) + "\n")
    refused(
        run("grow", recipe, f"tasks.train={path}"),
        r"task 'long' has \d+ tokens.*the model reads 512; shorten.*tasks\.too_long=skip",
    )
    result = run("grow", recipe, f"tasks.train={path}", "tasks.too_long=skip")
    assert result.exit_code == 0, result.output
    assert "skipped: task 'long'" in result.stderr
    assert "2 trees" in result.stdout


def test_a_full_disk(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every write in turn; what was made before is kept, and resuming ends the same."""
    real = os.fsync
    calls = 0

    def full_from(number: int) -> Any:
        def fsync(handle: int) -> None:
            nonlocal calls
            calls += 1
            if calls > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        return fsync

    for number in (0, 1, 4, 9, 14):
        calls = 0
        monkeypatch.setattr("os.fsync", full_from(number))
        refused(run("play", recipe, "--resume"), "(disk is full|No space left).*free (some )?space")
        monkeypatch.setattr("os.fsync", real)
    result = run("play", recipe, "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/report.json").is_file()
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize(
    "stage",
    [
        "treeplay.play.load_policy",
        "treeplay.play_eval.sample_answers",
        "treeplay.play_grow.grow",
        "treeplay.play.score_opponent",
        "treeplay.train.group_loss",
        "treeplay.judge.judge.Judge._judge_many",
    ],
)
def test_ctrl_c(stage: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, interrupted)
        result = run("play", recipe)
    assert result.exit_code == 130, result.output
    assert "interrupted; what was made is kept: add --resume to go on" in result.stderr
    assert "Traceback" not in result.output
    assert run("play", recipe, "--resume").exit_code == 0


def test_a_run_that_is_there_already(recipe: Path, tmp_path: Path) -> None:
    assert run("play", recipe).exit_code == 0
    refused(run("play", recipe), "already holds a run; add --resume")
    refused(run("play", recipe, "--resume", "seed=4"), "other settings: seed differ")
    again = run("play", recipe, "--resume")
    assert again.exit_code == 0
    assert f"report: {tmp_path}/run/report.html" in again.stdout


def test_other_bad_input(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("play", recipe, f"out={tmp_path}/file"), "cannot make the run folder")
    refused(run("report", tmp_path / "nowhere"), "no scored samples here")
    refused(run("train", recipe, "nodes.sources=[annotated]"), "no contrasts to train on")
    refused(run("eval"), "eval takes a recipe, or --model with --tasks")
    refused(run("eval", recipe, "--model", "x"), "eval takes a recipe, or --model with --tasks")
    refused(run("eval", "--model", "x"), "also needs --tasks FILE.jsonl and --out FOLDER")
    refused(run("tasks", "list", tmp_path / "none.jsonl"), r"none\.jsonl")
    refused(run("tasks", "import", "sven", tmp_path / "none", "-o", tmp_path / "o"), "none")
    refused(run("tasks", "import", "svn", tmp_path, "-o", tmp_path / "o"), "'svn'")
    source = tmp_path / "mbpp.jsonl"
    source.write_text("{}\n")
    refused(run("tasks", "import", "mbpp", source, "-o", source), "the file to import")
    assert source.read_text() == "{}\n"
    there = ("eval", recipe, "--round", 1)
    refused(run(*there, "--tasks", "x", "--name", "n"), "--tasks, --name are for eval --model")
    mine = ("eval", "--model", "x", "--tasks", "t", "--out", tmp_path / "new")
    refused(run(*mine, "--round", 7), "--round is for eval RECIPE")
    refused(run(*mine, "tasks.eval=[y]"), "tasks.eval is what an option of eval --model says")
    for name in ("a/b", "../b", ".b"):
        refused(run(*mine, "--name", name), "good for a file name")
    assert not (tmp_path / "new").exists()
    refused(run("export", tmp_path / "nowhere", "--out", tmp_path / "x"), "is no run folder")
    refused(run("play", recipe, "tasks.languages=python"), r"a list is needed; write \[python\]")
    refused(run("play", recipe, "train.lr=1"), "did you mean 'train.learning_rate'")
    refused(run("tasks", "fetch", tmp_path / "file", "mbpp"), "file: File exists; check the path")
    assert run("play", recipe, "--resum").exit_code == 2
    assert run("grow", recipe, "--round", "0").exit_code == 2


def test_going_on_with_a_run_that_is_not_there_is_told(recipe: Path, tmp_path: Path) -> None:
    done = run("play", recipe, "--resume", f"out={tmp_path}/typo", "method=sft")
    assert done.exit_code == 0
    assert f"there is no run in {tmp_path}/typo to go on with; a new one begins" in done.stderr


def test_without_a_sandbox_nothing_is_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise SandboxError("bubblewrap is not installed; run: apt-get install bubblewrap")

    monkeypatch.setattr("treeplay.play.check_sandbox", missing)
    refused(run("play", recipe), "bubblewrap is not installed; run: apt-get install bubblewrap")


# What works.


def test_single_stages(recipe: Path, tmp_path: Path) -> None:
    grown = run("grow", recipe)
    assert grown.exit_code == 0, grown.output
    assert re.search(r"2 trees, \d+ branches: .*round-1/judged\.jsonl", grown.stdout)
    trained = run("train", recipe)
    assert f"adapter: {tmp_path}/run/round-1/adapter" in trained.stdout
    for number in (0, 1):
        evaluated = run("eval", recipe, "--round", number)
        assert evaluated.exit_code == 0, evaluated.output
    assert "round-1" in evaluated.stdout
    assert sorted(p.name for p in (tmp_path / "run/eval").glob("*.jsonl")) == [
        "base.jsonl",
        "round-1.jsonl",
    ]
    (tmp_path / "run/report.json").unlink()
    again = run("report", tmp_path / "run")
    assert again.exit_code == 0
    assert (tmp_path / "run/report.json").is_file()


def test_a_dry_run_prints_and_makes_nothing(recipe: Path, tmp_path: Path) -> None:
    result = run("play", recipe, "rounds=3", "--dry-run")
    assert result.exit_code == 0, result.output
    text = result.stdout
    settings = yaml.safe_load(text[: text.index("training tasks")])
    assert (settings["rounds"], settings["train"]["lora"]["r"]) == (3, 4)
    assert settings["out"] == str(tmp_path / "run")
    assert "training tasks     2, evaluation tasks 1" in text
    for word in ("risk nodes", "tokens to grow", "tokens to train", "time", "memory", "tokens/s"):
        assert word in text
    # 4 branches of 60 tokens at every node, three times.
    nodes = int(re.findall(r"risk nodes +(\d+)", text)[0])
    assert f"at most {nodes * 4 * 60 * 3:,}" in text
    assert not (tmp_path / "run").exists()


METRICS = (
    "spr1_valid",
    "spr1_all",
    "spr5_all",
    "valid",
    "inert",
    "unknown",
    "pass1",
    "secure_pass1",
)


def test_a_player_made_elsewhere_is_scored(writer: Path, tmp_path: Path, sandbox: None) -> None:
    model = tmp_path / "1e3"  # a name that YAML would take for a number
    shutil.copytree(writer, model)
    seen = tmp_path / "a b: c.jsonl"
    write_tasks(seen, tasks())
    result = run(
        "eval", "--model", model, "--tasks", seen, "--samples", 2, "--out", tmp_path / "out",
        "--name", "mine", "eval.max_tokens=50",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert isinstance(report["rows"], list)
    assert isinstance(report["paired"], list)
    row = report["rows"][0]
    names = {"player", "round", "suite", "split", "language", "cwe", "n_tasks", "n_samples"}
    names |= {m + end for m in METRICS for end in ("", "_low", "_high")}
    assert names <= row.keys()
    assert (row["player"], row["suite"], row["n_samples"]) == ("mine", "a b: c", 2)
    assert (tmp_path / "out/report.html").stat().st_size > 1000
    rows = [json.loads(x) for x in (tmp_path / "out/eval/mine.jsonl").read_text().splitlines()]
    assert len(rows) == 2  # the held-out task alone
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["config"]["eval"]["max_tokens"] == 50
    assert manifest["identities"]["mine"].startswith("1e3@")


def test_a_player_with_an_adapter_is_scored(recipe: Path, writer: Path, tmp_path: Path) -> None:
    assert run("train", recipe).exit_code == 0
    adapter = tmp_path / "run/round-1/adapter"
    result = run(
        "eval", "--model", writer, "--adapter", adapter, "--tasks", writer / "tasks.jsonl",
        "--samples", 2, "--form", "token", "--out", tmp_path / "out", "eval.max_tokens=60",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "+" in manifest["identities"]["player"]
    gone = run(
        "eval", "--model", writer, "--adapter", tmp_path, "--tasks", writer / "tasks.jsonl",
        "--out", tmp_path / "other",
    )  # fmt: skip
    refused(gone, "holds no adapter_model.safetensors; name a PEFT adapter's folder")


def test_paired_rows(recipe: Path, tmp_path: Path) -> None:
    assert run("play", recipe).exit_code == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    keys = {"player", "against", "suite", "split", "language", "metric", "diff", "low", "high"}
    assert report["paired"]
    assert all(keys <= row.keys() for row in report["paired"])
    assert {(r["player"], r["against"]) for r in report["paired"]} == {("round-1", "base")}


def test_lists() -> None:
    rows = [line.split(maxsplit=1) for line in run("recipes").stdout.splitlines()]
    assert [name for name, _ in rows] == recipe_names()
    assert dict(rows)["one-gpu"] == recipe_title("one-gpu")
    listed = run("tasks", "list")
    assert listed.exit_code == 0
    assert all(task.id in listed.stdout for task in load_pack())


def test_validate_says_what_is_wrong(tmp_path: Path, sandbox: None) -> None:
    good = [t for t in tasks() if t.id == "number"]
    write_tasks(tmp_path / "good.jsonl", good)
    result = run("tasks", "validate", tmp_path / "good.jsonl")
    assert result.exit_code == 0, result.output
    swapped = {**task_to_json(good[0]), "golden": good[0].vulnerable}
    (tmp_path / "bad.jsonl").write_text(json.dumps(swapped) + "\n")
    result = run("tasks", "validate", tmp_path / "bad.jsonl")
    assert result.exit_code == 1
    assert "number" in result.stdout


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor")
    assert result.exit_code in (0, 1)
    for name in ("python", "torch", "sandbox", "run c", "embedded model", "GPU"):
        assert re.search(rf"^{name} +(ok|no|MISSING) ", result.stdout, re.MULTILINE), name

    def missing() -> None:
        raise SandboxError("bubblewrap is not installed; run: apt-get install bubblewrap")

    monkeypatch.setattr("treeplay.doctor.check_sandbox", missing)
    result = run("doctor")
    assert result.exit_code == 1
    assert re.search(r"^sandbox +MISSING +.*apt-get install", result.stdout, re.MULTILINE)
