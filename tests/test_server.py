"""Sampling through servers: a faithful one gives what local sampling gives, a wrong one is told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Say
from conftest import byte_tokenizer, tiny_llama
from sampling_server import SamplingServer, error, events, piece

from treeplay.errors import ModelError
from treeplay.policy.model import Policy
from treeplay.policy.sample import Request, Row, Sample, SampleConfig, sample, seed_of
from treeplay.policy.server import Server, agreement
from treeplay.policy.server_config import ServerConfig
from treeplay.policy.server_sample import in_cache_order

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
