"""SVEN: its losses by hand, prefixes trained, resumed, kept, and played with."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from writer import tasks

from treeplay import sven
from treeplay.config import load_config
from treeplay.errors import ConfigError, ModelError, RunError, SandboxError, TaskError
from treeplay.play import Game
from treeplay.policy.kl import logits_to_both
from treeplay.policy.model import Policy, adapter_digest, load_adapter
from treeplay.policy.prefix import has_prefix, prefix_layers, take_off
from treeplay.policy.score import plain_logps
from treeplay.progress import Reporter
from treeplay.run import open_run, read_jsonl
from treeplay.sandbox import check_sandbox
from treeplay.sven import (
    VULNERABLE,
    Program,
    SvenConfig,
    program_loss,
    programs_of,
    train_prefixes,
    with_prefixes,
)
from treeplay.sven_loss import changed_likelihood, prefix_contrast, sven_loss, unchanged_kl
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.task import Task
from treeplay.train import TrainConfig

CONFIG = SvenConfig(tokens=3)
TRAIN = TrainConfig(epochs=1, learning_rate=1e-2, groups_per_step=1, checkpoint_steps=1)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# The losses.

CHANGED = torch.tensor([True, False, True])


def test_likelihood_by_hand() -> None:
    # (log 2 + log 8) / 2 = log 4; the token between counts for nothing.
    loss = changed_likelihood(logs(0.5, 0.001, 0.125), CHANGED)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-12)


def test_contrast_by_hand() -> None:
    # -log(0.6 / (0.6 + 0.2)) = log(4 / 3); -log(0.1 / (0.1 + 0.3)) = log 4; their mean.
    loss = prefix_contrast(logs(0.6, 0.5, 0.1), logs(0.2, 0.01, 0.3), CHANGED)
    assert loss.item() == pytest.approx(math.log(16 / 3) / 2, abs=1e-12)
    # Where the prefixes agree, nothing is decided: log 2.
    same = logs(0.3, 0.2, 0.9)
    assert prefix_contrast(same, same, CHANGED).item() == pytest.approx(math.log(2), abs=1e-12)
    # Probabilities that vanish in float32 leave it finite: log(1 + e^100) = 100.
    far = prefix_contrast(torch.tensor([-300.0]), torch.tensor([-200.0]), torch.tensor([True]))
    assert far.item() == pytest.approx(100.0)


def test_kl_by_hand() -> None:
    one, two = torch.tensor([9.0, 0.25, 9.0]), torch.tensor([9.0, 0.5, 9.0])
    assert unchanged_kl(one, two, CHANGED).item() == pytest.approx(0.75)


def test_sum_by_hand_and_nothing_changed() -> None:
    total = sven_loss(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.25), 4.0, 1.6)
    assert total.item() == pytest.approx(1 + 2 + 0.4)
    none = torch.tensor([False, False, False])
    assert changed_likelihood(logs(0.5, 0.5, 0.5), none).item() == 0
    assert unchanged_kl(torch.ones(3), torch.ones(3), ~none).item() == 0


# Programs.


def test_programs_and_their_changed_tokens(tiny_policy: Policy) -> None:
    pairs = programs_of(tiny_policy, tasks(), CONFIG)
    assert [[p.secure for p in pair] for pair in pairs] == [[True, False]] * 3
    golden, vulnerable = pairs[2]

    def marked(program: Program) -> str:
        kept = [i for i, on in zip(program.ids, program.changed, strict=True) if on]
        return str(tiny_policy.tokenizer.decode(kept))

    assert marked(golden) == "ast.literal_eval"
    assert marked(vulnerable) == "    return eval(text)\n"
    by_word = programs_of(tiny_policy, tasks()[2:], replace(CONFIG, changed="word"))
    assert marked(by_word[0][1]) == "eval"


def test_without_pairs_there_is_one_clear_error(tiny_policy: Policy) -> None:
    bare = [replace(task, vulnerable=None) for task in tasks()]
    with pytest.raises(TaskError, match="vulnerable"):
        programs_of(tiny_policy, bare, CONFIG)
    same = [replace(task, vulnerable=task.golden) for task in tasks()]
    with pytest.raises(TaskError, match="pair that differs"):
        programs_of(tiny_policy, same, CONFIG)


def test_an_answer_that_lacks_something_teaches_by_its_partner(tiny_policy: Policy) -> None:
    task = replace(
        tasks()[2], golden="    check(text)\n    return 1\n", vulnerable="    return 1\n"
    )
    ((only,),) = programs_of(tiny_policy, [task], CONFIG)
    assert only.secure


def test_a_program_must_fit_behind_the_prefix() -> None:
    policy = Policy(tiny_llama(max_position_embeddings=64), byte_tokenizer(), "complete", "t")
    with pytest.raises(RunError, match=r"sven\.tokens"):
        programs_of(policy, tasks(), CONFIG)


# One program's loss, against whole logits of PEFT's own forward passes.


@pytest.mark.parametrize("secure", [True, False])
def test_program_loss_equals_the_plain_sum(secure: bool, tiny_policy: Policy) -> None:
    base = tiny_policy.model
    model = with_prefixes(base, 3, None)
    torch.manual_seed(1)
    for encoder in model.prompt_encoder.values():
        torch.nn.init.normal_(encoder.embedding.weight)
    golden, vulnerable = programs_of(tiny_policy, tasks()[2:], CONFIG)[0]
    program = golden if secure else vulnerable
    loss, parts = program_loss(model, program, CONFIG)
    ids = torch.tensor(program.ids)
    found = {}
    for name in ("default", VULNERABLE):
        model.set_adapter(name)
        found[name] = model(input_ids=ids[None]).logits[0, :-1]
    with model.disable_adapter(), torch.no_grad():
        bare = model(input_ids=ids[None]).logits[0, :-1]
    model.set_adapter("default")
    own, other = ("default", VULNERABLE) if secure else (VULNERABLE, "default")
    row = torch.arange(len(ids) - 1)
    own_logp, own_kl = logits_to_both(found[own], bare, row, ids[1:])
    other_logp, other_kl = logits_to_both(found[other], bare, row, ids[1:])
    changed = torch.tensor(program.changed[1:])
    lm, ct = -own_logp[changed].mean(), torch.nn.functional.softplus(other_logp - own_logp)
    kl = (own_kl + other_kl)[~changed].mean()
    assert parts["likelihood"] == pytest.approx(lm.item(), abs=1e-4)
    assert parts["contrast"] == pytest.approx(ct[changed].mean().item(), abs=1e-4)
    assert parts["kl"] == pytest.approx(kl.item(), abs=1e-4)
    expected = lm + 4.0 * ct[changed].mean() + 1.6 * kl
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)
    weights = [encoder.embedding.weight for encoder in model.prompt_encoder.values()]
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert all(p.grad is None and not p.requires_grad for p in base.parameters())


# Training.


def weights_of(folder: Path) -> tuple[bytes, bytes]:
    return tuple(  # type: ignore[return-value]
        (place / "adapter_model.safetensors").read_bytes()
        for place in (folder, folder / VULNERABLE)
    )


def trained(out: Path, train: TrainConfig = TRAIN, start: Path | None = None, **given: Any) -> Path:
    policy = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
    return train_prefixes(policy, tasks()[1:], CONFIG, train, 7, out, start, **given)


def test_two_steps_teach_both_prefixes_and_leave_the_base_alone(tmp_path: Path) -> None:
    policy = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
    before = {n: p.clone() for n, p in policy.model.state_dict().items()}
    span = ([tuple(range(1, 30))], [(1, 29)])
    bare = plain_logps(policy.model, *span)[0]
    train = replace(TRAIN, epochs=8, learning_rate=0.1)
    folder = train_prefixes(policy, tasks()[2:], CONFIG, train, 7, tmp_path / "a")
    assert torch.equal(plain_logps(policy.model, *span)[0], bare)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "a" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[0]["contrast"] == pytest.approx(math.log(2), abs=1e-4)  # both begin at zero
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["contrast"] < math.log(2) - 0.01

    player = load_adapter(policy.model, folder, trainable=False)
    with torch.no_grad():
        moved = (plain_logps(player, *span)[0] - bare).abs().max()
    assert moved > 1e-3
    secure = prefix_layers(player)
    take_off(player)
    other = prefix_layers(load_adapter(policy.model, folder / VULNERABLE, trainable=False))
    assert not torch.equal(secure[0][1], other[0][1])
    assert len(adapter_digest(folder)) == 16


def test_killed_and_resumed_ends_the_same(tmp_path: Path) -> None:
    train = replace(TRAIN, epochs=2)
    whole = weights_of(trained(tmp_path / "whole", train))

    class Killed(Exception):
        pass

    def kill(step: int, steps: int, row: dict[str, float]) -> None:
        assert steps == 4
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "cut", train, progress=kill)
    assert not (tmp_path / "cut" / "adapter").exists()
    seen: list[int] = []
    again = trained(tmp_path / "cut", train, progress=lambda step, *_: seen.append(step))
    assert seen == [4]
    assert weights_of(again) == whole
    logs = [(tmp_path / name / "train.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_round_goes_on_from_the_one_before(tmp_path: Path) -> None:
    first = trained(tmp_path / "one")
    # A learning rate of next to nothing: what is written is what was read.
    still = replace(TRAIN, learning_rate=1e-30)
    second = trained(tmp_path / "two", still, first)
    assert weights_of(second) == weights_of(first)
    shutil.rmtree(first / VULNERABLE)
    with pytest.raises(ModelError, match="two prefixes"):
        trained(tmp_path / "three", TRAIN, first)


def test_a_budget_of_tokens_decides(tmp_path: Path) -> None:
    policy = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
    pair = programs_of(policy, tasks()[2:], CONFIG)[0]
    cost = 2 * sum(len(program.ids) for program in pair)
    out = tmp_path / "b"
    train_prefixes(policy, tasks()[2:], CONFIG, replace(TRAIN, budget=cost + 1), 7, out)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [row["learnt"] for row in rows] == [cost, cost]


def test_a_loss_that_is_no_number_is_named(tmp_path: Path) -> None:
    policy = Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")
    policy.model.lm_head.weight.data[5] = math.nan
    with pytest.raises(RunError, match="not a number at step 1"):
        train_prefixes(policy, tasks()[2:], CONFIG, TRAIN, 7, tmp_path)
    assert not any(has_prefix(m) for m in policy.model.modules())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_loss_that_explodes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    real = sven._step

    def exploding(*given: Any) -> dict[str, Any]:
        row = real(*given)
        return {**row, "likelihood": row["likelihood"] + (9.0 if given[-1] == 3 else 0.0)}

    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    train = replace(TRAIN, epochs=4)
    if resumed:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, train, progress=stop)
    monkeypatch.setattr(sven, "_step", exploding)
    with pytest.raises(RunError, match=r"the loss exploded at step 3: 1[0-9] nats a changed token"):
        trained(tmp_path, train)


def test_a_last_step_that_explodes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sven.program_loss

    def exploding(model: Any, program: Any, config: Any, dropout: float = 0.0) -> Any:
        loss, parts = real(model, program, config, dropout)
        looked_back = not torch.is_grad_enabled()
        return loss, {**parts, "likelihood": parts["likelihood"] + 99.0 * looked_back}

    monkeypatch.setattr(sven, "program_loss", exploding)
    with pytest.raises(RunError, match=r"the loss exploded at the last step, \d+: 1\d\d nats"):
        trained(tmp_path, replace(TRAIN, epochs=1))
    assert not (tmp_path / "adapter").exists()


# The whole game.


def recipe(tiny: Path, folder: Path, some: list[Task]) -> list[str]:
    write_tasks(folder / "tasks.jsonl", some)
    source = str(folder / "tasks.jsonl")
    return [
        "method=sven",
        f"model.name={tiny}",
        f"tasks.train={source}",
        f"tasks.eval=[{source}]",
        "sven.tokens=3",
        "train.epochs=1",
        "eval.samples=2",
        "eval.max_tokens=8",
        f"out={folder / 'run'}",
    ]


def test_play_trains_and_evaluates_a_prefix(tiny_folder: Path, tmp_path: Path) -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(f"generated code cannot be run here: {error}")
    config = load_config(None, [*recipe(tiny_folder, tmp_path, tasks()[1:2]), "rounds=2"])
    game = Game(open_run(config, resume=False), Reporter(quiet=True))
    try:
        game.play()
        with game.policy_of(1) as policy:
            assert has_prefix(policy.model)
            assert policy.max_length == game.policy.max_length - 3
        assert game.policy.model.config._attn_implementation == "sdpa"
    finally:
        game.close()
    run = tmp_path / "run"
    for player in ("base", "round-1", "round-2"):
        assert len(read_jsonl(run / "eval" / f"{player}.jsonl")) == 2
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["identities"]["round-1"] == adapter_digest(run / "round-1" / "adapter")
    assert not (run / "round-1" / "judged.jsonl").exists()  # no branches are grown

    # The folder alone, put on the model by its name, is the same player; it is no base to train on.
    named = [f"model.adapter={run / 'round-2/adapter'}", f"out={tmp_path / 'alone'}"]
    config = load_config(None, [*recipe(tiny_folder, tmp_path, tasks()[1:2]), *named])
    alone = Game(open_run(config, resume=False), Reporter(quiet=True), training=False)
    alone.evaluate(0)
    alone.close()
    answers = [
        [row["answer"] for row in read_jsonl(path)]
        for path in (tmp_path / "alone/eval/base.jsonl", run / "eval/round-2.jsonl")
    ]
    assert answers[0] == answers[1]
    onward = open_run(replace(config, out=str(tmp_path / "onward")), resume=False)
    with pytest.raises(ModelError, match="cannot be merged"):
        Game(onward, Reporter(quiet=True))


def test_play_without_vulnerable_answers(tiny_folder: Path, tmp_path: Path) -> None:
    bare = [replace(task, vulnerable=None) for task in tasks()[1:2]]
    config = load_config(None, recipe(tiny_folder, tmp_path, bare))
    with pytest.raises(TaskError, match="method sven"):
        Game(open_run(config, resume=False), Reporter(quiet=True))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("golden.source=self", "golden.source"),
        ("train.checkpointing=true", "train.checkpointing"),
        ("model.server.base_url=http://localhost:1", "prefix"),
        ("sven.dropout=1", "sven.dropout"),
        ("sven.tokens=0", "sven.tokens"),
    ],
)
def test_settings_that_cannot_be(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(None, ["method=sven", setting])


def test_the_methods_own_settings() -> None:
    config = load_config(None, ["method=sven"])
    assert (config.train.learning_rate, config.train.groups_per_step) == (0.01, 1)
    assert config.sven == SvenConfig()
