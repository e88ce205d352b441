"""What a run will cost, before it starts: tokens, seconds, memory.

Trees are planted for real, so nodes from the data are counted exactly, and the model's speed is
measured here and now. What cannot be known yet is taken at its upper bound: how early answers end,
how many nodes the opponent or a language model will show (source ``probe`` and ``llm``), how long
golden paths of the opponent's own will be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from treeplay.grow import plant
from treeplay.nodes import LEARNT
from treeplay.play import Game
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.policy.sample import Request, Row, SampleConfig, Sampler, sample

JUDGED_PER_SECOND = 8.0  # programs, two workers, between C (4) and Python (19)


@dataclass(frozen=True)
class Estimate:
    """Upper bounds. ``train_tokens`` are unique (packed) tokens through forward and backward."""

    train_tasks: int
    eval_tasks: int
    nodes: int
    grow_tokens: int
    judged: int
    train_tokens: int
    eval_tokens: int
    tokens_per_second: float
    seconds: float
    memory_mb: float

    def lines(self) -> list[str]:
        return [
            f"training tasks     {self.train_tasks}, evaluation tasks {self.eval_tasks}",
            f"risk nodes         {self.nodes} a round",
            f"tokens to grow     at most {self.grow_tokens:,}",
            f"tokens to train    at most {self.train_tokens:,} (forward and backward)",
            f"tokens to evaluate at most {self.eval_tokens:,}",
            f"programs to judge  at most {self.judged:,}",
            f"sampling speed     {self.tokens_per_second:,.0f} tokens/s (measured now)",
            f"time               at most about {self.seconds / 60:.0f} minutes",
            f"memory             about {self.memory_mb / 1000:.1f} GB",
        ]


def estimate(game: Game) -> Estimate:
    """Plant the trees of ``game``, time a short batch of sampling, and add everything up."""
    config = game.config
    room = config.grow.max_tokens
    trees = [plant(game.policy, task, config.nodes, room) for task in game.tasks]
    own = len(trees) if config.golden.source != "reference" else 0
    later = bool(own) or any(source in LEARNT for source in config.nodes.sources)
    nodes = len(trees) * config.nodes.per_task if later else sum(len(t.nodes) for t in trees)
    suite_tasks = sum(len(suite.tasks) for suite in game.suites)
    with_branches = config.method not in WITHOUT_BRANCHES
    branches = nodes * config.grow.branches * config.grow.depth if with_branches else 0
    probe = config.nodes.probe
    probing = with_branches and "probe" in config.nodes.sources
    rollouts = len(trees) * probe.states * probe.rollouts if probing else 0
    grow_tokens = (branches + rollouts) * config.grow.max_tokens * config.rounds
    golden = config.golden
    answers = own * golden.samples
    if own and golden.source == "repair":
        answers += own * golden.attempts * golden.mends
    grow_tokens += answers * golden.max_tokens * config.rounds
    paths = sum(len(tree.prompt_ids) + len(tree.golden_ids) for tree in trees)
    paths += own * (1 + golden.samples) * golden.max_tokens  # golden paths, and the trie
    once = paths + branches * config.grow.max_tokens
    train_tokens = (config.train.budget or once * config.train.epochs) * config.rounds
    samples = suite_tasks * config.eval.samples * (config.rounds + 1)
    eval_tokens = samples * config.eval.max_tokens
    sampled = answers + rollouts
    sampled += 0 if config.method in UNJUDGED else branches
    judged = samples + sampled * config.rounds

    speed = _speed(game, partial(sample, game.policy.model))
    sampling = _speed(game, game.policy.sampler) if game.policy.sampler else speed
    size = sum(p.numel() * p.element_size() for p in game.policy.model.parameters()) / 1e6
    width = getattr(game.policy.model.config, "hidden_size", 1024)
    layers = getattr(game.policy.model.config, "num_hidden_layers", 24)
    # Activations kept for the backward pass: about 34 values a token, layer and hidden unit.
    activations = 34 * 4 * min(config.train.max_tokens, 1024) * layers * width / 1e6
    seconds = (
        (grow_tokens + eval_tokens) / sampling
        + train_tokens * 3 / (4 * speed)  # backward doubles the work, packing saves dispatch
        + judged / JUDGED_PER_SECOND
    )
    return Estimate(
        len(trees),
        suite_tasks,
        nodes,
        grow_tokens,
        judged,
        train_tokens,
        eval_tokens,
        sampling,
        seconds,
        size + activations + 700,
    )


def _speed(game: Game, draw: Sampler) -> float:
    """Tokens a second of a full batch of rows over a short trunk."""
    trunk = tuple(game.policy.tokenizer("def f(x):\n    return x\n" * 8)["input_ids"])
    rows = tuple(Row(len(trunk), seed) for seed in range(8))
    batch = [Request(trunk, rows)] * max(1, game.config.eval.rows_at_once // 8)
    start = time.monotonic()
    draw(batch, SampleConfig(max_tokens=4), frozenset())
    return 4 * 8 * len(batch) / (time.monotonic() - start)
