"""Sampling through servers: a faithful one gives what local sampling gives, a wrong one is told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_server import Say
from conftest import byte_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model
from sampling_server import SamplingServer, error, events, piece

from treeplay.config import load_config
from treeplay.errors import ConfigError, ModelError
from treeplay.play import Game
from treeplay.policy.model import ModelConfig, Policy, load_adapter, load_policy
from treeplay.policy.sample import Request, Row, Sample, SampleConfig, sample, seed_of
from treeplay.policy.server import Server, agreement, open_server
from treeplay.policy.server_config import ServerConfig, check_server
from treeplay.policy.server_sample import in_cache_order
from treeplay.progress import Reporter
from treeplay.run import open_run, read_jsonl

pytest.importorskip("httpx2")
pytest.importorskip("tenacity")

CONFIG = SampleConfig(max_tokens=12)
STOP = frozenset(range(0, 257, 21))


def policy(seed: int = 0) -> Policy:
    return Policy(tiny_llama(seed), byte_tokenizer(), "complete", "tiny")


POLICY = policy()


def requests() -> list[Request]:
    """Trunks with common beginnings; small seeds, which SGLang's narrower field holds whole."""
    paths = [(3, 1, 4, 1, 5, 9, 2, 6), (2, 7), (8,), (3, 1, 4, 1, 5, 8)]
    return [
        Request(
            path,
            tuple(Row(p, seed_of(i, p, k) >> 32) for p in (1, len(path)) for k in range(2)),
        )
        for i, path in enumerate(paths)
    ]


def done(request: int, row: int, ids: Sequence[int]) -> bool:
    return row != 3 and len(ids) == 2 + request + row


def settings(server: SamplingServer | str, **changes: Any) -> ServerConfig:
    url = server if isinstance(server, str) else server.url
    return replace(ServerConfig(url, "tiny", concurrency=4, retries=2, timeout_s=20.0), **changes)


def ask(
    server: SamplingServer | str, rows: list[Request] | None = None, **changes: Any
) -> list[list[Sample]]:
    """Sample as the base model of a run does."""
    one = Server(settings(server, **changes), Path("run"), lambda words: None)
    try:
        draw = one.sampler(POLICY)
        return draw(requests() if rows is None else rows, CONFIG, STOP, done)
    finally:
        one.close()


def refused(server: SamplingServer | str, **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        ask(server, **changes)
    words = str(caught.value)
    assert words.startswith("model.server")
    assert "\n" not in words
    return words


def rows_only(twist: Any) -> Any:
    """A twist for sampled rows that leaves the comparison with the local model alone."""
    return lambda body: None if body.get("temperature") == 0 else twist(body)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("api", "cumulative"), [("vllm", True), ("sglang", True), ("sglang", False)]
)
def test_a_server_gives_what_local_sampling_gives(api: Any, cumulative: bool, stream: bool) -> None:
    local = sample(POLICY.model, requests(), CONFIG, STOP, done)
    with SamplingServer(POLICY, cumulative=cumulative) as server:
        served = ask(server, api=api, stream=stream)
    assert [[(s.ids, s.ended) for s in row] for row in served] == [
        [(s.ids, s.ended) for s in row] for row in local
    ]
    assert {s.ended for row in local for s in row} == {"answer", "eos", "length"}
    assert {s.logps for row in served for s in row} == {()}  # never in the loss


def test_what_is_asked_for() -> None:
    with SamplingServer(POLICY) as server:
        ask(server)
        asked = {(tuple(b["prompt"]), b["seed"]): b for b in server.asked()}
        assert server.http.most_at_once < 9  # of 16; a server sees late that it was hung up on
    for request in requests():
        for row in request.rows:
            body = asked[request.path[: row.position], row.seed]
            assert body["return_token_ids"] is True
            assert body["stop_token_ids"] == sorted(STOP)
            # a model's own generation settings would change what is sampled from
            names = ("top_p", "top_k", "min_p", "repetition_penalty", "ignore_eos")
            assert [body[name] for name in names] == [0.95, 0, 0.0, 1.0, True]
    assert len(server.asked()) == 17  # and the comparison with the local model


def test_no_rows_and_rows_that_cannot_be() -> None:
    with SamplingServer(POLICY) as server:
        assert ask(server, []) == []
        assert ask(server, [Request((1, 2), ())]) == [[]]
        with pytest.raises(ValueError, match="at least one token"):
            ask(server, [Request((1, 2), (Row(0, 1),))])


def test_rows_that_begin_alike_are_sent_together() -> None:
    order = in_cache_order(requests())
    assert sorted(order) == [(i, r) for i in range(4) for r in range(4)]
    assert [i for i, _ in order[::4]] == [1, 3, 0, 2]  # 0 and 3 share five tokens
    assert [i for i, _ in order] == [i for i in (1, 3, 0, 2) for _ in range(4)]


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_row_has_a_bound_of_its_own(api: str) -> None:
    rows = [Request((3, 1, 4), (Row(3, 5, 1), Row(3, 5)))]
    told: list[tuple[int, dict[int, list[Sample]]]] = []
    with SamplingServer(POLICY) as server:
        one = Server(settings(server, api=api), Path("run"), lambda words: None)
        ((short, whole),) = one.sampler(POLICY)(
            rows, CONFIG, STOP, done, lambda tokens, ended: told.append((tokens, dict(ended)))
        )
        one.close()
    assert sum(tokens for tokens, _ in told) == len(short.ids) + len(whole.ids)
    assert [ended for _, ended in told] == [{}, {0: [short, whole]}]
    assert (short.ended, whole.ended) == ("length", "answer")
    assert short.ids == whole.ids[:1]


def test_the_end_of_an_answer_hangs_up() -> None:
    rows = [Request((3, 1, 4), (Row(3, 5),))]
    with SamplingServer(POLICY) as server:
        ask(server, rows)
        server.drip_s = 0.004  # the whole reply would take some seconds
        start = time.monotonic()
        one = Server(settings(server), Path("run"), lambda words: None)
        one._checked.add("tiny")
        ((made,),) = one.sampler(POLICY)(rows, replace(CONFIG, max_tokens=200), frozenset(), done)
        spent = time.monotonic() - start
    assert (len(made.ids), made.ended) == (2, "answer")
    assert spent < 4


# Replies that cannot be used.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": None}, "does not return token ids"),
        ({"prompt_token_ids": None}, "does not return token ids"),
        ({"prompt_token_ids": [1, 3, 1, 4]}, "read other tokens than it was sent"),
        ({"token_ids": [5, 400]}, "token 400 of a vocabulary of 257"),
        ({"token_ids": ["a"]}, "not whole numbers"),
        ({"token_ids": [5, 6], "finish_reason": "length"}, "stopped after 2 of 12 tokens"),
        ({"token_ids": [5], "finish_reason": "stop"}, "where no end mark is"),
    ],
)
def test_unusable_replies_are_refused_once(change: dict[str, Any], words: str) -> None:
    def twist(body: dict[str, Any]) -> Say:
        said = piece([5] * 12, "length", prompt_token_ids=body["prompt"])
        said["choices"][0].update(change)
        return Say(events(said))

    rows = [Request((3, 1, 4), (Row(3, 5),))]
    with SamplingServer(POLICY, twist=rows_only(twist)) as server:
        one = Server(settings(server), Path("run"), lambda words: None)
        with pytest.raises(ModelError, match=words):
            one.sampler(POLICY)(rows, CONFIG, STOP)
        assert len(server.asked()) == 2  # the comparison, and one row that is not tried again


def test_an_end_mark_that_was_left_out_is_put_back() -> None:
    def twist(body: dict[str, Any]) -> Say:
        said = piece([5, 6], "stop", stop_reason=21, prompt_token_ids=body["prompt"])
        return Say(events(said))

    with SamplingServer(POLICY, twist=rows_only(twist)) as server:
        one = Server(settings(server), Path("run"), lambda words: None)
        ((made,),) = one.sampler(POLICY)([Request((3,), (Row(1, 5),))], CONFIG, STOP)
    assert (made.ids, made.ended) == ((5, 6, 21), "eos")


def test_a_chat_server_is_refused() -> None:
    reply = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()
    with SamplingServer(POLICY, twist=lambda body: Say(reply)) as server:
        assert "does not return token ids" in refused(server)
    with SamplingServer(POLICY, twist=lambda body: Say(b"<html>hello</html>")) as server:
        assert "the reply ended early" in refused(server, retries=0)


def test_trouble_that_passes_is_waited_for() -> None:
    troubles = [
        error(429, "slow down", ("Retry-After", "0.2")),
        error(503, "starting", ("Retry-After", "0")),
        Say(events(piece([5], None, prompt_token_ids=[3, 1, 4]), end=False)),  # and no more
        Say(events({"choices": []}), cut=9),
    ]
    seen: list[int] = []

    def twist(body: dict[str, Any]) -> Say | None:
        seen.append(body["seed"])
        return troubles.pop() if troubles else None

    rows = [Request((3, 1, 4), (Row(3, 5),))]
    (local,) = sample(POLICY.model, rows, CONFIG, STOP, done)
    with SamplingServer(POLICY, twist=rows_only(twist)) as server:
        start = time.monotonic()
        (served,) = ask(server, rows, retries=4)
        assert time.monotonic() - start > 0.2
    assert served[0].ids == local[0].ids
    assert seen == [5] * 5


def test_trouble_that_stays_is_told_in_one_sentence() -> None:
    for say, words in (
        (error(429, "no more"), "HTTP 429: no more; go on with --resume"),
        (Say(events({"error": {"message": "engine died"}})), "engine died"),
        (error(400, "maximum context length is 8"), "maximum context length is 8"),
    ):
        with SamplingServer(POLICY, twist=rows_only(lambda body, say=say: say)) as server:
            assert words in refused(server, retries=1)


def test_a_server_that_hangs_or_is_not_there() -> None:
    with SamplingServer(POLICY, twist=rows_only(lambda body: Say(b"", hang_s=30))) as server:
        start = time.monotonic()
        assert "no answer in 0.5 s" in refused(server, timeout_s=0.5, retries=0)
        assert time.monotonic() - start < 10
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert "cannot be reached" in refused(url, retries=0)


def test_a_row_that_fails_stops_the_others() -> None:
    many = [Request((3, 1, 4), tuple(Row(3, seed) for seed in range(200)))]
    refuse = rows_only(lambda body: error(401, "wrong key"))
    with SamplingServer(POLICY, twist=refuse) as server:
        one = Server(settings(server), Path("run"), lambda words: None)
        with pytest.raises(ModelError, match="wrong key"):
            one.sampler(POLICY)(many, CONFIG, STOP)
        assert len(server.asked()) < 20


# Is it the right model?


def test_another_tokenizer_is_refused() -> None:
    with SamplingServer(POLICY) as server:
        other = byte_tokenizer()
        other.add_tokens(["return"])
        server.tokenizer = other
        assert "has another tokenizer than tiny" in refused(server)
        assert server.asked() == []


def test_other_weights_are_refused() -> None:
    with SamplingServer(policy(1)) as server:
        assert "serves other weights than tiny" in refused(server)


def test_a_server_without_tokenize_is_still_compared() -> None:
    with SamplingServer(policy(1)) as server:
        answer = server.http.answer
        assert answer is not None
        server.http.answer = lambda request: (
            Say(b'{"detail":"Not Found"}', 404) if request.path == "/tokenize" else answer(request)
        )
        assert "serves other weights" in refused(server)


def test_agreement_counts_likely_tokens() -> None:
    model, prompt = POLICY.model, (3, 1, 4)
    with torch.no_grad():
        order = model(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    assert agreement(model, prompt, (order[0],)) == 1.0
    assert agreement(model, prompt, (order[4],)) == 1.0
    assert agreement(model, prompt, (order[5],)) == 0.0


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


# A whole game.


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
