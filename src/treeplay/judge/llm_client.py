"""Chat requests to an OpenAI-compatible endpoint: each within the budget, counted and announced."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from treeplay.endpoint import INSTALL, Again, Endpoint, Refused, installed
from treeplay.judge.llm_config import LlmConfig
from treeplay.judge.llm_usage import Ledger

__all__ = ["INSTALL", "Client", "Refused", "Reply", "Warnings", "installed", "redacted"]


class Warnings:
    """Each warning once, before what it warns of goes on. ``say`` gets them, or standard error."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or _to_stderr
        self._said: set[str] = set()
        self._speaking = threading.Lock()

    def once(self, words: str) -> None:
        with self._speaking:
            if words and words not in self._said:
                self._said.add(words)
                self._say(f"warning: {words}")


def _to_stderr(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _leaving(config: LlmConfig) -> str:
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
    """Asks for chat completions; a context manager; may be used by several threads at once.

    What a request takes is counted in ``ledger``; that code leaves this machine is said before.
    """

    def __init__(self, config: LlmConfig, key: str, ledger: Ledger, warnings: Warnings) -> None:
        self._config, self._ledger, self._warnings = config, ledger, warnings
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
        self, messages: Sequence[Mapping[str, str]], form: Mapping[str, Any] | None = None
    ) -> Reply | None:
        """One request, its answer in ``form`` (a ``response_format``); None when the budget does
        not hold it. Raises as :meth:`treeplay.endpoint.Endpoint.ask` does."""
        config, ledger = self._config, self._ledger
        body: dict[str, Any] = {
            "model": config.model,
            "messages": messages,
            config.token_field: config.max_tokens,
            "stream": False,
        }
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if form is not None:
            body["response_format"] = form
        chars = sum(len(message["content"]) for message in messages)
        if not ledger.reserve(chars):
            return None
        try:
            self._warnings.once(_leaving(config))
            reply = self._endpoint.ask(
                "/chat/completions",
                body,
                _reply,
                ledger.sent,
                lambda: ledger.used(None, None, (chars, 0)),
            )
            counts = reply.prompt_tokens, reply.completion_tokens
            ledger.used(*counts, (chars, len(reply.text)))
        finally:
            ledger.release(chars)
        return reply


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
