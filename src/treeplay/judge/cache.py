"""Verdicts and answers kept on disk: one JSON object a line, only ever appended to.

A process killed in the middle of a line leaves a torn one; it is skipped on reading, and the next
line starts afresh behind it. Several processes may append to one file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from treeplay.errors import RunError
from treeplay.judge.verdict import Verdict, verdict_from_json, verdict_to_json

T = TypeVar("T")


class LineCache(Generic[T]):
    """Things called ``what`` by key, in memory and, with a ``path``, on disk.

    ``write`` turns one into plain data and ``read`` makes it again, raising ``ValueError``,
    ``KeyError`` or ``TypeError`` for other data. Raises :class:`RunError` when the file cannot be
    read or written.
    """

    def __init__(
        self, path: Path | None, what: str, write: Callable[[T], Any], read: Callable[[Any], T]
    ) -> None:
        self.path = path
        self.torn = 0  # lines that could not be read
        self._what, self._write, self._read = what, write, read
        self._known: dict[str, T] = {}
        self._lock = threading.Lock()
        self._fresh_line = False
        if path is not None:
            self._load(path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> T | None:
        return self._known.get(key)

    def put(self, key: str, value: T) -> None:
        """Keep one. The line is handed to the system in one write."""
        with self._lock:
            if key in self._known:
                return
            self._known[key] = value
            if self.path is None:
                return
            line = json.dumps({"key": key, self._what: self._write(value)}) + "\n"
            data = (b"\n" if self._fresh_line else b"") + line.encode()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    written = os.write(handle, data)
                finally:
                    os.close(handle)
            except OSError as error:
                raise RunError(
                    f"{self.path}: the {self._what} cannot be kept ({error.strerror}); free some "
                    "space or choose another folder, then resume"
                ) from error
            if written != len(data):
                raise RunError(f"{self.path}: the disk is full; free some space, then resume")
            self._fresh_line = False

    def _load(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from error
        self._fresh_line = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                self._known[str(entry["key"])] = self._read(entry[self._what])
            except (ValueError, KeyError, TypeError):
                self.torn += 1


class VerdictCache(LineCache[Verdict]):
    """Verdicts by key."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, "verdict", verdict_to_json, verdict_from_json)
