"""Values that make no sense, alone or together: refused before anything is loaded or run.

What a setting can be by its type is checked where the configuration is read
(:mod:`treeplay.config`); here are its range, and the settings that need or exclude one another.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from treeplay.contrasts import METHODS, tsp
from treeplay.errors import ConfigError
from treeplay.selfplay import check_play

if TYPE_CHECKING:
    from treeplay.config import Config

AT_LEAST = {
    "rounds": 1,
    "play.newest": 0,
    "play.stop_below": 0,
    "play.patience": 0,
    "golden.samples": 1,
    "golden.attempts": 1,
    "golden.mends": 1,
    "golden.max_tokens": 1,
    "golden.rows_at_once": 1,
    "golden.temperature": 0,
    "nodes.per_task": 1,
    "nodes.probe.rollouts": 1,
    "nodes.probe.states": 1,
    "nodes.probe.spans": 1,
    "grow.branches": 1,
    "grow.depth": 1,
    "grow.max_tokens": 1,
    "grow.rows_at_once": 1,
    "grow.adaptive": 0,
    "grow.wave": 1,
    "grow.budget": 0,
    "grow.keep_mb": 0,
    "grow.temperature": 0,
    "judge.workers": 1,
    "contrasts.value_prior": 0,
    "contrasts.broken": 0,
    "contrasts.anchor": 0,
    "contrasts.ordinary": 0,
    "contrasts.ordinary_weight": 0,
    "train.epochs": 1,
    "train.groups_per_step": 1,
    "train.tokens_per_step": 0,
    "train.max_tokens": 16,
    "train.checkpoint_steps": 1,
    "train.keep_samples": 1,
    "train.max_drop": 0,
    "train.warmup": 0,
    "train.alpha": 0,
    "train.clip": 0,
    "train.bound": 0,
    "train.budget": 0,
    "train.gamma": 0,
    "train.kl": 0,
    "train.lora.r": 1,
    "train.lora.dropout": 0,
    "sven.tokens": 1,
    "sven.contrast": 0,
    "sven.kl": 0,
    "sven.dropout": 0,
    "sven.weight_decay": 0,
    "grpo.generations": 2,
    "grpo.max_tokens": 1,
    "grpo.rows_at_once": 1,
    "grpo.budget": 0,
    "grpo.beta": 0,
    "eval.samples": 1,
    "eval.max_tokens": 1,
    "eval.rows_at_once": 1,
    "eval.temperature": 0,
    "tasks.limit": 0,
    "tasks.hold_out": 0,
    "model.threads": 0,
}
ABOVE_0 = ("train.learning_rate", "train.beta", "train.max_grad_norm", "grpo.temperature")
BELOW_1 = ("train.warmup", "tasks.hold_out", "train.lora.dropout", "sven.dropout")
SHARES = (  # above 0 and at most 1
    "golden.top_p",
    "grow.top_p",
    "grpo.top_p",
    "eval.top_p",
    "tasks.share",
    "tasks.floor",
    "nodes.probe.drop",
    "judge.threshold",
    "judge.silence",
)


def check_values(config: Config) -> None:
    """Raise :class:`ConfigError`, naming the key and what to set, for the first thing wrong."""
    _check_branches(config)
    if config.method == "sven":
        _check_sven(config)
    check_play(config.play, config.method, config.tasks.pick == "hard")
    _check_ranges(config)
    if config.method == "grpo" and config.train.lora.dtype != "float32":
        raise ConfigError(
            f"train.lora.dtype is {config.train.lora.dtype}, but method grpo trains the adapter "
            "in float32; set train.lora.dtype=float32"
        )
    _check_choice(config)


def _check_branches(config: Config) -> None:
    """What branches must be like for what is made of them."""
    if config.contrasts.extent == "full" and config.grow.completion == "graft":
        raise ConfigError(
            "contrasts.extent is full, but grow.completion is graft, whose branches are one "
            "statement long; set grow.completion=model or contrasts.extent=local"
        )
    model = config.grow.completion == "model"
    if config.contrasts.broken and config.contrasts.extent == "local" and model:
        raise ConfigError(
            f"contrasts.broken is {config.contrasts.broken}, but of a branch that the model wrote "
            "on nobody knows which statement broke it; set grow.completion=graft or "
            "contrasts.extent=full"
        )
    if config.contrasts.broken and METHODS.get(config.method) is not tsp:
        raise ConfigError(
            f"contrasts.broken is {config.contrasts.broken}, but method {config.method} does not "
            "learn from judged branches; set contrasts.broken=0"
        )
    if config.contrasts.ordinary_text == "own" and not config.contrasts.ordinary:
        raise ConfigError(
            "contrasts.ordinary_text is own, but contrasts.ordinary is 0, so nobody is asked; set "
            "contrasts.ordinary=24, say, or contrasts.ordinary_text=written"
        )
    grafted = config.grow.completion == "graft" and config.golden.source == "reference"
    if config.grow.depth > 1 and grafted:
        raise ConfigError(
            f"grow.depth is {config.grow.depth}, but grow.completion is graft, whose branches are "
            "one statement long and cannot go wrong later; set grow.completion=model or "
            "grow.depth=1"
        )
    if config.grow.depth > 1 and config.grow.budget:
        raise ConfigError(
            f"grow.budget is {config.grow.budget} and grow.depth {config.grow.depth}, but a budget "
            "is of one level; set grow.budget=0 or grow.depth=1"
        )
    if config.grow.completion == "graft" and config.method in ("tsp-paper", "spin"):
        raise ConfigError(
            f"grow.completion is graft, but method {config.method} rejects whole answers of the "
            "opponent's; set grow.completion=model and contrasts.extent=full"
        )
    if config.grow.adaptive and config.method in ("tsp-paper", "spin"):
        raise ConfigError(
            f"grow.adaptive is {config.grow.adaptive}, but method {config.method} asks no judge of "
            "its branches; set grow.adaptive=0"
        )
    if "probe" in config.nodes.sources and config.method in ("tsp-paper", "spin"):
        raise ConfigError(
            f"nodes.sources has probe, but method {config.method} asks no judge of the opponent's "
            "rollouts; take probe out of nodes.sources"
        )


def unread(config: Config) -> list[str]:
    """A sentence for every setting that is there to change something, and that the method does not
    read: a recipe that another method was put into, say."""
    method, contrasts, train = config.method, config.contrasts, config.train
    judged, trained_otherwise = METHODS.get(method) is tsp, method not in METHODS
    pairs = method != "sft" and not trained_otherwise
    # Methods on given pairs draw the same ones every round, which are learnt once as it is.
    alike = method in ("dpo", "safecoder") and config.golden.source == "reference"
    found = {
        f"contrasts.anchor={contrasts.anchor:g}": bool(contrasts.anchor) and trained_otherwise,
        f"contrasts.ordinary={contrasts.ordinary}": bool(contrasts.ordinary) and trained_otherwise,
        f"contrasts.weights={contrasts.weights}": contrasts.weights != "uniform" and not judged,
        f"grow.depth={config.grow.depth}": config.grow.depth > 1 and not judged,
        f"train.tokens_per_step={train.tokens_per_step}": bool(train.tokens_per_step)
        and trained_otherwise,
        f"train.clip={train.clip:g}": bool(train.clip) and not pairs,
        f"train.bound={train.bound:g}": bool(train.bound) and not pairs,
        f"play.replay={config.play.replay:g}": bool(config.play.replay)
        and (method == "sft" or alike),
    }
    told = [f"{key} does nothing in method {method}" for key, so in found.items() if so]
    if train.bound and pairs and train.loss == "safecoder":
        told.append(f"train.bound={train.bound:g} does nothing in loss safecoder")
    if config.tasks.pick == "all":
        usual = type(config.tasks)()
        for key in ("share", "floor"):
            if (value := getattr(config.tasks, key)) != getattr(usual, key):
                told.append(f"tasks.{key}={value:g} does nothing without tasks.pick=hard")
    if contrasts.given and (not judged or config.golden.source != "reference"):
        where = f"method {method}" if not judged else f"golden.source={config.golden.source}"
        told.append(f"contrasts.given=true does nothing with {where}")
    return told


def _check_sven(config: Config) -> None:
    """What a trained prefix cannot do."""
    if config.model.server.base_url:
        raise ConfigError(
            "method sven trains a prefix, and servers load LoRA adapters alone; leave "
            "model.server.base_url empty"
        )
    if config.golden.source != "reference":
        raise ConfigError(
            f"golden.source is {config.golden.source}, but method sven learns from given pairs of "
            "answers; set golden.source=reference"
        )
    if config.train.checkpointing:
        raise ConfigError(
            "train.checkpointing is true, but method sven needs the cache that a prefix stands in; "
            "set train.checkpointing=false"
        )


def _check_choice(config: Config) -> None:
    """What is chosen by held-out tasks needs some, and a method that keeps what to choose from."""
    chooses = config.train.keep == "best" or config.train.max_drop or config.train.rates
    if chooses and not config.tasks.hold_out:
        raise ConfigError(
            "train.keep=best, train.max_drop and train.rates choose by held-out tasks; set "
            "tasks.hold_out, to 0.1 say"
        )
    if config.method in ("grpo", "sven") and (chooses or config.tasks.hold_out):
        raise ConfigError(
            f"method {config.method} keeps no snapshots to choose from; set tasks.hold_out=0, "
            "train.keep=last, train.max_drop=0 and train.rates=[]"
        )


def _check_ranges(config: Config) -> None:
    # "not" in front of each comparison, so that a NaN is refused too
    for key, lowest in AT_LEAST.items():
        if not _value(config, key) >= lowest:
            raise ConfigError(f"{key} is {_value(config, key)}; it must be at least {lowest}")
    for key in ABOVE_0:
        if not _value(config, key) > 0:
            raise ConfigError(f"{key} is {_value(config, key)}; it must be above 0")
    for key in BELOW_1:
        if not _value(config, key) < 1:
            raise ConfigError(f"{key} is {_value(config, key)}; it must be below 1")
    for key in SHARES:
        if not 0 < _value(config, key) <= 1:
            raise ConfigError(f"{key} is {_value(config, key)}; it must be above 0 and at most 1")
    for name, reward in asdict(config.grpo.rewards).items():
        if not reward < 1:
            raise ConfigError(
                f"grpo.rewards.{name} is {reward}; it must be below 1, what a secure answer is "
                "worth"
            )
    rates = config.train.rates
    if not all(rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(f"train.rates is {list(rates)}; its numbers must be above 0 and differ")
    layers = config.train.lora.layers
    if layers != 0 and (layers < 0 if isinstance(layers, int) else not layers or min(layers) < 0):
        raise ConfigError(
            f"train.lora.layers is {layers}; it must be 0 (all layers), a number of last layers, "
            "or a list of layers numbered from 0"
        )


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
