"""The LLM judge: a model behind any OpenAI-compatible endpoint, as one more tool.

A model's word is evidence of kind "model": it is neither run nor proved. What could not be asked,
or was not answered in the form asked for, is ``failed`` with its reason, never "no finding".
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from treeplay.judge.cache import LineCache
from treeplay.judge.llm_client import (
    INSTALL,
    Client,
    Refused,
    Reply,
    Warnings,
    installed,
    redacted,
)
from treeplay.judge.llm_config import LlmConfig, Mode, api_key, check_llm, llm_from_env_or_config
from treeplay.judge.llm_prompt import (
    AnswerError,
    LlmAnswer,
    messages,
    parse_answer,
    prompts_digest,
    response_format,
)
from treeplay.judge.llm_usage import Ledger, Usage
from treeplay.judge.tools.base import Program, Tool, ToolResult
from treeplay.judge.tools.common import asked_for
from treeplay.judge.verdict import Finding
from treeplay.sandbox import Sandbox
from treeplay.tasks.task import LANGUAGES

__all__ = [
    "LlmAnswer",
    "LlmConfig",
    "LlmJudge",
    "Usage",
    "api_key",
    "check_llm",
    "llm_from_env_or_config",
    "make_llm",
]

TOOL = "llm"
REASKS = 2  # times that an unreadable answer is asked for again
FALLBACK: dict[Mode, Mode] = {"schema": "object", "object": "text"}
# settings that do not change what a model answers
NOT_IN_KEY = frozenset(
    {"api_key_env", "concurrency", "timeout_s", "retries", "price_in", "price_out", "max_cost"}
    | {"max_tokens_total", "max_chars", "token_field"}
)


@dataclass(frozen=True)
class LlmFailure:
    """No answer, and why."""

    reason: str


def make_llm(config: LlmConfig, cache_path: Path | None = None) -> Tool:
    """The judge as a tool (name "llm"); :class:`LlmJudge` also tells answers and usage."""
    return LlmJudge(config, cache_path).tool


class LlmJudge:
    """Asks a model about programs, keeps its answers, and counts what that takes.

    With a ``cache_path`` (JSONL, only appended to) an answer is asked for once by endpoint, model,
    prompt, program and CWE; failures are not kept. The budget is that of one judge. Raises
    :class:`ConfigError` when the settings are wrong or the key's variable is not set,
    :class:`RunError` when the cache cannot be read or written. ``say`` gets the warnings.
    """

    def __init__(
        self,
        config: LlmConfig,
        cache_path: Path | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        check_llm(config)
        self.config = config
        self._key = api_key(config)
        self._cache = LineCache(cache_path, "answer", asdict, lambda data: LlmAnswer(**data))
        self._ledger = Ledger(config)
        self._warnings = Warnings(say)
        self._lock = threading.Lock()
        self._mode: Mode = config.mode
        self._down = ""  # why the endpoint answers nobody
        self._redact = [re.compile(pattern) for pattern in config.redact]
        self.tool = Tool(
            TOOL, tuple(LANGUAGES), INSTALL, self._version, lambda language, cwe: True, self._run
        )

    @property
    def usage(self) -> Usage:
        return self._ledger.usage

    def answers(self, programs: Sequence[Program]) -> list[LlmAnswer | LlmFailure]:
        """One answer each, in order; equal programs are asked about once."""
        keys = [self._cache_key(program) for program in programs]
        unique = dict(zip(keys, programs, strict=True))
        known: dict[str, LlmAnswer | LlmFailure] = {}
        for key in unique:
            kept = self._cache.get(key)
            if kept is not None:
                known[key] = kept
        self._ledger.cached(len(known))
        todo = {key: program for key, program in unique.items() if key not in known}
        if todo and not installed():
            missing = LlmFailure(f"the packages for it are not installed; {INSTALL}")
            known.update(dict.fromkeys(todo, missing))
        elif todo:
            self._down = ""  # an endpoint that was down may be back
            with (
                Client(self.config, self._key, self._ledger, self._warnings) as client,
                self._workers() as workers,
            ):
                jobs = {
                    key: workers.submit(self._answer, client, key, program)
                    for key, program in todo.items()
                }
                known.update({key: job.result() for key, job in jobs.items()})
        return [known[key] for key in keys]

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        workers = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="llm")
        try:
            yield workers
        finally:
            workers.shutdown(wait=True, cancel_futures=True)

    def _run(self, programs: Sequence[Program], sandbox: Sandbox) -> list[ToolResult]:
        """Nothing is started, so the sandbox is not needed."""
        del sandbox
        return [
            self._result(program, answer)
            for program, answer in zip(programs, self.answers(programs), strict=True)
        ]

    def _result(self, program: Program, answer: LlmAnswer | LlmFailure) -> ToolResult:
        if isinstance(answer, LlmFailure):
            return ToolResult(failed=f"{TOOL}: {answer.reason}")
        if not answer.vulnerable:
            return ToolResult()
        sure = "" if answer.confidence is None else f" (confidence {answer.confidence:.2f})"
        finding = Finding(
            cwe=answer.cwe,
            line_start=answer.line_start,
            line_end=answer.line_end,
            rule=self.config.model,
            tool=TOOL,
            message=(answer.reason or "the model gave no reason") + sure,
        )
        return ToolResult(asked_for([finding], program.cwe))

    def _answer(self, client: Client, key: str, program: Program) -> LlmAnswer | LlmFailure:
        if len(program.text) > self.config.max_chars:
            return LlmFailure(
                f"the program has {len(program.text)} characters, more than llm.max_chars "
                f"({self.config.max_chars})"
            )
        try:
            answer = self._ask(client, replace(program, text=redacted(program.text, self._redact)))
        except Refused as error:
            if error.for_all and not self._down:
                self._down = str(error)
                self._warnings.once(f"llm: {error}; the programs left over are not judged")
            return LlmFailure(str(error))
        self._cache.put(key, answer)
        return answer

    def _ask(self, client: Client, program: Program) -> LlmAnswer:
        """Ask until the answer can be read. Raises :class:`Refused`."""
        trouble, reasks = "", 0
        while True:
            mode = self._mode
            try:
                reply = self._send(client, program, mode, trouble)
            except Refused as error:
                if not self._fall_back(mode, error):
                    raise
                continue
            try:
                if reply.cut_off:
                    raise Refused(
                        f"the answer was cut off at {self.config.max_tokens} tokens; raise "
                        "llm.max_tokens"
                    )
                return parse_answer(reply.text, program, mode)
            except AnswerError as error:
                trouble = str(error)
                reasks += 1
                if reasks > min(REASKS, self.config.retries):
                    raise Refused(f"unreadable answer: {trouble}") from None

    def _send(self, client: Client, program: Program, mode: Mode, trouble: str) -> Reply:
        if self._down:
            raise Refused(self._down)
        form = response_format(program, mode)
        reply = client.ask(messages(program, mode, trouble), form)
        if reply is None:
            self._warnings.once(
                f"llm: the budget is spent ({self._spent()}); the programs left over are not judged"
            )
            raise Refused("the budget is spent")
        return reply

    def _fall_back(self, mode: Mode, error: Refused) -> bool:
        """Ask in a simpler form from now on, when the endpoint does not take this one."""
        if error.status not in (400, 422, 501) or mode not in FALLBACK:
            return False
        if not re.search(r"response_format|json|schema|grammar|structured", str(error), re.I):
            return False
        with self._lock:
            if self._mode == mode:
                self._mode = FALLBACK[mode]
                self._warnings.once(
                    f"llm: {self.config.host} does not take llm.mode={mode}; asking with "
                    f"{self._mode} instead"
                )
        return True

    def _spent(self) -> str:
        usage = self.usage
        cost = "" if usage.cost is None else f", {usage.cost:.4f} USD"
        return f"{usage.prompt_tokens + usage.completion_tokens} tokens{cost}"

    def _version(self) -> str | None:
        """Model and prompt; None when the packages for it are not installed."""
        if not installed():
            return None
        return f"{self.config.model}, prompt {self.config.prompt_version}, {self._settings()[:12]}"

    def _settings(self) -> str:
        kept = {name: v for name, v in asdict(self.config).items() if name not in NOT_IN_KEY}
        kept["prompts"] = prompts_digest()
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def _cache_key(self, program: Program) -> str:
        parts = [self._settings(), program.language, list(program.cwe), program.text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
