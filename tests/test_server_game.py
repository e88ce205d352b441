"""A game on a sampling server: adapters, settings, the same result as here."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model
from sampling_server import SamplingServer, error
from test_server import CONFIG, POLICY, STOP, ask, done, refused, requests, settings

from treeplay.config import load_config
from treeplay.errors import ConfigError, ModelError
from treeplay.play import Game
from treeplay.policy.model import ModelConfig, Policy, load_adapter, load_policy
from treeplay.policy.sample import sample
from treeplay.policy.server import Server, open_server
from treeplay.policy.server_config import ServerConfig, check_server
from treeplay.progress import Reporter
from treeplay.run import open_run, read_jsonl

# Adapters.


def adapter(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return folder


def with_adapter(folder: Path) -> Policy:
    return replace(POLICY, model=load_adapter(tiny_llama(), folder, trainable=False).eval())


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_each_round_has_its_adapter_under_its_own_name(api: Any, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    first, second = adapter(tmp_path / "1", 1), adapter(tmp_path / "2", 2)
    with SamplingServer(POLICY) as server:
        left = Server(settings(server, api=api), run, lambda words: None)  # of a killed process
        left.sampler(with_adapter(second), second, "round-9")(requests(), CONFIG, STOP, done)
        foreign = "treeplay-my-run-000000-round-1-x"
        server.adapters[foreign] = str(first)
        one = Server(settings(server, api=api), run, lambda words: None)
        for number, folder in enumerate((first, second), start=1):
            player = with_adapter(folder)
            draw = one.sampler(player, folder, f"round-{number}")
            served = draw(requests(), CONFIG, STOP, done)
            assert served == draw(requests(), CONFIG, STOP, done)
            local = sample(player.model, requests(), CONFIG, STOP, done)
            assert [[s.ids for s in row] for row in served] == [
                [s.ids for s in row] for row in local
            ]
            (name,) = set(server.adapters) - {foreign}
            assert name.startswith("treeplay-my-run-")
            assert f"-round-{number}-" in name
        base = sample(POLICY.model, requests(), CONFIG, STOP, done)
        assert [[s.ids for s in row] for row in base] != [[s.ids for s in row] for row in local]
        one.close()
        assert set(server.adapters) == {foreign}


def test_a_server_that_was_started_anew_gets_its_adapter_again(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "1", 1)
    with SamplingServer(POLICY) as server:
        one = Server(settings(server), tmp_path, lambda words: None)
        draw = one.sampler(with_adapter(folder), folder, "round-1")
        served = draw(requests(), CONFIG, STOP, done)
        server.adapters.clear()
        assert draw(requests(), CONFIG, STOP, done) == served


def test_adapters_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "1", 1)

    def words(server: SamplingServer) -> str:
        one = Server(settings(server, **share), tmp_path, lambda words: None)
        with pytest.raises(ModelError) as caught:
            one.sampler(with_adapter(folder), folder, "round-1")(requests(), CONFIG, STOP)
        return str(caught.value)

    share: dict[str, str] = {}
    with SamplingServer(POLICY, runtime=False) as server:
        said = words(server)
        assert "cannot load adapters while it runs" in said
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in said
    share = {"share": str(tmp_path / "share"), "share_there": "/not/there"}
    with SamplingServer(POLICY) as server:
        said = words(server)
        assert "did not load the adapter /not/there/treeplay-" in said
        assert "model.server.share" in said
    (tmp_path / "file").write_text("")
    share = {"share": str(tmp_path / "file")}
    with SamplingServer(POLICY) as server:
        assert "cannot copy the adapter" in words(server)


def test_adapters_are_copied_to_a_shared_folder(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "1", 1)
    share = tmp_path / "here"
    there = tmp_path / "there"
    there.symlink_to(share)
    with SamplingServer(POLICY) as server:
        how = settings(server, share=str(share), share_there=str(there))
        one = Server(how, tmp_path, lambda words: None)
        draw = one.sampler(with_adapter(folder), folder, "round-1")
        draw(requests(), CONFIG, STOP, done)
        ((name, place),) = server.adapters.items()
        assert place == f"{there}/{name}"
        copied = (share / name / "adapter_model.safetensors").read_bytes()
        assert copied == (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.usefixtures("sandbox")
def test_a_game_on_a_server_is_the_game_on_the_local_model(writer: Path, tmp_path: Path) -> None:
    source = str(writer / "tasks.jsonl")
    recipe = {
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "nodes": {"sources": ["diff"], "place": "both"},
        "grow": {"branches": 2, "max_tokens": 90, "completion": "model"},
        "train": {"epochs": 1, "groups_per_step": 1, "lora": {"r": 4}},
        "eval": {"samples": 2, "max_tokens": 60},
        "rounds": 2,
        "play": {"opponents": "pool"},  # round 2 asks for the base model and the adapter in turn
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def play(out: Path, *overrides: str) -> dict[str, list[Any]]:
        config = load_config(path, [f"out={out}", *overrides])
        with closing(Game(open_run(config, resume=False), Reporter(quiet=True))) as game:
            game.play()
        trees = [read_jsonl(out / f"round-{n}" / "judged.jsonl") for n in (1, 2)]
        branches = [b for rows in trees for row in rows for b in row["branches"]]
        contrasts = [read_jsonl(out / f"round-{n}" / "contrasts.jsonl") for n in (1, 2)]
        answers = [read_jsonl(out / "eval" / f"{p}.jsonl") for p in ("base", "round-1", "round-2")]
        return {"branches": branches, "contrasts": contrasts, "answers": answers}

    local = play(tmp_path / "local")
    with SamplingServer(load_policy(ModelConfig(name=str(writer)))) as server:
        served = play(
            tmp_path / "served",
            f"model.server.base_url={server.url}",
            "model.server.name=tiny",
        )
        names = {body["model"] for body in server.asked()}
        assert server.adapters == {}
    assert len(names) == 3  # the base model and both rounds' adapters
    assert {branch["opponent"] for branch in served["branches"]} == {"base", "round-1"}
    assert not any(branch["logps"] for branch in served["branches"])
    for one, other in zip(local["branches"], served["branches"], strict=True):
        assert {**one, "logps": []} == {**other, "logps": []}
    # the opponent's log-probs are the local model's
    assert served["contrasts"] == local["contrasts"]
    assert served["answers"] == local["answers"]


# Settings.


def test_off_unless_an_address_is_given(tmp_path: Path) -> None:
    assert open_server(ModelConfig(), tmp_path, lambda words: None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "localhost:8000"}, "must be an address"),
        ({"base_url": "http://me:pw@localhost:8000"}, "must not hold a name, password"),
        ({"name": ""}, r"model\.server\.name is empty"),
        ({"api_key_env": "sk-123"}, "NAME|name of an environment variable"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout_s": 0.0}, "timeout_s is 0"),
        ({"share_there": "/x"}, "share is not"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_server(replace(ServerConfig("http://localhost:8000/v1", "tiny"), **changes))


def test_an_adapter_below_the_run_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(adapter="x", server=ServerConfig("http://localhost:1", "tiny"))
    with pytest.raises(ConfigError, match=r"merge the adapter into the model"):
        open_server(config, tmp_path, lambda words: None)


def test_the_key_goes_into_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"api_key_env": "MY_KEY"}
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY"):
        Server(settings("http://localhost:1", **how), Path("run"), lambda words: None)
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with SamplingServer(POLICY) as server:
        ask(server, **how)
        assert {r.headers["authorization"] for r in server.http.requests} == {"Bearer sk-secret"}
        assert "sk-secret" not in json.dumps([r.body for r in server.http.requests])
    with SamplingServer(POLICY, twist=lambda body: error(401, "no key sk-secret")) as server:
        words = refused(server, **how)
        assert "sk-secret" not in words
        assert "[key]" in words


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://10.0.0.9:8000", "sent to 10.0.0.9, unencrypted"),
        ("https://gpu.example.org/v1", "sent to gpu.example.org"),
        ("http://127.0.0.1:8000", ""),
        ("http://localhost:8000/v1", ""),
    ],
)
def test_prompts_that_leave_the_machine_are_told(url: str, words: str) -> None:
    said: list[str] = []
    Server(settings(url), Path("run"), said.append).close()
    assert len(said) == bool(words)
    assert not words or words in said[0]
