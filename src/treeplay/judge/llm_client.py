"""One chat request to an OpenAI-compatible endpoint: time limit, retries, faults in words."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from treeplay.judge.llm_config import LlmConfig

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState

INSTALL = "pip install 'treeplay[llm]'"
MAX_REPLY = 4 << 20  # bytes; longer replies are no answers
MAX_WAIT_S = 120.0  # a server that asks for a longer pause than this is not waited for
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
# What every later program would meet as well: it is not asked about then.
FOR_ALL = frozenset({401, 403, 404, 405, 301, 302, 303, 307, 308})


class Refused(Exception):
    """No answer, and the reason. ``for_all``: it holds for whatever is asked of the endpoint."""

    def __init__(self, reason: str, *, status: int = 0, for_all: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.for_all = for_all


class _Again(Refused):
    """Worth another try. ``wait_s``: what the server asked for, None when it asked for nothing."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, status: int = 0, for_all: bool = False
    ) -> None:
        super().__init__(reason, status=status, for_all=for_all)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Reply:
    """A model's message. Token counts are None when the server gave none."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut_off: bool


def installed() -> bool:
    """Are the packages of the extra ``llm`` here?"""
    try:
        import httpx2  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError:
        return False
    return True


class Client:
    """Keeps connections open; a context manager; may be used by several threads at once.

    ``key`` goes into the request's header and nowhere else: it is cut out of whatever a server
    says back. Proxies from the environment are used, but never for this machine itself;
    redirections are not followed, so that code goes to the host that was named and to no other.
    """

    def __init__(self, config: LlmConfig, key: str) -> None:
        import httpx2

        self._config = config
        self._key = key
        self._url = config.base_url.rstrip("/") + "/chat/completions"
        headers = {"Accept-Encoding": "identity"}  # no small reply that unpacks into a large one
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=config.timeout_s,
            trust_env=not config.stays_here,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=config.concurrency),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def ask(
        self, body: Mapping[str, Any], sent: Callable[[], None], lost: Callable[[], None]
    ) -> Reply:
        """Send one request, again after a pause when that may help.

        Pauses double from half a second, unless the server names one (``Retry-After``). ``sent``
        is called before each request, ``lost`` after one whose reply did not come back whole
        (the server may have worked, and charge, for it).
        Raises :class:`Refused`, without the key in its words.
        """
        import tenacity

        backoff = tenacity.wait_exponential(multiplier=0.5, max=30) + tenacity.wait_random(0, 0.5)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, _Again) else None
            return backoff(state) if asked is None else asked

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(self._config.retries + 1),
            wait=pause,
            reraise=True,
        )
        # plain ASCII, and a lone surrogate in a program must not make the request unreadable
        data = json.dumps(body).encode("ascii")
        return tries(self._once, data, sent, lost)

    def _once(self, data: bytes, sent: Callable[[], None], lost: Callable[[], None]) -> Reply:
        import httpx2

        sent()
        deadline = time.monotonic() + self._config.timeout_s
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream("POST", self._url, content=data, headers=headers) as response:
                reply = self._read(response, deadline)
        except httpx2.ConnectTimeout:
            reason = f"{self._config.host} cannot be reached in {self._config.timeout_s:g} s"
            raise _Again(reason, for_all=True) from None
        except httpx2.TimeoutException:
            lost()
            raise _Again(f"no answer in {self._config.timeout_s:g} s") from None
        except httpx2.ConnectError as error:
            reason = self._clean(f"{self._config.host} cannot be reached ({error})")
            raise _Again(reason, for_all=True) from None
        except httpx2.HTTPError as error:
            lost()
            raise _Again(self._clean(f"the connection broke ({error})")) from None
        if response.status_code != 200:
            raise self._fault(response, reply)
        try:
            return _reply(reply)
        except _Again:
            lost()
            raise

    def _read(self, response: httpx2.Response, deadline: float) -> bytes:
        reply = bytearray()
        for part in response.iter_raw():
            reply += part
            if len(reply) > MAX_REPLY:
                raise Refused(f"the reply is longer than {MAX_REPLY >> 20} MiB")
            if time.monotonic() > deadline:  # a server may drip and never be silent
                raise _Again(f"no whole answer in {self._config.timeout_s:g} s")
        return bytes(reply)

    def _fault(self, response: httpx2.Response, reply: bytes) -> Refused:
        status = response.status_code
        words = _error_words(reply)
        reason = self._clean(f"HTTP {status}" + (f": {words}" if words else ""))
        if status not in RETRIED or "insufficient_quota" in words:
            for_all = status in FOR_ALL or status == 429
            return Refused(reason, status=status, for_all=for_all)
        wait_s = _retry_after(response.headers.get("retry-after"))
        if wait_s is not None and wait_s > MAX_WAIT_S:
            return Refused(
                f"{reason} (asks to wait {wait_s:.0f} s)", status=status, for_all=status == 429
            )
        return _Again(reason, wait_s=wait_s, status=status)

    def _clean(self, words: str) -> str:
        if self._key:
            words = words.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return line[:300]


def _reply(data: bytes) -> Reply:
    """Read a chat completion. Half a JSON is worth another try, a refusal is not."""
    try:
        parsed = json.loads(data)
        choice = parsed["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        refusal = message.get("refusal")
        finish = choice.get("finish_reason")
        usage = parsed.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Again("the reply is not a chat completion") from None
    if isinstance(refusal, str) and refusal:
        raise Refused(f"the model refused ({refusal[:100]!r})")
    if finish == "content_filter":
        raise Refused("the endpoint's content filter held the answer back")
    if not isinstance(text, str):
        raise _Again("the reply's content is not text")
    prompt, completion = (
        count if isinstance(count, int) and count >= 0 else None for count in counts
    )
    return Reply(text, prompt, completion, finish == "length")


def _error_words(reply: bytes) -> str:
    """The error message of a reply; servers wrap it in several ways."""
    text = reply[:4000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "" if "<html" in text.lower() else text[:200]
    if isinstance(found, dict):
        found = found.get("error") or found.get("message") or found.get("detail") or ""
    if isinstance(found, dict):
        code = found.get("code")
        found = str(found.get("message") or "") + (f" ({code})" if isinstance(code, str) else "")
    return str(found)[:250]


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, given as seconds or as a date; None when unreadable (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = email.utils.parsedate_to_datetime(value).timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = then - time.time()
    return max(0.0, seconds) if seconds == seconds else None
