"""Whole games by method, and what is refused before or within one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from test_play import content, game, recipe, settings
from writer import tasks

from treeplay.errors import ModelError, RunError, TaskError
from treeplay.policy.model import ModelConfig, load_policy
from treeplay.progress import Reporter
from treeplay.report import build_report
from treeplay.run import read_jsonl
from treeplay.tree import tree_from_json


@pytest.mark.parametrize("method", ["sft", "dpo", "spin", "tsp-paper"])
def test_every_method_plays(method: str, writer: Path, tmp_path: Path) -> None:
    data = settings(writer, method=method)
    if method in ("spin", "tsp-paper"):
        del data["grow"]["branches"], data["grow"]["completion"], data["grow"]["depth"]
        data["nodes"] = {"sources": ["root"] if method == "spin" else ["diff"]}
    data["eval"]["samples"] = 1
    one = game(recipe(tmp_path, data), tmp_path / "run")
    one.play()
    one.close()
    trees = [tree_from_json(row) for row in read_jsonl(tmp_path / "run/round-1/judged.jsonl")]
    contrasts = read_jsonl(tmp_path / "run/round-1/contrasts.jsonl")
    branches = sum(len(tree.branches) for tree in trees)
    assert all(b.verdict is None for tree in trees for b in tree.branches)
    assert branches == {"sft": 0, "dpo": 0, "spin": 2, "tsp-paper": 8}[method]
    assert all((row["rejected"] == []) == (method == "sft") for row in contrasts)
    assert len(contrasts) <= max(2, branches)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "run/round-1/train.jsonl")]
    assert all(math.isfinite(loss) for loss in losses)
    if method != "sft":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert build_report(tmp_path / "run")["rows"]


def test_the_game_ends_where_no_mistake_is_made(writer: Path, tmp_path: Path) -> None:
    """A player that writes nothing but the golden answer has nothing to learn in round 2."""
    data = settings(writer, method="tsp", rounds=3)
    # Anchored and bounded: pushed further, it would write nothing that parses.
    data["train"].update(epochs=20, learning_rate=1e-3, alpha=2.0, bound=2.0)
    data["contrasts"] = {"anchor": 3.0}
    data["eval"]["samples"] = 1
    one = game(recipe(tmp_path, data), tmp_path / "run")
    said: list[str] = []
    one.reporter.say = said.append  # type: ignore[assignment,method-assign]
    one.play()
    one.close()
    assert any("made no mistake to learn from; the game ends here" in line for line in said)
    assert (tmp_path / "run/eval/round-1.jsonl").is_file()
    assert not (tmp_path / "run/round-3").exists()
    assert build_report(tmp_path / "run")["rows"]
    before = content(tmp_path / "run")
    game(tmp_path / "recipe.yaml", tmp_path / "run", resume=True).play()
    found = content(tmp_path / "run")
    assert found == before


def test_round_one_without_contrasts_is_told(writer: Path, tmp_path: Path) -> None:
    data = settings(writer)
    data["nodes"]["sources"] = ["annotated"]  # there are none
    with pytest.raises(RunError, match=r"no contrasts to train on.*grow\.branches"):
        game(recipe(tmp_path, data), tmp_path / "run").train(1)


def test_tasks_longer_than_the_context(writer: Path, tmp_path: Path) -> None:
    data = settings(writer)
    data["grow"]["max_tokens"] = 420
    path = recipe(tmp_path, data)
    told = r"task '\w+' has \d+ tokens .* reads 512; shorten .*lower grow\.max_tokens, or set "
    with pytest.raises(TaskError, match=told + r"tasks\.too_long=skip"):
        game(path, tmp_path / "run")  # nothing was made, so other settings are no other run
    lengths = sorted(len(t.prompt + (t.golden or "")) for t in tasks() if t.split == "train")
    room = 512 - lengths[0]
    one = game(path, tmp_path / "run", "tasks.too_long=skip", f"grow.max_tokens={room}")
    assert len(one.tasks) == 1
    with pytest.raises(TaskError, match="no training task fits"):
        game(path, tmp_path / "run", "tasks.too_long=skip", "grow.max_tokens=500")
    with pytest.raises(TaskError, match=r"'number'.*lower eval\.max_tokens"):
        game(path, tmp_path / "run", "eval.max_tokens=500", "grow.max_tokens=9")


def test_two_suites_of_one_name_are_refused(writer: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy(writer / "tasks.jsonl", tmp_path / "b/tasks.jsonl")
    data = settings(writer)
    data["tasks"]["eval"].append(str(tmp_path / "b/tasks.jsonl"))
    with pytest.raises(TaskError, match=r"two sources in tasks\.eval are called 'tasks'"):
        game(recipe(tmp_path, data), tmp_path / "run")


def test_another_tokenizer_is_refused(writer: Path, tmp_path: Path) -> None:
    """Weights are the same, ids mean something else: files of the run must not be mixed."""
    model = tmp_path / "model"
    shutil.copytree(writer, model)
    path = recipe(tmp_path, settings(model))
    begun = game(path, tmp_path / "run")
    begun.train(1)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    a, b = list(vocab)[5:7]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunError, match=r"tokenizer was .* put the old one back"):
        game(path, tmp_path / "run", resume=True)
    adapter = tmp_path / "run/round-1/adapter"
    with pytest.raises(ModelError, match=r"trained with another tokenizer.*model\.name"):
        load_policy(ModelConfig(str(model), adapter=str(adapter)))
    load_policy(ModelConfig(str(writer), adapter=str(adapter)))
    (adapter / "treeplay.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*treeplay\.json.*remove it"):
        load_policy(ModelConfig(str(writer), adapter=str(adapter)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_from_sampling_serve_as_the_opponent_s(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    path = recipe(tmp_path, settings(writer))
    contrasts = {
        way: game(path, tmp_path / way, f"train.reference={way}", f"model.dtype={dtype}").contrasts(
            1
        )
        for way in ("score", "reuse")
    }
    assert contrasts["score"]
    for one, other in zip(contrasts["score"], contrasts["reuse"], strict=True):
        assert one.chosen_opp == pytest.approx(other.chosen_opp, abs=1e-3)
        assert one.rejected_opp == pytest.approx(other.rejected_opp, abs=1e-3)
        assert len(other.chosen_opp) == len(other.chosen)
        assert len(other.rejected_opp) == len(other.rejected)
    assert any("needs model.dtype=float32" in text for text in said) == (dtype == "bfloat16")
