"""Settings of the LLM judge, read strictly from a mapping and from the environment."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from treeplay.endpoint import check_address, host_of, read_key, stays_here
from treeplay.errors import ConfigError

ENV_PREFIX = "TREEPLAY_LLM_"

Mode = Literal["schema", "object", "text", "verdict"]
TokenField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class LlmConfig:
    """Where the model is, how it is asked, and what it may cost.

    ``base_url`` ends before ``/chat/completions`` (mostly in ``/v1``). ``api_key_env`` is the NAME
    of the environment variable that holds the key, "" for none; the key itself is never stored.
    ``mode``: ``schema`` (an answer held to a JSON schema by the server), ``object`` (to any JSON
    object), ``text`` (free text that ends in a JSON object), ``verdict`` (free text that ends in
    ``#judge: yes|no`` and ``#type: CWE-n``, as VulnLLM-R was trained to). ``temperature`` null is
    not sent. ``timeout_s`` is for one request; ``retries`` are tries after the first.
    ``price_in``, ``price_out``: US dollars for a million tokens; ``max_cost`` (US dollars) and
    ``max_tokens_total`` end the spending, 0 for no limit. ``max_chars``: longer programs are not
    sent. ``redact``: regular expressions of what is replaced in a program before it is sent.
    """

    base_url: str
    model: str
    api_key_env: str = ""
    mode: Mode = "schema"
    prompt_version: Literal["1"] = "1"
    temperature: float | None = 0.0
    max_tokens: int = 1024
    token_field: TokenField = "max_tokens"
    concurrency: int = 4
    timeout_s: float = 120.0
    retries: int = 4
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float = 0.0
    max_tokens_total: int = 0
    max_chars: int = 60_000
    redact: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return host_of(self.base_url)

    @property
    def stays_here(self) -> bool:
        """The endpoint is this machine itself."""
        return stays_here(self.base_url)


def llm_from_env_or_config(
    data: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> LlmConfig | None:
    """The settings in ``data``, and below them those of ``TREEPLAY_LLM_<KEY>`` variables.

    None when neither names an endpoint and nothing else is set. Raises :class:`ConfigError`
    naming the key, for an unknown one also the nearest there is; no message repeats a value that
    could be a key.
    """
    env = os.environ if env is None else env
    merged: dict[str, Any] = {}
    for name, value in env.items():
        if name.startswith(ENV_PREFIX):
            key = name[len(ENV_PREFIX) :].lower()
            _known(key, name)
            merged[key] = _env_value(key, value)
    for key, value in (data or {}).items():
        _known(str(key), f"llm.{key}")
        merged[str(key)] = value
    if not merged:
        return None
    for needed in ("base_url", "model"):
        if needed not in merged:
            raise ConfigError(
                f"llm.{needed} is missing; set it, or the environment variable "
                f"{ENV_PREFIX}{needed.upper()}"
            )
    try:
        # through JSON, because strict reading still takes a list for a tuple there
        config = TypeAdapter(LlmConfig).validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"llm.{where}: {first['msg']}") from None
    except (TypeError, ValueError):
        raise ConfigError("llm: the settings must be plain numbers, texts and lists") from None
    check_llm(config)
    return config


def load_llm(path: Path) -> LlmConfig:
    """The settings in a YAML file, and below them those of the environment.

    Raises :class:`ConfigError` naming the file or the key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: a model's endpoint is a mapping of keys to values")
    config = llm_from_env_or_config(data)
    if config is None:
        raise ConfigError(f"{path}: it sets nothing; give at least base_url and model")
    return config


def api_key(config: LlmConfig, env: Mapping[str, str] | None = None) -> str:
    """The key, "" when none is needed. Raises :class:`ConfigError` when its variable is not set."""
    return read_key(config.api_key_env, "llm", env)


def check_llm(config: LlmConfig) -> None:
    """Raise :class:`ConfigError` for values that cannot work together or at all."""
    check_address(config.base_url, config.api_key_env, "llm")
    if not config.model.strip():
        raise ConfigError("llm.model is empty; name the model as the endpoint does")
    lowest = {"max_tokens": 1, "concurrency": 1, "retries": 0, "max_tokens_total": 0}
    for key, least in {**lowest, "max_chars": 1, "max_cost": 0}.items():
        if not getattr(config, key) >= least:
            raise ConfigError(f"llm.{key} is {getattr(config, key)}; it must be at least {least}")
    for key in ("price_in", "price_out", "temperature"):
        value = getattr(config, key)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"llm.{key} is {value}; it must not be negative")
    if not 0 < config.timeout_s < float("inf"):
        raise ConfigError(f"llm.timeout_s is {config.timeout_s}; it must be above 0")
    if config.max_cost and (config.price_in is None or config.price_out is None):
        raise ConfigError("llm.max_cost needs llm.price_in and llm.price_out to count by")
    for pattern in config.redact:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"llm.redact: {pattern!r} is no regular expression ({error})"
            ) from error


def _known(key: str, shown: str) -> None:
    names = sorted(field.name for field in fields(LlmConfig))
    if key in names:
        return
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise ConfigError(f"unknown setting {shown!r}; {hint}")


def _env_value(key: str, text: str) -> Any:
    """A variable's text, read as YAML unless the setting is a text itself."""
    if key in ("base_url", "model", "api_key_env", "mode", "prompt_version", "token_field"):
        return text
    try:
        return cast(Any, yaml.safe_load(text))
    except yaml.YAMLError:
        raise ConfigError(f"{ENV_PREFIX}{key.upper()}: the value is not valid YAML") from None
