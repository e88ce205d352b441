"""The whole game on a tiny model that has learnt three tasks by heart, judged by execution."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_llama
from writer import tasks

from treeplay.config import load_config, to_dict
from treeplay.contrast import contrast_from_json
from treeplay.errors import RunError
from treeplay.play import Game
from treeplay.policy.model import ModelConfig, load_policy
from treeplay.policy.score import plain_logps
from treeplay.progress import Reporter
from treeplay.report import build_report
from treeplay.run import open_run, read_json, read_jsonl
from treeplay.tasks.jsonl import write_tasks
from treeplay.tree import tree_from_json

KILLER = Path(__file__).with_name("killer.py")


pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


def settings(writer: Path, **changes: Any) -> dict[str, Any]:
    source = str(writer / "tasks.jsonl")
    return {
        "method": "tsp",
        "rounds": 1,
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "nodes": {"sources": ["diff"], "place": "both"},
        "grow": {
            "branches": 4,
            "rows_at_once": 2,
            "max_tokens": 90,
            "completion": "model",
            "depth": 2,
        },
        "train": {
            "epochs": 2,
            "groups_per_step": 1,
            "checkpoint_steps": 1,
            "learning_rate": 2e-4,
            "lora": {"r": 4},
        },
        "eval": {"samples": 4, "rows_at_once": 1, "max_tokens": 60},
        **changes,
    }


def recipe(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def game(path: Path, out: Path, *overrides: str, resume: bool = False) -> Game:
    config = load_config(path, [f"out={out}", *overrides])
    return Game(open_run(config, resume=resume), Reporter(quiet=True))


def content(folder: Path) -> dict[str, Any]:
    """All that a run folder holds, without the times of day and the times taken."""
    out: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == "timings.json":
            continue
        name = str(path.relative_to(folder))
        if name == "manifest.json":
            out[name] = {**read_json(path), "created": None}
        elif name == "report.json":
            report = read_json(path)
            report["run"]["manifest"]["created"] = None
            out[name] = {**report, "created": None, "timings": None}
        elif name == "report.html":
            out[name] = path.stat().st_size > 1000  # the times are in it
        elif name == "verdicts.jsonl":
            # As they come from two workers; and one that was under way when a game was interrupted
            # may be written by that game and by the next in the same process.
            out[name] = sorted(set(path.read_text().splitlines()))
        else:
            out[name] = path.read_bytes()
    return out


# Killed at every boundary, and in the middle of what is written.


def kill(mode: str, path: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(what the run folder holds at the end, where processes died). ``folder`` is always the
    same, because its name is part of the manifest."""
    out = folder / "run"
    done = subprocess.run(
        [sys.executable, str(KILLER), str(path), str(out), mode],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = content(out)
    log = folder / "run.log"
    died = log.read_text().splitlines() if log.is_file() else []
    shutil.rmtree(out)
    log.unlink(missing_ok=True)
    return found, died


@pytest.fixture(scope="module")
def two_rounds(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("killed")
    data = settings(writer, rounds=2)
    (source,) = data["tasks"]["eval"]
    data["tasks"]["eval"] = [source, f"{source}@full,samples=2,max_tokens=20"]
    return recipe(folder, data), folder


@pytest.fixture(scope="module")
def uninterrupted(two_rounds: tuple[Path, Path]) -> dict[str, Any]:
    found, died = kill("none", *two_rounds)
    assert died == []
    return found


@pytest.mark.parametrize("mode", ["after", "before"])
def test_a_run_killed_everywhere_ends_the_same(
    mode: str, two_rounds: tuple[Path, Path], uninterrupted: dict[str, Any]
) -> None:
    found, died = kill(mode, *two_rounds)
    assert found.keys() == uninterrupted.keys()
    for name, data in uninterrupted.items():
        assert found[name] == data, name
    # Every file was a place to die at, and so was every group of rows.
    places = " ".join(died)
    for name in uninterrupted:
        if name != "verdicts.jsonl" and "/adapter/" not in name:
            assert "/".join(Path(name).parts[-2:]) in places, name
    for number in (1, 2):
        assert f"replace round-{number}/adapter" in places
    assert places.count("append grown-1.jsonl.part") == 4  # two groups a round
    assert places.count("append grown-2.jsonl.part") >= 2
    assert re.search(r"append round-1\.\S+\.sampled\.part", places)  # the flow over both suites
    assert places.count("replace state/state.safetensors") >= 2
    assert len(died) > 40


# What a run is made of.


@pytest.fixture(scope="module")
def played(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round; evaluated on the tasks that were played, too."""
    folder = tmp_path_factory.mktemp("played")
    seen = folder / "seen.jsonl"
    write_tasks(seen, [t for t in tasks() if t.split == "train"])
    data = settings(writer)
    data["tasks"]["eval"] += [str(seen)]
    data["contrasts"] = {"anchor": 5.0}
    data["train"].update(epochs=6, learning_rate=1e-3, alpha=1.0, beta=0.2, lora={"r": 8})
    data["eval"].update(samples=8, max_tokens=90)
    one = game(recipe(folder, data), folder / "run")
    one.play()
    one.close()
    build_report(folder / "run")
    return folder / "run"


def test_branches_are_judged_by_execution(played: Path) -> None:
    trees = [tree_from_json(row) for row in read_jsonl(played / "round-1/judged.jsonl")]
    assert [tree.task for tree in trees] == ["sql", "path"]
    labels = {b.verdict.label for t in trees for b in t.branches if b.verdict}
    assert {"secure", "vulnerable"} <= labels
    for tree in trees:
        assert all(b.verdict is not None for b in tree.branches)
        for branch in tree.branches:
            if branch.verdict and branch.verdict.label in ("secure", "vulnerable"):
                assert branch.verdict.evidence == "executed"
            if branch.answer.strip() == tree.golden.strip():
                assert branch.verdict
                assert branch.verdict.label == "secure"


def test_contrasts_are_scored_under_the_opponent(played: Path, writer: Path) -> None:
    contrasts = [contrast_from_json(row) for row in read_jsonl(played / "round-1/contrasts.jsonl")]
    assert contrasts
    assert read_json(played / "round-1/contrasts.json")["opponent"] == "base"
    model = load_policy(ModelConfig(str(writer))).model
    for c in contrasts:
        for tail, logps in ((c.chosen, c.chosen_opp), (c.rejected, c.rejected_opp)):
            start = len(c.prefix)
            with torch.no_grad():
                (plain,) = plain_logps(model, [c.prefix + tail], [(start, start + len(tail))])
            torch.testing.assert_close(torch.tensor(logps), plain, atol=1e-4, rtol=0)
    first = read_jsonl(played / "round-1/train.jsonl")[0]
    assert first["margin"] == pytest.approx(0, abs=1e-3)


def test_the_player_becomes_secure_where_it_played(played: Path) -> None:
    report = read_json(played / "report.json")
    by_player = {
        row["player"]: row
        for row in report["rows"]
        if row["suite"] == "seen" and row["cwe"] is None
    }
    assert by_player["base"]["spr1_all"] < 0.9
    assert by_player["round-1"]["spr1_all"] > by_player["base"]["spr1_all"]
    assert by_player["round-1"]["secure_pass1"] > by_player["base"]["secure_pass1"]


def test_the_manifest_names_everything(played: Path, writer: Path) -> None:
    manifest = read_json(played / "manifest.json")
    names = manifest["identities"]
    assert list(names) == [
        *("base", "tokenizer", "training tasks", "judge", "evaluation tasks"),
        *("round-1 opponent", "round-1"),
    ]
    assert names["base"] == load_policy(ModelConfig(str(writer))).identity
    assert names["round-1 opponent"] == "base"
    assert manifest["config"]["model"]["name"] == str(writer)
    assert manifest["config"]["seed"] == 0
    timings = read_json(played / "timings.json")
    assert {"load", "round-1 grow", "round-1 train", "base eval sample"} <= timings.keys()


def test_a_finished_run_is_not_touched(played: Path) -> None:
    before = content(played)
    config = load_config(played.parent / "recipe.yaml", [f"out={played}"])
    again = Game(open_run(config, resume=True), Reporter(quiet=True))
    again.play()
    assert content(played) == before


def copied(played: Path, folder: Path) -> Path:
    """The recipe of a copy of a finished run, which lies at ``folder/run``."""
    shutil.copytree(played, folder / "run")
    manifest = read_json(folder / "run/manifest.json")
    manifest["config"]["out"] = str(folder / "run")
    (folder / "run/manifest.json").write_text(json.dumps(manifest))
    return played.parent / "recipe.yaml"


def test_a_run_that_is_moved_goes_on(played: Path, writer: Path, tmp_path: Path) -> None:
    """With its model and its tasks, which are known by what is in them."""

    def made(folder: Path) -> dict[str, Any]:
        told = ("manifest.json", "report.json")  # which tell the places
        return {name: what for name, what in content(folder).items() if name not in told}

    run = shutil.copytree(played, tmp_path / "run")
    for path in (run / "report.html", run / "report.json", *run.glob("eval/round-1.*")):
        path.unlink()
    model = shutil.copytree(writer, tmp_path / writer.name)
    path = played.parent / "recipe.yaml"
    old = load_config(path).tasks
    files = [shutil.copy(file, tmp_path) for file in (old.train, *old.eval)]
    places = [f"model.name={model}", f"tasks.train={files[0]}"]
    places.append(f"tasks.eval={json.dumps([str(file) for file in files[1:]])}")
    one = game(path, run, *places, resume=True)
    one.play()
    one.close()
    build_report(run)
    assert made(run) == made(played)
    config = read_json(run / "manifest.json")["config"]
    assert config == to_dict(load_config(path, [f"out={run}", *places]))
    # Another model of that name is none of the places that the run remembers.
    other = shutil.copytree(model, tmp_path / "other" / writer.name)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match=r"base was .* and is .* now"):
        game(path, run, *places[1:], f"model.name={other}", resume=True)
    assert read_json(run / "manifest.json")["config"] == config


def test_players_can_be_evaluated_anew(
    played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is grown or trained again, and who asks as at first has the answers of then."""
    path = copied(played, tmp_path)
    run = tmp_path / "run"
    before = content(run)
    for stage in ("grow_trees", "score_opponent", "train_player"):
        monkeypatch.delattr(f"treeplay.play.{stage}")

    def play(*overrides: str) -> None:
        config = load_config(path, [f"out={run}", *overrides])
        one = Game(open_run(config, resume=True, anew=True), Reporter(quiet=True))
        one.play()
        one.close()

    play("eval.samples=3")
    rows = read_jsonl(run / "eval/round-1.jsonl")
    assert {row["sample"] for row in rows} == {0, 1, 2}
    kept = {(row["suite"], row["task"], row["sample"]): row["answer"] for row in rows}
    old = read_jsonl(run / "eval-1/round-1.jsonl")
    assert kept.items() <= {(r["suite"], r["task"], r["sample"]): r["answer"] for r in old}.items()
    monkeypatch.delattr("treeplay.play.scored_answers")
    play()
    shutil.rmtree(run / "eval-2")
    assert content(run) == before


def test_a_suite_more_asks_nothing_of_the_others_again(played: Path, tmp_path: Path) -> None:
    """The same as an evaluation that asked all of it at once."""
    path = copied(played, tmp_path)
    run = tmp_path / "run"
    before = read_json(run / "manifest.json")["config"]["tasks"]["eval"]
    more = (
        f"tasks.eval={json.dumps([*before, before[0].partition('@')[0] + '@full,max_tokens=20'])}"
    )
    once = tmp_path / "once"
    shutil.copytree(run, once)
    manifest = read_json(once / "manifest.json")
    del manifest["suites"]  # of a run from before it was written down: all is asked again
    (once / "manifest.json").write_text(json.dumps(manifest))
    asked = []
    for out in (run, once):
        config = load_config(path, [f"out={out}", more])
        one = Game(open_run(config, resume=True, anew=True), Reporter(quiet=True))
        asked.append([p.name for p in (out / "eval").glob("*")])
        one.play()
        one.close()
    assert len(asked[0]) == 2 * len(before)  # of two players
    assert asked[1] == []
    for player in ("base", "round-1"):
        rows = (run / f"eval/{player}.jsonl").read_bytes()
        assert rows == (once / f"eval/{player}.jsonl").read_bytes()
        suites = {row["suite"] for row in read_jsonl(run / f"eval/{player}.jsonl")}
        assert len(suites) == len(before) + 1


def test_an_exchanged_adapter_is_refused(played: Path, tmp_path: Path) -> None:
    path = copied(played, tmp_path)
    weights = tmp_path / "run/round-1/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    (tmp_path / "run/eval/round-1.jsonl").unlink()
    with pytest.raises(RunError, match=r"round-1 was .* and is .* now"):
        game(path, tmp_path / "run", resume=True).play()


def test_an_exchanged_model_is_refused(played: Path, writer: Path, tmp_path: Path) -> None:
    path = copied(played, tmp_path)
    weights = writer / "model.safetensors"
    kept = weights.read_bytes()
    try:
        tiny_llama(
            seed=3, hidden_size=64, intermediate_size=128, max_position_embeddings=512
        ).save_pretrained(writer)
        with pytest.raises(RunError, match=r"base was .* and is .* now; put the old one back"):
            game(path, tmp_path / "run", resume=True)
    finally:
        weights.write_bytes(kept)


def test_changed_tasks_are_refused(played: Path, tmp_path: Path) -> None:
    path = copied(played, tmp_path)
    seen = played.parent / "seen.jsonl"
    kept = seen.read_text()
    try:
        seen.write_text(kept.replace("every row", "all rows"))
        with pytest.raises(RunError, match=r"tasks was .* and is .* now"):
            game(path, tmp_path / "run", resume=True)
    finally:
        seen.write_text(kept)


def test_stages_alone_make_what_play_makes(played: Path, tmp_path: Path) -> None:
    path, out = played.parent / "recipe.yaml", tmp_path / "run"
    game(path, out).grow(1)
    game(path, out, resume=True).train(1)
    for number in (1, 0):
        game(path, out, resume=True).evaluate(number)
    for name in ("round-1/judged.jsonl", "round-1/train.jsonl", "eval/round-1.jsonl"):
        assert (out / name).read_bytes() == (played / name).read_bytes()
    with pytest.raises(RunError, match="run the training stage of round 2 first"):
        game(path, out, resume=True).evaluate(2)


# A start elsewhere, and a model that is trained plainly.


def test_a_run_may_start_from_an_adapter(played: Path, writer: Path, tmp_path: Path) -> None:
    """The base of such a run is the model with the adapter; it trains and resumes like any."""
    data = settings(writer)
    data["model"]["adapter"] = str(played / "round-1/adapter")
    data["eval"]["samples"] = 1
    data["method"] = "dpo"
    one = game(recipe(tmp_path, data), tmp_path / "run")
    assert "+" in read_json(tmp_path / "run/manifest.json")["identities"]["base"]
    one.play()
    one.close()
    first = read_jsonl(tmp_path / "run/round-1/train.jsonl")[0]
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    state = one.policy.model.state_dict()
    assert not any("lora" in name for name in state)


def test_a_model_that_cannot_be_packed_is_trained_slowly_with_one_warning(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(writer, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "sliding_window": 500}))
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: said.append(text))
    played = game(
        recipe(tmp_path, settings(model)), tmp_path / "run", "method=sft", "train.bound=5"
    )
    played.train(1)
    assert (tmp_path / "run/round-1/adapter/adapter_model.safetensors").is_file()
    assert "warning: train.bound=5 does nothing in method sft" in said
    assert len([text for text in said if "sliding window" in text]) == 1
