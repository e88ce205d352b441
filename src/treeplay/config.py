"""The configuration of a run: read once, strict, and every field read by something.

Layers, later ones win: the defaults of the dataclasses, the method's own settings
(:data:`METHOD_SETTINGS`), the recipe (YAML), ``key=value`` on the command line. The dataclasses
stand next to what they configure; this module only puts them together and reads the files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from treeplay.contrasts import ContrastConfig
from treeplay.errors import ConfigError
from treeplay.evaluate import EvalConfig
from treeplay.golden import GoldenConfig
from treeplay.grow import GrowConfig
from treeplay.grpo import GrpoConfig
from treeplay.judge.panel import JudgeConfig
from treeplay.nodes import NodeConfig
from treeplay.policy.model import ModelConfig
from treeplay.selfplay import PlayConfig, check_play
from treeplay.sven import SvenConfig
from treeplay.tasks.select import TaskConfig
from treeplay.train import TrainConfig

Method = Literal[
    "tsp",
    "tsp-paper",
    "sft",
    "spin",
    "dpo",
    "tdpo",
    "ipo",
    "simpo",
    "hinge",
    "safecoder",
    "sven",
    "grpo",
]


@dataclass(frozen=True)
class Config:
    """A whole run. ``out`` is the run folder; ``rounds`` is how often the game is played."""

    method: Method = "tsp"
    rounds: int = 1
    seed: int = 0
    out: str = "runs/play"
    model: ModelConfig = ModelConfig()
    tasks: TaskConfig = TaskConfig()
    golden: GoldenConfig = GoldenConfig()
    nodes: NodeConfig = NodeConfig()
    grow: GrowConfig = GrowConfig()
    judge: JudgeConfig = JudgeConfig()
    contrasts: ContrastConfig = ContrastConfig()
    train: TrainConfig = TrainConfig()
    sven: SvenConfig = SvenConfig()
    grpo: GrpoConfig = GrpoConfig()
    play: PlayConfig = PlayConfig()
    eval: EvalConfig = EvalConfig()


# What makes a method itself. A recipe may still say otherwise, and then the manifest shows it.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "tsp": {},
    "tsp-paper": {
        "nodes": {"sources": ["annotated"], "place": "statement"},
        "grow": {"branches": 4, "completion": "model"},
        "contrasts": {"extent": "full"},
        "train": {"beta": 0.1, "alpha": 0.0},
    },
    "sft": {},
    "spin": {
        "nodes": {"sources": ["root"]},
        "grow": {"branches": 1, "completion": "model"},
        "contrasts": {"extent": "full"},
        "train": {"beta": 0.1, "alpha": 0.0},
    },
    "dpo": {"train": {"beta": 0.1, "alpha": 0.0}},
    # The contrasts of tsp, another loss (docs/methods.md says where the numbers are from).
    "tdpo": {"train": {"loss": "tdpo", "beta": 0.1, "alpha": 0.0, "kl": 0.5}},
    "ipo": {"train": {"loss": "ipo", "beta": 0.5, "alpha": 0.0}},
    "simpo": {"train": {"loss": "simpo", "beta": 2.0, "alpha": 0.0, "gamma": 1.0}},
    "hinge": {"train": {"loss": "hinge", "beta": 0.1, "alpha": 0.0}},
    "safecoder": {"train": {"loss": "safecoder", "alpha": 0.0}},
    "sven": {"train": {"learning_rate": 1e-2, "epochs": 5, "warmup": 0.0, "groups_per_step": 1}},
    "grpo": {},
}


def load_config(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a recipe (a path, or the name of a built-in one) with overrides.

    Raises :class:`ConfigError` naming the key, the file and the line, and for an unknown key the
    nearest one there is.
    """
    layers: list[tuple[dict[str, Any], dict[tuple[str, ...], str]]] = []
    if recipe is not None:
        layers.append(_read_recipe(recipe))
    for override in overrides:
        layers.append(_read_override(override))
    for data, lines in layers:
        _check_keys(Config, data, lines, ())
    merged: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for data, lines in layers:
        merged = _merge(merged, data)
        places.update(lines)
    method = merged.get("method", Config.method)
    merged = _merge(METHOD_SETTINGS.get(method, {}) if isinstance(method, str) else {}, merged)
    try:
        config = TypeAdapter(Config).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        where = next((places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places), "")
        got = first.get("input")
        raise ConfigError(
            f"{where or 'configuration'}: {'.'.join(path)} is {got!r}: {first['msg']}"
        ) from error
    _check_values(config)
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("treeplay") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data, in field order, for the manifest and ``--dry-run``."""
    data: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return data


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted keys whose values differ between two plain configurations."""
    out: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differing_keys(a, b, f"{path}{key}.")
        elif a != b:
            out.append(f"{path}{key}")
    return out


def _read_recipe(recipe: str | Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    path = Path(recipe)
    if not path.suffix and not path.exists():
        inside = resources.files("treeplay") / "recipes" / f"{recipe}.yaml"
        if not inside.is_file():
            raise ConfigError(
                f"there is no recipe {str(recipe)!r}; name a YAML file, or one of "
                f"{', '.join(recipe_names())}"
            )
        text, name = inside.read_text(encoding="utf-8"), f"{recipe}.yaml"
    else:
        try:
            text, name = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {error}; check the path") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date there is not
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{name}{line}: this is not valid YAML ({problem})") from error
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: a recipe is a mapping of keys to values")
    places: dict[tuple[str, ...], str] = {}
    _mark_lines(node, name, (), places)
    return data, places


def _mark_lines(
    node: Any, name: str, path: tuple[str, ...], places: dict[tuple[str, ...], str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = f"{name}:{key.start_mark.line + 1}"
            if here in places:
                raise ConfigError(
                    f"{line}: {'.'.join(here)} is given twice (first at {places[here]})"
                )
            places[here] = line
            _mark_lines(value, name, here, places)


def _read_override(override: str) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: {override!r} is no setting; write it as key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"command line: the value of {key} is not valid YAML") from error
    path = tuple(key.split("."))
    data: Any = value
    for part in reversed(path):
        data = {part: data}
    return data, {path[:n]: "command line" for n in range(1, len(path) + 1)}


def _check_keys(
    cls: type, data: Any, places: Mapping[tuple[str, ...], str], path: tuple[str, ...]
) -> None:
    where = places.get(path, "recipe")
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {'.'.join(path)} holds settings of its own; give a mapping")
    known = {field.name for field in fields(cls)}
    hints = get_type_hints(cls)
    for key, value in data.items():
        here = (*path, str(key))
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.4)
            hint = (
                f"did you mean {'.'.join((*path, near[0]))!r}?"
                if near
                else (f"known are {', '.join(sorted(known))}")
            )
            raise ConfigError(f"{places.get(here, where)}: unknown key {'.'.join(here)!r}; {hint}")
        if is_dataclass(hints[key]) and isinstance(hints[key], type):
            _check_keys(hints[key], value, places, here)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        out[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return out


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


def _check_values(config: Config) -> None:
    if config.contrasts.extent == "full" and config.grow.completion == "graft":
        raise ConfigError(
            "contrasts.extent is full, but grow.completion is graft, whose branches are one "
            "statement long; set grow.completion=model or contrasts.extent=local"
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
    if config.method == "sven":
        _check_sven(config)
    check_play(config.play, config.method, config.tasks.pick == "hard")
    at_least = {
        "rounds": 1,
        "play.newest": 0,
        "play.stop_below": 0,
        "play.patience": 0,
        "golden.samples": 1,
        "golden.attempts": 1,
        "golden.mends": 1,
        "golden.max_tokens": 1,
        "golden.rows_at_once": 1,
        "nodes.per_task": 1,
        "contrasts.value_prior": 0,
        "nodes.probe.rollouts": 1,
        "nodes.probe.states": 1,
        "nodes.probe.spans": 1,
        "grow.branches": 1,
        "grow.depth": 1,
        "grow.max_tokens": 1,
        "grow.rows_at_once": 1,
        "grow.adaptive": 0,
        "grow.wave": 1,
        "grow.keep_mb": 0,
        "judge.workers": 1,
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
        "train.epochs": 1,
        "train.groups_per_step": 1,
        "train.max_tokens": 16,
        "train.checkpoint_steps": 1,
        "train.keep_samples": 1,
        "train.max_drop": 0,
        "train.lora.r": 1,
        "tasks.limit": 0,
        "tasks.hold_out": 0,
        "model.threads": 0,
        "train.warmup": 0,
        "train.alpha": 0,
        "train.clip": 0,
        "train.bound": 0,
        "train.budget": 0,
        "train.gamma": 0,
        "train.kl": 0,
        "contrasts.anchor": 0,
        "contrasts.ordinary": 0,
        "contrasts.ordinary_weight": 0,
        "train.lora.dropout": 0,
    }
    for key, lowest in at_least.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value >= lowest:
            raise ConfigError(f"{key} is {value}; it must be at least {lowest}")
    for key, value in (
        ("golden.top_p", config.golden.top_p),
        ("grow.top_p", config.grow.top_p),
        ("tasks.share", config.tasks.share),
        ("tasks.floor", config.tasks.floor),
        ("grpo.top_p", config.grpo.top_p),
        ("eval.top_p", config.eval.top_p),
        ("nodes.probe.drop", config.nodes.probe.drop),
        ("judge.threshold", config.judge.threshold),
        ("judge.silence", config.judge.silence),
    ):
        if not 0 < value <= 1:
            raise ConfigError(f"{key} is {value}; it must be above 0 and at most 1")
    if not config.grpo.temperature > 0:
        raise ConfigError(f"grpo.temperature is {config.grpo.temperature}; it must be above 0")
    for key, value in asdict(config.grpo.rewards).items():
        if not value < 1:
            raise ConfigError(
                f"grpo.rewards.{key} is {value}; it must be below 1, what a secure answer is worth"
            )
    if config.method == "grpo" and config.train.lora.dtype != "float32":
        raise ConfigError(
            f"train.lora.dtype is {config.train.lora.dtype}, but method grpo trains the adapter "
            "in float32; set train.lora.dtype=float32"
        )
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
    if config.train.rates and (
        min(config.train.rates) <= 0 or len(set(config.train.rates)) < len(config.train.rates)
    ):
        raise ConfigError(
            f"train.rates is {list(config.train.rates)}; its numbers must be above 0 and differ"
        )
    layers = config.train.lora.layers
    if layers != 0 and (layers < 0 if isinstance(layers, int) else not layers or min(layers) < 0):
        raise ConfigError(
            f"train.lora.layers is {layers}; it must be 0 (all layers), a number of last layers, "
            "or a list of layers numbered from 0"
        )
    for key, value in asdict(config.train).items():
        if key in ("learning_rate", "beta", "max_grad_norm") and not value > 0:
            raise ConfigError(f"train.{key} is {value}; it must be above 0")
    for key, value in (
        ("golden.temperature", config.golden.temperature),
        ("grow.temperature", config.grow.temperature),
        ("eval.temperature", config.eval.temperature),
    ):
        if not value >= 0:
            raise ConfigError(f"{key} is {value}; it must not be negative")
    for key, value in (
        ("train.warmup", config.train.warmup),
        ("tasks.hold_out", config.tasks.hold_out),
        ("train.lora.dropout", config.train.lora.dropout),
        ("sven.dropout", config.sven.dropout),
    ):
        if not value < 1:
            raise ConfigError(f"{key} is {value}; it must be below 1")
