"""Sampling through a real server. Start one (docs/server.md says how) and name it:

    TREEPLAY_TEST_SERVER=http://127.0.0.1:8471 pytest tests/test_server_live.py

``TREEPLAY_TEST_MODEL`` is the model it serves (default: the embedded one), and
``TREEPLAY_TEST_API`` is ``vllm`` (the default) or ``sglang``.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from treeplay.errors import ModelError
from treeplay.policy.model import ModelConfig, Policy, load_adapter, load_policy
from treeplay.policy.sample import Request, Row, Sample, SampleConfig
from treeplay.policy.server import Server, agreement
from treeplay.policy.server_config import ServerConfig

URL = os.environ.get("TREEPLAY_TEST_SERVER", "")
if not URL:
    pytest.skip("TREEPLAY_TEST_SERVER names no server", allow_module_level=True)

CODE = "def total(rows, key):\n    result = 0\n    for row in rows:\n"
NO_STOP: frozenset[int] = frozenset()


def told(path: str) -> Any:
    with urllib.request.urlopen(URL.rstrip("/") + path, timeout=30) as reply:
        return json.load(reply)


def names() -> list[str]:
    return [one["id"] for one in told("/v1/models")["data"]]


@pytest.fixture(scope="module")
def policy() -> Policy:
    name = os.environ.get("TREEPLAY_TEST_MODEL", ModelConfig.name)
    return load_policy(ModelConfig(name=name, dtype="bfloat16", threads=1))


def server(folder: Path, **changes: Any) -> Server:
    api: Any = os.environ.get("TREEPLAY_TEST_API", "vllm")
    base = ServerConfig(URL, names()[0], api, concurrency=16, retries=1)
    return Server(replace(base, **changes), folder, lambda words: None)


def trunk(policy: Policy, text: str = CODE) -> tuple[int, ...]:
    return tuple(policy.tokenizer(text)["input_ids"])


def ids(samples: list[list[Sample]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in row] for row in samples]


def test_branches_over_a_shared_prefix(policy: Policy, tmp_path: Path) -> None:
    path = trunk(policy)
    rows = tuple(Row(p, seed) for p in (8, len(path)) for seed in range(8))

    def done(request: int, row: int, ids: Sequence[int]) -> bool:
        return row == 3 and len(ids) == 5

    with closing(server(tmp_path)) as one:
        (made,) = one.sampler(policy)(
            [Request(path, rows)], SampleConfig(max_tokens=24), policy.stop_ids, done
        )
    assert all(len(s.ids) == 24 for s in made if s.ended == "length")
    assert (len(made[3].ids), made[3].ended) == (5, "answer") or made[3].ended == "eos"
    assert len({s.ids for s in made}) > 12
    for row, sampled in zip(rows, made, strict=True):  # likely under the local model
        assert agreement(policy.model, path[: row.position], sampled.ids) > 0.4


def test_a_seed_names_a_sample(policy: Policy, tmp_path: Path) -> None:
    rows = tuple(Row(8, seed) for seed in (5, 5, 2**63 - 1))
    alone = [[Request(trunk(policy), (row,))] for row in rows]
    how = SampleConfig(max_tokens=16)
    with closing(server(tmp_path)) as one:
        draw = one.sampler(policy)
        first, second, other = (ids(draw(request, how, NO_STOP)) for request in alone)
    assert first == second != other


def test_an_end_mark_is_the_last_id(policy: Policy, tmp_path: Path) -> None:
    greedy = SampleConfig(temperature=0, max_tokens=16)
    ask = [Request(trunk(policy), (Row(len(trunk(policy)), 0),))]
    with closing(server(tmp_path)) as one:
        draw = one.sampler(policy)
        ((whole,),) = draw(ask, greedy, NO_STOP)
        stop = whole.ids[9]
        ((cut,),) = draw(ask, greedy, frozenset({stop}))
        ((later,),) = server(tmp_path, stream=False).sampler(policy)(ask, greedy, frozenset({stop}))
    assert cut.ended == later.ended == "eos"
    assert cut.ids == later.ids == whole.ids[: whole.ids.index(stop) + 1]


def test_long_prompts(policy: Policy, tmp_path: Path) -> None:
    """Longer than what a server reads at once; and than what it can read."""
    path = trunk(policy, CODE * 160)
    how = SampleConfig(max_tokens=4)
    with closing(server(tmp_path)) as one:
        ((made,),) = one.sampler(policy)([Request(path[:3000], (Row(3000, 1),))], how, NO_STOP)
        assert len(made.ids) == 4
        limit = told("/v1/models")["data"][0].get("max_model_len")
        if limit:
            path = path * (limit // len(path) + 1)
            with pytest.raises(ModelError, match="cannot sample"):
                one.sampler(policy)([Request(path, (Row(len(path), 1),))], how, NO_STOP)


def test_each_adapter_is_another_player(policy: Policy, tmp_path: Path) -> None:
    path = trunk(policy)
    greedy = SampleConfig(temperature=0, max_tokens=24)
    ask = [Request(path, (Row(len(path), 0),))]
    folders = [adapter(policy, tmp_path / str(seed), seed) for seed in (1, 2)]
    seen = []
    with closing(server(tmp_path)) as one:
        seen.append(ids(one.sampler(policy)(ask, greedy, NO_STOP)))
        for number, folder in enumerate(folders, start=1):
            model = load_adapter(policy.model, folder, trainable=False).eval()
            player = replace(policy, model=model)
            seen.append(ids(one.sampler(player, folder, f"round-{number}")(ask, greedy, NO_STOP)))
            (made,) = seen[-1]
            assert agreement(model, path, made[0]) > 0.9
            model.unload()
            assert [f"-round-{number}-" in name for name in names()[1:]] == [True]
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert names()[1:] == []


def adapter(policy: Policy, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    shape = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(policy.model, shape)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    model.unload()
    return folder
