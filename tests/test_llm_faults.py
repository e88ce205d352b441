"""The LLM judge and a server that is slow, wrong or not there."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from chat_server import ChatServer, Say, completion, verdict
from test_llm_judge import CODE, PROGRAM, config, failed, run

from treeplay.judge.llm import LlmJudge


def test_retry_after_is_kept() -> None:
    busy = Say(b'{"error": {"message": "slow down"}}', 429, (("Retry-After", "1"),))
    with ChatServer(busy, verdict(True)) as server:
        judge = LlmJudge(config(server))
        (result,) = run(judge)
    assert result.findings
    first, second = server.requests
    assert 0.95 <= second.at - first.at < 4
    assert judge.usage.requests == 2
    assert judge.usage.prompt_tokens == 100  # the one that was turned away cost nothing


def test_retry_after_as_a_date() -> None:
    now, tick = time.time(), time.monotonic()
    due = tick + int(now + 2) - now  # a date has whole seconds
    when = formatdate(now + 2, usegmt=True)
    with ChatServer(Say(b"", 503, (("Retry-After", when),)), verdict(True)) as server:
        (result,) = run(LlmJudge(config(server)))
    assert result.findings
    assert server.requests[1].at >= due - 0.1


def test_a_pause_that_is_too_long_is_not_made() -> None:
    start = time.monotonic()
    reason, count = failed(Say(b"", 429, (("Retry-After", "3600"),)))
    assert "asks to wait 3600 s" in reason
    assert count == 1
    assert time.monotonic() - start < 5


def test_server_errors_are_tried_again_with_growing_pauses() -> None:
    with ChatServer(Say(b"oops", 500), Say(b"", 502), verdict(False)) as server:
        (result,) = run(LlmJudge(config(server)))
    assert not result.failed
    a, b, c = (request.at for request in server.requests)
    assert b - a >= 0.45
    assert c - b >= 0.95


def test_server_errors_end() -> None:
    reason, count = failed(Say(b'{"error": "broken"}', 500), retries=1)
    assert reason == "llm: HTTP 500: broken"
    assert count == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_our_own_mistakes_are_not_repeated(status: int) -> None:
    reason, count = failed(Say(b'{"error": {"message": "context length", "code": "x"}}', status))
    assert f"HTTP {status}: context length (x)" in reason
    assert count == 1


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_what_holds_for_all_is_asked_once(status: int) -> None:
    programs = [replace(PROGRAM, text=CODE + f"# {n}\n") for n in range(6)]
    reply = Say(b'{"error": {"message": "no"}}', status, (("Location", "http://127.0.0.1:9/"),))
    said: list[str] = []
    with ChatServer(reply) as server:
        judge = LlmJudge(config(server, concurrency=1), say=said.append)
        results = run(judge, *programs)
    assert all(f"HTTP {status}" in result.failed for result in results)
    assert len(server.requests) == 1
    assert len(said) == 1


def test_nobody_listens() -> None:
    with ChatServer(verdict(True)) as server:
        pass
    judge = LlmJudge(config(server, retries=1), say=lambda words: None)
    first, second = run(judge, PROGRAM, replace(PROGRAM, text="x = 1\n"))
    assert "127.0.0.1 cannot be reached" in first.failed
    assert second.failed


def test_a_server_that_hangs() -> None:
    start = time.monotonic()
    reason, count = failed(Say(completion("{}"), hang_s=30), timeout_s=0.3, retries=1)
    assert reason == "llm: no answer in 0.3 s"
    assert count == 2
    assert time.monotonic() - start < 10


def test_a_server_that_drips() -> None:
    start = time.monotonic()
    reason, _ = failed(Say(completion("{}"), drip_s=0.05), timeout_s=0.4, retries=0)
    assert reason == "llm: no whole answer in 0.4 s"
    assert time.monotonic() - start < 5


def test_half_a_reply_is_tried_again() -> None:
    half = replace(verdict(True), cut=40)
    with ChatServer(half, verdict(True)) as server:
        judge = LlmJudge(config(server))
        (result,) = run(judge)
    assert result.findings
    usage = judge.usage
    assert (usage.requests, usage.estimated) == (2, 1)
    assert usage.prompt_tokens > 200  # the lost one counts too, by its length


def test_half_a_json_in_a_whole_reply() -> None:
    reason, count = failed(Say(completion("{}")[:50]), retries=1)
    assert reason == "llm: the reply is not a chat completion"
    assert count == 2


def test_a_gigabyte_is_not_read() -> None:
    reason, count = failed(Say(b" " * (5 << 20)))
    assert "longer than 4 MiB" in reason
    assert count == 1
