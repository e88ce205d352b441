"""Experiments on a tiny model: two steps of every protocol and method, faults, resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
from tinydata import make_data
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.config import Method
from treeplay.errors import RunError
from treeplay.experiments import runs
from treeplay.experiments.collect import COLUMNS, collect
from treeplay.experiments.data import Prepared
from treeplay.experiments.plan import Plan
from treeplay.experiments.protocol import SIZES, load_protocol, protocol_names
from treeplay.hold import BusyError
from treeplay.play import Game
from treeplay.run import write_text

RUNNER = CliRunner()


pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def play(name: str, data: Path, writer: Path, folder: Path, *more: str) -> Any:
    """Play an experiment; by the analysers that start no program, unless ``more`` names others."""
    return RUNNER.invoke(
        app,
        [
            *("experiment", name, "--data", str(data), "--model", str(writer)),
            *("--size", "smoke", "--seeds", "0"),
            *("--out", str(folder / "runs"), "--results", str(folder / "results")),
            *("model.dtype=float32", "train.lora.r=4", "judge.tools=[rules,bandit]"),
            *more,
        ],
    )


def result(folder: Path, writer: Path, name: str, arm: str) -> dict[str, Any]:
    path = folder / "results" / name / writer.name / arm / "0.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["main", "unseen", "transfer", "ablation", "paper", "scale"])
def test_two_steps_of_every_protocol(name: str, data: Path, writer: Path, tmp_path: Path) -> None:
    arms = "nodes-diff" if name == "ablation" else "tsp"
    done = play(name, data, writer, tmp_path, "--methods", arms, "judge.tools=[auto]")
    assert done.exit_code == 0, done.output
    told = result(tmp_path, writer, name, arms)
    assert told["faults"] == []
    assert len(told["runs"]) == (5 if name == "unseen" else 1)
    assert [run["training"]["round-1"]["steps"] for run in told["runs"]] == [2] * len(told["runs"])


@pytest.mark.parametrize("name", protocol_names())
def test_every_arm_of_every_size_is_a_recipe(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    fold = Prepared(tmp_path / "train.jsonl", (), {"digests": {}})
    for size in SIZES:
        arms = tuple(protocol.arms)
        plan = Plan(protocol, size, "smollm2", arms, (0,), (fold,), tmp_path, tmp_path, ())
        for arm in arms:
            config = plan.config(plan.cells(arm, 0)[0])
            assert config.method == protocol.arms[arm].get("method", arm)
            # What is compared answers under the same settings, and only those.
            assert config.eval == plan.config(plan.cells(protocol.reference, 0)[0]).eval


def test_losses_on_the_contrasts_of_tsp_have_its_trees_and_steps(tmp_path: Path) -> None:
    protocol = load_protocol("main")
    fold = Prepared(tmp_path / "train.jsonl", (), {"digests": {}})
    for size in SIZES:
        arms = ("tsp", "tdpo", "ipo", "simpo", "hinge")
        plan = Plan(protocol, size, "smollm2", arms, (0,), (fold,), tmp_path, tmp_path, ())
        tsp, *others = (plan.config(plan.cells(arm, 0)[0]) for arm in arms)
        for config in others:
            assert (config.nodes, config.grow, config.contrasts) == (
                tsp.nodes,
                tsp.grow,
                tsp.contrasts,
            )
            assert config.train.groups_per_step == tsp.train.groups_per_step
            assert config.train.learning_rate == tsp.train.learning_rate


def test_every_method_on_the_same_data(data: Path, writer: Path, tmp_path: Path) -> None:
    """Every one is played; grpo alone needs a package more, and says so where it is absent."""
    methods = get_args(Method)
    done = play("main", data, writer, tmp_path, "--methods", ",".join(methods))
    told = {arm: result(tmp_path, writer, "main", arm) for arm in ("base", *methods)}
    faults = {arm: one["faults"] for arm, one in told.items() if one["faults"]}
    assert done.exit_code == (1 if faults else 0), done.output
    assert faults.keys() == (set() if find_spec("trl") else {"grpo"}), faults
    assert all(some[0]["fault"] in done.output.replace("\n", "") for some in faults.values())
    played = [one for arm, one in told.items() if arm not in faults]
    places = [[(row[1], row[5]) for row in one["tasks"]] for one in played]
    assert all(place == places[0] for place in places)
    for arm, one in told.items():
        if arm in ("base", *faults):
            continue
        # Two steps of every method; grpo counts sampled tokens, and where no answer differs in
        # reward from the others there is nothing to learn.
        (run,) = one["runs"]
        if arm == "grpo":
            assert run["used"]["gradient"] > run["used"]["sampled"] > 0
            assert "groups" in run["training"]["round-1"]
        else:
            assert (arm, run["training"]["round-1"]["steps"]) == (arm, 2)
            assert run["used"]["gradient"] > 0
    for one in played:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in one["tasks"]]
        labels = ("secure", "vulnerable", "inert", "unknown", "invalid", "plain")
        assert all(sum(row[label] for label in labels) == row["n"] for row in rows)
        assert str(tmp_path) not in json.dumps(one)
        assert one["data"][0]["contamination"].keys() == one["data"][0]["suites"].keys()
    # The base model answered once, and methods that share trees did not grow them again.
    shared = json.loads((folder_of(tmp_path, writer, "main", "tdpo") / "shared.json").read_text())
    assert shared.keys() == {"eval/base.jsonl", "round-1/judged.jsonl"}
    assert "round-1 grow" not in told["tdpo"]["runs"][0]["timings"]


def folder_of(folder: Path, writer: Path, name: str, arm: str) -> Path:
    return folder / "runs" / name / "smoke" / writer.name / arm / "0"


def test_what_was_killed_goes_on_to_the_same_result(
    data: Path, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arms(folder: Path) -> dict[str, Any]:
        return {
            arm: {**one, "created": None, "runs": [run["used"] for run in one["runs"]]}
            for arm in ("base", "tsp", "sft")
            for one in [result(folder, writer, "main", arm)]
        }

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    asked = ("--methods", "tsp,sft")
    assert play("main", data, writer, whole, *asked).exit_code == 0
    real = Game.train
    killed: list[int] = []

    def train(self: Game, number: int) -> Path:
        killed.append(number)
        if len(killed) == 1:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(Game, "train", train)
    assert play("main", data, writer, broken, *asked).exit_code == 130
    assert (folder_of(broken, writer, "main", "tsp") / "round-1" / "judged.jsonl").is_file()
    assert play("main", data, writer, broken, *asked).exit_code == 0
    assert arms(broken) == arms(whole)
    again = play("main", data, writer, broken, *asked)
    assert again.output.count(": there: ") == 3
    # Trees are those of an earlier call.
    assert play("main", data, writer, broken, "--methods", "tdpo").exit_code == 0
    shared = json.loads((folder_of(broken, writer, "main", "tdpo") / "shared.json").read_text())
    assert "round-1/judged.jsonl" in shared
    # Where the model lies is no setting, nor where the runs are: one that is missing goes on there,
    # with the answers and the trees that are there.
    moved = shutil.copytree(writer, tmp_path / "elsewhere" / writer.name)
    assert play("main", data, moved, broken, *asked).output.count(": there: ") == 3
    apart = shutil.copytree(broken, tmp_path / "apart")
    (apart / "results/main" / writer.name / "sft/0.json").unlink()
    assert play("main", data, moved, apart, *asked).output.count(": there: ") == 2
    assert arms(apart) == arms(whole)
    # Results of other settings are not taken for these.
    other = play("main", data, writer, broken, *asked, "train.learning_rate=0.01")
    assert other.exit_code == 2
    assert "made with other settings" in other.output
    # Nor are those of another model that has the same name.
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    other = play("main", data, moved, broken, *asked)
    assert other.exit_code == 2
    assert f"made with another model ({writer.name}@" in " ".join(other.output.split())


def test_a_base_model_that_has_a_result_is_not_asked_again(
    data: Path, writer: Path, tmp_path: Path
) -> None:
    """Though its run may be gone. An arm's own report is then of its player alone."""

    def asked(arm: str) -> bool:
        (run,) = result(tmp_path, writer, "main", arm)["runs"]
        folder = folder_of(tmp_path, writer, "main", arm)
        shared = folder / "shared.json"
        borrowed = shared.is_file() and "eval/base.jsonl" in json.loads(shared.read_text())
        there = (folder / "eval/base.jsonl").is_file()
        assert there == (borrowed or "base eval sample" in run["timings"])
        assert (folder / "report.html").is_file()
        return there and not borrowed

    assert play("main", data, writer, tmp_path, "--methods", "tsp").exit_code == 0
    assert [asked(arm) for arm in ("base", "tsp")] == [True, False]
    shutil.rmtree(folder_of(tmp_path, writer, "main", "base"))
    assert play("main", data, writer, tmp_path, "--methods", "tsp,sft").exit_code == 0
    assert not asked("sft")
    report = json.loads((folder_of(tmp_path, writer, "main", "sft") / "report.json").read_text())
    assert {row["player"] for row in report["rows"]} == {"round-1"}
    page = (folder_of(tmp_path, writer, "main", "sft") / "report.html").read_text()
    assert "round-1" in page


def test_a_game_without_a_player_says_why(tmp_path: Path) -> None:
    """Whether or not the base model was asked in the same run."""
    ended = {"round": 1, "reason": "base made no mistake to learn from"}
    write_text(tmp_path / "manifest.json", json.dumps({"ended": ended}))
    for there in ((), ("eval",), ("eval", "base.jsonl")):
        path = tmp_path.joinpath(*there)
        write_text(path, "{}\n") if path.suffix else path.mkdir(exist_ok=True)
        with pytest.raises(RunError, match=r"no player was trained .*, since base made no mistake"):
            collect(tmp_path, (), 0, final=True)


def test_players_that_are_there_are_asked_otherwise(
    data: Path, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--methods", "tsp,sft")
    assert play("main", data, writer, tmp_path, *asked).exit_code == 0
    shutil.rmtree(tmp_path / "results")
    monkeypatch.delattr("treeplay.play.train_player")
    monkeypatch.delattr("treeplay.play.grow_trees")
    done = play("main", data, writer, tmp_path, *asked, "eval.samples=2")
    assert done.exit_code == 0, done.output
    for arm in ("base", "tsp", "sft"):
        (run,) = result(tmp_path, writer, "main", arm)["runs"]
        assert run["run"]["config"]["eval"]["samples"] == 2
        folder = folder_of(tmp_path, writer, "main", arm)
        assert (folder / "eval-1/base.jsonl").read_text() != (
            folder / "eval/base.jsonl"
        ).read_text()
    # Asked once a seed, as ever.
    base, tsp = (
        folder_of(tmp_path, writer, "main", arm) / "eval/base.jsonl" for arm in ("base", "tsp")
    )
    assert base.read_bytes() == tsp.read_bytes()
    assert "base eval sample" not in json.loads((tsp.parents[1] / "timings.json").read_text())


def test_a_fault_is_recorded_and_the_rest_goes_on(
    data: Path, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs._look_for_faults

    def without_pairs(game: Game) -> None:
        if game.config.method == "dpo":
            game.tasks = [replace(task, vulnerable=None) for task in game.tasks]
        if game.config.method == "spin":
            raise ZeroDivisionError("a bug")
        real(game)

    monkeypatch.setattr(runs, "_look_for_faults", without_pairs)
    done = play(
        "main", data, writer, tmp_path, "--methods", "dpo,spin,tsp,sft",
        "nodes.sources=[annotated]", "contrasts.anchor=1",  # golden answers alone are no pairs
    )  # fmt: skip
    assert done.exit_code == 1
    faults = {
        arm: [fault["fault"] for fault in result(tmp_path, writer, "main", arm)["faults"]]
        for arm in ("tsp", "sft", "dpo", "spin")
    }
    assert faults["sft"] == []
    assert "none of the 5 training tasks has a risk node" in faults["tsp"][0]
    assert "method dpo learns from pairs" in faults["dpo"][0]
    assert faults["spin"] == ["ZeroDivisionError: a bug"]
    assert all(fault in done.output.replace("\n", "") for some in faults.values() for fault in some)
    # They are tried again; what is there stays.
    monkeypatch.setattr(runs, "_look_for_faults", real)
    done = play("main", data, writer, tmp_path, "--methods", "spin,sft",
                "nodes.sources=[annotated]", "contrasts.anchor=1")  # fmt: skip
    assert "sft, seed 0: there" in done.output


def test_a_run_that_another_process_plays_is_no_fault_of_it(
    data: Path, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(folder: Path) -> None:
        raise BusyError(f"{folder}: another process is at work in this run")

    monkeypatch.setattr("treeplay.run.hold", busy)
    done = play("main", data, writer, tmp_path, "--methods", "tsp,sft")
    assert done.exit_code == 2
    assert "another process is at work" in done.output.replace("\n", " ")
    assert not list(tmp_path.rglob("results/*/*/*/*.json"))


def test_bad_requests_are_one_sentence(data: Path, writer: Path, tmp_path: Path) -> None:
    for name, more, words in (
        ("mian", (), "did you mean 'main'?"),
        ("main", ("--methods", "tps"), "did you mean"),
        ("main", ("--seeds", "one"), "give whole numbers"),
        ("main", ("--size", "big"), "--size big"),
        ("main", ("train.epochz=1",), "did you mean 'train.epochs'?"),
        ("main", ("--dry-run", "train.epochs=many"), "train.epochs is 'many'"),
        ("main", ("seed=7",), "use --seeds"),
        ("main", ("model={name: x}",), "use --model"),
        ("main", ("tasks.eval=[starter]",), "the protocol names the tasks"),
    ):
        done = play(name, data, writer, tmp_path, *more)
        assert (done.exit_code, words in done.output) == (2, True), done.output
    (tmp_path / "few").mkdir()
    done = play("main", tmp_path / "few", writer, tmp_path)
    assert done.exit_code == 2
    assert "lacks seccodeplt.jsonl, safecoder.train.jsonl" in done.output.replace("\n", " ")


def test_the_plan_says_what_there_is_to_do(data: Path, writer: Path, tmp_path: Path) -> None:
    done = play("main", data, writer, tmp_path, "--dry-run", "--methods", "sft,spin")
    assert done.exit_code == 0
    assert "train on 5 tasks: starter 2, seccodeplt 2, safecoder 1" in done.output
    lines = [line.split() for line in done.output.splitlines() if ", seed 0" in line]
    assert [line[0] for line in lines] == ["base,", "sft,", "spin,"]
    assert not (tmp_path / "results").exists()
    for named, first in (("base", ["base,"]), ("base,sft", ["base,", "sft,"])):
        done = play("main", data, writer, tmp_path, "--dry-run", "--methods", named)
        assert [ln.split()[0] for ln in done.output.splitlines() if ", seed 0" in ln] == first


def test_who_shares_trees() -> None:
    kinds = {method: runs._kind(method) for method in get_args(Method)}
    assert kinds["tsp"] == kinds["hinge"] == "judged"
    assert kinds["spin"] == kinds["tsp-paper"] == "not judged"
    assert kinds["sft"] == "no branches"
    assert kinds["dpo"] == kinds["safecoder"] == "pairs"
