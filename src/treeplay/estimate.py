"""What a run will cost, before it starts: tokens, seconds, memory.

Trees are planted for real, so nodes from the data are counted exactly, and the model's speed is
measured here and now. What cannot be known yet is taken at its upper bound: how early answers end,
how many nodes the opponent or a language model will show (source ``probe`` and ``llm``), how long
golden paths of the opponent's own will be. How many answers fit into a budget of sampled tokens
(method ``grpo``) is worked out from the longest ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from treeplay.contrasts import NEEDS_VULNERABLE
from treeplay.grow import plant
from treeplay.grpo import Course
from treeplay.nodes import LEARNT
from treeplay.ordinary.anchors import ASKED, ordinary_anchors
from treeplay.play import Game
from treeplay.play_grow import UNJUDGED, WITHOUT_BRANCHES
from treeplay.policy.model import encode_path
from treeplay.policy.sample import Request, Row, SampleConfig, Sampler, sample
from treeplay.tasks.task import Task

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


@dataclass(frozen=True)
class _Training:
    """What the rounds take before the evaluation. ``sampled`` tokens, ``judged`` programs, and
    ``learnt`` tokens through forward and backward."""

    nodes: int
    sampled: int
    judged: int
    learnt: int


def estimate(game: Game) -> Estimate:
    """Plant the trees of ``game``, time a short batch of sampling, and add everything up."""
    config = game.config
    players = config.rounds + 1
    suite_tasks = samples = eval_tokens = 0
    for suite in game.suites:
        answers = len(suite.tasks) * (suite.samples or config.eval.samples) * players
        suite_tasks += len(suite.tasks)
        samples += answers
        eval_tokens += answers * (suite.max_tokens or config.eval.max_tokens)
    training = _rewards(game) if config.method == "grpo" else _contrasts(game)
    held = _held_out(game, training.learnt)
    samples += held
    eval_tokens += held * config.eval.max_tokens
    judged = samples + training.judged

    speed = _speed(game, partial(sample, game.policy.model))
    sampling = _speed(game, game.policy.sampler) if game.policy.sampler else speed
    size = sum(p.numel() * p.element_size() for p in game.policy.model.parameters()) / 1e6
    width = getattr(game.policy.model.config, "hidden_size", 1024)
    layers = getattr(game.policy.model.config, "num_hidden_layers", 24)
    # Activations kept for the backward pass: about 34 values a token, layer and hidden unit.
    activations = 34 * 4 * min(config.train.max_tokens, 1024) * layers * width / 1e6
    # The player of grpo changes at every step, so it samples here.
    grown = speed if config.method == "grpo" else sampling
    seconds = (
        training.sampled / grown
        + eval_tokens / sampling
        + training.learnt * 3 / (4 * speed)  # backward doubles the work, packing saves dispatch
        + judged / JUDGED_PER_SECOND
    )
    return Estimate(
        len(game.tasks),
        suite_tasks,
        training.nodes,
        training.sampled,
        judged,
        training.learnt,
        eval_tokens,
        sampling,
        seconds,
        size + activations + 700,
    )


def _contrasts(game: Game) -> _Training:
    """Golden paths, probing, branches, and learning from contrasts or (sven) from pairs."""
    config = game.config
    own = config.golden.source != "reference"
    paths = [_paths(game, task, own) for task in game.tasks]
    with_branches = config.method not in WITHOUT_BRANCHES
    nodes = 0
    if with_branches:
        later = own or any(source in LEARNT for source in config.nodes.sources)
        nodes = len(paths) * config.nodes.per_task if later else _nodes(game)
    branches = nodes * config.grow.branches * config.grow.depth
    probe = config.nodes.probe
    probing = with_branches and "probe" in config.nodes.sources
    rollouts = len(paths) * probe.states * probe.rollouts if probing else 0
    golden = config.golden
    answers = len(paths) * golden.samples if own else 0
    if golden.source == "repair":
        answers += len(paths) * golden.attempts * golden.mends
    longest = config.grow.max_tokens
    grown = branches * longest
    if config.grow.budget:  # of which one wave is sampled in any case
        wave = nodes * min(config.grow.wave, config.grow.branches) * longest
        grown = min(grown, max(config.grow.budget, wave))
    sampled = grown + rollouts * longest + answers * golden.max_tokens
    judged = answers + rollouts + (0 if config.method in UNJUDGED else branches)

    once = sum(map(sum, paths)) + grown
    if config.contrasts.ordinary and config.method != "sven":
        seed, spoken = config.seed * 1000 + 1, config.tasks.languages
        written = replace(config.contrasts, ordinary_text="written")
        texts = ordinary_anchors(game.policy, written, seed, spoken).anchors
        if config.contrasts.ordinary_text == "own":  # a prompt is no longer than its whole text
            sampled += len(texts) * ASKED.max_tokens
            once += len(texts) * ASKED.max_tokens
        once += sum(len(one.prefix) + len(one.chosen) for one in texts)
    if config.rounds > 1:  # pairs of rounds before
        once = round(once / (1 - config.play.replay))
    learnt = config.train.budget or once * config.train.epochs
    if config.method == "sven":  # a gradient token counts for each of two prefixes
        learnt = (config.train.budget // 2 or once * config.train.epochs) * 3
    learnt *= max(1, len(config.train.rates))
    rounds = config.rounds
    return _Training(nodes, sampled * rounds, judged * rounds, learnt * rounds)


def _paths(game: Game, task: Task, own: bool) -> list[int]:
    """Tokens of the sequences that one task gives beside its branches."""
    config, policy = game.config, game.policy
    if own:  # a golden path and the samples of the trie
        prompt = len(encode_path(policy, task).ids)
        return [prompt, (1 + config.golden.samples) * config.golden.max_tokens]
    golden = len(encode_path(policy, task, task.golden or "").ids)
    if config.method not in NEEDS_VULNERABLE or task.vulnerable is None:
        return [golden]
    return [golden, len(encode_path(policy, task, task.vulnerable).ids)]


def _nodes(game: Game) -> int:
    room = game.config.grow.max_tokens
    trees = (plant(game.policy, task, game.config.nodes, room) for task in game.tasks)
    return sum(len(tree.nodes) for tree in trees)


def _rewards(game: Game) -> _Training:
    """The answers of grpo. With a budget of tokens their number depends on their length; they are
    taken at their longest."""
    config = game.config
    longest = config.grpo.max_tokens
    prompts = [len(encode_path(game.policy, task).ids) for task in game.tasks]
    prompt = max(prompts, default=0)
    course = Course(config.grpo, config.train, len(game.tasks), prompt)
    steps = course.steps
    if course.spent:  # the last step is finished
        steps = min(-(-limit // most) for _, limit, most in course.spent)
    answers = steps * course.answers
    learnt = answers * (prompt + longest)
    rounds = config.rounds
    return _Training(0, answers * longest * rounds, answers * rounds, learnt * rounds)


def _held_out(game: Game, learnt: int) -> int:
    """Answers to held-out tasks: of the base model, and of every snapshot of every round."""
    if game.held is None:
        return 0
    train, rounds = game.config.train, game.config.rounds
    tries = max(1, len(train.rates)) * rounds
    golden = sum(len(encode_path(game.policy, t, t.golden or "").ids) for t in game.tasks)
    # With a budget, epochs are as many as it lasts for: at most so many of golden answers alone.
    epochs = -(-learnt // (tries * max(1, golden))) if train.budget else train.epochs
    return len(game.held.tasks) * train.keep_samples * (1 + tries * epochs)


def _speed(game: Game, draw: Sampler) -> float:
    """Tokens a second of a full batch of rows over a short trunk."""
    trunk = tuple(game.policy.tokenizer("def f(x):\n    return x\n" * 8)["input_ids"])
    rows = tuple(Row(len(trunk), seed) for seed in range(8))
    batch = [Request(trunk, rows)] * max(1, game.config.eval.rows_at_once // 8)
    start = time.monotonic()
    draw(batch, SampleConfig(max_tokens=4), frozenset())
    return 4 * 8 * len(batch) / (time.monotonic() - start)
