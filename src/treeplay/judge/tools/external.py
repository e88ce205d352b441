"""Any analyser that writes SARIF, described in a few lines of YAML::

    name: gosec
    languages: [go]
    command: [gosec, -fmt, sarif, -out, "{output}", "{folder}/..."]
    version: [gosec, --version]          # prints a number; optional
    at_least: "2.18"                     # an older one is not used; optional
    install: go install github.com/securego/gosec/v2/cmd/gosec@latest
    cwe: [CWE-22, CWE-78]                # what its silence counts for; its findings count anyway
    cwe_map: {G104: [CWE-703]}           # for rules whose log names no CWE
    examples: {go: "package m\\n..."}     # one program per language that it must report
    timeout_s: 120
    ok_exit: [0, 1]
    readonly: [/opt/gosec]               # folders it needs beside its own and the system's
    env: {GOFLAGS: -mod=mod}

All programs of a batch lie in one folder (``{folder}``) and are looked at by one process in the
sandbox. The log is read from ``{output}``, from standard output when the command does not name it.
The examples lie in the same folder: a tool that does not report them has looked at nothing, even
when it exits with 0, and none of its silence is believed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from treeplay.errors import ConfigError
from treeplay.judge.cwe import cwe_number, matches_any
from treeplay.judge.sarif import SarifError, SarifLog, read_sarif
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import (
    SUFFIXES,
    BrokenToolError,
    asked_for,
    ending,
    isolate,
    named_cwe,
    program_folders,
)
from treeplay.sandbox import Limits, Sandbox

BATCH = 300
FOLDER = "p"
OUTPUT = "log.sarif"
# the tool's own words go to stderr; the log, wherever it was written, is what comes back
_TO_FILE = 'out=$1; shift; "$@" 1>&2; status=$?; if [ -f "$out" ]; then cat -- "$out"; fi; '
_TO_FILE += "exit $status"


@dataclass(frozen=True)
class ExternalTool:
    """What is known of a tool; the module's text says what each part means."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    languages: list[str]
    command: list[str]
    examples: dict[str, str]
    version: list[str] = field(default_factory=list)
    at_least: str = ""
    install: str = ""
    cwe: list[str] = field(default_factory=list)
    cwe_map: dict[str, list[str]] = field(default_factory=dict)
    timeout_s: float = 120
    memory_mb: int = 4096
    ok_exit: list[int] = field(default_factory=lambda: [0, 1])
    readonly: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


def load_external(path: str | Path) -> Tool:
    """The tool that a YAML file describes. Raises :class:`ConfigError` naming file and key."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from error
    return make_external(read_external(data, str(path)))


def read_external(data: Any, where: str) -> ExternalTool:
    """A description from plain data, strictly: a key too many or of the wrong type, a language that
    is not judged, one without an example, a command without ``{folder}`` or a CWE that is none
    raise :class:`ConfigError`."""
    try:
        tool = TypeAdapter(ExternalTool).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        known = ", ".join(one.name for one in fields(ExternalTool))
        raise ConfigError(f"{where}: {key}: {first['msg']}; the keys are {known}") from error
    for language in [*tool.languages, *tool.examples]:
        if language not in SUFFIXES:
            raise ConfigError(f"{where}: language {language!r}: use one of {', '.join(SUFFIXES)}")
    for language in tool.languages:
        if not tool.examples.get(language, "").strip():
            raise ConfigError(f"{where}: examples: give a {language} program that it must report")
    if not tool.name or not tool.languages or not tool.command:
        raise ConfigError(f"{where}: name, languages and command must not be empty")
    if not any("{folder}" in word for word in tool.command):
        raise ConfigError(
            f"{where}: command: {{folder}} must stand where the programs' folder goes"
        )
    for name in [*tool.cwe, *(one for some in tool.cwe_map.values() for one in some)]:
        if not name.startswith("CWE-") or cwe_number(name) is None:
            raise ConfigError(f"{where}: {name!r} is no name like CWE-89")
    for folder in tool.readonly:
        if not os.path.isabs(folder):
            raise ConfigError(f"{where}: readonly: {folder!r} must be an absolute path")
    if tool.at_least and not (tool.version and re.fullmatch(r"\d+(\.\d+)*", tool.at_least)):
        raise ConfigError(f"{where}: at_least must be like '2.18', and needs a version command")
    return tool


def make_external(tool: ExternalTool) -> Tool:
    """The tool behind the face that every tool has."""
    promised = (*tool.cwe, *(one for some in tool.cwe_map.values() for one in some))

    def covers(language: str, cwe: str) -> bool:
        return language in tool.languages and any(matches_any(one, (cwe,)) for one in promised)

    def run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        return _run(tool, programs, sandbox)

    # Which rule names which CWE, say, decides as much as the version does.
    digest = hashlib.sha256(repr(tool).encode()).hexdigest()[:8]

    def version() -> str | None:
        found = _version(tool)
        return found and f"{found} ({digest})"

    return Tool(tool.name, tuple(tool.languages), tool.install, version, covers, run)


def _find(command: str) -> str | None:
    found = shutil.which(command)
    return os.path.abspath(found) if found else None


def _version(tool: ExternalTool) -> str | None:
    """What the tool says its version is, "installed" when it is not asked, None when it is not
    here or cannot say."""
    executable = _find(tool.command[0])
    if executable is None:
        return None
    if not tool.version:
        return "installed"
    return _ask_version(tuple(tool.version), os.stat(executable).st_mtime_ns)


@cache
def _ask_version(command: tuple[str, ...], _changed: int) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(
        r"\d+(\.\d+)+[\w.+-]*", (done.stdout + done.stderr).decode("utf-8", "replace")
    )
    return found[0] if found and done.returncode == 0 else None


def _problem(tool: ExternalTool) -> str:
    """Why the tool cannot be used, "" when it can."""
    mend = f"; mend: {tool.install}" if tool.install else ""
    if _find(tool.command[0]) is None:
        return f"{tool.command[0]} is not installed{mend}"
    version = _version(tool)
    if version is None:
        return f"{tool.command[0]} does not say its version{mend}"
    if tool.at_least and _numbers(version) < _numbers(tool.at_least):
        return f"version {version} is too old, {tool.at_least} is needed{mend}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _run(tool: ExternalTool, programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    problem = _problem(tool)
    if problem:
        return [ToolResult(failed=f"{tool.name}: {problem}")] * len(programs)

    def scan(some: Sequence[Program]) -> list[ToolResult]:
        return _scan(tool, some, sandbox)

    def works() -> bool:
        try:
            return bool(scan([Program(tool.languages[0], "\n")]))
        except BrokenToolError:
            return False

    def broken(reason: str) -> ToolResult:
        return ToolResult(failed=f"{tool.name}: {reason}")

    results: list[ToolResult] = []
    for start in range(0, len(programs), BATCH):
        results += isolate(programs[start : start + BATCH], scan, works, broken)
    return results


def _scan(tool: ExternalTool, programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    """One process over all ``programs``. Raises :class:`BrokenToolError`."""
    names = [f"t{at:05d}{SUFFIXES[one.language]}" for at, one in enumerate(programs)]
    languages = dict.fromkeys(one.language for one in programs)
    known = {f"known{SUFFIXES[one]}": tool.examples[one] for one in languages}
    files = {
        **{name: one.text for name, one in zip(names, programs, strict=True)},
        **known,
    }
    log = read_log(tool, files, sandbox)
    hits: dict[str, list[Any]] = {name: [] for name in files}
    for one in log.reported:
        hits.get(_base(one.path), []).append(one)
    missed = next((name for name in known if not hits[name]), "")
    failures = {_base(path): why for path, why in log.failed_paths.items()}
    results = []
    for name, program in zip(names, programs, strict=True):
        findings = [
            one.finding(named_cwe(one.cwe or _mapped(tool, one.rule), program.cwe), tool.name)
            for one in hits[name]
        ]
        failed = log.failed or failures.get(name, "")
        if not failed and missed.endswith(SUFFIXES[program.language]):
            failed = "it does not report its own example, so it looked at nothing"
        why = f"{tool.name}: {failed}" if failed else ""
        results.append(ToolResult(asked_for(findings, program.cwe), why))
    return results


def read_log(tool: ExternalTool, files: Mapping[str, str], sandbox: Sandbox) -> SarifLog:
    """The tool's log on ``files`` (plain names). Raises :class:`BrokenToolError`."""
    executable = _find(tool.command[0]) or tool.command[0]
    words = [word.replace("{folder}", FOLDER).replace("{output}", OUTPUT) for word in tool.command]
    argv = [executable, *words[1:]]
    if any("{output}" in word for word in tool.command):
        argv = ["sh", "-c", _TO_FILE, "sh", OUTPUT, *argv]
    size = sum(len(text) for text in files.values())
    limits = Limits(
        wall_s=tool.timeout_s,
        cpu_s=int(tool.timeout_s * (os.cpu_count() or 1)) + 1,
        memory_mb=tool.memory_mb,
        processes=256,
        file_mb=256 + (size >> 19),
        output_kb=64 << 10,
    )
    beside = os.path.dirname(executable)
    env = {"PATH": f"{beside}:/usr/local/bin:/usr/bin:/bin", **tool.env}
    shown = tuple(dict.fromkeys([*program_folders(executable), *tool.readonly]))
    inside = {f"{FOLDER}/{name}": text for name, text in files.items()}
    try:
        done = sandbox.run(argv, inside, limits=limits, env=env, readonly=shown)
    except OSError as error:
        raise BrokenToolError(f"it cannot be started ({error})") from error
    if done.stopped or done.returncode not in tool.ok_exit:
        raise BrokenToolError(ending(done))
    if not done.stdout.strip():
        raise BrokenToolError(f"it wrote no log ({ending(done)})")
    try:
        return read_sarif(done.stdout.decode("utf-8-sig", "replace"))
    except SarifError as error:
        raise BrokenToolError(str(error)) from error


def _mapped(tool: ExternalTool, rule: str) -> tuple[str, ...]:
    return tuple(tool.cwe_map.get(rule, ()))


def _base(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
