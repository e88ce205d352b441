"""The configuration of a run: read once, strict, and every field read by something.

Layers, later ones win: the defaults of the dataclasses, the method's own settings
(:data:`METHOD_SETTINGS`), the recipe (YAML), ``key=value`` on the command line. The dataclasses
stand next to what they configure; this module only puts them together and reads the files, and
:mod:`treeplay.config_check` refuses values that make no sense.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from treeplay.config_check import check_values
from treeplay.contrast import ContrastConfig
from treeplay.errors import ConfigError
from treeplay.evaluate import EvalConfig
from treeplay.golden import GoldenConfig
from treeplay.grow import GrowConfig
from treeplay.grpo import GrpoConfig
from treeplay.judge.panel import JudgeConfig
from treeplay.nodes import NodeConfig
from treeplay.policy.model import ModelConfig
from treeplay.selfplay import PlayConfig
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
    if recipe is not None:
        layers.insert(1, _another_method(layers[0][0], [data for data, _ in layers[1:]]))
    merged: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for data, lines in layers:
        merged = _merge(merged, data)
        places.update(lines)
    method = merged.get("method", Config.method)
    merged = _merge(METHOD_SETTINGS.get(method, {}) if isinstance(method, str) else {}, merged)
    config = _valid(merged, places)
    check_values(config)
    return config


def _another_method(
    recipe: Mapping[str, Any], overrides: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """What makes a method itself, where overrides put it into the recipe of another one: the
    recipe's numbers are that one's."""
    asked = [data["method"] for data in overrides if "method" in data]
    if not asked or asked[-1] == recipe.get("method", Config.method):
        return {}, {}
    return (METHOD_SETTINGS.get(asked[-1], {}) if isinstance(asked[-1], str) else {}), {}


def _valid(merged: Mapping[str, Any], places: Mapping[tuple[str, ...], str]) -> Config:
    """``merged`` as a configuration. Raises :class:`ConfigError` naming the key and its place."""
    try:
        return TypeAdapter(Config).validate_python(merged)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        where = next((places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places), "")
        got = first.get("input")
        if first["type"] == "tuple_type":
            first["msg"] = f"a list is needed; write [{got}]"
        raise ConfigError(
            f"{where or 'configuration'}: {'.'.join(path)} is {got!r}: {first['msg']}"
        ) from error


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("treeplay") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_title(name: str) -> str:
    """The first sentence of the comment that a built-in recipe begins with."""
    inside = resources.files("treeplay") / "recipes" / f"{name}.yaml"
    comment = takewhile(lambda line: line.startswith("#"), inside.read_text("utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in comment).split(". ")[0].rstrip(".")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data, in field order, for the manifest and ``--dry-run``."""
    data: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return data


def with_newer_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a run that an earlier version began: keys that it did not have yet are there
    with their defaults, which is how it played."""
    return _merge(to_dict(Config()), data)


def from_dict(data: Mapping[str, Any]) -> Config:
    """The configuration that a manifest holds, one of an earlier version with newer defaults."""
    return TypeAdapter(Config).validate_python(with_newer_keys(data))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


# What trainers of other libraries call some settings.
OTHER_NAMES = {
    "train.lr": "learning_rate",
    "train.batch_size": "groups_per_step",
    "train.per_device_train_batch_size": "groups_per_step",
    "train.num_train_epochs": "epochs",
    "train.warmup_ratio": "warmup",
    "train.lr_scheduler_type": "schedule",
    "train.gradient_checkpointing": "checkpointing",
    "train.loss_type": "loss",
    "train.lora_r": "lora.r",
    "eval.num_samples": "samples",
    "eval.max_new_tokens": "max_tokens",
    "grow.max_new_tokens": "max_tokens",
    "grow.num_generations": "branches",
}
# Settings that say where something lies. What lies there is compared by its own digest.
PLACES = ("out", "model.name", "model.revision", "model.adapter", "tasks.train", "tasks.eval")


def without_places(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Plain data of a configuration with the last parts of :data:`PLACES` alone (of ``out``
    nothing): a run that is moved, with its model or its tasks, has the same settings."""
    return {key: _unplaced(f"{path}{key}", value) for key, value in data.items()}


def _unplaced(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_places(value, f"{path}.")
    if path not in PLACES or value is None:
        return value
    if path == "out":
        return ""
    if isinstance(value, str):
        return Path(value).name
    return [Path(one).name for one in value]


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


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """The dotted keys that ``key=value`` overrides set. Raises :class:`ConfigError` for an unknown
    key, and for a value that can never be one; not for what depends on other settings."""
    keys: list[str] = []
    for override in overrides:
        data, lines = _read_override(override)
        _check_keys(Config, data, lines, ())
        _valid(_merge(to_dict(Config()), data), lines)
        keys += _leaves(data)
    return keys


def _leaves(data: Mapping[str, Any], path: str = "") -> list[str]:
    found: list[str] = []
    for key, value in data.items():
        inside = isinstance(value, Mapping) and bool(value)
        found += _leaves(value, f"{path}{key}.") if inside else [f"{path}{key}"]
    return found


def _read_recipe(recipe: str | Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    path = Path(recipe)
    if path.name[:-5] in recipe_names() and path.name == str(recipe) and not path.exists():
        raise ConfigError(
            f"there is no file {path} here; the built-in recipe is called {path.name[:-5]}"
        )
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
            meant = OTHER_NAMES.get(".".join(here))
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.4)
            near = [meant] if meant else near
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
