"""Semgrep with the packaged rules (:data:`SEMGREP`) or with somebody's own.

All programs of a language are looked at by one process with one merged rules file. The fast
command line inside Semgrep (``--experimental``, 0.13 s to start) is tried first, the usual one when
that fails. ``nosemgrep`` comments are ignored: a model could learn to write them. Semgrep may exit
with 0 though it looked at nothing, so what it says it scanned is compared with what it was given.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from treeplay.judge.cwe import matches_any
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import (
    SUFFIXES,
    BrokenToolError,
    StoppedToolError,
    asked_for,
    ending,
    isolate,
    named_cwe,
    program_folders,
)
from treeplay.judge.tools.semgrep_rules import (
    ALL,
    SemgrepRule,
    load_own_rules,
    load_semgrep_rules,
    rules_digest,
    rules_file,
    rules_for,
)
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Limits, Sandbox

TOOL = "semgrep"
INSTALL = "pip install 'semgrep>=1.100'"
OLDEST = (1, 100)
BATCH = 300  # files of one process; each takes a file descriptor when the sandbox is set up
RULE_S = 5  # time limit for one rule on one file
_FLAGS = (
    "--metrics=off --disable-version-check --json --quiet --disable-nosem --no-git-ignore "
    f"--max-target-bytes=1000000000 --timeout={RULE_S} --timeout-threshold=2"
).split()
# Semgrep does not start without a certificate to trust and the sandbox has none. This one is
# nobody's: its key was never kept, and there is no network to use it on.
_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUVIzkA0lvpO3/gOTAFdzRYo+LC6gwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMzA3NDI0OFoYDzIxMjYxMDMwMDc0
MjQ4WjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AARkJuLyizhDXkyrjC0oLjmZ+HYcpThuRxqrfEPVtOu3clARI6E0aDjkilQcSG+H
Owqbk1ooqwP84E7DVQZNHkhMo1MwUTAdBgNVHQ4EFgQUyKdsBfzefDQYXuo/9x3H
4p2vAP8wHwYDVR0jBBgwFoAUyKdsBfzefDQYXuo/9x3H4p2vAP8wDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAqUXSpCnFm1llVzDVrwbe3zeH0aYy
NNlGp0yQgq8s5XACIQC6JXEd+tfnftL3tdYPBDY0qjSuBqBIbAR/AvSDoDTHuw==
-----END CERTIFICATE-----
"""
# memory for io_uring would have to be locked, which the sandbox does not allow
_ENV = {
    "EIO_BACKEND": "posix",
    "PYTHONDONTWRITEBYTECODE": "1",
    "SEMGREP_ENABLE_VERSION_CHECK": "0",
    "SEMGREP_SEND_METRICS": "off",
    "SSL_CERT_FILE": "nobody.pem",
}


@dataclass(frozen=True)
class _Seen:
    """What Semgrep says of one file: (rule id, first line, last line) of each hit."""

    hits: tuple[tuple[str, int, int], ...] = ()
    failed: str = ""


def find_semgrep() -> str | None:
    """The executable: ``$TREEPLAY_SEMGREP``, the one beside this Python, the first on the PATH."""
    named = os.environ.get("TREEPLAY_SEMGREP")
    if named:
        return shutil.which(os.path.abspath(named))
    beside = os.path.join(os.path.dirname(sys.executable), "semgrep")
    return shutil.which(beside) or shutil.which("semgrep")


def semgrep_version() -> str | None:
    """``"1.182.0"``; None when Semgrep is missing or cannot say."""
    executable = find_semgrep()
    if executable is None:
        return None
    return _version_of(executable, os.stat(executable).st_mtime_ns)


@cache
def _version_of(executable: str, _changed: int) -> str | None:
    command = [executable, "--version"]
    # without these it asks its maker's server for a newer version, and hangs where there is no net
    env = {**os.environ, "SEMGREP_ENABLE_VERSION_CHECK": "0", "SEMGREP_SEND_METRICS": "off"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=30, stdin=subprocess.DEVNULL, env=env
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb"\d+\.\d+[\w.]*", done.stdout)
    return found[0].decode() if found and done.returncode == 0 else None


def make_semgrep(rule_paths: Sequence[str | Path], name: str) -> Tool:
    """Semgrep with rule files or folders of somebody's own, as a tool called ``name``.

    Raises :class:`~treeplay.errors.ConfigError` when a path holds no rules that can be read.
    """
    paths = tuple(Path(path) for path in rule_paths)
    load_own_rules(paths)
    return _tool(name, lambda: load_own_rules(paths))


def _tool(name: str, load: Callable[[], tuple[SemgrepRule, ...]]) -> Tool:
    def version() -> str | None:
        found = semgrep_version()
        return found and f"{found}, rules {rules_digest(load())}"

    def covers(language: str, cwe: str) -> bool:
        return any(
            language in rule.languages and any(matches_any(one, (cwe,)) for one in rule.cwe)
            for rule in load()
        )

    def run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        return _run(name, load(), programs, sandbox)

    return Tool(name, ALL, INSTALL, version, covers, run)


SEMGREP = _tool(TOOL, load_semgrep_rules)


def _run(
    name: str, rules: Sequence[SemgrepRule], programs: Sequence[Program], sandbox: Sandbox
) -> list[ToolResult]:
    executable, problem = _usable()
    if executable is None:
        return [ToolResult(failed=f"{name}: {problem}")] * len(programs)
    results: dict[int, ToolResult] = {}
    for language in dict.fromkeys(program.language for program in programs):
        places = [at for at, one in enumerate(programs) if one.language == language]
        needed = rules_for(rules, language, list({programs[at].cwe for at in places}))
        # a text that occurs twice is looked at once
        texts = list(dict.fromkeys(programs[at].text for at in places))
        seen: dict[str, _Seen] = {}
        for start in range(0, len(texts), BATCH) if needed else ():
            some = texts[start : start + BATCH]
            scan = _Scan(executable, language, needed, sandbox)
            said = isolate(some, scan.run, scan.works, lambda why: _Seen(failed=why))
            seen.update(zip(some, said, strict=True))
        known = {rule.id: rule for rule in needed}
        for at in places:
            one = seen.get(programs[at].text, _Seen())
            results[at] = _result(name, one, known, programs[at].cwe)
    return [results[at] for at in range(len(programs))]


def _usable() -> tuple[str | None, str]:
    """The executable, or None and what is wrong with the one that is here."""
    executable = find_semgrep()
    if executable is None:
        return None, f"not installed; mend: {INSTALL}"
    version = semgrep_version()
    if version is None:
        return None, f"{executable} does not say its version; mend: {INSTALL}"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return None, f"version {version} is too old; mend: {INSTALL}"
    return executable, ""


def _result(
    name: str, seen: _Seen, rules: dict[str, SemgrepRule], cwe: tuple[str, ...]
) -> ToolResult:
    findings = []
    for rule_id, first, last in seen.hits:
        rule = rules[rule_id]
        findings.append(Finding(named_cwe(rule.cwe, cwe), first, last, rule.id, name, rule.message))
    return ToolResult(asked_for(findings, cwe), f"{name}: {seen.failed}" if seen.failed else "")


@dataclass(frozen=True)
class _Scan:
    """One way of running Semgrep over programs of one language."""

    executable: str
    language: str
    rules: Sequence[SemgrepRule]
    sandbox: Sandbox

    def run(self, texts: Sequence[str]) -> list[_Seen]:
        """What is said of each text, the fast way or else the slow one."""
        try:
            return self.once(texts, fast=True)
        except StoppedToolError:
            raise
        except BrokenToolError:
            return self.once(texts, fast=False)

    def works(self) -> bool:
        try:
            return bool(self.run(["\n"]))
        except BrokenToolError:
            return False

    def once(self, texts: Sequence[str], *, fast: bool) -> list[_Seen]:
        """What is said of each text. Raises :class:`BrokenToolError`."""
        name, merged = rules_file(self.rules)
        names = [f"p/{number}{SUFFIXES[self.language]}" for number in range(len(texts))]
        # a method without its class is an error to Semgrep's Python; its lines keep their numbers
        shown = [textwrap.dedent(text) for text in texts] if self.language == "python" else texts
        files = {name: merged, "nobody.pem": _CERTIFICATE, **dict(zip(names, shown, strict=True))}
        jobs = min(os.cpu_count() or 1, 8)
        argv = [self.executable, "scan", *(["--experimental"] if fast else []), *_FLAGS]
        argv += [f"--jobs={jobs}", f"--config={name}", "p"]
        size = sum(len(text) for text in files.values())
        wall = 60.0 + len(texts)
        limits = Limits(
            wall_s=wall,
            cpu_s=int(wall) * jobs,
            memory_mb=4096,
            processes=128,
            file_mb=64 + (size >> 20) * 2,
            output_kb=64 << 10,
        )
        try:
            done = self.sandbox.run(
                argv, files, limits=limits, env=_ENV, readonly=program_folders(self.executable)
            )
        except OSError as error:
            raise BrokenToolError(f"cannot be started ({error})") from error
        if done.stopped:
            raise StoppedToolError(ending(done))
        try:
            data = json.loads(done.stdout.decode("utf-8", "replace"))
            return _read(data, names, texts, self.rules, done.returncode)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            kind = "no output" if not done.stdout.strip() else "no whole JSON"
            raise BrokenToolError(f"{kind} ({ending(done)})") from error


def _read(
    data: Any,
    names: Sequence[str],
    texts: Sequence[str],
    rules: Sequence[SemgrepRule],
    status: int,
) -> list[_Seen]:
    """Semgrep's JSON, put back in the order of ``names``. Raises :class:`BrokenToolError`."""
    errors: list[dict[str, Any]] = data["errors"]
    for error in errors:
        if error.get("path") is None and error["level"] == "error":
            raise BrokenToolError(_line(error["message"]))
    if status not in (0, 1) and not errors:
        raise BrokenToolError(f"exit status {status}")
    scanned = {_plain(path) for path in data["paths"]["scanned"]}
    if not scanned.intersection(names):
        raise BrokenToolError(f"it scanned none of {len(names)} programs")
    ids = {rule.id for rule in rules}
    hits: dict[str, list[tuple[str, int, int]]] = {name: [] for name in names}
    for hit in data["results"]:
        first, last = int(hit["start"]["line"]), int(hit["end"]["line"])
        hits[_plain(hit["path"])].append((_own_id(hit["check_id"], ids), first, max(first, last)))
    failed: dict[str, str] = {}
    unread: dict[str, set[int]] = {}
    for error in errors:
        name = _plain(error.get("path") or "")
        kind = error["type"][0] if isinstance(error["type"], list) else error["type"]
        if kind == "PartialParsing":
            for span in error.get("spans") or ():
                lines = range(span["start"]["line"], span["end"]["line"] + 1)
                unread.setdefault(_plain(span["file"]), set()).update(lines)
        elif name in hits:
            failed.setdefault(name, _line(error["message"]).replace(name, "the program"))
    for name, text in zip(names, texts, strict=True):
        if name not in scanned:
            failed[name] = "it did not scan the program"
        elif name in unread and _all_unread(text, unread[name]):
            failed.setdefault(name, "it could not parse the program")
    return [_Seen(tuple(dict.fromkeys(hits[name])), failed.get(name, "")) for name in names]


def _all_unread(text: str, unread: set[int]) -> bool:
    lines = text.split("\n")
    return all(number in unread for number, line in enumerate(lines, 1) if line.strip())


def _own_id(check_id: str, ids: set[str]) -> str:
    """Semgrep may put the path of the rules file, with dots, before a rule's id."""
    while check_id not in ids:
        _, dot, check_id = check_id.partition(".")
        if not dot:
            raise KeyError("a finding of an unknown rule")
    return check_id


def _plain(path: str) -> str:
    return path.removeprefix("./")


def _line(message: str) -> str:
    """The first line of a message, and the next when that only announces it."""
    lines = [" ".join(line.split()) for line in message.strip().splitlines()]
    return " ".join(lines[:2])[:200] or "an error without a message"
