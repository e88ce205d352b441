"""What a program in the sandbox can and cannot do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from treeplay import sandbox as sandbox_module
from treeplay.capture import Capture
from treeplay.errors import SandboxError
from treeplay.sandbox import Completed, Limits, Sandbox, base_python, check_sandbox, outside_system

PYTHON, READONLY = base_python()


def _works() -> str:
    try:
        check_sandbox()
    except SandboxError as error:
        return str(error)
    return ""


PROBLEM = _works()
needs_bwrap = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)


def python(code: str, limits: Limits | None = None, *, unsafe: bool = False) -> Completed:
    """Run ``code`` in a sandbox; its output is what the tests look at."""
    argv = [PYTHON, "-I", "-S", "-B", "program.py"]
    return Sandbox(unsafe).run(argv, {"program.py": code}, limits=limits, readonly=READONLY)


def said(done: Completed) -> list[str]:
    assert done.returncode == 0, done
    return done.stdout.decode().split()


def processes_with(word: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def gone(word: str, within: float = 2.0) -> bool:
    """Whether no process has ``word`` on its command line, soon."""
    end = time.monotonic() + within
    while processes_with(word):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@needs_bwrap
def test_runs_with_files_input_and_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
    done = Sandbox().run(
        ["/bin/sh", "-c", "cat a.txt sub/b.bin; cat; env; echo err >&2; exit 3"],
        {"a.txt": "one\n", "sub/b.bin": b"two\n"},
        stdin=b"three\n",
        env={"EXTRA": "yes"},
    )
    lines = done.stdout.decode().splitlines()
    assert lines[:3] == ["one", "two", "three"]
    assert "EXTRA=yes" in lines
    assert "SECRET" not in done.stdout.decode()
    assert (done.returncode, done.stderr, done.timed_out) == (3, b"err\n", False)


@needs_bwrap
def test_no_network() -> None:
    code = """
import socket
names = sorted(name for _, name in socket.if_nameindex())
print(",".join(names))
for target in (("1.1.1.1", 53), ("8.8.8.8", 443)):
    try:
        socket.create_connection(target, timeout=2)
        print("connected")
    except OSError as error:
        print(error.errno)
"""
    names, *rest = said(python(code))
    assert names == "lo"
    assert rest == ["101", "101"]  # ENETUNREACH, at once


@needs_bwrap
def test_cannot_read_what_is_not_the_systems(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    checkout = Path(__file__).resolve().parents[1]
    paths = [str(secret), str(checkout), str(Path.home() / ".profile"), "/etc/shadow"]
    paths += ["/home", "/var", "/srv", "/root/.bashrc", "/proc/1/environ", "/proc/1/root/etc"]
    code = f"""
import os
for path in {paths!r}:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
        print("READ", path)
    except OSError:
        print("no")
print(",".join(sorted(os.listdir("/"))))
"""
    *reads, top = said(python(code))
    if os.geteuid() != 0:  # then the first process has the program's own user id
        reads = reads[:8]
        paths = paths[:8]
    assert reads == ["no"] * len(paths)
    known = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}
    known |= {Path(folder).parts[1] for folder in READONLY}
    assert set(top.split(",")) <= known


@needs_bwrap
def test_writes_only_to_its_own_small_tmpfs() -> None:
    code = """
import os
for path in ("/x", "/usr/x", "/etc/x", "/dev/x", "/bin/x", "/proc/sys/kernel/hostname"):
    try:
        open(path, "w").write("x")
        print("WROTE", path)
    except OSError:
        print("no")
open("here", "w").write("x")
open("/tmp/there", "w").write("x")
try:
    for n in range(100):
        open(f"big{n}", "wb").write(b"x" * (1 << 20))
    print("NO END")
except OSError as error:
    print("full", n < 9)
try:
    os.remove("big0"); os.remove("big1"); os.remove("big2")
    open("one", "wb").write(b"x" * (3 << 20))
    print("LARGE FILE")
except OSError as error:
    print(error.errno)
"""
    done = said(python(code, Limits(file_mb=2)))
    assert done == ["no"] * 6 + ["full", "True", "27"]  # EFBIG
    assert not Path("/tmp/there").exists()


@needs_bwrap
def test_unprivileged_and_cannot_become_more() -> None:
    code = """
import os, resource
print(os.getuid() != 0 and os.getgid() != 0 and 0 not in os.getgroups())
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
print(int(status["CapEff"], 16), int(status["NoNewPrivs"]))
for call in (lambda: os.setuid(0), lambda: os.chroot("/tmp"),
             lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))):
    try:
        call()
        print("ALLOWED")
    except (OSError, ValueError):
        print("no")
"""
    assert said(python(code)) == ["True", "0", "1", "no", "no", "no"]


@needs_bwrap
def test_fork_bomb_is_contained() -> None:
    word = f"bomb{os.getpid()}"
    code = f"""
# {word}
import os, time
made = 0
for n in range(500):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""
    argv = [PYTHON, "-I", "-S", "-B", "-c", code]
    limits = Limits(wall_s=5, processes=20)
    start = time.monotonic()
    done = Sandbox().run(argv, limits=limits, readonly=READONLY)
    assert time.monotonic() - start < 6
    assert done.stopped == "processes" or int(done.stdout) < 20
    assert gone(word)


@needs_bwrap
def test_memory_bomb_is_contained() -> None:
    hoard = "kept = []\nwhile True:\n    kept.append(bytearray(b'x' * (8 << 20)))\n"
    done = python(hoard, Limits(memory_mb=200))
    assert done.stopped == "memory"
    assert not done.timed_out
    shared = "import mmap\nkept = []\nwhile True:\n    kept.append(mmap.mmap(-1, 8 << 20))\n"
    shared += "    kept[-1].write(b'x' * (8 << 20))\n"
    assert python(shared, Limits(memory_mb=200)).stopped == "memory"
    done = python(hoard, Limits(memory_mb=200, address_mb=200))
    assert b"MemoryError" in done.stderr
    files = "import os, time\nfor i in range(30):\n    fd = os.memfd_create(str(i))\n"
    files += "    for _ in range(15):\n        os.write(fd, b'x' * (1 << 20))\ntime.sleep(5)\n"
    assert python(files, Limits(memory_mb=200)).stopped == "memory"


DAEMON = """
import os, sys, time
# {word}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "{loop}", "{word}"])
    os._exit(0)
time.sleep({wait})
"""
LOOP = "import time; time.sleep(100)"


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_bwrap), True])
@pytest.mark.parametrize("wait", [100, 0.3])
def test_daemons_die_with_the_run(unsafe: bool, wait: float) -> None:
    word = f"daemon{os.getpid()}{int(unsafe)}{int(wait)}"
    code = DAEMON.format(word=word, loop=LOOP, wait=wait)
    start = time.monotonic()
    done = python(code, Limits(wall_s=0.7 if wait > 1 else 10), unsafe=unsafe)
    assert time.monotonic() - start < 8  # the daemon would sleep on
    assert done.timed_out == (wait > 1)
    assert gone(word)


@needs_bwrap
def test_dies_with_its_caller() -> None:
    word = f"orphan{os.getpid()}"
    loop = f"import time; time.sleep(100)  # {word}"
    source = str(Path(sandbox_module.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r})\n"
    code += "from treeplay.sandbox import Sandbox, base_python\npython, folders = base_python()\n"
    code += f"Sandbox().run([python, '-c', {loop!r}], readonly=folders)\n"
    caller = psutil.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 10
    while len(processes_with(word)) < 3:  # the caller, bubblewrap, the program
        assert time.monotonic() < end, "the program did not start"
        time.sleep(0.05)
    time.sleep(0.2)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert gone(word)


@pytest.mark.parametrize("unsafe", [pytest.param(False, marks=needs_bwrap), True])
def test_huge_output_is_capped(unsafe: bool) -> None:
    code = "import sys\nfor n in range(40):\n    sys.stdout.write('x' * (1 << 20))\n"
    code += "    sys.stderr.write('y' * (1 << 20))\nprint('the end')\n"
    done = python(code, Limits(output_kb=16), unsafe=unsafe)
    assert done.returncode == 0
    assert len(done.stdout) < 16500
    assert done.stdout.startswith(b"xxx")
    assert done.stdout.endswith(b"xthe end\n")
    assert re.search(rb"\[\.\.\. \d{8} bytes left out \.\.\.\]", done.stdout)
    assert len(done.stderr) < 16500


def test_capture_keeps_the_ends() -> None:
    for size in (1, 7, 64):
        capture = Capture(20)
        data = bytes(range(100))
        for start in range(0, 100, size):
            capture.add(data[start : start + size])
        assert capture.value() == data[:10] + b"\n[... 80 bytes left out ...]\n" + data[-10:]
    small = Capture(20)
    small.add(b"abc" * 6)
    assert small.value() == b"abc" * 6


@needs_bwrap
def test_input_larger_than_a_pipe_to_a_program_that_does_not_read_it() -> None:
    done = Sandbox().run(["/bin/true"], stdin=b"x" * (1 << 22))
    assert done.returncode == 0
    done = Sandbox().run(["/usr/bin/wc", "-c"], stdin=b"x" * (1 << 22))
    assert done.stdout.split() == [b"4194304"]


@needs_bwrap
def test_cpu_limit_ends_a_loop() -> None:
    done = python("while True: pass", Limits(cpu_s=1, wall_s=8))
    assert done.returncode != 0
    assert done.timed_out
    assert done.stopped == "time"
    assert done.seconds < 5


def test_refused_without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("setpriv", "prlimit"):
        tool = shutil.which(name)
        assert tool
        (tmp_path / name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt-get install bubblewrap") as error:
        Sandbox().run(["/bin/true"])
    assert "\n" not in str(error.value)
    with pytest.raises(SandboxError):
        check_sandbox()
    assert Sandbox(unsafe=True).run(["/bin/true"]).returncode == 0


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("case $1 in --version) echo bubblewrap 0.4.1;; esac", "0.7"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
    ],
)
def test_refused_when_bubblewrap_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, word: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=word) as error:
        Sandbox().run(["/bin/true"])
    assert "mend: " in str(error.value)
    assert "\n" not in str(error.value)


def test_file_names_stay_inside() -> None:
    for name in ("/etc/x", "../x", "a/../../x"):
        with pytest.raises(SandboxError, match="plain name"):
            Sandbox(unsafe=True).run(["/bin/true"], {name: "x"})


def test_outside_system() -> None:
    assert outside_system("/usr/lib/x", "/opt/a", "/opt/a/b", "/usr") == ("/opt/a",)
