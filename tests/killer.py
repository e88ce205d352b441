"""Play a recipe in processes that kill themselves (SIGKILL) again and again, until it is done.

Run as ``python killer.py RECIPE OUT MODE``. Every process is a fork of this one, so that the
imports are paid once. An operation is a file that appears under its final name, or text that is
appended to one. MODE says where a process dies:

    none    nowhere
    after   behind the first operation that nobody died at yet: so at every boundary there is
    before  before it, the new file complete beside the old one, or the text half appended

Prints where each process died. Fails where one ends in any other way, or makes no way.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import treeplay.play
import treeplay.report  # noqa: F401  (imported before the first fork)
from treeplay.cli import app
from treeplay.judge.judge import Judge
from treeplay.sandbox import Sandbox

NOT_COUNTED = ("timings.json", ".part")  # written again by every process
LIMIT = 150


class Operations:
    """Knows at which operations a process died already (lines of ``log``), and dies at others."""

    def __init__(self, mode: str, log: Path) -> None:
        self.mode, self.log = mode, log
        self.seen = set(log.read_text().splitlines()) if log.is_file() else set()

    def die(self, name: str) -> None:
        with open(self.log, "a") as handle:
            handle.write(name + "\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(self, real: Any, source: Any, target: Any) -> None:
        name = self.named(Path(source), target)
        here = not str(target).endswith(NOT_COUNTED) and name not in self.seen
        if here and self.mode == "before":
            self.die(name)
        real(source, target)
        if here and self.mode == "after":
            self.die(name)

    def append(self, handle: Any, text: str) -> None:
        name = f"append {handle.name.rpartition('/')[2]} {digest(text.encode())}"
        here = name not in self.seen
        if here and self.mode == "before":
            handle.write(text[: len(text) // 2])
            handle.flush()
            self.die(name)
        handle.write(text)
        handle.flush()
        if here and self.mode == "after":
            self.die(name)

    @staticmethod
    def named(source: Path, target: Any) -> str:
        content = source.read_bytes() if source.is_file() else b""
        if Path(target).name.startswith("report."):
            content = b""  # it tells the time
        return f"replace {'/'.join(Path(target).parts[-2:])} {digest(content)}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


class Appending:
    """An open part file that counts what is appended to it."""

    def __init__(self, handle: Any, operations: Operations) -> None:
        self.handle, self.operations = handle, operations

    def write(self, text: str) -> None:
        self.operations.append(self.handle, text)

    def flush(self) -> None:
        self.handle.flush()

    def __enter__(self) -> Appending:
        return self

    def __exit__(self, *args: object) -> None:
        self.handle.close()


def watch(operations: Operations) -> None:
    os_replace, path_open = os.replace, Path.open

    def replace(source: Path, target: Any) -> Path:
        operations.replace(os_replace, source, target)
        return Path(target)

    def replace_by_name(source: Any, target: Any) -> None:
        operations.replace(os_replace, source, target)

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        handle = path_open(path, mode, *args, **kwargs)
        return Appending(handle, operations) if mode == "a" else handle

    Path.replace = replace  # type: ignore[method-assign,assignment]
    os.replace = replace_by_name  # type: ignore[assignment]
    Path.open = opened  # type: ignore[method-assign,assignment]


def attempt(recipe: str, out: str, mode: str, log: Path) -> int:
    """One process; returns its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        torch.set_num_threads(1)
        watch(Operations(mode, log))
        code = app(["play", recipe, f"out={out}", "--resume"], standalone_mode=False) or 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(recipe: str, out: str, mode: str) -> int:
    Judge(Sandbox()).identity()  # asks the tools for their versions, once for all
    log = Path(out + ".log")
    for _ in range(LIMIT):
        status = attempt(recipe, out, mode, log)
        if os.WIFEXITED(status):
            print(log.read_text() if log.is_file() else "")
            return os.WEXITSTATUS(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    print("it makes no way", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
