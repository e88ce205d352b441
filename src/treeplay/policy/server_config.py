"""Settings of a server that samples in the place of the local model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from treeplay.endpoint import check_address
from treeplay.errors import ConfigError

SECTION = "model.server"


@dataclass(frozen=True)
class ServerConfig:
    """Which server, and how it is asked. Off while ``base_url`` is empty.

    ``base_url``: the server's address, with or without a final ``/v1``. ``name``: what the server
    calls the model. ``api``: ``vllm`` (``/v1/completions`` that takes and returns token ids) or
    ``sglang`` (its own ``/generate``). ``api_key_env``: the NAME of the environment variable that
    holds the key, "" for none. ``concurrency``: rows asked for at once. ``timeout_s`` is for one
    row; ``retries`` are tries after the first. ``stream``: read tokens as they come, and hang up
    where an answer ends. ``share``: a folder that adapters are copied to, for a server that does
    not see the run folder; ``share_there``: the same folder as the server names it.
    """

    base_url: str = ""
    name: str = ""
    api: Literal["vllm", "sglang"] = "vllm"
    api_key_env: str = ""
    concurrency: int = 32
    timeout_s: float = 300.0
    retries: int = 4
    stream: bool = True
    share: str = ""
    share_there: str = ""

    @property
    def root(self) -> str:
        """The address without ``/v1``, below which every path is."""
        return self.base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def check_server(config: ServerConfig, adapter: str | None = None) -> None:
    """Raise :class:`ConfigError` for values that cannot work together or at all.

    ``adapter``: ``model.adapter``, which no server can have below a run's own adapters.
    """
    check_address(config.base_url, config.api_key_env, SECTION)
    if not config.name.strip():
        raise ConfigError(f"{SECTION}.name is empty; name the model as the server does")
    for key, least in (("concurrency", 1), ("retries", 0)):
        if getattr(config, key) < least:
            raise ConfigError(
                f"{SECTION}.{key} is {getattr(config, key)}; it must be at least {least}"
            )
    if not 0 < config.timeout_s < float("inf"):
        raise ConfigError(f"{SECTION}.timeout_s is {config.timeout_s}; it must be above 0")
    if config.share_there and not config.share:
        raise ConfigError(
            f"{SECTION}.share_there is set but {SECTION}.share is not; name the folder that "
            "adapters are copied to"
        )
    if adapter:
        raise ConfigError(
            f"model.adapter and {SECTION}.base_url are both set, but a server cannot put a run's "
            "adapters on top of another one; merge the adapter into the model, serve that, and "
            "set model.name to it"
        )
