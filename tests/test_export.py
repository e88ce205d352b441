"""A trained player as a model of its own: the same weights, whole or not there at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.config import load_config, to_dict
from treeplay.errors import ModelError, RunError
from treeplay.export import card, export
from treeplay.play import Game
from treeplay.policy.model import (
    ModelConfig,
    hub_commit,
    load_adapter,
    load_policy,
    tokenizer_digest,
)
from treeplay.progress import Reporter
from treeplay.report import build_report
from treeplay.run import open_run, read_json

pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run

IDS = torch.tensor([[5, 80, 12, 33, 7, 100, 41]])


def played(folder: Path, model: Path, method: str, *overrides: str) -> Path:
    """A run of two rounds (``sven``: of one), evaluated and reported."""
    source = str(model / "tasks.jsonl")
    data: dict[str, Any] = {
        "method": method,
        "rounds": 1 if method == "sven" else 2,
        "model": {"name": str(model), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "train": {"epochs": 2, "lora": {"r": 4}, "learning_rate": 1e-2},
        "eval": {"samples": 1, "max_tokens": 40},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    config = load_config(folder / "recipe.yaml", [f"out={folder / 'run'}", *overrides])
    game = Game(open_run(config, resume=False), Reporter(quiet=True))
    game.play()
    game.close()
    build_report(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("export"), writer, "sft")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits.float()
    return found


@pytest.mark.parametrize("number", [None, 1, 2])
def test_an_exported_player_is_the_player(
    run: Path, writer: Path, tmp_path: Path, number: int | None
) -> None:
    target = export(run, tmp_path / "out", number)
    policy = load_policy(ModelConfig(name=str(writer), threads=1))
    bare = logits(policy.model)
    player = load_adapter(policy.model, run / f"round-{number or 2}/adapter", trainable=False)
    model = AutoModelForCausalLM.from_pretrained(target)  # as anybody would load it
    assert model.dtype == torch.float32
    assert (logits(model) - logits(player)).abs().max() < 1e-4
    assert (logits(model) - bare).abs().max() > 0.1
    ours = load_policy(ModelConfig(name=str(target), threads=1))
    assert tokenizer_digest(ours.tokenizer) == tokenizer_digest(policy.tokenizer)
    assert ours.stop_ids == policy.stop_ids
    assert [p.name for p in target.glob("*.safetensors")] == ["model.safetensors"]


def test_weights_are_written_in_the_kind_asked_for(run: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "out", dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    whole = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "whole"))
    assert (logits(half) - logits(whole)).abs().max() < 0.2


def test_a_run_that_began_with_an_adapter_has_both_in_it(
    run: Path, writer: Path, tmp_path: Path
) -> None:
    first = run / "round-1/adapter"
    later = played(tmp_path, writer, "sft", f"model.adapter={first}")
    model = AutoModelForCausalLM.from_pretrained(export(later, tmp_path / "out", 1))
    player = load_policy(ModelConfig(name=str(writer), adapter=str(first), threads=1)).model
    player = load_adapter(player.merge_and_unload(), later / "round-1/adapter", trainable=False)
    assert (logits(model) - logits(player)).abs().max() < 1e-4


def test_the_card_says_what_was_measured_and_no_places(run: Path, tmp_path: Path) -> None:
    text = (export(run, tmp_path / "out") / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
    assert "method `sft`, 2 rounds, seed 0" in text
    assert "| player | SPR@1 | vulnerable |" in text
    rows = read_json(run / "report.json")["rows"]
    (row,) = [r for r in rows if (r["player"], r["language"], r["cwe"]) == ("round-2", "all", None)]
    shown = " | ".join(f"{100 * row[key]:.1f}" for key in ("spr1_all", "vulnerable", "valid"))
    assert f"| round-2 | {shown} |" in text  # of one task there is no interval
    assert "\n| base | " in text
    assert "\n| round-1 | " not in text
    assert str(run.parent) not in text
    report = run / "report.json"
    kept = report.read_text()
    report.unlink()
    try:
        bare = (export(run, tmp_path / "bare") / "README.md").read_text()
    finally:
        report.write_text(kept)
    assert "It was not evaluated." in bare


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no player of round 3; it has those of 1, 2"):
        export(run, tmp_path / "out", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"manifest\.json"):
        export(tmp_path / "empty", tmp_path / "out")
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    shutil.copy(run / "manifest.json", untrained)
    with pytest.raises(RunError, match="holds no trained player; play it first"):
        export(untrained, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        export(run, tmp_path / "full")
    assert (tmp_path / "full/mine").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_another_base_model_or_adapter_is_refused(run: Path, writer: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(writer, tmp_path / writer.name)
    manifest = read_json(run / "manifest.json")
    manifest["config"]["model"]["name"] = str(tmp_path / "gone")
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="gone"):
        export(copy, tmp_path / "out")
    assert export(copy, tmp_path / "out", model=str(moved)).is_dir()
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match=r"base was .* and is .* now; .* say with --model"):
        export(copy, tmp_path / "other", model=str(moved))
    weights = copy / "round-2/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match=r"round-2 was .* and is .* now"):
        export(copy, tmp_path / "other", model=str(writer))
    assert not (tmp_path / "other").exists()


def test_a_prefix_is_no_model(writer: Path, tmp_path: Path) -> None:
    run = played(tmp_path, writer, "sven", "sven.tokens=3", "train.epochs=1")
    with pytest.raises(RunError, match=r"trained prefix .* use it as it is, with PEFT: "):
        export(run, tmp_path / "out")


def test_what_could_not_be_written_is_not_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, folder: str, **how: Any) -> None:
        Path(folder).mkdir(exist_ok=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(RunError, match="No space left on device"):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert (export(run, tmp_path / "out") / "model.safetensors").is_file()


def test_a_folder_of_somebody_else_s_is_not_removed(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "whole.part"
    other.mkdir()
    (other / "mine.txt").write_text("kept")
    with pytest.raises(RunError, match=r"whole\.part is in the way"):
        export(run, tmp_path / "whole")
    assert (other / "mine.txt").read_text() == "kept"
    (other / "mine.txt").rename(other / ".treeplay-export")  # one that did not end
    made = export(run, tmp_path / "whole")
    assert not other.exists()
    assert not (made / ".treeplay-export").exists()


def test_into_the_folder_that_one_is_in(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    export(run.absolute(), Path())
    assert (here / "model.safetensors").is_file()


def test_from_the_command_line(run: Path, tmp_path: Path) -> None:
    def call(*more: str) -> Any:
        return CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), *more])

    wrong = call("--dtype", "float64")
    assert wrong.exit_code == 2
    assert "--dtype float64" in wrong.output
    done = call("--round", "1", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out") in done.output.replace("\n", "")


def test_the_card_names_a_model_of_the_hub() -> None:
    commit = "1" * 40
    config = to_dict(load_config(None, ["model.name=org/tiny"]))
    told = {"versions": {"treeplay": "0"}, "config": config}
    for base, line in (
        (f"org/tiny@{commit}", "base_model: org/tiny\n"),
        (f"org/tiny@{commit}+0123456789abcdef", "base_model: org/tiny\n"),
        ("folder@0123456789abcdef", ""),
        ("x.gguf@0123456789abcdef", ""),
    ):
        text = card({**told, "identities": {"base": base}}, "round-1", None)
        assert ("base_model:" in text) == bool(line)
        assert line in text
        assert hub_commit(base) == (commit if line else "")
