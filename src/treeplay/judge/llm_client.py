"""One chat request to an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from treeplay.endpoint import INSTALL, Again, Endpoint, Refused, installed
from treeplay.judge.llm_config import LlmConfig

__all__ = ["INSTALL", "Client", "Refused", "Reply", "installed", "leaving", "redacted"]


def leaving(config: LlmConfig) -> str:
    """The warning that code leaves this machine; "" where it does not."""
    if config.stays_here:
        return ""
    plain = ", unencrypted" if config.base_url.startswith("http:") else ""
    changed = "after redaction" if config.redact else "as they are"
    return (
        f"code leaves this machine: programs are sent {changed} to {config.host}{plain} "
        f"(model {config.model})"
    )


def redacted(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """A program as it leaves: redacted, each line in its place, and without surrogates."""
    for pattern in patterns:
        text = pattern.sub(lambda found: "[redacted]" + "\n" * found[0].count("\n"), text)
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class Reply:
    """A model's message. Token counts are None when the server gave none."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut_off: bool


class Client:
    """Asks for chat completions; a context manager; may be used by several threads at once."""

    def __init__(self, config: LlmConfig, key: str) -> None:
        self._endpoint = Endpoint(
            config.base_url,
            key,
            timeout_s=config.timeout_s,
            retries=config.retries,
            concurrency=config.concurrency,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._endpoint.close()

    def ask(
        self, body: Mapping[str, Any], sent: Callable[[], None], lost: Callable[[], None]
    ) -> Reply:
        """Send one request, as :meth:`treeplay.endpoint.Endpoint.ask` does."""
        return self._endpoint.ask("/chat/completions", body, _reply, sent, lost)


def _reply(pieces: Iterator[bytes]) -> Reply:
    """Read a chat completion. Half a JSON is worth another try, a refusal is not."""
    try:
        parsed = json.loads(b"".join(pieces))
        choice = parsed["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        refusal = message.get("refusal")
        finish = choice.get("finish_reason")
        usage = parsed.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Again("the reply is not a chat completion") from None
    if isinstance(refusal, str) and refusal:
        raise Refused(f"the model refused ({refusal[:100]!r})")
    if finish == "content_filter":
        raise Refused("the endpoint's content filter held the answer back")
    if not isinstance(text, str):
        raise Again("the reply's content is not text")
    prompt, completion = (
        count if isinstance(count, int) and count >= 0 else None for count in counts
    )
    return Reply(text, prompt, completion, finish == "length")
