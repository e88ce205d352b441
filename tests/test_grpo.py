"""GRPO on the tiny model that has learnt three tasks by heart: TRL learns from our answers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from writer import tasks

from treeplay.config import load_config
from treeplay.errors import ConfigError, LearningError, ModelError, RunError, SandboxError
from treeplay.grpo import (
    Course,
    GrpoConfig,
    GrpoRewards,
    nothing_learnt,
    order,
    reward_of,
    rows_at_once,
    train_grpo,
)
from treeplay.judge.verdict import Label, Verdict
from treeplay.lora import LoraSettings
from treeplay.play import Game
from treeplay.policy.model import (
    ModelConfig,
    Policy,
    adapter_digest,
    decode,
    encode_path,
    load_adapter,
    load_policy,
)
from treeplay.policy.sample import Request, Row, sample, seed_of
from treeplay.policy.score import plain_logps
from treeplay.progress import Reporter
from treeplay.report import build_report
from treeplay.run import open_run, read_json, read_jsonl
from treeplay.sandbox import check_sandbox
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task
from treeplay.train import TrainConfig

PLAYED = [task for task in tasks() if task.split == "train"]
GRPO = GrpoConfig(generations=4, max_tokens=90)
TRAIN = TrainConfig(
    epochs=2, groups_per_step=2, learning_rate=3e-4, checkpoint_steps=1, lora=LoraSettings(r=4)
)

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")


@pytest.fixture
def policy(writer: Path) -> Policy:
    return load_policy(ModelConfig(str(writer)))


def by_heart(items: Sequence[tuple[Task, str]]) -> list[Verdict]:
    """A judge that knows the two answers of each task."""

    def one(task: Task, answer: str) -> Verdict:
        if answer.strip() == (task.golden or "").strip():
            return Verdict("secure")
        return Verdict(
            "vulnerable" if answer.strip() == (task.vulnerable or "").strip() else "inert"
        )

    return [one(task, answer) for task, answer in items]


# What needs no TRL.


def test_rewards_are_a_table() -> None:
    rewards = GrpoRewards(vulnerable=-1.0, invalid=-2.0)
    labels: list[Any] = ["secure", "vulnerable", "inert", "invalid", "unknown", "plain"]
    found = [reward_of(Verdict(label), rewards) for label in labels]
    assert found == [1.0, -1.0, 0.0, -2.0, None, None]
    failing = Verdict("secure", functional=False)
    assert [reward_of(failing, GrpoRewards(inert=some)) for some in (0.0, 0.3)] == [0.0, 0.3]
    assert reward_of(Verdict("secure", functional=True), rewards) == 1.0


def test_every_task_is_met_once_an_epoch() -> None:
    numbers = list(itertools.islice(order(5, 7), 15))
    assert [sorted(numbers[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert numbers[:5] != numbers[5:10]
    assert numbers == list(itertools.islice(order(5, 7), 15))


@pytest.mark.parametrize(
    ("longest", "answers", "limit", "rows"),
    [(100, 16, 1024, 8), (100, 12, 1024, 6), (100, 16, 50, 1), (10, 16, 1024, 16)],
)
def test_as_many_answers_share_a_pass_as_fit(
    longest: int, answers: int, limit: int, rows: int
) -> None:
    assert rows_at_once(longest, answers, limit) == rows


def test_steps_follow_epochs_or_the_budget() -> None:
    train = replace(TRAIN, epochs=3, groups_per_step=2, warmup=0.25)
    course = Course(GrpoConfig(generations=4), train, tasks=5)
    assert course.steps == 8  # 15 tasks, two a step
    rates = []
    for step in range(8):
        rates.append(course.rate())
        course.rows.append({"step": step, "sampled": 10, "learnt": 30})
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert course.over()

    config = GrpoConfig(generations=4, budget=1000, max_tokens=25)
    spent = Course(config, replace(train, schedule="linear"), tasks=5)
    assert spent.rate() == pytest.approx(0.2 / 0.25)  # a step is at most 200 of 1000 tokens
    spent.rows.append({"sampled": 550, "learnt": 1650})
    assert spent.rate() == pytest.approx(0.45 / 0.75)
    assert not spent.over()
    # Gradient tokens are those of answers with their prompts.
    assert replace(spent, train=replace(train, budget=1650)).over()
    assert not replace(spent, train=replace(train, budget=1651)).over()
    alone = Course(GrpoConfig(generations=4, max_tokens=25), replace(train, budget=2000), 5, 75)
    assert alone.rate() == pytest.approx((8 * 100 / 2000) / 0.4)
    spent.rows.append({"sampled": 450, "learnt": 1350})
    assert spent.over()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.temperature=0", "grpo.temperature is 0.0; it must be above 0"),
        ("grpo.generations=1", "grpo.generations is 1; it must be at least 2"),
        ("grpo.rewards.vulnerable=1", "grpo.rewards.vulnerable is 1.0; it must be below 1"),
        ("train.lora.dtype=model", "set train.lora.dtype=float32"),
    ],
)
def test_settings_without_sense_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, ["method=grpo", override])


def test_without_trl_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"not installed; run: pip install 'trl>=1\.16,<2'"):
        open_run(load_config(None, ["method=grpo", f"out={tmp_path / 'run'}"]), resume=False)
    assert not (tmp_path / "run/manifest.json").is_file()


# What TRL does with it.


def learnt(policy: Policy, out: Path, **given: Any) -> list[dict[str, Any]]:
    """Train into ``out``; the lines of its log."""
    config, train = given.pop("config", GRPO), given.pop("train", TRAIN)
    judged = given.pop("judged", by_heart)
    train_grpo(policy, PLAYED, config, train, judged, 4, out, **given)
    return read_jsonl(out / "train.jsonl")


def state_of(model: Any) -> dict[str, Any]:
    return {
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        "pad": (model.config.pad_token_id, model.generation_config.pad_token_id),
        "forward": vars(model).get("forward"),
    }


@needs_trl
def test_trl_learns_from_our_answers(policy: Policy, tmp_path: Path) -> None:
    before = state_of(policy.model)
    seen: list[tuple[str, str]] = []

    def judged(items: Sequence[tuple[Task, str]]) -> list[Verdict]:
        seen.extend((task.id, answer) for task, answer in items)
        return by_heart(items)

    rows = learnt(policy, tmp_path, judged=judged, train=replace(TRAIN, epochs=1))

    # What was judged is what the project's own sampler draws from the same seeds.
    first = next(order(len(PLAYED), 4))
    paths = [encode_path(policy, task).ids for task in (PLAYED[first], PLAYED[1 - first])]
    requests = [
        Request(ids, tuple(Row(len(ids), seed_of("grpo", 4, 0, place, row)) for row in range(4)))
        for place, ids in enumerate(paths)
    ]
    asked = [PLAYED[first], PLAYED[1 - first]]

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return cut_answer(asked[request], decode(policy, list(ids))).complete

    drawn = sample(policy.model, requests, GRPO, policy.stop_ids, done)
    answers = [
        (task.id, cut_answer(task, decode(policy, one.ids)).text)
        for task, samples in zip(asked, drawn, strict=True)
        for one in samples
    ]
    assert seen == answers
    sampled = sum(len(one.ids) for samples in drawn for one in samples)
    (row,) = rows
    assert row["sampled"] == sampled
    assert row["tokens"] == sampled + 4 * sum(len(ids) for ids in paths)
    labels = [
        verdict.label
        for verdict in by_heart([(t, a) for t in PLAYED for i, a in answers if i == t.id])
    ]
    assert row["reward"] == pytest.approx(labels.count("secure") / 8, abs=1e-4)
    assert (row["secure"], row["inert"]) == (labels.count("secure"), labels.count("inert"))

    # The base model is as it was, and nothing but our own files was written.
    after = state_of(policy.model)
    assert before.keys() == after.keys()
    for name, one in before.items():
        assert torch.equal(one, after[name]) if torch.is_tensor(one) else one == after[name], name
    assert not policy.model.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "train.jsonl"]

    # The first step's gradient is that of the advantages: what was rewarded became likelier.
    tuned = load_adapter(policy.model, tmp_path / "adapter", trainable=False).eval()
    worth = [
        1.0 if label == "secure" else 0.0
        for label in (
            by_heart([(task, cut_answer(task, decode(policy, one.ids)).text)])[0].label
            for task, samples in zip(asked, drawn, strict=True)
            for one in samples
        )
    ]
    gain = []
    for place, samples in enumerate(drawn):
        spans = [(len(paths[place]), len(paths[place]) + len(one.ids)) for one in samples]
        with torch.no_grad():
            now = plain_logps(tuned, [paths[place] + one.ids for one in samples], spans)
        gain += [float(new.sum()) - sum(one.logps) for new, one in zip(now, samples, strict=True)]
    tuned.unload()
    advantage = [w - sum(worth[i // 4 * 4 : i // 4 * 4 + 4]) / 4 for i, w in enumerate(worth)]
    assert any(advantage)
    assert sum(a * g for a, g in zip(advantage, gain, strict=True)) > 0


@needs_trl
def test_interrupted_it_ends_the_same(policy: Policy, tmp_path: Path) -> None:
    config = replace(GRPO, beta=0.05)  # then TRL keeps a copy of what the round began with
    train = replace(TRAIN, epochs=3, lora=LoraSettings(r=4, dropout=0.1))
    whole = learnt(policy, tmp_path / "whole", config=config, train=train)
    assert len(whole) == 3

    calls = itertools.count(1)

    def tired(items: Sequence[tuple[Task, str]]) -> list[Verdict]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return by_heart(items)

    with pytest.raises(KeyboardInterrupt):
        learnt(policy, tmp_path / "cut", config=config, train=train, judged=tired)
    assert not (tmp_path / "cut/adapter").exists()
    assert "forward" not in vars(policy.model)
    held = sorted(path.name for path in (tmp_path / "cut").rglob("*") if path.is_file())
    assert held == ["state.safetensors", "train.jsonl"]  # nothing pickled
    assert learnt(policy, tmp_path / "cut", config=config, train=train) == whole
    assert adapter_digest(tmp_path / "cut/adapter") == adapter_digest(tmp_path / "whole/adapter")
    files = [
        sorted(p.name for p in (tmp_path / one / "adapter").iterdir()) for one in ("cut", "whole")
    ]
    assert (
        files[0]
        == files[1]
        == ["adapter_config.json", "adapter_model.safetensors", "treeplay.json"]
    )


@needs_trl
def test_the_budget_ends_it(policy: Policy, tmp_path: Path) -> None:
    config = replace(GRPO, budget=400, max_tokens=30)
    rows = learnt(policy, tmp_path, config=config)
    spent = [row["sampled"] for row in rows]
    assert sum(spent) >= 400 > sum(spent[:-1])
    assert len(rows) > 1


@needs_trl
def test_passes_of_any_size_learn_the_same(policy: Policy, tmp_path: Path) -> None:
    train = replace(TRAIN, epochs=1)
    one = learnt(policy, tmp_path / "one", train=replace(train, max_tokens=16))
    all_ = learnt(policy, tmp_path / "all", train=replace(train, max_tokens=4096))
    assert one[0]["grad_norm"] > 0
    assert one[0]["grad_norm"] == pytest.approx(all_[0]["grad_norm"], rel=1e-3)


@needs_trl
def test_what_is_unknown_moves_nothing(policy: Policy, tmp_path: Path) -> None:
    train = replace(TRAIN, epochs=1)

    def dumb(items: Sequence[tuple[Task, str]]) -> list[Verdict]:
        return [Verdict("unknown") for _ in items]

    (row,) = learnt(policy, tmp_path / "dumb", judged=dumb, train=train)
    assert row["grad_norm"] == 0
    assert "reward" not in row
    assert row["unknown"] == 8
    assert "nothing was learnt" in nothing_learnt([row])
    assert "(8 unknown)" in nothing_learnt([row])
    assert nothing_learnt([row, {**row, "groups": 1}]) == ""


@needs_trl
def test_a_loss_that_is_no_number_is_told(policy: Policy, tmp_path: Path) -> None:
    train = replace(TRAIN, learning_rate=1e30, schedule="constant", warmup=0.0)
    with pytest.raises((RunError, ModelError), match=r"not (a number|numbers)"):
        learnt(policy, tmp_path, train=replace(train, epochs=4))


@needs_trl
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_player_that_was_destroyed_is_told(policy: Policy, tmp_path: Path, epochs: int) -> None:
    """By the first update, which no step looks at, or in several."""
    train = replace(TRAIN, learning_rate=30.0, schedule="constant", warmup=0.0, epochs=epochs)
    with pytest.raises(LearningError, match=r"the training exploded: .* worse than guessing"):
        learnt(policy, tmp_path, train=train)
    assert not (tmp_path / "adapter").exists()


@needs_trl
def test_an_answer_without_a_reward_is_not_in_its_group_s_mean(
    policy: Policy, tmp_path: Path
) -> None:
    """Otherwise all others would be pushed up or down against it."""

    def first_unknown(known: Sequence[Label]) -> Any:
        def judged(items: Sequence[tuple[Task, str]]) -> list[Verdict]:
            labels = ["unknown" if i % 4 == 0 else known[i % 4 - 1] for i in range(len(items))]
            return [Verdict(label) for label in labels]

        return judged

    train = replace(TRAIN, epochs=1)
    same = first_unknown(["secure", "secure", "secure"])
    (alike,) = learnt(policy, tmp_path / "alike", judged=same, train=train)
    assert (alike["grad_norm"], alike["groups"], alike["reward"]) == (0, 0, 1)
    mixed = first_unknown(["secure", "secure", "inert"])
    (apart,) = learnt(policy, tmp_path / "apart", judged=mixed, train=train)
    assert apart["grad_norm"] > 0
    assert apart["reward"] == pytest.approx(2 / 3, abs=1e-4)


@needs_trl
def test_an_adapter_on_the_head_is_refused(policy: Policy, tmp_path: Path) -> None:
    train = replace(TRAIN, lora=LoraSettings(r=4, targets=("q_proj", "lm_head")))
    with pytest.raises(ModelError, match=r"TRL cannot train this adapter: .*lm_head"):
        learnt(policy, tmp_path, train=train)
    assert not hasattr(policy.model, "peft_config")


@needs_trl
def test_two_rounds_are_played(writer: Path, tmp_path: Path) -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(f"generated code cannot be run here: {error}")
    source = str(writer / "tasks.jsonl")
    data = {
        "method": "grpo",
        "rounds": 2,
        "out": str(tmp_path / "run"),
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "grpo": {"generations": 4, "max_tokens": 90},
        "train": {"epochs": 1, "groups_per_step": 2, "learning_rate": 3e-4, "lora": {"r": 4}},
        "eval": {"samples": 2, "max_tokens": 60},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    config = load_config(tmp_path / "recipe.yaml")
    game = Game(open_run(config, resume=False), Reporter(quiet=True))
    try:
        game.play()
        manifest = read_json(tmp_path / "run/manifest.json")
        assert manifest["versions"]["trl"]
        for number in (1, 2):
            folder = tmp_path / f"run/round-{number}"
            assert manifest["identities"][f"round-{number}"] == adapter_digest(folder / "adapter")
            assert json.loads((folder / "adapter/treeplay.json").read_text())["tokenizer"]
            (row,) = read_jsonl(folder / "train.jsonl")
            assert math.isfinite(row["loss"])
            assert row["learnt"] == row["tokens"] > row["sampled"]
            assert (
                sum(row[label] for label in ("secure", "vulnerable", "inert", "invalid", "unknown"))
                == 8
            )
            assert not (folder / "contrasts.jsonl").exists()
        with game.policy_of(2) as player:
            assert player.model.peft_config["default"].r == 4
    finally:
        game.close()
    report = build_report(tmp_path / "run")
    assert {row["player"] for row in report["rows"]} == {"base", "round-1", "round-2"}
