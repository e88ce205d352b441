"""A chat endpoint that says what a test tells it to, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Say:
    """One reply. ``cut``: bytes of the body that are sent; ``drip_s``: pause after each byte."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hang_s: float = 0.0
    cut: int | None = None
    drip_s: float = 0.0


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)

    @property
    def user(self) -> str:
        return str(self.body["messages"][1]["content"])


def completion(text: str | None, finish: str = "stop", **message: Any) -> bytes:
    """A chat completion with 100 tokens in and 20 out."""
    choice = {"index": 0, "finish_reason": finish, "message": {"content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def verdict(vulnerable: bool, **more: Any) -> Say:
    said = {"reason": "because", "vulnerable": vulnerable, "cwe": None, "confidence": 0.75}
    return Say(completion(json.dumps({**said, **more})))


class ChatServer:
    """Replies come from ``replies`` in order, the last one again and again; or from a function."""

    def __init__(self, *replies: Say, answer: Callable[[Request], Say] | None = None) -> None:
        self.replies = list(replies)
        self.answer = answer
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

            def do_GET(self) -> None:
                server._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("content-length") or 0)) or b"null"
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.path, headers, json.loads(data))
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            say = None
            if self.answer is None:
                say = self.replies[min(len(self.requests), len(self.replies) - 1)]
            self.requests.append(request)
        try:
            self._reply(handler, say or (self.answer or (lambda _: Say(b"")))(request))
        except OSError:
            pass  # the client hung up
        finally:
            with self._lock:
                self._now -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, say: Say) -> None:
        self._over.wait(say.hang_s) if say.hang_s else None
        handler.send_response(say.status)
        for name, value in say.headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(say.body)))
        handler.end_headers()
        body = say.body if say.cut is None else say.body[: say.cut]
        if say.cut is not None:
            handler.close_connection = True
        if not say.drip_s:
            handler.wfile.write(body)
            return
        for at in range(len(body)):
            if self._over.wait(say.drip_s):
                return
            handler.wfile.write(body[at : at + 1])
            handler.wfile.flush()
