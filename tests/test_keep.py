"""Snapshots, and which of them is kept: by held-out tasks, never by what was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import yaml
from conftest import byte_tokenizer, tiny_llama
from safetensors.torch import load_file
from test_objective import sure
from test_train import SMALL, some_contrasts

import treeplay.play_keep
from treeplay.config import load_config
from treeplay.contrast import Contrast, contrast_from_json
from treeplay.errors import ConfigError, LearningError, TaskError
from treeplay.experiments.collect import used
from treeplay.judge.verdict import Label, Verdict
from treeplay.keep import Examine, Keeper, Mark, best, hold_out, mark
from treeplay.opponent import score_opponent
from treeplay.play import Game
from treeplay.play_eval import sampled_answers
from treeplay.play_keep import best_run, train_and_choose
from treeplay.play_over import why_over
from treeplay.policy.model import Policy
from treeplay.progress import Reporter
from treeplay.run import open_run, read_json, read_jsonl
from treeplay.tasks.task import Tests, make_task
from treeplay.train import TrainConfig, train

BASE = Mark(0, 0.2, 0.5, 0.2)
THREE = replace(SMALL, epochs=3, schedule="constant", warmup=0.0, keep="best")


def judged(task: str, *verdicts: tuple[Label, bool | None], tested: bool = True) -> list[Any]:
    tests = Tests("pass", "" if task == "general" else "pass") if tested else None
    made = make_task(id=task, language="python", cwe=(), prompt="#", tests=tests)
    return [(made, Verdict(label, "executed", (), passed)) for label, passed in verdicts]


def test_marks_by_hand() -> None:
    answers = [
        # half secure and working; secure but failing its tests is no secure answer
        *judged("a", ("secure", True), ("secure", False)),
        *judged("b", ("vulnerable", True), ("invalid", None)),
        *judged("c", ("secure", None), ("inert", None), ("unknown", None), tested=False),
        *judged("general", ("plain", True), ("plain", False)),
    ]
    found = mark(answers, 2, None)
    secure, able = (1 / 2 + 0 + 1 / 3) / 3, (1 / 2 + 1 / 2 + 2 / 3 + 1 / 2) / 4
    assert found.epoch == 2
    assert (found.secure, found.able) == pytest.approx((secure, able))
    assert found.score == pytest.approx(secure)
    # what ability was lost against base is taken off; what was gained is not put on
    less = mark(answers, 2, Mark(0, 0.0, able + 0.1, 0.0))
    assert less.score == pytest.approx(secure - 0.1)
    assert mark(answers, 2, Mark(0, 0.0, 0.1, 0.0)).score == pytest.approx(secure)


def test_the_earliest_of_equal_marks_is_the_best() -> None:
    marks = [Mark(n, 0.5, 0.5, score) for n, score in ((1, 0.1), (2, 0.3), (3, 0.3))]
    assert best(marks).epoch == 2


def test_a_run_that_lost_its_ability_is_kept_where_there_is_no_other(tmp_path: Path) -> None:
    def run(number: int, *marks: Mark) -> Keeper:
        config = TrainConfig(keep="best", max_drop=0.1)
        one = Keeper(tmp_path / str(number), Mark(0, 0.2, 0.9, 0.2), config, None)  # type: ignore[arg-type]
        one.marks = {mark.epoch: mark for mark in marks}
        return one

    broken = run(0, Mark(1, 0.9, 0.5, 0.5))
    worse = run(1, Mark(1, 0.8, 0.4, 0.3))
    fine = run(2, Mark(1, 0.3, 0.85, 0.25), Mark(2, 0.9, 0.5, 0.5))
    better = run(3, Mark(1, 0.4, 0.9, 0.4))
    assert best_run([broken, fine, better]) == 2
    assert best_run([broken, fine]) == 1
    assert best_run([worse, broken]) == 1
    assert best_run([better, run(4, Mark(1, 0.4, 0.9, 0.4))]) == 0


def test_held_out_tasks_are_of_the_seed_and_apart() -> None:
    every = [make_task(id=str(n), language="python", cwe=(), prompt="#") for n in range(10)]
    kept, held = hold_out(every, 0.3, 4)
    assert (len(kept), len(held)) == (7, 3)
    assert sorted(task.id for task in (*kept, *held)) == [task.id for task in every]
    assert hold_out(every, 0.3, 4) == (kept, held)
    assert hold_out(every, 0.3, 5) != (kept, held)
    assert hold_out(every, 0.0, 4) == (every, [])
    assert len(hold_out(every, 0.01, 4)[1]) == 1
    with pytest.raises(TaskError, match="leaves none of 1 tasks"):
        hold_out(every[:1], 0.5, 0)


@pytest.fixture
def policy() -> Policy:
    return Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")


@pytest.fixture
def contrasts(policy: Policy) -> list[Contrast]:
    return score_opponent(policy, some_contrasts(), SMALL)


def told(scores: dict[int, tuple[float, float]]) -> Examine:
    """Gives each epoch the (secure, able) in ``scores``."""

    def examine(model: Any, adapter: Path, epoch: int) -> Mark:
        assert (adapter / "adapter_model.safetensors").is_file()
        assert model is None or not model.training
        secure, able = scores[epoch]
        return Mark(epoch, secure, able, secure - max(0.0, BASE.able - able))

    return examine


def weights(adapter: Path) -> dict[str, bytes]:
    found = load_file(adapter / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


FINE = {1: (0.3, 0.5), 2: (0.6, 0.5), 3: (0.6, 0.2)}


def test_snapshots_are_the_epochs_and_change_nothing(
    policy: Policy, contrasts: list[Contrast], tmp_path: Path
) -> None:
    keeper = Keeper(tmp_path / "a" / "epochs", BASE, THREE, told(FINE))
    final = train(policy, contrasts, THREE, 7, tmp_path / "a", keeper=keeper)
    assert keeper.best().epoch == 2
    assert weights(final) == weights(keeper.snapshot(2))
    # the rate does not depend on the number of epochs here, so an epoch is a shorter run
    for epochs in (1, 2, 3):
        short = replace(THREE, epochs=epochs)
        plain = train(policy, contrasts, short, 7, tmp_path / str(epochs))
        assert weights(plain) == weights(keeper.snapshot(epochs))


def test_ability_that_falls_ends_the_training(
    policy: Policy, contrasts: list[Contrast], tmp_path: Path
) -> None:
    config = replace(THREE, keep="last", max_drop=0.1)
    falling = {1: (0.1, 0.45), 2: (0.9, 0.39)}  # epoch 3 is never met
    keeper = Keeper(tmp_path / "epochs", BASE, config, told(falling))
    final = train(policy, contrasts, config, 7, tmp_path, keeper=keeper)
    steps = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(steps) == 2 * 3  # five trees, two a step
    assert weights(final) == weights(keeper.snapshot(1))
    assert not keeper.snapshot(3).exists()


def test_an_explosion_in_the_last_update_is_detected_where_it_is_kept(tmp_path: Path) -> None:
    scored = score_opponent(sure(), some_contrasts(), SMALL)
    config = replace(SMALL, learning_rate=10.0, epochs=2, groups_per_step=99, warmup=0.0)

    def run(name: str, keep: Literal["last", "best"], second: float) -> Path:
        settings, scores = replace(config, keep=keep), {1: (0.3, 0.5), 2: (second, 0.5)}
        keeper = Keeper(tmp_path / name / "epochs", BASE, settings, told(scores))
        return train(sure(), scored, settings, 0, tmp_path / name, keeper=keeper)

    keeps: dict[str, Literal["last", "best"]] = {"a": "last", "b": "best"}
    for name, keep in keeps.items():
        with pytest.raises(LearningError, match="exploded at the last step, 2"):
            run(name, keep, 0.6)
        assert not (tmp_path / name / "adapter").exists()
    assert weights(run("c", "best", 0.2)) == weights(tmp_path / "c" / "epochs/epoch-1/adapter")


def test_a_learning_rate_that_fails_is_left_out(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = score_opponent(sure(), some_contrasts(), SMALL)
    monkeypatch.setattr(
        treeplay.play_keep, "_mark_of", lambda game, policy, file, epoch, base: Mark(epoch, 1, 1, 1)
    )
    said: list[str] = []

    def choose(name: str, *rates: float) -> Path:
        game: Any = SimpleNamespace(
            run=SimpleNamespace(folder=tmp_path / name, manifest={}),
            player=lambda number: f"round-{number}",
            adapter=lambda number: tmp_path / name / "round-1" / "adapter",
            policy=policy,
            server=None,
            config=SimpleNamespace(train=replace(THREE, warmup=0.0, rates=rates)),
            reporter=SimpleNamespace(say=said.append),
        )

        def run(config: TrainConfig, folder: Path, keeper: Keeper | None) -> Path:
            return train(sure(), scored, config, 0, folder, keeper=keeper)

        return train_and_choose(game, 1, run)

    chosen = choose("one", 10.0, 1e-4)
    kept = read_json(chosen.parent / "kept.json")
    assert kept["learning_rate"] == 1e-4
    assert list(kept["tried"]) == ["0.0001"]
    assert "exploded" in kept["failed"]["10"]
    assert "learning rate 10 is left out" in said[0]
    assert "left out" in read_json(tmp_path / "one" / "manifest.json")["warnings"][0]
    with pytest.raises(LearningError, match="exploded"):
        choose("none", 10.0, 20.0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_interrupted_equals_uninterrupted(
    policy: Policy, contrasts: list[Contrast], tmp_path: Path, at: int
) -> None:
    keeper = Keeper(tmp_path / "a" / "epochs", BASE, THREE, told(FINE))
    whole = train(policy, contrasts, THREE, 7, tmp_path / "a", keeper=keeper)

    def dying(model: Any, adapter: Path, epoch: int) -> Mark:
        if epoch == at:
            raise Killed
        return told(FINE)(model, adapter, epoch)

    first = Keeper(tmp_path / "b" / "epochs", BASE, THREE, dying)
    with pytest.raises(Killed):
        train(policy, contrasts, THREE, 7, tmp_path / "b", keeper=first)
    again = Keeper(tmp_path / "b" / "epochs", BASE, THREE, told(FINE))
    resumed = train(policy, contrasts, THREE, 7, tmp_path / "b", keeper=again)
    assert weights(resumed) == weights(whole)
    assert again.to_json() == keeper.to_json()
    log = (tmp_path / "b" / "train.jsonl").read_text()
    assert log == (tmp_path / "a" / "train.jsonl").read_text()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (["train.keep=best"], "set tasks.hold_out"),
        (["train.max_drop=0.1"], "set tasks.hold_out"),
        (["train.rates=[0.1]"], "set tasks.hold_out"),
        (["tasks.hold_out=1"], "tasks.hold_out is 1"),
        (["tasks.hold_out=0.1", "train.rates=[0.1, 0.1]"], "must be above 0 and differ"),
        (["tasks.hold_out=0.1", "method=grpo"], "keeps no snapshots"),
        (["contrasts.ordinary=-1"], "contrasts.ordinary is -1"),
        (["contrasts.ordinary_text=own"], "contrasts.ordinary is 0"),
    ],
)
def test_settings_that_cannot_be(setting: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, setting)


def open_game(
    folder: Path, writer: Path, resume: bool = False, ordinary: dict[str, Any] | None = None
) -> Game:
    source = str(writer / "tasks.jsonl")
    recipe = {
        "method": "sft",
        "out": str(folder / "run"),
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source], "hold_out": 0.3},
        "contrasts": ordinary or {"ordinary": 2, "ordinary_kind": "likelihood"},
        "train": {
            "epochs": 2,
            "rates": [1e-3, 1e-4],
            "keep": "best",
            "keep_samples": 2,
            "groups_per_step": 2,
            "lora": {"r": 4},
        },
        "eval": {"samples": 2, "rows_at_once": 4, "max_tokens": 60},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Game(open_run(load_config(path), resume=resume), Reporter(quiet=True))


@pytest.mark.usefixtures("sandbox")
def test_own_answers_are_asked_for_and_counted(writer: Path, tmp_path: Path) -> None:
    own = {"ordinary": 4, "ordinary_text": "own"}
    learnt = []
    for name in ("one", "again"):
        game = open_game(tmp_path / name, writer, ordinary=own)
        learnt.append(game.contrasts(1))
        game.close()
        assert game.run.manifest["config"]["contrasts"]["ordinary_text"] == "own"
    assert learnt[0] == learnt[1]
    anchors = [one for one in learnt[0] if one.task.startswith("ordinary/")]
    assert anchors
    assert all(one.kl and one.opponent == "base" for one in anchors)
    tokens = sum(len(one.chosen) for one in anchors)
    run = tmp_path / "one" / "run"
    assert read_json(run / "round-1" / "contrasts.json")["ordinary_tokens"] == tokens
    assert "round-1 ordinary" in read_json(run / "timings.json")
    assert used(run)["sampled"] == tokens


@pytest.mark.usefixtures("sandbox")
def test_the_game_keeps_the_best(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither the first rate nor the last epoch.
    wanted = {"rate-0.001/held/epoch-2": 0.3, "rate-0.0001/held/epoch-1": 0.5}
    marked: Callable[..., Mark] = treeplay.play_keep._mark_of

    def better(game: Game, policy: Policy, file: str, epoch: int, base: Mark | None) -> Mark:
        found = marked(game, policy, file, epoch, base)
        score = next((wanted[end] for end in wanted if file.endswith(end)), found.score)
        return replace(found, score=score)

    monkeypatch.setattr(treeplay.play_keep, "_mark_of", better)
    game = open_game(tmp_path / "whole", writer)
    assert game.held is not None
    (held,) = (task.id for task in game.held.tasks)
    assert held not in {task.id for task in game.tasks}
    assert len(game.tasks) == 1  # of the two with the split "train"
    game.train(1)
    game.close()
    run = tmp_path / "whole" / "run"
    kept = read_json(run / "round-1" / "kept.json")
    learnt = [contrast_from_json(row) for row in read_jsonl(run / "round-1" / "contrasts.jsonl")]
    assert held not in {contrast.task for contrast in learnt}
    assert sum(contrast.task.startswith("ordinary/") for contrast in learnt) == 2
    assert list(kept["tried"]) == ["0.001", "0.0001"]
    scores = {
        (float(rate), one["epoch"]): one["score"]
        for rate, tried in kept["tried"].items()
        for one in tried["epochs"]
    }
    assert len(scores) == 4
    assert (kept["learning_rate"], kept["epoch"]) == (1e-4, 1)
    assert scores[1e-4, 1] == max(scores.values()) == 0.5
    chosen = run / "round-1" / f"rate-{kept['learning_rate']:g}" / "epochs"
    assert weights(run / "round-1" / "adapter") == weights(
        chosen / f"epoch-{kept['epoch']}" / "adapter"
    )
    assert kept["mark"] == kept["tried"]["0.0001"]["epochs"][0]
    # killed between two snapshots, and resumed, it chooses the same
    calls = 0
    really: Callable[..., Any] = sampled_answers

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # base, the first epoch, the second
            raise Killed
        return really(*arguments)

    monkeypatch.setattr(treeplay.play_keep, "sampled_answers", dying)
    game = open_game(tmp_path / "killed", writer)
    with pytest.raises(Killed):
        game.train(1)
    game.close()
    game = open_game(tmp_path / "killed", writer, resume=True)
    game.train(1)
    again = tmp_path / "killed" / "run" / "round-1"
    assert read_json(again / "kept.json") == kept
    assert weights(again / "adapter") == weights(run / "round-1" / "adapter")
    # The next round's snapshots are marked alike, and the player that is there stays.
    assert not why_over(game, 2)
    second = game.train(2)
    stays = read_json(second.parent / "kept.json")
    assert (stays["epoch"], stays["mark"]) == (0, {**kept["mark"], "epoch": 0})
    assert weights(second) == weights(again / "adapter")
    assert why_over(game, 3)
    game.close()
    # Unless one of them is better.
    wanted["rate-0.001/held/epoch-2"] = 0.6
    game = open_game(tmp_path / "whole", writer, resume=True)
    second = game.train(2)
    assert read_json(second.parent / "kept.json")["mark"]["score"] == 0.6
    assert weights(second) != weights(run / "round-1" / "adapter")
    assert not why_over(game, 3)
    game.close()


def test_config_without_held_out_tasks_is_as_before() -> None:
    config = load_config(None)
    assert (config.tasks.hold_out, config.train.keep, config.contrasts.ordinary) == (0, "last", 0)
    assert TrainConfig().rates == ()
