"""Reading a program's output without deadlock and without keeping more than was asked for."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable

_CHUNK = 65536


class Capture:
    """Keeps the first half and the last half of ``limit`` bytes, whatever comes between."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= self._half:
            gone = self._tail.popleft()
            self._tail_size -= len(gone)
            self._dropped += len(gone)

    def value(self) -> bytes:
        """What was kept; a note stands where bytes were left out."""
        tail = b"".join(self._tail)
        extra = max(0, len(tail) - self._half)
        dropped = self._dropped + extra
        note = b"\n[... %d bytes left out ...]\n" % dropped if dropped else b""
        return bytes(self._head) + note + tail[extra:]


def pump(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    out: Capture,
    err: Capture,
    over: Callable[[], bool],
    *,
    interval: float,
    grace: float = 0.5,
) -> None:
    """Feed ``stdin`` and read both streams until the process has ended or ``over()`` says stop.

    ``over`` is asked every ``interval`` seconds. After the process's own end the streams get
    ``grace`` seconds to close, because something it left behind may hold them open.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    captures = {process.stdout.fileno(): out, process.stderr.fileno(): err}
    with selectors.DefaultSelector() as selector:
        for fd in captures:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        rest = memoryview(stdin)
        writer = process.stdin.fileno()
        os.set_blocking(writer, False)
        selector.register(writer, selectors.EVENT_WRITE)
        next_look = time.monotonic() + interval
        ended: float | None = None
        while True:
            streams = [fd for fd in selector.get_map() if fd != writer]
            now = time.monotonic()
            if process.poll() is not None:
                ended = ended if ended is not None else now
                if not streams or now - ended > grace:
                    return
            if now >= next_look:
                if ended is None and over():
                    return
                next_look = now + interval
            if not streams and ended is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(interval)
                continue
            for key, _events in selector.select(interval):
                if key.fd == writer:
                    rest = _feed(process, selector, rest)
                    continue
                try:
                    data = os.read(key.fd, _CHUNK)
                except BlockingIOError:
                    continue
                if data:
                    captures[key.fd].add(data)
                else:
                    selector.unregister(key.fd)


def _feed(
    process: subprocess.Popen[bytes], selector: selectors.BaseSelector, rest: memoryview
) -> memoryview:
    assert process.stdin is not None
    try:
        rest = rest[os.write(process.stdin.fileno(), rest[:_CHUNK]) :] if rest else rest
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        rest = rest[:0]
    if not rest:
        selector.unregister(process.stdin.fileno())
        process.stdin.close()
    return rest
