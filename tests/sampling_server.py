"""A sampling server with a model of its own, over real HTTP: vLLM's and SGLang's answers, as far
as they are asked for, and the ways in which servers go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from chat_server import ChatServer, Request, Say

from treeplay.policy.model import Policy, load_adapter
from treeplay.policy.sample import Request as Rows
from treeplay.policy.sample import Row, SampleConfig, sample

Twist = Callable[[dict[str, Any]], Say | None]


def error(status: int, message: str, *headers: tuple[str, str]) -> Say:
    return Say(json.dumps({"error": {"message": message}}).encode(), status, headers)


def events(*said: dict[str, Any], end: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in said]
    return b"".join([*lines, b"data: [DONE]\n\n"] if end else lines)


def piece(ids: list[int], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": "?", "token_ids": ids, "finish_reason": finish, **more}]}


class SamplingServer:
    """Samples with the local sampler from ``policy``, or from it with a loaded adapter.

    ``twist`` sees each request for a row first and may answer it. ``runtime``: whether adapters
    may be loaded; ``cumulative``: SGLang's stream repeats what came before.
    """

    def __init__(
        self, policy: Policy, *, twist: Twist | None = None, runtime: bool = True,
        cumulative: bool = True,
    ) -> None:  # fmt: skip
        self.policy, self.twist = policy, twist
        self.runtime, self.cumulative = runtime, cumulative
        self.adapters: dict[str, str] = {}
        self.tokenizer = policy.tokenizer
        self.drip_s = 0.0
        self._lock = threading.Lock()
        self.http = ChatServer(answer=self._answer)
        self.url = self.http.url

    def __enter__(self) -> SamplingServer:
        self.http.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.__exit__(kind, error, trace)

    def asked(self, path: str = "/v1/completions") -> list[Any]:
        """Bodies of the requests to ``path``."""
        return [request.body for request in self.http.requests if request.path == path]

    def _answer(self, request: Request) -> Say:
        path, body = request.path, request.body
        if path == "/v1/models":
            return Say(json.dumps({"data": [{"id": n} for n in ["tiny", *self.adapters]]}).encode())
        if path == "/tokenize":
            ids = self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return Say(json.dumps({"tokens": ids}).encode())
        if path in ("/v1/completions", "/generate"):
            say = self.twist(body) if self.twist else None
            return say or self._row(path, body)
        if path.endswith("load_lora_adapter") and self.runtime:
            with self._lock:
                return self._adapter(path, body)
        return Say(b'{"detail":"Not Found"}', 404)

    def _adapter(self, path: str, body: dict[str, Any]) -> Say:
        name = body["lora_name"]
        if path.endswith("/unload_lora_adapter"):
            if self.adapters.pop(name, None) is None:
                return error(404, f"The lora adapter '{name}' cannot be found.")
            return Say(b"Success")
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(body["lora_path"]) / "adapter_model.safetensors").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {name}")
        self.adapters[name] = body["lora_path"]
        return Say(b"Success")

    def _row(self, path: str, body: dict[str, Any]) -> Say:
        native = path == "/generate"
        how = body["sampling_params"] if native else body
        name = body.get("lora_path", "tiny") if native else body["model"]
        prompt = tuple(body["input_ids"] if native else body["prompt"])
        if name not in ("tiny", *self.adapters):
            return error(404, f"The model `{name}` does not exist.")
        config = SampleConfig(
            temperature=how["temperature"],
            top_p=how["top_p"],
            max_tokens=how["max_new_tokens" if native else "max_tokens"],
        )
        seed = how["sampling_seed" if native else "seed"]
        with self._lock:
            model = self.policy.model
            if name != "tiny":
                model = load_adapter(model, self.adapters[name], trainable=False).eval()
            row = Rows(prompt, (Row(len(prompt), seed),))
            ((one,),) = sample(model, [row], config, frozenset(how["stop_token_ids"]))
            if name != "tiny":
                model.unload()
        ids, finish = list(one.ids), "stop" if one.ended == "eos" else "length"
        if native:
            return self._native(prompt, ids, finish, body["stream"])
        if not body["stream"]:
            return Say(json.dumps(piece(ids, finish, prompt_token_ids=list(prompt))).encode())
        said = [piece([token], None) for token in ids]
        said[0]["choices"][0]["prompt_token_ids"] = list(prompt)
        said[-1]["choices"][0]["finish_reason"] = finish
        return Say(events(*said), drip_s=self.drip_s)

    def _native(self, prompt: tuple[int, ...], ids: list[int], finish: str, stream: bool) -> Say:
        def said(n: int) -> dict[str, Any]:
            end = {"type": finish} if n == len(ids) else None
            meta = {"prompt_tokens": len(prompt), "completion_tokens": n, "finish_reason": end}
            whole = self.cumulative or not stream
            return {"output_ids": ids[:n] if whole else ids[n - 1 : n], "meta_info": meta}

        if not stream:
            return Say(json.dumps(said(len(ids))).encode())
        return Say(events(*[said(n) for n in range(1, len(ids) + 1)]))
