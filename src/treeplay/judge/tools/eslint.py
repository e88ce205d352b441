"""eslint with eslint-plugin-security: JavaScript.

One process for a batch, with a configuration of our own: none is looked up, and comments in a
program that switch rules off are ignored. eslint knows no CWE, so the rules that count stand in
one table with theirs. A rule that crashes takes the whole process with it; the batch is then
halved until the program it crashed on is alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from treeplay.errors import SandboxError
from treeplay.judge.cwe import matches_any
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import asked_for, ending, failure, named_cwe
from treeplay.judge.tools.process import all_failed
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Limits, Sandbox, outside_system

TOOL = "eslint"
INSTALL = "npm install --global eslint eslint-plugin-security"
OLDEST = 9  # the first with --no-config-lookup as the only form of configuration
BATCH = 100  # programs in one process
START_S = 20
EACH_S = 1

# Rules that count, with the weakness they name. Left out, because they fire on the mended form as
# on the other: no-new-func, detect-object-injection, detect-non-literal-fs-filename, -regexp and
# -require; detect-unsafe-regex, which takes every repeat in a repeat for a trap.
CWE_OF: dict[str, tuple[str, ...]] = {
    "no-implied-eval": ("CWE-95",),
    "no-script-url": ("CWE-79",),
    "security/detect-bidi-characters": ("CWE-1007",),
    "security/detect-buffer-noassert": ("CWE-119",),
    "security/detect-child-process": ("CWE-78",),
    "security/detect-disable-mustache-escape": ("CWE-79",),
    "security/detect-eval-with-expression": ("CWE-95", "CWE-502"),
    "security/detect-new-buffer": ("CWE-908",),
    "security/detect-no-csrf-before-method-override": ("CWE-352",),
    "security/detect-possible-timing-attacks": ("CWE-208",),
    "security/detect-pseudoRandomBytes": ("CWE-338",),
}

_MODULE = re.compile(r"^[ \t]*(import\s+[\w{*\"']|export\s)", re.MULTILINE)
_CONFIG = """\
import plugin from {plugin};
const wanted = {rules};
const rules = {{}};
for (const name of wanted) {{
  const [owner, rule] = name.split("/");
  if (rule === undefined || (owner === "security" && rule in plugin.rules)) rules[name] = "error";
}}
const base = {{ plugins: {{ security: plugin }}, rules }};
const parserOptions = {{ ecmaFeatures: {{ jsx: true }} }};
const options = {{ ecmaVersion: "latest", parserOptions }};
export default [
  {{ ...base, files: ["**/*.js"], languageOptions: {{ ...options, sourceType: "commonjs" }} }},
  {{ ...base, files: ["**/*.mjs"], languageOptions: {{ ...options, sourceType: "module" }} }},
];
"""


@dataclass(frozen=True)
class Eslint:
    """Where eslint and its plugin lie (a ``node_modules`` folder), and their versions."""

    node: str
    modules: Path
    version: str
    plugin_version: str

    @property
    def too_old(self) -> bool:
        major = self.version.partition(".")[0]
        return not major.isdigit() or int(major) < OLDEST


def find_eslint() -> Eslint | None:
    """eslint with its plugin, None without them or without Node.

    Looked for in ``$TREEPLAY_ESLINT`` (a folder with ``node_modules``; nowhere else when it is
    set), in ``node_modules`` from the working directory upwards, in npm's global folder.
    """
    node = shutil.which("node")
    if node is None:
        return None
    for modules in _folders():
        versions = [_package_version(modules / name) for name in (TOOL, "eslint-plugin-security")]
        if versions[0] and versions[1]:
            return Eslint(os.path.realpath(node), modules, versions[0], versions[1])
    return None


def eslint_version() -> str | None:
    """``"10.1.0, plugin 4.0.0"``; None when it is missing or too old."""
    found = find_eslint()
    if found is None or found.too_old:
        return None
    return f"{found.version}, plugin {found.plugin_version}"


def _folders() -> Iterable[Path]:
    named = os.environ.get("TREEPLAY_ESLINT")
    if named:
        yield Path(named).resolve() / "node_modules"
        return
    here = Path.cwd()
    for folder in (here, *here.parents):
        yield folder / "node_modules"
    top = _global_folder()
    if top is not None:
        yield top


@cache
def _global_folder() -> Path | None:
    npm = shutil.which("npm")
    if npm is None:
        return None
    try:
        done = subprocess.run(
            [npm, "root", "--global"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    said = done.stdout.strip()
    return Path(said) if done.returncode == 0 and said else None


def _package_version(folder: Path) -> str:
    try:
        data = json.loads((folder / "package.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    version = data.get("version") if isinstance(data, dict) else None
    return version if isinstance(version, str) else ""


def _covers(language: str, cwe: str) -> bool:
    names = (name for cwes in CWE_OF.values() for name in cwes)
    return language == "javascript" and any(matches_any(name, (cwe,)) for name in names)


def _run(programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    found = find_eslint()
    if found is None:
        return all_failed(len(programs), f"eslint is not installed; mend: {INSTALL}")
    if found.too_old:
        reason = f"eslint {found.version} is too old, {OLDEST} is needed; mend: {INSTALL}"
        return all_failed(len(programs), reason)
    results: list[ToolResult] = []
    try:
        for start in range(0, len(programs), BATCH):
            results += _run_batch(found, programs[start : start + BATCH], sandbox)
    except (SandboxError, OSError) as error:
        results += [failure(TOOL, error)] * (len(programs) - len(results))
    return results


def _run_batch(found: Eslint, programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
    names = [
        f"p{number}{'.mjs' if _MODULE.search(program.text) else '.js'}"
        for number, program in enumerate(programs)
    ]
    said = _start(found, dict(zip(names, programs, strict=True)), sandbox)
    if isinstance(said, str):
        if len(programs) == 1:
            return [ToolResult(failed=f"eslint: {said}")]
        half = len(programs) // 2
        return [
            *_run_batch(found, programs[:half], sandbox),
            *_run_batch(found, programs[half:], sandbox),
        ]
    return [_result(said.get(name), program) for name, program in zip(names, programs, strict=True)]


def _start(
    found: Eslint, programs: Mapping[str, Program], sandbox: Sandbox
) -> dict[str, Any] | str:
    """eslint's messages by file name, or why there are none."""
    # the plugin says in package.json where it starts; Node resolves that for CommonJS alone
    plugin = "eslint-plugin-security"
    loader = (
        'import { createRequire } from "node:module";\n'
        f"export default createRequire({json.dumps(str(found.modules) + '/x.js')})({plugin!r});\n"
    )
    files: dict[str, str | bytes] = {
        name: program.text.encode("utf-8", "replace") for name, program in programs.items()
    }
    files["plugin.mjs"] = loader
    files["eslint.config.mjs"] = _CONFIG.format(
        plugin='"./plugin.mjs"', rules=json.dumps(list(CWE_OF))
    )
    argv = [found.node, str(found.modules / TOOL / "bin" / "eslint.js")]
    argv += ["--no-config-lookup", "--config", "eslint.config.mjs", "--no-inline-config"]
    argv += ["--no-ignore", "--format", "json", *programs]
    length = sum(len(text) for text in files.values())
    wall_s = START_S + EACH_S * len(programs)
    limits = Limits(
        wall_s=wall_s, cpu_s=wall_s, memory_mb=2048, output_kb=8 * length // 1024 + 8192
    )
    shown = outside_system(os.path.dirname(found.node), str(found.modules))
    done = sandbox.run(argv, files, limits=limits, readonly=shown)
    if done.stopped or done.returncode not in (0, 1):  # 1: there are findings
        return ending(done)
    try:
        listing = json.loads(done.stdout)
        return {Path(one["filePath"]).name: one["messages"] for one in listing}
    except (ValueError, KeyError, TypeError):
        return f"what it printed is no JSON of its own ({len(done.stdout)} bytes)"


def _result(messages: Any, program: Program) -> ToolResult:
    """One program's messages read; anything that is not as eslint writes it is a failure."""
    if not isinstance(messages, list):
        return ToolResult(failed="eslint: it says nothing of this program")
    try:
        fatal = [one for one in messages if one.get("fatal")]
        if fatal:
            where = f"line {fatal[0].get('line', 1)}: {fatal[0]['message']}"
            return ToolResult(failed=f"eslint: {where[:200]}")
        findings = [_finding(one, program.cwe) for one in messages if one["ruleId"] in CWE_OF]
        return ToolResult(asked_for(findings, program.cwe))
    except (KeyError, TypeError, AttributeError) as error:
        return failure(TOOL, error)


def _finding(message: Mapping[str, Any], wanted: tuple[str, ...]) -> Finding:
    line = int(message["line"])
    return Finding(
        cwe=named_cwe(CWE_OF[message["ruleId"]], wanted),
        line_start=line,
        line_end=max(line, int(message.get("endLine") or line)),
        rule=str(message["ruleId"]),
        tool=TOOL,
        message=" ".join(str(message["message"]).split()),
    )


ESLINT = Tool(TOOL, ("javascript",), INSTALL, eslint_version, _covers, _run)
