"""The panel: every static tool that is here, asked in batches, each after passing its canaries."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from treeplay.errors import ConfigError
from treeplay.judge.calibration import Calibration, calibration_digest, load_calibration
from treeplay.judge.canaries import sing
from treeplay.judge.ensemble import Opinion, Policy
from treeplay.judge.llm import make_llm
from treeplay.judge.llm_config import load_llm
from treeplay.judge.tools import TOOLS
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.external import load_external
from treeplay.judge.tools.semgrep import make_semgrep
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox
from treeplay.words import nearest

AUTO = "auto"
OFF = "switched off: "
OWN_RULES = "own-rules"  # the name under which a user's Semgrep rules report
# (tool, its version, language, sandbox) that passed its canaries in this process: the next run of
# an experiment need not sing them again. A failure is not kept, because it may be mended meanwhile.
_passed: set[tuple[Tool, str, str, Sandbox]] = set()


@dataclass(frozen=True)
class JudgeConfig:
    """``workers``: programs run at the same time. ``unsafe``: run generated code without a
    sandbox; only for a machine that holds nothing of value.

    ``tools``: ``auto`` (those that are installed) or names; a named one that is missing makes
    verdicts unknown. ``policy`` weighs findings (any, majority, precision), ``threshold`` is the
    least measured precision of a finding that counts under ``precision``, ``silence`` the least
    probability of being secure at which a program without findings is called so.
    ``rules``: further Semgrep rule files or folders; ``external``: YAML files that describe
    analysers that write SARIF; ``llm``: a YAML file that describes a language model's endpoint;
    ``calibration``: a file made by ``treeplay judge bench --calibrate``, "" for the packaged one.
    """

    workers: int = 2
    unsafe: bool = False
    tools: tuple[str, ...] = (AUTO,)
    policy: Policy = "precision"
    threshold: float = 0.6
    silence: float = 0.6
    rules: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    llm: str = ""
    calibration: str = ""


def tell_loudly(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Panel:
    """Asks tools about programs and remembers what they said, by content.

    ``tools`` replaces what ``config`` names. ``tell`` is called once for every tool that is
    switched off. ``llm_cache``: the file that keeps a language model's answers. Raises
    :class:`ConfigError` for a tool that nobody knows and for files that cannot be read.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        config: JudgeConfig | None = None,
        tools: Sequence[Tool] | None = None,
        tell: Callable[[str], None] = tell_loudly,
        llm_cache: Path | None = None,
    ) -> None:
        self.config = config or JudgeConfig()
        self.sandbox = sandbox
        self.tell = tell
        self.calibration: Calibration = load_calibration(
            Path(self.config.calibration) if self.config.calibration else None
        )
        wanted = list(tools) if tools is not None else chosen_tools(self.config, llm_cache)
        auto = tools is None and AUTO in self.config.tools
        versions = {tool.name: tool.version() for tool in wanted}
        self.tools = tuple(tool for tool in wanted if versions[tool.name] is not None)
        self.versions = {name: version for name, version in versions.items() if version}
        gone = [tool for tool in wanted if versions[tool.name] is None]
        self.absent = tuple(tool for tool in gone if auto)
        self.missing = tuple(tool for tool in gone if not auto)
        for tool in self.missing:
            tell(f"{tool.name} was asked for and is not here; mend: {tool.install}")
        # (tool, language) -> wall seconds, and programs looked at in them
        self.spent: dict[tuple[str, str], tuple[float, int]] = {}
        self._off: dict[tuple[str, str], str] = {}
        self._known: dict[tuple[str, str], ToolResult] = {}

    def identity(self) -> str:
        """Tools with versions, policy and calibration, in one line: what opinions depend on."""
        config = self.config
        parts = [f"{name} {version}" for name, version in sorted(self.versions.items())]
        parts.append(f"policy {config.policy} {config.threshold} {config.silence}")
        parts.append(f"calibration {calibration_digest(self.calibration)}")
        return "; ".join(parts)

    def check(self, languages: Iterable[str]) -> None:
        """Sing every tool's canaries for these languages now; those that fail are switched off."""
        for language in languages:
            for tool in self.tools:
                if language in tool.languages:
                    self._switched_off(tool, language)

    def look_many(self, programs: Sequence[Program]) -> list[Opinion]:
        """One opinion for each program, in order. Raises nothing on account of a program."""
        asked: dict[str, dict[str, Program]] = {}
        for program in programs:
            asked.setdefault(program.language, {})[_key(program)] = program
        for language, by_key in asked.items():
            able = [tool for tool in self.tools if language in tool.languages]
            jobs = [
                (tool, {key: one for key, one in by_key.items() if self._is_new(tool, key, one)})
                for tool in able
            ]
            jobs = [(tool, new) for tool, new in jobs if new]
            with ThreadPoolExecutor(max_workers=max(1, self.config.workers)) as pool:
                answers = [pool.submit(self._ask, tool, language, new) for tool, new in jobs]
                try:
                    for (tool, new), answer in zip(jobs, answers, strict=True):
                        for key, result in zip(new, answer.result(), strict=True):
                            self._known[tool.name, key] = result
                except BaseException:  # Ctrl-C must not wait for Semgrep
                    with self.sandbox.ended():
                        pool.shutdown(cancel_futures=True)
                    raise
        found = [self._opinion(program) for program in programs]
        # What failed is asked again the next time: one time-out must not be the last word on a
        # golden program that all answers to its task are compared with.
        for place in [place for place, result in self._known.items() if result.failed]:
            del self._known[place]
        return found

    def _is_new(self, tool: Tool, key: str, program: Program) -> bool:
        return _concerned(tool, program) and (tool.name, key) not in self._known

    def _ask(self, tool: Tool, language: str, new: dict[str, Program]) -> list[ToolResult]:
        off = self._switched_off(tool, language)
        if off:
            return [ToolResult(failed=OFF + off)] * len(new)
        start = time.perf_counter()
        try:
            results = tool.run(list(new.values()), self.sandbox)
        except Exception as error:  # a wrapper's own fault must not end a run
            why = f"{type(error).__name__}: {str(error)[:200]}"
            return [ToolResult(failed=why)] * len(new)
        seconds, count = self.spent.get((tool.name, language), (0.0, 0))
        self.spent[tool.name, language] = (
            seconds + time.perf_counter() - start,
            count + len(new),
        )
        if len(results) != len(new):
            return [ToolResult(failed="it answered for another number of programs")] * len(new)
        return results

    def _switched_off(self, tool: Tool, language: str) -> str:
        key = (tool.name, language)
        mark = (tool, self.versions.get(tool.name, ""), language, self.sandbox)
        if key not in self._off and mark in _passed:
            self._off[key] = ""
        if key not in self._off:
            try:
                self._off[key] = sing(tool, language, self.sandbox)
            except Exception as error:
                self._off[key] = f"its canary ended in {type(error).__name__}: {str(error)[:200]}"
            if self._off[key]:
                self.tell(f"{tool.name} is switched off for {language}: {self._off[key]}")
            else:
                _passed.add(mark)
        return self._off[key]

    def _opinion(self, program: Program) -> Opinion:
        findings: list[Finding] = []
        looked, missed, failed, completed = [], [], [], False
        key = _key(program)
        for tool in self.tools:
            result = self._known.get((tool.name, key))
            if result is None:
                continue
            if result.failed:
                reason = result.failed.removeprefix(f"{tool.name}: ")
                missed.append(f"{tool.name}: {reason}")
                if not reason.startswith(OFF):
                    failed.append(missed[-1])
                continue
            looked.append(tool.name)
            findings += result.findings
            completed = completed or result.completed
        missed += [
            f"{tool.name}: not installed" for tool in self.missing if _concerned(tool, program)
        ]
        absent = tuple(tool.name for tool in self.absent if _concerned(tool, program))
        return Opinion(
            tuple(findings), tuple(looked), tuple(missed), absent, completed, tuple(failed)
        )

    def is_whole(self, language: str, opinion: Opinion) -> bool:
        """Were all tools there that the calibration was made with? (One that failed on this program
        was: that it did not look makes nobody's finding more precise.)"""
        here = {tool.name for tool in self.tools}
        there = len(opinion.missed) == len(opinion.failed)
        return there and set(self.calibration.tools.get(language, ())) <= here

    def covered(self, language: str, cwe: Sequence[str], looked: Sequence[str]) -> bool:
        """Did tools that look for every one of these CWEs look? Any tool will do for none."""
        able = [tool for tool in self.tools if tool.name in looked]
        return bool(able) and all(any(tool.covers(language, one) for tool in able) for one in cwe)


def chosen_tools(config: JudgeConfig, cache_path: Path | None = None) -> list[Tool]:
    """The tools that a configuration asks for, installed or not, in the order of :data:`TOOLS`.

    ``cache_path``: where a language model's answers are kept. Raises :class:`ConfigError` for an
    unknown name, naming the nearest one, and for files that cannot be read.
    """
    known = {tool.name: tool for tool in TOOLS}
    for name in config.tools:
        if name != AUTO and name not in known:
            raise ConfigError(
                f"judge.tools: there is no tool {name!r}; {nearest(name, [AUTO, *known])}"
            )
    auto = AUTO in config.tools
    chosen = [tool for tool in TOOLS if auto or tool.name in config.tools]
    if config.rules:
        chosen.append(make_semgrep(config.rules, OWN_RULES))
    chosen += [load_external(Path(path)) for path in config.external]
    if config.llm:
        chosen.append(make_llm(load_llm(Path(config.llm)), cache_path))
    return chosen


def _concerned(tool: Tool, program: Program) -> bool:
    if program.language not in tool.languages:
        return False
    return not program.cwe or any(tool.covers(program.language, one) for one in program.cwe)


def _key(program: Program) -> str:
    whole = "\0".join((program.language, *sorted(program.cwe), "", program.text))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]
