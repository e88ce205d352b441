"""Running generated code where it can do no harm.

Every program runs in bubblewrap: no network, its own process namespace, a root made only of the
system's read-only program folders, and one small tmpfs that is gone afterwards. When the caller is
root the program is given an unprivileged user id of its own; otherwise a user namespace does the
same. Limits on time, memory, processes, file sizes and output are kept from outside where a limit
inside could be evaded. A program that runs into the wall-clock limit is killed with everything it
started: its whole process namespace goes with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from treeplay.bwrap import WORK, bwrap_argv, environment_of, is_root, limit_argv, tool
from treeplay.capture import Capture, pump
from treeplay.errors import SandboxError

MEND = "apt-get install bubblewrap"
_POLL_S = 0.05
# Less free memory than this on the whole machine ends a run: what it hides (files in memory, say)
# is not seen in its own numbers.
_SPARE = 192 << 20
_PREFIXES = ("/usr", "/bin", "/sbin", "/lib")
_uids = itertools.count(os.getpid())
# Tools that have been seen to work; a failure is not kept, because it may be mended meanwhile.
_working: set[tuple[str | None, ...]] = set()


@dataclass(frozen=True)
class Limits:
    """What one run may use. Times in seconds, sizes in MiB (``output_kb`` in KiB, per stream).

    ``cpu_s`` and ``file_mb`` hold for each process and file; ``memory_mb`` (resident) and
    ``processes`` (threads count too) for the whole run. ``address_mb`` bounds the address space of
    each process as well; it stays None for programs that reserve far more than they use (Node,
    Go, anything built with a sanitizer).
    """

    wall_s: float = 10
    cpu_s: int = 10
    memory_mb: int = 1024
    processes: int = 64
    file_mb: int = 16
    output_kb: int = 64
    address_mb: int | None = None


@dataclass(frozen=True)
class Completed:
    """What became of a run. ``stopped`` says why it was ended early: ``"time"`` (of the clock or of
    the processor), ``"memory"``, ``"processes"``, ``"ended"`` (an interruption), or ``""`` when it
    ended by itself. A stream over the limit keeps its first and its last part, with a note between
    them."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float
    stopped: str = ""


@dataclass(frozen=True)
class Sandbox:
    """Runs programs in bubblewrap, or without any protection when ``unsafe`` is set."""

    unsafe: bool = False
    ending: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """End everything that runs in this sandbox, and what is started while this lasts, at once
        (``stopped`` is ``"ended"`` then): for an interruption, which must not wait for it."""
        self.ending.set()
        try:
            yield
        finally:
            self.ending.clear()

    def run(
        self,
        argv: Sequence[str],
        files: Mapping[str, str | bytes] | None = None,
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        readonly: Sequence[str] = (),
    ) -> Completed:
        """Run ``argv`` in a fresh folder that holds ``files`` (relative name to content).

        ``readonly`` names folders outside the system's own that the program may read, at their own
        path. The environment holds only ``PATH``, ``HOME``, ``TMPDIR``, ``LANG`` and ``env``.
        Raises :class:`SandboxError` when no sandbox can be had here.
        """
        limits = limits or Limits()
        contents = {
            name: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            for name, text in (files or {}).items()
        }
        for name in contents:
            if name.startswith("/") or ".." in Path(name).parts:
                raise SandboxError(f"{name!r} is no file name inside the sandbox; use a plain name")
        if self.unsafe:
            return _run_unsafe(argv, contents, stdin, limits, env or {}, self.ending)
        check_sandbox()
        return _run_bwrap(argv, contents, stdin, limits, env or {}, readonly, self.ending)


def check_sandbox() -> None:
    """Raise :class:`SandboxError`, with the line that mends it, when bubblewrap cannot run here."""
    tools = tuple(shutil.which(name) for name in ("bwrap", "setpriv", "prlimit"))
    if tools in _working:
        return
    problem = _problem(*tools)
    if problem:
        raise SandboxError(problem)
    _working.add(tools)


def _problem(bwrap: str | None, setpriv: str | None, prlimit: str | None) -> str:
    """Why there is no sandbox with these tools ("" when there is one)."""
    if sys.platform != "linux":
        return "generated code runs only on Linux, in bubblewrap; use a Linux machine or container"
    if bwrap is None:
        return f"bubblewrap (bwrap) is not installed, so generated code is not run; mend: {MEND}"
    if prlimit is None or setpriv is None:
        return "prlimit or setpriv is not installed; mend: apt-get install util-linux"
    try:
        version = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False)
        found = re.search(r"(\d+)\.(\d+)", version.stdout)
        if found and (int(found[1]), int(found[2])) < (0, 7):
            return (
                f"bubblewrap {found[0]} is too old, 0.7 is needed; mend: {MEND} on a newer system"
            )
        done = _run_bwrap([tool("true")], {}, b"", Limits(), {}, ())
    except OSError as error:
        return f"bubblewrap cannot be started ({error}); mend: {MEND}"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = said[-1] if said else f"exit status {done.returncode}"
    if is_root():
        mend = "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined ..."
    else:
        mend = "sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000 "
        mend += "kernel.apparmor_restrict_unprivileged_userns=0"
    return f"bubblewrap is refused its namespaces here ({reason}); mend: {mend}"


def base_python() -> tuple[str, tuple[str, ...]]:
    """The interpreter that runs Python programs, and the folders it needs (``readonly``)."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return executable, outside_system(sys.base_prefix, os.path.dirname(executable))


def outside_system(*folders: str) -> tuple[str, ...]:
    """Those of ``folders`` that the sandbox does not show anyway."""
    real = [os.path.realpath(folder) for folder in folders]
    known = (*_PREFIXES, *(os.path.realpath(prefix) for prefix in _PREFIXES))
    keep: list[str] = []
    for folder in real:
        if not any(_inside(folder, other) for other in (*known, *keep)):
            keep.append(folder)
    return tuple(keep)


def _inside(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(other.rstrip("/") + "/")


def _run_bwrap(
    argv: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes,
    limits: Limits,
    env: Mapping[str, str],
    readonly: Sequence[str],
    ending: threading.Event | None = None,
) -> Completed:
    root = is_root()
    # A user id of its own for each run: the limit on processes counts per user id.
    uid = 61200 + next(_uids) % 4000 if root else 65534
    command = bwrap_argv(uid, limits, readonly)
    passwd = f"root:x:0:0:root:/root:/bin/sh\nrunner:x:{uid}:{uid}:runner:/tmp:/bin/sh\n"
    whole = {
        "/etc/passwd": passwd.encode(),
        "/etc/group": f"root:x:0:\nrunner:x:{uid}:\n".encode(),
        "/etc/hosts": b"127.0.0.1 localhost\n::1 localhost\n",
        **{f"{WORK}/{name}": content for name, content in files.items()},
    }
    for folder in sorted({str(parent) for name in files for parent in Path(name).parents[:-1]}):
        command += ["--perms", "0777", "--dir", f"{WORK}/{folder}"]
    with contextlib.ExitStack() as stack:
        fds: list[int] = []
        for name, content in whole.items():
            fd = os.memfd_create("file")
            stack.callback(os.close, fd)
            os.write(fd, content)
            os.lseek(fd, 0, os.SEEK_SET)
            fds.append(fd)
            command += ["--perms", "0644", "--file", str(fd), name]
        command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
        for key, value in environment_of(env, "/tmp").items():
            command += ["--setenv", key, value]
        if root:
            # Dropping privileges before the limits are set, so that they cannot be raised again.
            command += [tool("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            command += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        command += [*limit_argv(limits, True), *argv]
        return _watch(command, stdin, limits, pass_fds=fds, ending=ending)


def _run_unsafe(
    argv: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes,
    limits: Limits,
    env: Mapping[str, str],
    ending: threading.Event,
) -> Completed:
    """No protection but the limits: a temporary folder, the caller's own user and network."""
    with tempfile.TemporaryDirectory(prefix="treeplay-", ignore_cleanup_errors=True) as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        # The mark finds processes that left the session and the family tree.
        mark = uuid.uuid4().hex
        environment = environment_of(env, folder)
        environment["TREEPLAY_RUN"] = mark
        prefix = limit_argv(limits, False) if shutil.which("prlimit") else []
        return _watch(
            [*prefix, *argv], stdin, limits, env=environment, cwd=folder, mark=mark, ending=ending
        )


def _watch(
    command: Sequence[str],
    stdin: bytes,
    limits: Limits,
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    mark: str = "",
    ending: threading.Event | None = None,
) -> Completed:
    """Start ``command``, feed and read it, and end it when it goes over a limit."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=tuple(pass_fds),
        env={} if env is None else dict(env),
        cwd=cwd or "/",
        start_new_session=True,
    )
    out, err = Capture(limits.output_kb << 10), Capture(limits.output_kb << 10)
    stopped = ""

    def over() -> bool:
        nonlocal stopped
        if ending is not None and ending.is_set():
            stopped = "ended"
        elif time.monotonic() - start > limits.wall_s:
            stopped = "time"
        else:
            stopped = _over_limit(process.pid, limits)
        return bool(stopped)

    try:
        pump(process, stdin, out, err, over, interval=_POLL_S)
    finally:
        _kill_tree(process, mark)
    if not stopped and process.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        stopped = "time"
    return Completed(
        returncode=process.returncode,
        stdout=out.value(),
        stderr=err.value(),
        timed_out=stopped == "time",
        seconds=time.monotonic() - start,
        stopped=stopped,
    )


def _over_limit(pid: int, limits: Limits) -> str:
    """Which limit on the whole tree under ``pid`` is passed, "" for none."""
    resident, count = 0, 0
    seen: set[tuple[int, int]] = set()
    for member in descendants(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text("ascii", "replace")
        except OSError:
            continue
        count += 1
        # Pages of files (the program's own text) are not its doing and are left out.
        for found in re.finditer(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE):
            resident += int(found[1])
        resident += _in_memory_files(member, seen)
    if resident > limits.memory_mb << 10 or psutil.virtual_memory().available < _SPARE:
        return "memory"
    # bubblewrap's own processes are among those counted.
    return "processes" if count > limits.processes + 4 else ""


def _in_memory_files(pid: int, seen: set[tuple[int, int]]) -> int:
    """KiB in files without a name (memfd_create) that ``pid`` holds open and that are not ``seen``
    yet: no process's resident pages, and in no tmpfs that has a limit."""
    total = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/fd/{name}"
                if os.readlink(path).startswith("/memfd:"):
                    found = os.stat(path)
                    if (found.st_dev, found.st_ino) not in seen:
                        seen.add((found.st_dev, found.st_ino))
                        total += found.st_blocks // 2
    return total


def descendants(pid: int) -> list[int]:
    """The process ids under ``pid``, without ``pid`` itself."""
    found: list[int] = []
    waiting = [pid]
    try:
        while waiting:
            parent = waiting.pop()
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(ProcessLookupError):
                    listed = Path(f"/proc/{parent}/task/{task}/children").read_text("ascii")
                    children = [int(child) for child in listed.split()]
                    found += children
                    waiting += children
    except FileNotFoundError:
        # The process is gone, or this kernel does not list children: the slow way knows.
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def _kill_tree(process: subprocess.Popen[bytes], mark: str) -> None:
    """End everything that the run started. In bubblewrap the kernel ends the whole process
    namespace with its first process; without it the family is looked for."""
    family = descendants(process.pid) if mark else []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.poll() is None or mark:
            os.killpg(process.pid, signal.SIGKILL)
    # Twice, because one that is just forking is not seen the first time.
    for member in [*family, *(_marked(mark) if mark else ()), *(_marked(mark) if mark else ())]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _marked(mark: str) -> list[int]:
    """Processes of an unprotected run, wherever they went: they carry its mark."""
    needle = f"TREEPLAY_RUN={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
