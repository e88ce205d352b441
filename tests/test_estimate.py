"""What a dry run says a method will take."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from treeplay.config import load_config
from treeplay.errors import SandboxError
from treeplay.estimate import Estimate, estimate
from treeplay.groups import size_of
from treeplay.play import Game
from treeplay.policy.model import encode_path
from treeplay.progress import Reporter
from treeplay.run import open_run
from treeplay.sandbox import check_sandbox
from treeplay.sven import programs_of
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.task import Task

EVAL_SAMPLES, EVAL_TOKENS, EPOCHS, ROUNDS = 3, 5, 4, 2


@pytest.fixture(autouse=True)
def sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(f"generated code cannot be run here: {error}")


def game(tiny: Path, folder: Path, task: Task, *settings: str) -> Game:
    write_tasks(folder / "tasks.jsonl", [task, replace(task, id="other")])
    source = folder / "tasks.jsonl"
    config = load_config(
        None,
        [
            f"model.name={tiny}",
            f"tasks.train={source}",
            f"tasks.eval=['{source}@full,samples={EVAL_SAMPLES},max_tokens={EVAL_TOKENS}']",
            f"train.epochs={EPOCHS}",
            "train.groups_per_step=1",
            f"rounds={ROUNDS}",
            f"out={folder / 'run'}",
            *settings,
        ],
    )
    return Game(open_run(config, resume=False), Reporter(quiet=True))


def known(one: Game) -> Estimate:
    try:
        return estimate(one)
    finally:
        one.close()


@pytest.mark.parametrize("method", ["sft", "dpo", "safecoder", "sven"])
def test_given_answers(method: str, tiny_folder: Path, tmp_path: Path, sql_task: Task) -> None:
    one = game(tiny_folder, tmp_path, sql_task, f"method={method}")
    found = known(one)
    answers = 2 * EVAL_SAMPLES * (ROUNDS + 1)  # a suite's own samples and tokens count
    assert (found.nodes, found.grow_tokens) == (0, 0)
    assert (found.judged, found.eval_tokens) == (answers, answers * EVAL_TOKENS)
    if method == "sven":
        pairs = programs_of(one.policy, one.tasks, one.config.sven)
        flat = sum(len(program.ids) for pair in pairs for program in pair)
        assert found.train_tokens == 3 * flat * EPOCHS * ROUNDS
    else:
        one.contrasts(1)
        packed = size_of(one.contrasts(1), packed=True)
        assert packed * EPOCHS * ROUNDS <= found.train_tokens


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("budget", [0, 100])
def test_rewards(budget: int, tiny_folder: Path, tmp_path: Path, sql_task: Task) -> None:
    sampling = ["grpo.generations=3", "grpo.max_tokens=20", f"grpo.budget={budget}"]
    one = game(tiny_folder, tmp_path, sql_task, "method=grpo", *sampling)
    found = known(one)
    answers = 3 * (2 if budget else 2 * EPOCHS)  # 100 tokens are spent in the second step of 60
    prompt = max(len(encode_path(one.policy, task).ids) for task in one.tasks)
    assert found.nodes == 0
    assert found.grow_tokens == answers * 20 * ROUNDS
    assert found.train_tokens == answers * (prompt + 20) * ROUNDS
    assert found.judged == answers * ROUNDS + 2 * EVAL_SAMPLES * (ROUNDS + 1)


def test_snapshots_and_learning_rates(tiny_folder: Path, tmp_path: Path, sql_task: Task) -> None:
    more = ["tasks.hold_out=0.5", "train.rates=[1.0e-3, 1.0e-4]", "train.keep_samples=2"]
    plain = known(game(tiny_folder, tmp_path, sql_task, "method=sft", "tasks.limit=1"))
    (tmp_path / "more").mkdir()
    found = known(game(tiny_folder, tmp_path / "more", sql_task, "method=sft", *more))
    assert found.train_tasks == plain.train_tasks == 1
    assert found.train_tokens == 2 * plain.train_tokens
    assert found.judged - plain.judged == 2 * (1 + 2 * ROUNDS * EPOCHS)
