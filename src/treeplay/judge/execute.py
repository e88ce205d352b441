"""Running a task's two test groups against an answer.

Published pytest files (``Tests.form`` "pytest") are run by :mod:`treeplay.judge.pytest_runner`;
the rest of this module is about treeplay's own form.

Each group is a process of its own in a sandbox of its own; Python's two groups share one where the
harness can make it as it was between them: most of the time is the start. The program is the file
``solution`` (.py, .c, .js, .go) in the working folder. What test text may use:

* Python: ``exploited(why)``; ``import solution``.
* C: the text follows ``#include "solution.c"`` and defines ``void run_tests(void)``;
  ``CHECK(cond)`` and ``EXPLOITED(why)``. Built with the address and undefined-behaviour sanitizers;
  a report counts as exploited in the security group and as failed in the functional one.
* JavaScript: the body of an async function; ``exploited``, ``assert``, ``require``, ``solution``.
* Go: the rest of a file after ``package main``, with ``func runTests()``; ``exploited(msg)`` and
  ``check(cond, msg)``.

A group passes only when its harness reaches the end and says so with a random word that it read
before the program was loaded; a program that exits, prints or crashes cannot pass by that.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.judge.outcome import Execution, GroupResult, Outcome, not_run
from treeplay.judge.pytest_needs import find_needs, has_module, site_folders
from treeplay.judge.pytest_runner import execute_pytest, pytest_toolchain
from treeplay.sandbox import Completed, Limits, Sandbox, base_python, outside_system
from treeplay.tasks.task import Task, Tests

__all__ = [
    "EXECUTED",
    "Execution",
    "GroupResult",
    "Outcome",
    "execute",
    "execute_program",
    "missing_for",
    "missing_with_packages",
    "toolchain",
]

EXECUTED = ("python", "c", "javascript", "go")
_SANITIZER_EXIT = 66
_DETAIL = 2000
_NULL_IN_TEST = re.compile(r"(?:^|/)test\.c:\d+:\d+: runtime error: .*null pointer")
# Moves the results to a descriptor of their own; what the program prints goes to stderr.
_SPLIT = ("/bin/sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh")


@dataclass(frozen=True)
class _Plan:
    argv: tuple[str, ...]
    solution: str
    test: str
    files: Mapping[str, str]
    limits: Limits
    builds: bool = False
    test_head: str = ""
    readonly: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def toolchain(language: str) -> str | None:
    """Why programs in ``language`` cannot be run here, or None when they can."""
    if language not in EXECUTED:
        return f"no executed tests for {language}"
    if language == "c":
        return None if shutil.which("gcc") else "no gcc here; mend: apt-get install gcc libc6-dev"
    if language == "javascript":
        return None if shutil.which("node") else "no node here; mend: apt-get install nodejs"
    if language == "go":
        return _go()[0]
    return None


def missing_for(task: Task) -> str | None:
    """Why the tests of ``task`` cannot be run here, or None. Packages are not looked at."""
    if task.tests is not None and task.tests.form == "pytest":
        return pytest_toolchain(task.language)
    return toolchain(task.language)


def missing_with_packages(task: Task, program: str) -> str:
    """Why the tests of ``task`` cannot be run here on ``program``, packages looked at; or ""."""
    missing, tests = missing_for(task), task.tests
    if missing or tests is None:
        return missing or ""
    if tests.form == "pytest":
        return find_needs(task.language, program, tests.functional).missing
    absent = [name for name in tests.requires if not has_module(name)]
    words = f"not installed: {', '.join(absent)}; mend: pip install {' '.join(absent)}"
    return words if absent else ""


def execute(task: Task, answer: str, sandbox: Sandbox, limits: Limits | None = None) -> Execution:
    """Run both test groups of ``task`` with ``answer`` in the hole; of a task of general ability
    the functional one, the other is "unknown" then.

    ``limits`` replaces the language's own. Raises :class:`TaskError` for a task without tests and
    :class:`SandboxError` when nothing can be run here; a missing toolchain gives "unknown".
    """
    return execute_program(task, task.program(answer), sandbox, limits)


def execute_program(
    task: Task, program: str, sandbox: Sandbox, limits: Limits | None = None
) -> Execution:
    """As :func:`execute`, for a whole program."""
    tests = task.tests
    if tests is None:
        raise TaskError(f"task {task.id!r} has no tests; it can only be judged statically")
    missing = missing_with_packages(task, program)
    if missing:
        return not_run(missing)
    if tests.form == "pytest":
        return execute_pytest(
            task.language,
            program,
            tests.functional,
            tests.name,
            sandbox,
            sanitize=tests.sanitize,
            limits=limits,
        )
    plan = _plan(task.language)
    if limits is not None:
        plan = replace(plan, limits=limits)
    if task.language == "python":
        plan = _python_plan(plan, tests)
    if task.general:
        valid, functional = _group(plan, program, tests.functional, sandbox, security=False)
        return Execution(valid, functional, GroupResult("unknown", "there are no security tests"))
    if task.language == "python":
        return _both(plan, program, tests, sandbox)
    return _one_by_one(plan, program, tests, sandbox)


def _one_by_one(plan: _Plan, program: str, tests: Tests, sandbox: Sandbox) -> Execution:
    valid, functional = _group(plan, program, tests.functional, sandbox, security=False)
    if valid is False:
        return Execution(False, functional, functional)
    also, security = _group(plan, program, tests.security, sandbox, security=True)
    return Execution(valid if also is None else also, functional, security)


def _python_plan(plan: _Plan, tests: Tests) -> _Plan:
    """``plan`` with the folders of the third-party modules that the tests allow for."""
    modules = ""
    readonly = plan.readonly
    env = plan.env
    if tests.requires:
        folders = site_folders()
        modules = ":".join(folders)
        readonly = outside_system(*readonly, *folders)
        # A thread each for every core, times their stacks, is over the limit on the address space.
        env = (*env, ("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1"))
    argv = (*plan.argv[:-1], str(plan.limits.wall_s), modules, plan.argv[-1])
    return replace(plan, argv=argv, readonly=readonly, env=env)


def _both(plan: _Plan, program: str, tests: Tests, sandbox: Sandbox) -> Execution:
    """Both groups in one sandbox; a group that did not get its turn there is run by itself."""
    if sandbox.unsafe:
        return _one_by_one(plan, program, tests, sandbox)
    nonces = [secrets.token_hex(16).encode() for _ in range(2)]
    second = ".treeplay/test2.py"
    limits = replace(plan.limits, wall_s=2 * plan.limits.wall_s + 2)
    files = {**plan.files, plan.solution: program, plan.test: tests.functional}
    try:
        done = sandbox.run(
            (*plan.argv, second),
            {**files, second: tests.security},
            stdin=b"".join(nonce + b"\n" for nonce in nonces),
            limits=limits,
            env=dict(plan.env),
            readonly=plan.readonly,
        )
    except OSError as error:
        return not_run(f"the program could not be started: {error}")
    parts = _split(done, nonces)
    valid, outcome, detail = _read(parts[0], nonces[0], False)
    functional = GroupResult(outcome, detail[:_DETAIL], parts[0].seconds)
    if valid is False:
        return Execution(False, functional, functional)
    if nonces[1] + b" START" in done.stdout:
        also, outcome, detail = _read(parts[1], nonces[1], True)
        security = GroupResult(outcome, detail[:_DETAIL], parts[1].seconds)
    else:
        also, security = _group(plan, program, tests.security, sandbox, security=True)
    return Execution(valid if also is None else also, functional, security)


def _split(done: Completed, nonces: Sequence[bytes]) -> list[Completed]:
    """What a shared run was for each group: its own end where the harness told it, else the
    run's."""
    parts = []
    stderr = done.stderr
    for nonce in nonces:
        mine, _, stderr = stderr.partition(b"\n" + nonce + b"\n")
        found = re.findall(re.escape(nonce) + rb" ENDED (-?\d+) ([\d.]+)\n", done.stdout)
        part = replace(done, stderr=mine)
        if found:
            status, seconds = found[-1]
            slow = nonce + b" TIME\n" in done.stdout
            part = replace(
                part,
                returncode=int(status),
                timed_out=slow,
                stopped="time" if slow else "",
                seconds=float(seconds),
            )
        parts.append(part)
    return parts


@functools.cache
def _harness(name: str) -> str:
    return (resources.files("treeplay.judge") / "harness" / name).read_text("utf-8")


@functools.cache
def _plan(language: str) -> _Plan:
    at = ".treeplay/"
    limits = Limits()
    # Building takes its share of the wall clock.
    building = replace(limits, wall_s=25, cpu_s=15, file_mb=48)
    if language == "python":
        executable, readonly = base_python()
        argv = (executable, "-I", "-S", "-B", "-X", "utf8", at + "harness.py", at + "test.py")
        return _Plan(
            (*_SPLIT, *argv),
            "solution.py",
            at + "test.py",
            {at + "harness.py": _harness("python.py")},
            replace(limits, address_mb=limits.memory_mb),
            readonly=readonly,
        )
    if language == "javascript":
        node = os.path.realpath(shutil.which("node") or "node")
        return _Plan(
            (*_SPLIT, node, at + "harness.js", at + "test.js"),
            "solution.js",
            at + "test.js",
            {at + "harness.js": _harness("javascript.js")},
            limits,
            readonly=outside_system(node),
        )
    if language == "c":
        asan = f"exitcode={_SANITIZER_EXIT}:detect_leaks=0:allocator_may_return_null=1"
        asan += ":detect_stack_use_after_return=1"
        ubsan = f"exitcode={_SANITIZER_EXIT}:halt_on_error=1:print_stacktrace=0"
        return _Plan(
            ("/bin/sh", at + "c.sh"),
            "solution.c",
            at + "test.c",
            {at + name: _harness(name) for name in ("c.sh", "all.c", "treeplay.h")},
            building,
            builds=True,
            env=(("ASAN_OPTIONS", asan), ("UBSAN_OPTIONS", ubsan)),
        )
    _problem, root, cache = _go()
    tools = next(iter(sorted(Path(root, "pkg", "tool").glob("*_*"))))
    return _Plan(
        ("/bin/sh", at + "go.sh", str(tools), f"{cache}/importcfg"),
        "solution.go",
        at + "test.go",
        {at + "go.sh": _harness("go.sh"), at + "harness.go": _harness("harness.go")},
        building,
        builds=True,
        test_head="package main\n\n",
        readonly=outside_system(root, cache),
        env=(("GOMAXPROCS", "2"),),
    )


@functools.cache
def _go() -> tuple[str | None, str, str]:
    """(why Go cannot be used or None, GOROOT, folder with the compiled standard library).

    The standard library is compiled once for each user and Go version, by the trusted ``go`` tool
    outside the sandbox; programs are then compiled and linked against it without ``go build``.
    """
    go = shutil.which("go")
    if go is None:
        return "no go here; mend: apt-get install golang-go", "", ""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "treeplay")
    env = {**os.environ, "GOTOOLCHAIN": "local", "GO111MODULE": "off", "CGO_ENABLED": "0"}
    env["GOFLAGS"] = ""
    try:
        asked = _capture([go, "env", "GOROOT", "GOVERSION"], env)
        lines = asked.stdout.split()
        if asked.returncode or len(lines) != 2:
            return f"go does not work here ({asked.stderr.strip()[:200]})", "", ""
        root, version = lines
        cache = base / f"{version}-{zlib.crc32(root.encode()):08x}"
        listing = cache / "importcfg"
        if not listing.exists() or not _all_exist(listing):
            cache.mkdir(parents=True, exist_ok=True)
            env["GOCACHE"] = str(cache / "build")
            form = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
            made = _capture([go, "list", "-export", "-f", form, "std"], env)
            if made.returncode or "packagefile fmt=" not in made.stdout:
                return f"go cannot compile its library ({made.stderr.strip()[:200]})", "", ""
            partial = cache / f"importcfg.{os.getpid()}.{secrets.token_hex(4)}"
            partial.write_text(made.stdout, "utf-8")
            partial.replace(listing)
    except OSError as error:
        return f"go cannot keep its compiled library under {base} ({error})", "", ""
    return None, root, str(cache)


def _capture(argv: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=False)


def _all_exist(listing: Path) -> bool:
    """Whether the compiled packages that ``listing`` names are still there."""
    paths = [line.partition("=")[2] for line in listing.read_text("utf-8").splitlines()]
    return bool(paths) and all(Path(path).exists() for path in paths)


def _group(
    plan: _Plan, program: str, test: str, sandbox: Sandbox, *, security: bool
) -> tuple[bool | None, GroupResult]:
    nonce = secrets.token_hex(16)
    word = f"treeplay_{secrets.token_hex(16)}"
    files = {name: text.replace("treeplay_secret", word) for name, text in plan.files.items()}
    try:
        done = sandbox.run(
            plan.argv,
            {**files, plan.solution: program, plan.test: plan.test_head + test},
            # Twice: once for a building script, once for the program it then becomes.
            stdin=f"{nonce}\n".encode() * (2 if plan.builds else 1),
            limits=plan.limits,
            env=dict(plan.env),
            readonly=plan.readonly,
        )
    except OSError as error:
        return None, GroupResult("unknown", f"the program could not be started: {error}")
    valid, outcome, detail = _read(done, nonce.encode(), security)
    return valid, GroupResult(outcome, detail[:_DETAIL], done.seconds)


def _read(done: Completed, nonce: bytes, security: bool) -> tuple[bool | None, Outcome, str]:
    """(valid, outcome, detail) from what the harness said."""
    said: dict[str, str] = {}
    for line in done.stdout.split(b"\n"):
        parts = line.split(b" ", 2)
        if parts[0] == nonce and len(parts) > 1:
            text = parts[2] if len(parts) > 2 else b""
            said[parts[1].decode("ascii", "replace")] = _text(text.replace(b"\x1f", b"\n"))
    stderr = _text(done.stderr)
    harm: Outcome = "exploited" if security else "fail"
    if "INVALID" in said:
        return False, "fail", "does not compile: " + _errors(said["INVALID"])
    if "NOBUILD" in said:
        return True, "fail", "the test does not compile with it: " + _errors(said["NOBUILD"])
    if "EXPLOITED" in said:
        return True, harm, said["EXPLOITED"]
    if done.stopped:
        limit = {"time": "time-out"}.get(done.stopped, f"over the limit on {done.stopped}")
        return (True if "START" in said else None), "unknown", limit
    if "NOTOOL" in said or "START" not in said:
        why = said.get("NOTOOL") or stderr or f"exit status {done.returncode}"
        return None, "unknown", "the harness did not start: " + why
    if "MEMORY" in said:
        return True, "unknown", "over the limit on memory"
    if "FAIL" in said:
        return True, "fail", said["FAIL"]
    if "PASS" in said and done.returncode == 0:
        return True, "pass", ""
    if done.returncode == _SANITIZER_EXIT:
        report = _report(stderr)
        # The test's own use of a NULL that the answer returned shows no harm.
        return True, "fail" if _NULL_IN_TEST.search(report) else harm, report
    if done.returncode in (-9, 137, -24, 152):
        return True, "unknown", f"killed (exit status {done.returncode})"
    tail = stderr[-800:]
    return True, "fail", f"ended before the test did (exit status {done.returncode})\n{tail}"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def _errors(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line]
    return "\n".join(lines[:5] or log.splitlines()[:5])


def _report(stderr: str) -> str:
    """The sanitizer's own sentence."""
    for line in stderr.splitlines():
        if "ERROR: AddressSanitizer" in line or "runtime error:" in line:
            return line.strip()
    return "the sanitizer ended the program"
