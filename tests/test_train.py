"""Training: packed equals plain, cuts do not matter, interrupted equals uninterrupted."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from treeplay.contrast import Contrast
from treeplay.errors import ModelError, RunError
from treeplay.groups import make_groups
from treeplay.lora import LoraSettings
from treeplay.opponent import score_opponent
from treeplay.policy.model import Policy, load_adapter
from treeplay.policy.score import plain_logps
from treeplay.train import TrainConfig, group_loss, packed_where_right, train
from treeplay.train_plan import plan_steps

SMALL = TrainConfig(
    epochs=2,
    learning_rate=1e-2,
    groups_per_step=2,
    checkpoint_steps=1,
    clip=5.0,
    lora=LoraSettings(r=4, alpha=8),
)

CLIP = 0.5


def some_contrasts(seed: int = 0, tasks: int = 5) -> list[Contrast]:
    """Nodes of one task lie on one path, so that prefixes are shared; weights differ; every
    fourth contrast has nothing rejected."""
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 257) for _ in range(count))

    out = []
    for t in range(tasks):
        path = ids(14)
        for n in range(4):
            rejected = () if n == 3 else ids(rng.randrange(1, 9))
            out.append(
                Contrast(f"t{t}", n, path[: 4 + 3 * n], ids(rng.randrange(1, 7)), rejected, 0.5 + n)
            )
    return out


@pytest.fixture
def policy() -> Policy:
    return Policy(tiny_llama(), byte_tokenizer(), "complete", "tiny")


def test_packed_loss_and_gradients_equal_plain(policy: Policy) -> None:
    contrasts = score_opponent(policy, some_contrasts(tasks=1), SMALL)
    losses, grads = [], []
    for packed in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(
            tiny_llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide half the gradient
                torch.nn.init.normal_(parameter, std=0.2)
        loss, figures = group_loss(model, contrasts, replace(SMALL, packed=packed, alpha=0.3))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        grads.append(
            torch.cat(
                [
                    p.grad.flatten()
                    for p in model.parameters()
                    if p.requires_grad and p.grad is not None
                ]
            )
        )
        assert figures["pairs"] == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert grads[0].norm() > 1e-3
    assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-5


def test_group_loss_is_the_formula(policy: Policy) -> None:
    """Written out with plain log-probs: w (-log sigmoid(beta m) + alpha NLL/len)."""
    contrasts = [
        replace(
            c,
            chosen_opp=tuple(-5.0 - 3 * c.node for _ in c.chosen),
            rejected_opp=tuple(-6.0 for _ in c.rejected),
        )
        for c in some_contrasts(tasks=1)
    ]
    config = replace(SMALL, beta=0.3, alpha=0.7, clip=CLIP)
    with torch.no_grad():
        loss, figures = group_loss(policy.model, contrasts, config)
        expected, margins = 0.0, []
        for c in contrasts:
            (lc,) = plain_logps(
                policy.model,
                [c.prefix + c.chosen],
                [(len(c.prefix), len(c.prefix) + len(c.chosen))],
            )
            nll = -float(lc.sum()) / len(c.chosen)
            if not c.rejected:
                expected += c.weight * nll
                continue
            (lr,) = plain_logps(
                policy.model,
                [c.prefix + c.rejected],
                [(len(c.prefix), len(c.prefix) + len(c.rejected))],
            )
            gap = float(lc.sum()) - sum(c.chosen_opp) - (float(lr.sum()) - sum(c.rejected_opp))
            margins.append(gap)
            preference = math.log1p(math.exp(-0.3 * min(gap, CLIP)))
            expected += c.weight * (preference + 0.7 * nll)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert figures["margin"] == pytest.approx(sum(margins), abs=1e-3)
    assert figures["won"] == sum(gap > 0 for gap in margins)
    assert min(margins) < CLIP < max(margins)  # the clip was met


def test_how_a_step_is_cut_does_not_change_it(policy: Policy, tmp_path: Path) -> None:
    """One step over everything: the same adapter from few large groups and from many small."""
    contrasts = score_opponent(policy, some_contrasts(), SMALL)
    adapters = []
    for budget in (10_000, 16):
        config = replace(SMALL, epochs=1, groups_per_step=1000, max_tokens=budget, warmup=0)
        folder = train(policy, contrasts, config, 3, tmp_path / str(budget))
        row = json.loads((tmp_path / str(budget) / "train.jsonl").read_text())
        adapters.append((row, load_adapter(tiny_llama(), folder, trainable=False)))
    (row_a, a), (row_b, b) = adapters
    assert row_a["loss"] == pytest.approx(row_b["loss"], abs=1e-5)
    assert row_a["grad_norm"] == pytest.approx(row_b["grad_norm"], rel=1e-3)
    assert row_a["contrasts"] == row_b["contrasts"] == len(contrasts)
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-3, msg=name)


def test_opponent_log_probs_are_the_plain_model_s(policy: Policy) -> None:
    contrasts = some_contrasts()
    for packed in (True, False):
        for c in score_opponent(policy, contrasts, replace(SMALL, packed=packed)):
            for tail, logps in ((c.chosen, c.chosen_opp), (c.rejected, c.rejected_opp)):
                assert len(tail) == len(logps)
                if not tail:
                    continue
                start = len(c.prefix)
                with torch.no_grad():
                    (plain,) = plain_logps(
                        policy.model, [c.prefix + tail], [(start, start + len(tail))]
                    )
                torch.testing.assert_close(torch.tensor(logps), plain, atol=1e-4, rtol=0)


def test_player_and_opponent_are_even_at_the_first_step(policy: Policy, tmp_path: Path) -> None:
    contrasts = [c for c in score_opponent(policy, some_contrasts(), SMALL) if c.rejected]
    config = replace(SMALL, alpha=0.0, epochs=8, learning_rate=0.05)
    train(policy, contrasts, config, 0, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["margin"] > 0.5  # and it learns
    assert rows[-1]["won"] == 1.0


class Killed(Exception):
    pass


def killer(at: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(step: int, steps: int, row: dict[str, float]) -> None:
        if step == at:
            raise Killed

    return progress


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_interrupted_equals_uninterrupted(
    policy: Policy, tmp_path: Path, every: int, at: int
) -> None:
    config = replace(SMALL, checkpoint_steps=every, lora=LoraSettings(r=4, dropout=0.2))
    contrasts = score_opponent(policy, some_contrasts(), config)
    train(policy, contrasts, config, 7, tmp_path / "whole")
    with pytest.raises(Killed):
        train(policy, contrasts, config, 7, tmp_path / "cut", progress=killer(at))
    seen: list[int] = []
    train(
        policy,
        contrasts,
        config,
        7,
        tmp_path / "cut",
        progress=lambda step, steps, row: seen.append(step),
    )
    assert seen == list(range(at // every * every + 1, 7))  # it went on, not from the beginning
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_torn_log_is_made_again(policy: Policy, tmp_path: Path) -> None:
    """Killed while the log was being replaced: the new one never counts for less than the state."""
    contrasts = score_opponent(policy, some_contrasts(), SMALL)
    train(policy, contrasts, SMALL, 7, tmp_path / "whole")
    with pytest.raises(Killed):
        train(policy, contrasts, SMALL, 7, tmp_path / "cut", progress=killer(3))
    (tmp_path / "cut/train.jsonl.tmp").write_text('{"step": 1, "lo')
    (tmp_path / "cut/state/state.safetensors.part").write_bytes(b"torn")
    train(policy, contrasts, SMALL, 7, tmp_path / "cut")
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_a_finished_adapter_is_not_trained_again(policy: Policy, tmp_path: Path) -> None:
    folder = train(policy, some_scored(policy), SMALL, 7, tmp_path)
    before = files(tmp_path)
    assert train(policy, some_scored(policy), SMALL, 8, tmp_path, progress=killer(1)) == folder
    assert files(tmp_path) == before


def some_scored(policy: Policy) -> list[Contrast]:
    return score_opponent(policy, some_contrasts(), SMALL)


@pytest.mark.parametrize("fails", [False, True])
def test_the_base_is_as_it_was(policy: Policy, tmp_path: Path, fails: bool) -> None:
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    if fails:
        with pytest.raises(Killed):
            train(policy, some_scored(policy), SMALL, 7, tmp_path, progress=killer(2))
    else:
        train(policy, some_scored(policy), SMALL, 7, tmp_path)
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not policy.model.training


def test_training_goes_on_from_an_adapter(policy: Policy, tmp_path: Path) -> None:
    contrasts = some_scored(policy)
    first = train(policy, contrasts, SMALL, 1, tmp_path / "1")
    slow = replace(SMALL, learning_rate=1e-9)
    again = train(policy, contrasts, slow, 2, tmp_path / "2", start_from=first)
    fresh = train(policy, contrasts, slow, 2, tmp_path / "3")
    one, two, three = (
        load_adapter(tiny_llama(), f, trainable=False) for f in (first, again, fresh)
    )

    def tensors(model: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora" in n])

    torch.testing.assert_close(tensors(one), tensors(two), atol=1e-6, rtol=0)
    assert (tensors(one) - tensors(three)).abs().max() > 1e-3
    row = json.loads((tmp_path / "2/train.jsonl").read_text().splitlines()[0])
    assert row["margin"] != 0  # the opponent's log-probs were the base's


def test_weights_count_against_those_of_other_steps(policy: Policy, tmp_path: Path) -> None:
    scored = [c for c in score_opponent(policy, some_contrasts(tasks=3), SMALL) if c.rejected]
    config = replace(SMALL, groups_per_step=1, epochs=2, learning_rate=0.01)

    def trained(name: str, *weights: float) -> torch.Tensor:
        weighed = [replace(c, weight=weights[int(c.task[1:])]) for c in scored]
        adapter = train(policy, weighed, config, 0, tmp_path / name)
        found = load_file(adapter / "adapter_model.safetensors")
        return torch.cat([found[name].flatten() for name in sorted(found)])

    alike = trained("alike", 1.0, 1.0, 1.0)
    assert (trained("rated", 1.0, 0.05, 0.3) - alike).abs().max() > 1e-3
    assert torch.allclose(trained("more", 4.0, 4.0, 4.0), alike, atol=1e-6)


def test_steps_of_so_many_tokens(policy: Policy, tmp_path: Path) -> None:
    scored = score_opponent(policy, some_contrasts(tasks=9), SMALL)
    groups = make_groups(scored)
    most = max(group.learnt for group in groups)
    limit = 2 * most
    config = replace(SMALL, epochs=2, tokens_per_step=limit, groups_per_step=1)
    steps, ends = plan_steps(groups, config, 3)
    tokens = [sum(group.learnt for group in step) for step in steps]
    assert all(abs(one - limit) <= most / 2 for i, one in enumerate(tokens) if i + 1 not in ends)
    assert ends[-1] == len(steps)
    for start, end in zip([0, *ends], ends, strict=False):  # every epoch has every tree once
        met = [group.contrasts[0].task for step in steps[start:end] for group in step]
        assert sorted(met) == sorted(group.contrasts[0].task for group in groups)
    short, where = plan_steps(groups, replace(config, budget=sum(tokens) + 1), 3)
    assert (short[: len(steps)], len(short)) == (steps, len(steps) + 1)
    assert where == [*ends, len(short)]
    train(policy, scored, config, 3, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["learnt"] for row in rows] == tokens


def test_steps_come_as_near_to_so_many_tokens_as_trees_allow() -> None:
    rng = random.Random(5)
    sizes = [rng.choice((30, 60, 250, 700)) for _ in range(40)]
    groups = make_groups(
        [Contrast(f"t{i}", 0, (1,), (2,) * (n - 1), (), 1.0) for i, n in enumerate(sizes)]
    )
    assert [group.learnt for group in groups] == sizes
    steps, _ = plan_steps(groups, TrainConfig(epochs=1, tokens_per_step=400), 0)
    cut = [[group.learnt for group in step] for step in steps]
    assert len({len(step) for step in cut}) > 2
    for step, after in pairwise(cut):
        found = abs(sum(step) - 400)
        assert found <= abs(sum(step) + after[0] - 400)
        assert len(step) == 1 or found <= abs(sum(step[:-1]) - 400)


def test_seeds_matter(policy: Policy, tmp_path: Path) -> None:
    contrasts = some_scored(policy)
    a, b, c = (
        train(policy, contrasts, SMALL, s, tmp_path / n) for s, n in ((1, "a"), (1, "b"), (2, "c"))
    )
    weights = [(f / "adapter_model.safetensors").read_bytes() for f in (a, b, c)]
    assert weights[0] == weights[1] != weights[2]


def test_adapter_targets_are_written_in_order(policy: Policy, tmp_path: Path) -> None:
    """A set's order changes from process to process, and run folders are compared."""
    folder = train(policy, some_scored(policy), SMALL, 1, tmp_path)
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 5
    assert targets == sorted(targets)


def test_a_loss_that_is_no_number_ends_the_run(policy: Policy, tmp_path: Path) -> None:
    bad = [replace(c, chosen_opp=(math.nan,)) for c in some_contrasts(tasks=1)]
    with pytest.raises(RunError, match=r"not a number at step 1; lower train\.learning_rate"):
        train(policy, bad, SMALL, 0, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_logits_that_are_no_numbers_name_the_step_and_the_task(
    policy: Policy, tmp_path: Path
) -> None:
    """Attention carries them to the other trees of the bin, which are not to blame."""
    contrasts = some_scored(policy)
    odd = 256  # a token that only one tree has
    assert not any(odd in c.prefix + c.chosen + c.rejected for c in contrasts)
    contrasts = [
        replace(c, prefix=(odd, *c.prefix[1:])) if c.task == "t3" else c for c in contrasts
    ]
    config = replace(SMALL, groups_per_step=5, epochs=1)
    policy.model.get_input_embeddings().weight.data[odd] = math.nan
    with pytest.raises(RunError, match=r"the loss of task 't3' is not a number at step 1;"):
        train(policy, contrasts, config, 0, tmp_path)
    with pytest.raises(RunError, match=r"opponent's log-probs of task 't3' are not numbers"):
        score_opponent(policy, contrasts, config)


def test_a_gradient_that_is_no_number_is_not_applied(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss_of(
        model: Any, contrasts: Sequence[Contrast], config: TrainConfig, *rest: Any
    ) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = group_loss(model, contrasts, config)
        return loss + 0 * (loss - loss.detach()).sqrt(), figures  # 0 * an infinite slope

    monkeypatch.setattr("treeplay.train.group_loss", loss_of)
    with pytest.raises(RunError, match="the gradient is not a number at step 1; lower"):
        train(policy, some_scored(policy), SMALL, 0, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_nothing_to_train_on_is_said(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there are no contrasts to train on"):
        train(policy, [], SMALL, 0, tmp_path)


def test_wrong_adapter_targets_are_named(policy: Policy, tmp_path: Path) -> None:
    config = replace(SMALL, lora=LoraSettings(targets=("no_such_module",)))
    with pytest.raises(ModelError, match=r"no_such_module.*train\.lora\.targets"):
        train(policy, some_scored(policy), config, 0, tmp_path)


def test_a_model_that_cannot_be_packed_is_trained_plainly(policy: Policy, tmp_path: Path) -> None:
    contrasts = some_scored(policy)
    rows = []
    for window in (None, 1000):  # wider than any sequence: the same model, but it is not packed
        policy.model.config.sliding_window = window
        said: list[str] = []
        assert packed_where_right(policy.model, SMALL, said.append).packed is (window is None)
        assert len(said) == (window is not None)
        assert all("much slower" in text and "sliding window" in text for text in said)
        train(policy, contrasts, SMALL, 0, tmp_path / str(window))
        log = (tmp_path / str(window) / "train.jsonl").read_text()
        rows.append([json.loads(line) for line in log.splitlines()])
    for packed, plain in zip(*rows, strict=True):
        assert packed["loss"] == pytest.approx(plain["loss"], abs=1e-4)
        assert packed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2)


def test_a_full_disk_is_one_sentence(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("treeplay.train_state.save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.*free some space, then resume"):
        train(policy, some_scored(policy), SMALL, 0, tmp_path)
