"""Bins: every contrast once, within the budget; the arrangement changes nothing but rounding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import byte_tokenizer, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay.contrast import Contrast
from treeplay.errors import RunError
from treeplay.groups import (
    Budget,
    Group,
    arrange,
    check_contrasts,
    each_bin,
    make_groups,
    out_of_memory,
    size_of,
    split,
)
from treeplay.lora import LoraSettings, Weights, with_adapter
from treeplay.opponent import score_opponent
from treeplay.policy.model import Policy
from treeplay.train import TrainConfig, contrast_logps, group_loss, step_gradient

CONFIG = TrainConfig(alpha=0.3, beta=0.2, lora=LoraSettings(r=4))


def trees(seed: int, tasks: int, nodes: int = 4, each: int = 2) -> list[Contrast]:
    """Nodes of a task lie on one path; all tasks begin alike; an anchor at the front of each."""
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 257) for _ in range(count))

    out = []
    head = ids(3)
    for t in range(tasks):
        path = head + ids(rng.randrange(3 * nodes, 8 * nodes))
        out.append(Contrast(f"t{t}", -1, path[:4], path[4:], (), 0.5))
        for n in range(nodes):
            prefix = path[: 4 + 3 * n]
            for _ in range(each):
                golden = path[len(prefix) : len(prefix) + 5]
                out.append(Contrast(f"t{t}", n, prefix, golden, ids(rng.randrange(1, 9)), 1.0))
    return out


def distinct(contrasts: Sequence[Contrast]) -> int:
    paths = [c.prefix + tail for c in contrasts for tail in (c.chosen, c.rejected)]
    return len({path[: i + 1] for path in paths for i in range(len(path))})


def test_size_counts_distinct_prefixes_or_all() -> None:
    contrasts = trees(0, 3)
    assert size_of(contrasts, True) == distinct(contrasts)
    flat = sum(len(c.prefix + tail) for c in contrasts for tail in (c.chosen, c.rejected))
    assert size_of(contrasts, False) == flat == Group(tuple(contrasts), 0).tokens


def key(contrast: Contrast) -> str:
    return repr(contrast)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tasks=st.integers(1, 5),
    budget=st.integers(1, 300),
    packed=st.booleans(),
)
def test_bins_hold_every_contrast_once_within_the_budget(
    seed: int, tasks: int, budget: int, packed: bool
) -> None:
    contrasts = trees(seed, tasks)
    groups = make_groups(contrasts, packed)
    assert [len({c.task for c in g.contrasts}) for g in groups] == [1] * tasks
    bins = arrange(groups, budget, packed)
    assert sorted((c for b in bins for c in b.contrasts), key=key) == sorted(contrasts, key=key)
    for one in bins:
        assert size_of(one.contrasts, packed) <= one.size
        assert one.size <= budget or len(one.contrasts) == 1


def test_small_trees_share_a_bin_and_no_two_bins_would_fit_into_one() -> None:
    groups = make_groups(trees(1, 12))
    sizes = sorted(group.size for group in groups)
    bins = arrange(groups, 2 * sizes[-1])
    assert 1 < len(bins) < len(groups)
    used = sorted(one.size for one in bins)
    assert used[0] + used[1] > 2 * sizes[-1]
    assert [len(b.contrasts) for b in arrange(groups, 10**6)] == [len(trees(1, 12))]
    assert len(arrange(groups, sizes[-1])) <= len(groups)


def test_a_tree_is_cut_between_nodes() -> None:
    (group,) = make_groups(trees(2, 1, nodes=6, each=3))
    node = max(size_of([c for c in group.contrasts if c.node == n], True) for n in range(-1, 6))
    parts = split(group, node + 10)
    assert len(parts) > 1
    held = [sorted({c.node for c in part.contrasts}) for part in parts]
    assert sorted(n for nodes in held for n in nodes) == list(range(-1, 6))  # none in two parts
    for part in parts:
        assert part.size == distinct(part.contrasts) <= node + 10
    # Below the size of one node, its own contrasts part company.
    small = split(group, node - 1)
    assert any(
        {c.node for c in a.contrasts} & {c.node for c in b.contrasts} for a, b in pairwise(small)
    )


def test_a_contrast_above_the_budget_has_a_bin_of_its_own() -> None:
    long = Contrast("long", 0, tuple(range(1, 50)), (1, 2), (3,), 1.0)
    bins = arrange(make_groups([*trees(3, 2), long]), 20)
    (alone,) = [b for b in bins if long in b.contrasts]
    assert alone == Group((long,), 52)


# The gradient ---------------------------------------------------------------------------------


def policy_of(model: Any) -> Policy:
    return Policy(model, byte_tokenizer(), "complete", "tiny")


def adapted(config: TrainConfig = CONFIG, **changes: Any) -> Any:
    model = with_adapter(tiny_llama(**changes), config.lora, None)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half the gradient
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def gradient(
    model: Any, groups: Sequence[Group], config: TrainConfig, tokens: int
) -> tuple[torch.Tensor, dict[str, Any], Budget]:
    weights = Weights(model, config.lora)
    budget = Budget(tokens)
    row = step_gradient(model, weights, groups, config, budget, Accelerator(cpu=True))
    parts = []
    for parameter in weights.masters.values():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(grad.flatten())
    return torch.cat(parts), row, budget


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert other.norm() > 1e-3
    assert (one - other).norm() / other.norm() < 1e-5


@pytest.fixture(scope="module")
def scored() -> list[Contrast]:
    return score_opponent(policy_of(tiny_llama()), trees(4, 5), CONFIG)


@pytest.mark.parametrize("packed", [True, False])
def test_the_arrangement_does_not_change_a_step(scored: list[Contrast], packed: bool) -> None:
    config = replace(CONFIG, packed=packed)
    model = adapted()
    groups = make_groups(scored, packed)
    by_hand, _ = group_loss(model, scored, replace(CONFIG, packed=False))
    (by_hand / len(scored)).backward()  # type: ignore[no-untyped-call]
    loss = by_hand.item() / len(scored)
    flat = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    oracle = torch.cat(flat)
    model.zero_grad()
    counts = []
    # Everything in one bin, about one tree a bin, and every contrast apart.
    for tokens in (10**6, max(group.size for group in groups), 1):
        counts.append(len(arrange(groups, tokens, packed)))
        grad, row, _ = gradient(model, groups, config, tokens)
        same(grad, oracle)
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        assert row["contrasts"] == len(scored)
        assert row["tokens"] == size_of(scored, False)
    assert counts[0] == 1 < counts[1] <= 5 < counts[2] == len(scored)


def test_odd_contrasts_train_as_the_formula_says() -> None:
    """A chosen or rejected side that is empty, one that equals the other or begins with it."""
    prefix, golden = (5, 6, 7), (8, 9, 10)
    odd = [
        Contrast("empty rejected", 0, prefix, golden, (), 1.0),
        Contrast("empty chosen", 0, prefix, (), (11, 12), 1.0),  # a node at the end of the path
        Contrast("equal", 0, prefix, golden, golden, 1.0),
        Contrast("begins with it", 0, prefix, golden, golden[:2], 1.0),
        Contrast("one token before", 0, (5,), golden, (3,), 1.0),
        Contrast("nothing", 0, prefix, (), (), 1.0),
    ]
    odd = score_opponent(policy_of(tiny_llama()), odd, CONFIG)
    model = adapted()
    packed, _, _ = gradient(model, make_groups(odd), CONFIG, 10**6)
    plain, _, _ = gradient(model, make_groups(odd), replace(CONFIG, packed=False), 1)
    same(packed, plain)
    # Equal sides prefer nothing: what is left is the likelihood.
    equal, _, _ = gradient(model, make_groups(odd[2:3]), CONFIG, 10**6)
    nll = [replace(odd[2], rejected=(), rejected_opp=(), weight=CONFIG.alpha)]
    likelihood, _, _ = gradient(model, make_groups(nll), CONFIG, 10**6)
    same(equal, likelihood)
    nothing, row, _ = gradient(model, make_groups(odd[5:]), CONFIG, 10**6)
    assert row["loss"] == 0
    assert not nothing.any()


# Memory ---------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, limit: int, error: BaseException) -> list[int]:
    """A model whose backward pass runs out of memory above ``limit`` tokens, after it has left
    some gradients; the list gets the sizes that were tried."""
    tried: list[int] = []
    true_loss = group_loss

    def loss_of(model: Any, contrasts: Sequence[Contrast], config: TrainConfig, *rest: Any) -> Any:
        size = size_of(contrasts, True)
        tried.append(size)
        loss, figures = true_loss(model, contrasts, config)
        if size > limit:
            left = next(p for p in model.parameters() if p.requires_grad)
            left.grad = torch.ones_like(left)
            raise error
        return loss, figures

    monkeypatch.setattr("treeplay.train.group_loss", loss_of)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_out_of_memory_halves_the_bin_and_keeps_the_gradient(
    scored: list[Contrast], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    model, groups = adapted(), make_groups(scored)
    whole, row, _ = gradient(model, groups, CONFIG, 10**6)
    tried = failing(monkeypatch, 90, error)
    halved, row_halved, budget = gradient(model, groups, CONFIG, 10**6)
    same(halved, whole)
    assert row_halved["loss"] == pytest.approx(row["loss"], abs=1e-5)
    assert row_halved["contrasts"] == row["contrasts"]
    assert tried[0] == size_of(scored, True) > 90
    assert budget.tokens <= 90  # and later steps begin there
    tried.clear()
    same(gradient(model, groups, CONFIG, budget.tokens)[0], whole)
    assert max(tried) <= 90


def test_a_contrast_that_does_not_fit_is_named(
    scored: list[Contrast], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0, MemoryError())
    with pytest.raises(RunError, match=r"'t\d' has a contrast of \d+ tokens.*checkpointing=true"):
        gradient(adapted(), make_groups(scored), CONFIG, 10**6)


def test_the_opponent_is_scored_in_halves_too(
    scored: list[Contrast], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def logps(model: Any, contrasts: Sequence[Contrast], packed: bool) -> Any:
        sizes.append(size_of(contrasts, packed))
        if sizes[-1] > 60:
            raise MemoryError
        return contrast_logps(model, contrasts, packed)

    monkeypatch.setattr("treeplay.opponent.contrast_logps", logps)
    again = score_opponent(policy_of(tiny_llama()), trees(4, 5), CONFIG)
    assert max(sizes) > 60
    for one, other in zip(again, scored, strict=True):
        assert one.chosen_opp == pytest.approx(other.chosen_opp, abs=1e-5)
        assert one.rejected_opp == pytest.approx(other.rejected_opp, abs=1e-5)


def test_trees_that_are_nearly_the_same_can_be_halved_too() -> None:
    """Their sizes add up to much more than what they have together."""
    twins = [replace(c, task=f"copy {n}") for n in range(4) for c in trees(5, 1)]
    seen: list[Contrast] = []

    def work(group: Group) -> None:
        if len(group.contrasts) > 3:
            raise MemoryError
        seen.extend(group.contrasts)

    assert len(list(each_bin(make_groups(twins), Budget(10**6), True, work))) >= len(twins) / 3
    assert sorted(seen, key=key) == sorted(twins, key=key)


def test_other_errors_are_not_taken_for_memory(scored: list[Contrast]) -> None:
    def work(group: Group) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(each_bin(make_groups(scored), Budget(50), True, work))
    assert not out_of_memory(ValueError("out of memory"))


# What a model cannot read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        (
            Contrast("t", 3, tuple([1] * 1020), (2, 3), (4, 5, 6, 7, 8), 1.0),
            r"task 't', node 3: a contrast has 1025 tokens, but the model reads 1024; shorten",
        ),
        (
            Contrast("t", 0, (), (2, 3), (4,), 1.0),
            r"task 't', node 0: a node at position 0 has no token before it.*prompt with some text",
        ),
        (
            Contrast("t", 0, (1,), (2, 3), (300,), 1.0),
            r"token id 300, but the model knows ids below 257.*another model's tokenizer",
        ),
    ],
)
def test_contrasts_that_a_model_cannot_read_are_refused(contrast: Contrast, message: str) -> None:
    policy = policy_of(tiny_llama())
    with pytest.raises(RunError, match=message):
        check_contrasts(policy, [contrast])
    with pytest.raises(RunError, match=message):
        score_opponent(policy, [contrast], CONFIG)
