"""What leaves this machine when a model is asked: code, keys, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import ChatServer, Say, verdict
from test_llm_judge import PROGRAM, config, run

from treeplay.errors import ConfigError
from treeplay.judge.llm import LlmJudge, make_llm
from treeplay.judge.tools.base import Program


def test_the_key_is_sent_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-" + "k" * 30
    monkeypatch.setenv("MY_KEY", key)
    echo = Say(b'{"error": {"message": "wrong key %s"}}' % key.encode(), 401)
    for reply in (verdict(True), echo):
        with ChatServer(reply) as server:
            settings = config(server, api_key_env="MY_KEY")
            judge = LlmJudge(settings, tmp_path / "cache.jsonl")
            (result,) = run(judge)
        assert server.requests[0].headers["authorization"] == f"Bearer {key}"
        assert key not in repr((settings, result, judge.tool.version()))
    assert "wrong key [key]" in result.failed
    assert key not in (tmp_path / "cache.jsonl").read_text()
    assert key not in "".join(capfd.readouterr())


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY"):
        make_llm(config("http://127.0.0.1:1/v1", api_key_env="MY_KEY"))


def test_proxies_are_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ChatServer(verdict(True)) as server:
        (result,) = run(LlmJudge(config(server)))
    assert result.findings


def test_the_warning_that_code_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent through a proxy, so that a foreign name ends at the test's own server."""
    said: list[str] = []
    with ChatServer(verdict(True)) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "")
        judge = LlmJudge(config("http://llm.example/v1"), say=said.append)
        assert not said  # nothing was sent yet
        results = run(judge, PROGRAM, replace(PROGRAM, text="x = 1\n"))
    assert all(result.findings for result in results)
    (words,) = said
    assert "code leaves this machine" in words
    assert "llm.example" in words
    assert "tiny" in words
    assert "unencrypted" in words
    assert server.requests[0].path == "http://llm.example/v1/chat/completions"


def test_no_warning_for_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    with ChatServer(verdict(True)) as server:
        run(LlmJudge(config(server)))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:1/v1", True),
        ("http://127.8.0.1/v1", True),
        ("http://[::1]:1/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.evil.example/v1", False),
    ],
)
def test_what_this_machine_is(url: str, here: bool) -> None:
    assert config(url).stays_here is here


def test_redaction() -> None:
    code = "TOKEN = 'abc123'\nKEY = '''x\ny'''\nprint(TOKEN)\n"
    with ChatServer(verdict(True, line_start=4)) as server:
        judge = LlmJudge(config(server, redact=("abc[0-9]+", "(?s)'''.*?'''")))
        (result,) = run(judge, Program("python", code))
    user = server.requests[0].user
    assert "abc123" not in user
    assert "'''" not in user
    assert "1| TOKEN = '[redacted]'" in user
    assert "4| print(TOKEN)" in user  # lines keep their numbers
    assert result.findings[0].line_start == 4
