"""The LLM judge's settings: read strictly, and no message repeats a key."""

from __future__ import annotations

from typing import Any

import pytest

from treeplay.errors import ConfigError
from treeplay.judge.llm_config import LlmConfig, api_key, llm_from_env_or_config

BASE = {"base_url": "https://api.example/v1", "model": "m"}


def test_nothing_set_is_no_judge() -> None:
    assert llm_from_env_or_config({}, {}) is None
    assert llm_from_env_or_config(None, {"PATH": "/bin"}) is None


def test_all_kinds_of_values() -> None:
    data = {
        **BASE,
        "mode": "verdict",
        "temperature": None,
        "timeout_s": 30,
        "redact": ["a+", "b"],
        "price_in": 0.15,
        "price_out": 1,
        "max_cost": 2.5,
        "api_key_env": "OPENAI_API_KEY",
    }
    found = llm_from_env_or_config(data, {})
    assert found == LlmConfig(
        base_url="https://api.example/v1",
        model="m",
        mode="verdict",
        temperature=None,
        timeout_s=30.0,
        redact=("a+", "b"),
        price_in=0.15,
        price_out=1.0,
        max_cost=2.5,
        api_key_env="OPENAI_API_KEY",
    )


def test_the_environment_is_below_the_mapping() -> None:
    env = {
        "TREEPLAY_LLM_BASE_URL": "http://localhost:8000/v1",
        "TREEPLAY_LLM_MODEL": "7",
        "TREEPLAY_LLM_CONCURRENCY": "8",
        "TREEPLAY_LLM_REDACT": "[x, y]",
        "TREEPLAY_OTHER": "1",
    }
    found = llm_from_env_or_config({"concurrency": 2}, env)
    assert found is not None
    assert (found.base_url, found.model) == ("http://localhost:8000/v1", "7")
    assert (found.concurrency, found.redact) == (2, ("x", "y"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modell": "x"}, "unknown setting 'llm.modell'; did you mean 'model'"),
        ({"retrys": 1}, "did you mean 'retries'"),
        ({"zzzzzzzz": 1}, "known are api_key_env, base_url"),
        ({"mode": "jsn"}, "llm.mode: "),
        ({"retries": "4"}, "llm.retries: "),
        ({"retries": True}, "llm.retries: "),
        ({"retries": -1}, "llm.retries is -1; it must be at least 0"),
        ({"concurrency": 0}, "llm.concurrency"),
        ({"timeout_s": 0}, "llm.timeout_s"),
        ({"timeout_s": float("nan")}, "llm.timeout_s"),
        ({"temperature": -1}, "llm.temperature"),
        ({"price_in": -1}, "llm.price_in"),
        ({"max_cost": 1}, "llm.max_cost needs llm.price_in and llm.price_out"),
        ({"redact": ["("]}, "is no regular expression"),
        ({"redact": "abc"}, "llm.redact: "),
        ({"redact": {1, 2}}, "plain numbers"),
        ({"model": " "}, "llm.model is empty"),
        ({"base_url": "api.example/v1"}, "llm.base_url must be an address"),
        ({"base_url": "ftp://api.example"}, "llm.base_url must be an address"),
        ({"base_url": "http://h:port/v1"}, "llm.base_url must be an address"),
        ({"base_url": "http://[::1/v1"}, "llm.base_url must be an address"),
        ({"prompt_version": "9"}, "llm.prompt_version: "),
    ],
)
def test_strict(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        llm_from_env_or_config({**BASE, **change}, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["base_url", "model"])
def test_what_is_needed(missing: str) -> None:
    data = {key: value for key, value in BASE.items() if key != missing}
    with pytest.raises(ConfigError, match=f"llm.{missing} is missing"):
        llm_from_env_or_config(data, {})


def test_a_misspelt_variable() -> None:
    with pytest.raises(ConfigError, match=r"'TREEPLAY_LLM_MODELL'; did you mean 'model'"):
        llm_from_env_or_config(BASE, {"TREEPLAY_LLM_MODELL": "x"})


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": "sk-Secret1"},
        {"api_key_env": "sk-Secret1"},
        {"api_key_env": "Secret1"},
        {"api_key_env": ["Secret1"]},
        {"base_url": "https://user:Secret1@api.example/v1"},
        {"base_url": "https://api.example/v1?key=Secret1"},
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        llm_from_env_or_config({**BASE, **change}, {})
    assert "Secret1" not in str(caught.value)
    assert caught.value.__cause__ is None  # nor in the error behind it


def test_the_key() -> None:
    config = LlmConfig("https://api.example/v1", "m", api_key_env="MY_KEY")
    assert api_key(LlmConfig("https://api.example/v1", "m"), {}) == ""
    assert api_key(config, {"MY_KEY": " k \n"}) == "k"
    for env in ({}, {"MY_KEY": ""}):
        with pytest.raises(ConfigError, match="MY_KEY"):
            api_key(config, env)
    with pytest.raises(ConfigError, match="more than one line") as caught:
        api_key(config, {"MY_KEY": "Secret1\nSecret2"})
    assert "Secret" not in str(caught.value)
