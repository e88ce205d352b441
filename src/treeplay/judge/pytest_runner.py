"""Running a published pytest file (CWEval's form) against a program, as published.

Such a file marks its cases ``functionality`` or ``security`` and expects the program beside it:
``NAME_task.py`` to import, ``NAME_task.js`` to start with node, or ``compiled/NAME_task``. Cases
whose name holds ``_unsafe`` run a bundled bad program and are left out, as upstream does.

One sandbox for both groups. The harness (``harness/pytest_groups.py``) builds the program once and
runs each group in a child of its own; see there for what keeps a program from passing by a trick.
A program in Python shares the process with its test: it cannot print its way to a pass, but code
that sets out to rewrite pytest in memory could.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.judge.outcome import Execution, GroupResult, Outcome, not_run
from treeplay.judge.pytest_needs import HELPER, find_needs, go_packages, node_modules, site_folders
from treeplay.sandbox import Completed, Limits, Sandbox, base_python, outside_system

PYTEST_LANGUAGES = ("python", "javascript", "c", "cpp", "go")
LIMITS = Limits(wall_s=75, cpu_s=40, memory_mb=1536, processes=96, file_mb=48)
GROUP_S = 20  # one group's share of the wall clock
_ENDINGS = {"python": "py", "javascript": "js", "c": "c", "cpp": "cpp", "go": "go"}
_TOOLS = {
    "javascript": ("node", "nodejs"),
    "c": ("gcc", "gcc libc6-dev"),
    "cpp": ("g++", "g++"),
    "go": ("go", "golang-go"),
}
_NAME = re.compile(r"\w+_test\.py")
_SPLIT = ("/bin/sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh")
_DETAIL = 2000


@dataclass(frozen=True)
class _Group:
    outcome: Outcome
    detail: str
    seconds: float
    passed: int


def pytest_toolchain(language: str) -> str | None:
    """Why pytest files cannot be run on programs in ``language`` here, or None."""
    if language not in PYTEST_LANGUAGES:
        return f"no published tests for {language}"
    tool, package = _TOOLS.get(language, ("", ""))
    if tool and shutil.which(tool) is None:
        return f"no {tool} here; mend: apt-get install {package}"
    return None


def execute_pytest(
    language: str,
    program: str,
    test_file: str,
    test_name: str,
    sandbox: Sandbox,
    *,
    sanitize: bool = False,
    limits: Limits | None = None,
) -> Execution:
    """Run the ``functionality`` and the ``security`` cases of ``test_file`` on ``program``.

    ``test_name`` is the file's published name, ``NAME_test.py``. ``sanitize`` builds C and C++ with
    the address sanitizer. A missing toolchain or package gives "unknown". The security group is
    "exploited" only when a functionality case passes and a security case fails in a way that shows
    harm (an assertion, a time-out, a crash); else a failing one is "fail".
    Raises :class:`TaskError` for a name of another form and :class:`SandboxError` when nothing can
    be run here.
    """
    if not _NAME.fullmatch(test_name):
        raise TaskError(f"{test_name!r} is no test file's name; it must be like 'name_test.py'")
    missing = pytest_toolchain(language)
    if missing:
        return not_run(missing)
    needs = find_needs(language, program, test_file)
    if needs.missing:
        return not_run(needs.missing)
    name = f"{test_name.removesuffix('_test.py')}_task.{_ENDINGS[language]}"
    site = site_folders()
    executable, base = base_python()
    readonly = [*base, *site]
    env = {}
    if language == "javascript":
        node = os.path.realpath(shutil.which("node") or "node")
        modules = node_modules()
        readonly += [os.path.dirname(node), *([str(modules)] if modules.is_dir() else [])]
        env = {"NODE_PATH": str(modules)}
        env["PATH"] = f"{os.path.dirname(node)}:/usr/local/bin:/usr/bin:/bin"
    if language == "go":
        tools, listing = _go_tools()
        if not listing:
            return not_run("go cannot compile its library here; look at `treeplay doctor`")
        readonly += [tools, str(Path(listing).parent)]
        env = {"GOMAXPROCS": "2"}
    helper = str(node_modules().parent) if HELPER in test_file else ""
    readonly += [helper] if helper else []
    plan = {
        "language": language,
        "cwd": helper,
        "program": name,
        "test": test_name,
        "site": site,
        "seconds": GROUP_S,
        "build": _build(language, name, needs.flags, sanitize),
    }
    if sanitize:
        env["ASAN_OPTIONS"] = "detect_leaks=0"
    nonce = secrets.token_hex(16)
    argv = (executable, "-I", "-S", "-B", "-X", "utf8", ".treeplay/harness.py", ".treeplay/plan")
    files = {
        ".treeplay/harness.py": _harness(),
        ".treeplay/plan": json.dumps(plan),
        name: program,
        test_name: test_file,
    }
    try:
        done = sandbox.run(
            (*_SPLIT, *argv),
            files,
            stdin=f"{nonce}\n".encode(),
            limits=limits or LIMITS,
            env=env,
            readonly=outside_system(*readonly),
        )
    except OSError as error:
        return not_run(f"the program could not be started: {error}")
    return _read(done, nonce.encode())


@functools.cache
def _harness() -> str:
    return (resources.files("treeplay.judge") / "harness" / "pytest_groups.py").read_text("utf-8")


def _build(
    language: str, name: str, flags: tuple[str, ...], sanitize: bool
) -> list[tuple[str, list[str]]]:
    """The steps that make ``{out}/program``: what the failure of one means, and its command line.
    node only looks whether the program can be read."""
    guard = ["-fsanitize=address"] if sanitize else []
    if language in ("c", "cpp"):
        compiler = "gcc" if language == "c" else "g++"
        return [("INVALID", [compiler, "-w", name, "-o", "{out}/program", *flags, *guard])]
    if language == "javascript":
        return [("INVALID", ["node", "--check", name])]
    if language == "go":
        tools, listing = _go_tools()
        made = "{out}/main.a"
        head = [f"{tools}/compile", "-p", "main", "-complete", "-importcfg", listing]
        tail = [f"{tools}/link", "-s", "-w", "-importcfg", f"{listing}.link"]
        return [
            ("INVALID", [*head, "-o", made, name]),
            ("NOTOOL", [*tail, "-o", "{out}/program", made]),
        ]
    return []


@functools.cache
def _go_tools() -> tuple[str, str]:
    """(folder with Go's compiler and linker, the list of compiled packages)."""
    import subprocess

    go = shutil.which("go") or "go"
    asked = subprocess.run([go, "env", "GOTOOLDIR"], capture_output=True, text=True, check=False)
    return os.path.realpath(asked.stdout.strip()), go_packages()[0]


def _read(done: Completed, nonce: bytes) -> Execution:
    said: list[tuple[str, str]] = []
    for line in done.stdout.split(b"\n"):
        parts = line.split(b" ", 2)
        if parts[0] == nonce and len(parts) > 1:
            text = parts[2] if len(parts) > 2 else b""
            said.append((parts[1].decode("ascii", "replace"), _text(text.replace(b"\x1f", b"\n"))))
    words: Mapping[str, str] = dict(said)
    if "INVALID" in words:
        fault = "does not compile: " + _errors(words["INVALID"])
        failed = GroupResult("fail", fault[:_DETAIL], done.seconds)
        return Execution(False, failed, failed)
    if "NOTOOL" in words or "START" not in words:
        why = words.get("NOTOOL") or _text(done.stderr) or f"exit status {done.returncode}"
        return not_run(f"the harness did not start: {why}"[:_DETAIL])
    functional = _group(said, "functionality", done)
    security = _group(said, "security", done)
    outcome = security.outcome
    if outcome == "exploited" and not functional.passed:
        outcome = "fail"  # a program that does nothing right shows no harm
    harm: Outcome = "fail" if functional.outcome == "exploited" else functional.outcome
    return Execution(
        True,
        GroupResult(harm, functional.detail, functional.seconds),
        GroupResult(outcome, security.detail, security.seconds),
    )


def _group(said: list[tuple[str, str]], group: str, done: Completed) -> _Group:
    """What one group came to. Only a "PASS" from it followed by a quiet end is a pass."""
    mine: dict[str, str] = {}
    for word, text in said:
        name, _, rest = text.partition(" ")
        if name == group:
            mine[word] = rest
    ended = mine.get("ENDED", "").split(" ")
    seconds = float(ended[1]) if len(ended) == 2 else done.seconds
    told = mine.get("HARM") or mine.get("FAIL") or ""
    count, _, detail = told.partition(" ")
    passed = int(count) if count.isdigit() else 0
    detail = detail[:_DETAIL]
    if "EMPTY" in mine:
        return _Group("unknown", mine["EMPTY"], seconds, 0)
    if "HARM" in mine:
        return _Group("exploited", detail, seconds, passed)
    if "FAIL" in mine:
        return _Group("fail", detail, seconds, passed)
    if "TIME" in mine or (done.stopped == "time" and "ENDED" not in mine):
        return _Group("unknown", "time-out", seconds, 0)
    if done.stopped and "ENDED" not in mine:
        return _Group("unknown", f"over the limit on {done.stopped}", seconds, 0)
    if "PASS" in mine and ended[0] == "0":
        number = mine["PASS"]
        return _Group("pass", "", seconds, int(number) if number.isdigit() else 0)
    tail = _text(done.stderr)[-800:]
    status = ended[0] or str(done.returncode)
    return _Group("fail", f"ended before the tests did (exit status {status})\n{tail}", seconds, 0)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def _errors(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line.lower()]
    return "\n".join(lines[:5] or log.splitlines()[:5])
