"""The configuration: strict, layered, every field reachable and read."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import treeplay
from treeplay.config import (
    METHOD_SETTINGS,
    Config,
    Method,
    check_overrides,
    differing_keys,
    load_config,
    recipe_names,
    to_dict,
    to_yaml,
)
from treeplay.config_check import unread
from treeplay.errors import ConfigError


def leaves(cls: type = Config, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, default) of every setting."""
    hints = get_type_hints(cls)
    default = cls()
    for field in fields(cls):
        kind = hints[field.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from leaves(kind, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", kind, getattr(default, field.name)


def another(kind: Any, default: Any) -> Any:
    """A valid value of the type that is not the default."""
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if value != default)
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        if inner is float:
            return [0.25]
        return [get_args(inner)[-1]] if get_origin(inner) is Literal else ["something"]
    if get_origin(kind) in (typing.Union, types.UnionType):
        return another(get_args(kind)[0], default)
    if kind is bool:
        return not default
    if kind is int:
        return default + 1
    if kind is float:
        return default / 2 or 0.25
    assert kind is str
    return "something"


LEAVES = list(leaves())

# Settings that are refused without another one.
NEEDS = {
    "contrasts.extent": ["grow.completion=model"],  # whole extents need whole branches
    "contrasts.ordinary_text": ["contrasts.ordinary=1"],
    "grow.depth": ["grow.completion=model"],  # as do late mistakes
    "play.newest": ["play.opponents=pool"],
    "play.watch": ["play.patience=1"],
    "play.patience": ["play.watch=starter"],
    "train.keep": ["tasks.hold_out=0.1"],
    "train.max_drop": ["tasks.hold_out=0.1"],
    "train.rates": ["tasks.hold_out=0.1"],
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("key", "kind", "default"), LEAVES, ids=[key for key, _, _ in LEAVES])
def test_every_setting_is_reachable(key: str, kind: Any, default: Any, tmp_path: Path) -> None:
    value = another(kind, default)
    also = NEEDS.get(key, [])
    config = load_config(None, [f"{key}={yaml.safe_dump(value).splitlines()[0]}", *also])
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    assert load_config(write(tmp_path, yaml.safe_dump(nested)), also) == config
    got: Any = config
    for part in key.split("."):
        got = getattr(got, part)
    assert got == (tuple(value) if isinstance(value, list) else value)
    if key != "method" and not also:  # a method brings settings of its own
        assert differing_keys(to_dict(Config()), to_dict(config)) == [key]


def test_whole_extents_of_grafted_branches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"grow\.completion is graft"):
        load_config(None, ["contrasts.extent=full"])


@pytest.mark.parametrize("method", ["tsp-paper", "spin"])
def test_whole_answers_are_not_rejected_by_the_statement(method: str) -> None:
    local = ["contrasts.extent=local", "grow.completion=graft"]
    with pytest.raises(ConfigError, match=rf"method {method} rejects whole answers"):
        load_config(None, [f"method={method}", *local])


def test_settings_that_a_method_does_not_read_are_told() -> None:
    def told(*overrides: str) -> list[str]:
        return [one.partition(" does nothing")[0] for one in unread(load_config(None, overrides))]

    anchors = ("contrasts.anchor=1", "contrasts.ordinary=8")
    assert told("method=grpo", *anchors) == list(anchors)
    more = ("train.tokens_per_step=900", "train.clip=3")
    assert told("method=sven", *more, anchors[0]) == [anchors[0], *more]
    assert told("method=dpo", "contrasts.weights=rate", *anchors) == ["contrasts.weights=rate"]
    assert told("method=dpo", "contrasts.given=true") == ["contrasts.given=true"]
    assert told("contrasts.given=true") == []
    assert told("contrasts.given=true", "golden.source=self") == ["contrasts.given=true"]
    assert told("method=safecoder", "train.bound=5", "train.clip=3") == ["train.bound=5"]
    assert told("method=safecoder", "train.loss=sigmoid", "train.bound=5") == []
    assert told("method=tsp", "train.loss=safecoder", "train.bound=5") == ["train.bound=5"]
    assert told("method=sft", "play.replay=0.5") == ["play.replay=0.5"]
    assert told("method=dpo", "play.replay=0.5") == ["play.replay=0.5"]
    assert told("method=dpo", "play.replay=0.5", "golden.source=self") == []
    hard = ("tasks.share=0.3", "tasks.floor=0.2")
    assert told(*hard) == list(hard)
    assert told("tasks.pick=hard", *hard) == []
    assert told("method=tsp-paper", "grow.depth=2") == ["grow.depth=2"]
    every = ("contrasts.weights=value", "grow.depth=2", "grow.completion=model", "train.bound=5")
    assert told(*anchors, *every) == []


def test_contrasts_against_broken_branches_need_branches_that_tell_why() -> None:
    with pytest.raises(ConfigError, match=r"set grow\.completion=graft"):
        load_config(None, ["contrasts.broken=0.5", "grow.completion=model"])
    whole = ["contrasts.broken=0.5", "grow.completion=model", "contrasts.extent=full"]
    assert load_config(None, whole).contrasts.broken == 0.5
    for method in ("sft", "spin", "grpo"):
        with pytest.raises(ConfigError, match="does not learn from judged branches"):
            load_config(None, ["contrasts.broken=0.5", f"method={method}", *whole[1:]])
    assert load_config(None, ["contrasts.broken=0.5", "method=hinge"]).method == "hinge"


def test_late_mistakes_of_grafted_branches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"grow\.depth is 2, but grow\.completion is graft"):
        load_config(None, ["grow.depth=2"])
    # The opponent's own samples are whole, whatever is sampled beside them.
    assert load_config(None, ["grow.depth=2", "golden.source=self"]).grow.depth == 2


@pytest.mark.parametrize("key", [key for key, _, _ in LEAVES])
def test_every_setting_is_read_somewhere(key: str) -> None:
    """Somewhere outside reading and checking, code says ``config.<...>.field`` or, next to the
    definition, ``self.field``."""
    name = key.rpartition(".")[2]
    use = re.compile(rf"\b(?:config|self)\.(?:\w+\.)*{name}\b")
    root = Path(treeplay.__file__).parent
    readers = ("config.py", "config_check.py")
    sources = [path for path in root.rglob("*.py") if path.name not in readers]
    assert any(use.search(path.read_text()) for path in sources), f"nothing reads {key}"


def test_no_recipe_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(None) == load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: 1\nsead: 3\n", ":2: unknown key 'sead'; did you mean 'seed'?"),
        (
            "train:\n  epochs: 1\n  learning_rat: 1\n",
            ":3: unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?",
        ),
        (
            "train:\n  lora:\n    rr: 4\n",
            ":3: unknown key 'train.lora.rr'; did you mean 'train.lora.r'?",
        ),
        ("qqqqqq: 3\n", ":1: unknown key 'qqqqqq'; known are contrasts, eval, golden,"),
        ("seed: 1\nrounds: many\n", ":2: rounds is 'many':"),
        ("train:\n  epochs: 1.5\n", ":2: train.epochs is 1.5:"),
        ("method: tspp\n", ":1: method is 'tspp':"),
        ("nodes:\n  sources: [diff, sinc]\n", ":2: nodes.sources.1 is 'sinc':"),
        ("\nmodel: smollm2\n", ":2: model holds settings of its own; give a mapping"),
        ("model:\n", ":1: model holds settings of its own; give a mapping"),
        ("seed: 1\nrounds: 2\nseed: 3\n", ":3: seed is given twice (first at "),
        ("eval:\n  samples: 1\n  samples: 2\n", ":3: eval.samples is given twice (first at "),
        ("seed: 1\nrounds: [1, 2\n", ": this is not valid YAML ("),
        ("seed: 'a\n", ": this is not valid YAML ("),
        ("out: 2024-13-45\n", ": this is not valid YAML (month must be in 1..12"),
        ("a: 1\n\tb: 2\n", ":2: this is not valid YAML ("),
        ("- 1\n- 2\n", ":1: a recipe is a mapping of keys to values"),
        ("just words\n", ":1: a recipe is a mapping of keys to values"),
        ("out: !!python/object/apply:os.system ['true']\n", ":1: this is not valid YAML ("),
    ],
)
def test_a_wrong_recipe_is_told_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rounds", "'rounds' is no setting; write it as key=value"),
        ("=3", "'=3' is no setting"),
        ("rounds=x", "command line: rounds is 'x':"),
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("rounds=[1", "the value of rounds is not valid YAML"),
        ("seed=2024-13-45", "the value of seed is not valid YAML"),
        ("train=3", "command line: train holds settings of its own"),
        ("rounds.x=3", "rounds is {'x': 3}:"),
        ("rounds=0", "rounds is 0; it must be at least 1"),
        ("grow.top_p=0", "grow.top_p is 0.0; it must be above 0 and at most 1"),
        ("eval.top_p=1.1", "eval.top_p is 1.1; it must be above 0"),
        ("eval.temperature=-1", "eval.temperature is -1.0; it must be at least 0"),
        ("grow.temperature=.nan", "grow.temperature is nan"),
        ("train.learning_rate=0", "train.learning_rate is 0.0; it must be above 0"),
        ("train.learning_rate=.nan", "train.learning_rate is nan; it must be above 0"),
        ("train.max_grad_norm=0", "train.max_grad_norm is 0.0; it must be above 0"),
        ("train.warmup=1.5", "train.warmup is 1.5; it must be below 1"),
        ("train.lora.dropout=1", "train.lora.dropout is 1.0; it must be below 1"),
        ("model.threads=-1", "model.threads is -1; it must be at least 0"),
    ],
)
def test_a_wrong_override_is_told(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_later_layers_win(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {epochs: 7, beta: 0.5, lora: {r: 2}}\n")
    config = load_config(path, ["train.epochs=8", "train.lora.alpha=3", "train.epochs=9"])
    assert (config.seed, config.train.epochs, config.train.beta) == (1, 9, 0.5)
    assert (config.train.lora.r, config.train.lora.alpha) == (2, 3)
    assert config.train.learning_rate == Config().train.learning_rate
    assert load_config(path, ["train={epochs: 3}"]).train.beta == 0.5


def test_a_method_brings_its_settings_below_the_recipe_s(tmp_path: Path) -> None:
    paper = load_config(None, ["method=tsp-paper"])
    assert paper.nodes.sources == ("annotated",)
    assert (paper.grow.branches, paper.grow.completion) == (4, "model")
    assert (paper.contrasts.extent, paper.train.beta, paper.train.alpha) == ("full", 0.1, 0.0)
    spin = load_config(None, ["method=spin"])
    assert (spin.nodes.sources, spin.grow.branches) == (("root",), 1)
    assert load_config(None, ["method=dpo"]).train.alpha == 0.0
    path = write(tmp_path, "method: tsp-paper\nnodes: {sources: [diff]}\n")
    mixed = load_config(path, ["grow.branches=3"])
    assert (mixed.nodes.sources, mixed.grow.branches) == (("diff",), 3)
    assert (mixed.nodes.place, mixed.grow.completion) == ("statement", "model")
    # Whichever layer says the method.
    assert load_config(write(tmp_path, "method: tsp\n"), ["method=spin"]) == spin


def test_a_method_put_into_another_one_s_recipe_is_itself(tmp_path: Path) -> None:
    text = (
        "method: tsp\nnodes: {sources: [diff, sink]}\ntrain: {beta: 0.2, alpha: 1.0, epochs: 7}\n"
    )
    recipe = write(tmp_path, text)
    simpo = load_config(recipe, ["method=simpo"])
    assert (simpo.train.loss, simpo.train.beta, simpo.train.alpha) == ("simpo", 2.0, 0.0)
    assert (simpo.train.epochs, simpo.nodes.sources) == (7, ("diff", "sink"))
    assert load_config(recipe, ["method=simpo", "train.beta=3"]).train.beta == 3.0
    spin = load_config(recipe, ["method=spin"])
    assert (spin.nodes.sources, spin.grow.completion, spin.grow.branches) == (("root",), "model", 1)
    # The same method again changes nothing, nor does a recipe that names it.
    assert load_config(recipe, ["method=tsp"]) == load_config(recipe)
    assert load_config(write(tmp_path, text.replace("tsp", "simpo"))).train.beta == 0.2


def test_overrides_are_checked_without_a_recipe() -> None:
    given = ["train.epochs=3", "model={name: x, dtype: float32}", "tasks.eval=[a]"]
    assert check_overrides(given) == ["train.epochs", "model.name", "model.dtype", "tasks.eval"]
    assert check_overrides(["train.keep=best"]) == ["train.keep"]  # what it needs, others may give
    for wrong in ("train.epochz=1", "train.epochs=x", "nothing"):
        with pytest.raises(ConfigError):
            check_overrides([wrong])


def test_a_built_in_recipe_called_by_a_file_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the built-in recipe is called cpu-demo"):
        load_config("cpu-demo.yaml")
    (tmp_path / "cpu-demo.yaml").write_text("rounds: 3\n")
    assert load_config("cpu-demo.yaml").rounds == 3


def test_every_method_has_settings_that_are_valid() -> None:
    assert set(METHOD_SETTINGS) == set(get_args(Method))
    for method, given in METHOD_SETTINGS.items():
        config = to_dict(load_config(None, [f"method={method}"]))
        assert set(differing_keys(to_dict(Config()), config)) <= {"method", *_dotted(given)}


def _dotted(data: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_loads(name: str) -> None:
    config = load_config(name)
    assert config != Config()
    assert load_config(name, ["seed=9"]).seed == 9


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'cpu-dem'; .* one of .*cpu-demo"):
        load_config("cpu-dem")
    with pytest.raises(ConfigError, match=r"cannot read the recipe nowhere\.yaml.*check the path"):
        load_config("nowhere.yaml")


def test_a_recipe_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"out: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_config(tmp_path)


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(None, ["method=tsp-paper", "model.adapter='a b: c'", "tasks.eval=[x, y]"])
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_differing_keys_are_dotted() -> None:
    old = to_dict(load_config(None))
    new = to_dict(load_config(None, ["seed=1", "train.lora.r=2", "nodes.sources=[root]"]))
    assert differing_keys(old, new) == ["seed", "nodes.sources", "train.lora.r"]
    assert differing_keys(old, old) == []
    assert differing_keys({"a": {"b": 1}}, {"a": {}, "c": 2}) == ["a.b", "c"]
