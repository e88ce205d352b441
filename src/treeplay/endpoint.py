"""Requests to an HTTP endpoint: time limit, retries, streams of events, faults in words.

The parts that know what is asked (a judgement, a continuation) are next to their callers.
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from treeplay.errors import ConfigError

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState

T = TypeVar("T")

INSTALL = "pip install 'httpx2>=2.12' 'tenacity>=9'"
KEY_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
MAX_REPLY = 4 << 20  # bytes; longer replies are no answers
HURRY_S = 5.0
MAX_WAIT_S = 120.0  # a server that asks for a longer pause than this is not waited for
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
# What every later request would meet as well.
FOR_ALL = frozenset({401, 403, 404, 405, 301, 302, 303, 307, 308})


class Refused(Exception):
    """No answer, and the reason. ``for_all``: it holds for whatever is asked of the endpoint."""

    def __init__(self, reason: str, *, status: int = 0, for_all: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.for_all = for_all


class Again(Refused):
    """Worth another try. ``wait_s``: what the server asked for, None when it asked for nothing."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, status: int = 0, for_all: bool = False
    ) -> None:
        super().__init__(reason, status=status, for_all=for_all)
        self.wait_s = wait_s


def installed() -> bool:
    """Are the packages of the extra ``llm`` here?"""
    try:
        import httpx2  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError:
        return False
    return True


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def stays_here(url: str) -> bool:
    """The endpoint is this machine itself. A name is not looked up: only localhost counts."""
    host = host_of(url)
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(url: str, key_env: str, section: str) -> None:
    """Raise :class:`ConfigError` for an address, or a key's variable name, that cannot be right.

    ``section`` is where both are set (``llm``, say); no message repeats what could be a key.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{section}.base_url must be an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{section}.base_url must not hold a name, password, query or fragment; put the key in "
            f"an environment variable and name it in {section}.api_key_env"
        )
    if key_env and not KEY_NAME.fullmatch(key_env):
        raise ConfigError(
            f"{section}.api_key_env must be the name of an environment variable in capitals, such "
            "as OPENAI_API_KEY, not the key itself"
        )


def read_key(key_env: str, section: str, env: Mapping[str, str] | None = None) -> str:
    """The key, "" when none is needed. Raises :class:`ConfigError` when its variable is not set."""
    if not key_env:
        return ""
    key = (os.environ if env is None else env).get(key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {key_env}, named by {section}.api_key_env, is not set; "
            f"put the endpoint's key in it, or set {section}.api_key_env to nothing"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {key_env} holds more than one line of plain characters; "
            "put only the endpoint's key in it"
        )
    return key


def _nothing() -> None:
    pass


class Endpoint:
    """Keeps connections open; a context manager; may be used by several threads at once.

    ``key`` goes into the request's header and nowhere else: it is cut out of whatever a server
    says back. Proxies from the environment are used, but never for this machine itself;
    redirections are not followed, so that what is sent goes to the host that was named and to no
    other. ``timeout_s`` bounds one request as a whole; ``retries`` are tries after the first.
    """

    def __init__(
        self, base_url: str, key: str, *, timeout_s: float, retries: int, concurrency: int
    ) -> None:
        import httpx2

        self.base_url = base_url.rstrip("/")
        self.host = host_of(base_url)
        self._key = key
        self._timeout_s = timeout_s
        self._retries = retries
        headers = {"Accept-Encoding": "identity"}  # no small reply that unpacks into a large one
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=timeout_s,
            trust_env=not stays_here(base_url),
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=concurrency),
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Iterator[bytes]], T],
        sent: Callable[[], None] = _nothing,
        lost: Callable[[], None] = _nothing,
        *,
        hurry: bool = False,
    ) -> T:
        """Send one request (POST, or GET without a body), again after a pause when that may help.

        ``read`` makes the result of the reply's pieces; it raises :class:`Again` for half a reply
        and may return before the end, which hangs up. Pauses double from half a second, unless
        the server names one (``Retry-After``). ``sent`` is called before each request, ``lost``
        after one whose reply did not come back whole (the server may have worked, and charge,
        for it). ``hurry``: one try of a few seconds, for what may as well be left undone.
        Raises :class:`Refused`, without the key in its words.
        """
        import tenacity

        backoff = tenacity.wait_exponential(multiplier=0.5, max=30) + tenacity.wait_random(0, 0.5)

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, Again) else None
            return backoff(state) if asked is None else asked

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=tenacity.stop_after_attempt(1 if hurry else self._retries + 1),
            wait=pause,
            reraise=True,
        )
        limit_s = min(HURRY_S, self._timeout_s) if hurry else self._timeout_s
        # plain ASCII, and a lone surrogate in a text must not make the request unreadable
        data = None if body is None else json.dumps(body).encode("ascii")
        result: T = tries(self._once, path, data, read, sent, lost, limit_s)
        return result

    def _once(
        self,
        path: str,
        data: bytes | None,
        read: Callable[[Iterator[bytes]], T],
        sent: Callable[[], None],
        lost: Callable[[], None],
        limit_s: float,
    ) -> T:
        import httpx2

        sent()
        deadline = time.monotonic() + limit_s
        headers = {"Content-Type": "application/json"}
        method = "GET" if data is None else "POST"
        url = self.base_url + path
        try:
            with self._http.stream(
                method, url, content=data, headers=headers, timeout=limit_s
            ) as response:
                pieces = self._pieces(response, deadline)
                if response.status_code == 200:
                    try:
                        return read(pieces)
                    except Again:
                        lost()
                        raise
                raise self._fault(response, b"".join(pieces))
        except httpx2.ConnectTimeout:
            reason = f"{self.host} cannot be reached in {limit_s:g} s"
            raise Again(reason, for_all=True) from None
        except httpx2.TimeoutException:
            lost()
            raise Again(f"no answer in {limit_s:g} s") from None
        except httpx2.ConnectError as error:
            reason = self.clean(f"{self.host} cannot be reached ({error})")
            raise Again(reason, for_all=True) from None
        except httpx2.HTTPError as error:
            lost()
            raise Again(self.clean(f"the connection broke ({error})")) from None

    def _pieces(self, response: httpx2.Response, deadline: float) -> Iterator[bytes]:
        length = 0
        for piece in response.iter_raw():
            length += len(piece)
            if length > MAX_REPLY:
                raise Refused(f"the reply is longer than {MAX_REPLY >> 20} MiB")
            if time.monotonic() > deadline:  # a server may drip and never be silent
                raise Again(f"no whole answer in {self._timeout_s:g} s")
            yield piece

    def _fault(self, response: httpx2.Response, reply: bytes) -> Refused:
        status = response.status_code
        words = error_words(reply)
        reason = self.clean(f"HTTP {status}" + (f": {words}" if words else ""))
        if status not in RETRIED or "insufficient_quota" in words:
            for_all = status in FOR_ALL or status == 429
            return Refused(reason, status=status, for_all=for_all)
        wait_s = _retry_after(response.headers.get("retry-after"))
        if wait_s is not None and wait_s > MAX_WAIT_S:
            return Refused(
                f"{reason} (asks to wait {wait_s:.0f} s)", status=status, for_all=status == 429
            )
        return Again(reason, wait_s=wait_s, status=status)

    def clean(self, words: str) -> str:
        """``words`` of a server on one line, at most 300 characters, without the key."""
        if self._key:
            words = words.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return line[:300]


def events(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events (or of a reply that is one object).

    Ends at ``[DONE]``. Raises :class:`Again` for what is no JSON and :class:`Refused` for an
    error that a server reports inside the stream.
    """
    for line in _lines(pieces):
        text = line.removeprefix(b"data:").strip()
        if text == b"[DONE]":
            return
        if not (line.startswith(b"data:") or text.startswith(b"{")):
            continue  # names, comments and blank lines
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            raise Again("the reply is not JSON") from None
        if not isinstance(event, dict):
            raise Again("the reply is not a JSON object")
        if event.get("error"):
            raise Refused(f"the server gave up ({error_words(text)})")
        yield event


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def error_words(reply: bytes) -> str:
    """The error message of a reply; servers wrap it in several ways."""
    text = reply[:4000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "" if "<html" in text.lower() else text[:200]
    if isinstance(found, dict):
        names = ("error", "message", "detail", "error_message")
        found = next((found[name] for name in names if found.get(name)), "")
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
