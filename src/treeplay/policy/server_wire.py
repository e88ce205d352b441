"""What is sent to a sampling server and how its replies are read: token ids in, token ids out.

Two forms: ``/v1/completions`` with ``return_token_ids`` (vLLM 0.10.2 and newer), and SGLang's
``/generate``. Text is never read: spelling it again as tokens need not give the ids that were
sampled. Log-probs are not asked for: a server's move by up to 0.1 with its batching, and those of
the loss are the local model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from treeplay.endpoint import Again, Refused, events
from treeplay.policy.sample import Ended, Row, Sample, SampleConfig
from treeplay.policy.server_config import ServerConfig

NO_IDS = (
    "it does not return token ids, and text is never tokenised again; serve the model with vLLM "
    "0.10.2 or newer, or with SGLang and model.server.api=sglang"
)
OTHER_PROMPT = (
    "it read other tokens than it was sent; serve the model without a template of its own"
)


@dataclass(frozen=True)
class Piece:
    """Part of a reply: new ids; why sampling stopped ("" while it goes on), by which token."""

    ids: tuple[int, ...]
    finish: str = ""
    matched: int | None = None


@dataclass(frozen=True)
class Form:
    """One server's way: where rows are asked for, their body, and how an event becomes a piece.

    ``body(config, model, prompt, row, sample config, stop ids)``; ``piece(event, prompt, number of
    ids so far)``. ``load`` and ``unload`` are the paths for adapters.
    """

    path: str
    body: Callable[
        [ServerConfig, str, Sequence[int], Row, SampleConfig, frozenset[int]], dict[str, Any]
    ]
    piece: Callable[[dict[str, Any], Sequence[int], int], Piece]
    load: str
    unload: str
    adapters_how: str


def _vllm_body(
    config: ServerConfig,
    model: str,
    prompt: Sequence[int],
    row: Row,
    how: SampleConfig,
    stop_ids: frozenset[int],
) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(prompt),
        "n": 1,
        "seed": row.seed,
        "temperature": how.temperature,
        "top_p": how.top_p if how.temperature else 1.0,
        "max_tokens": how.max_tokens,
        "return_token_ids": True,
        "stream": config.stream,
        "stop_token_ids": sorted(stop_ids),
        # the end marks are those named above, not the server's own
        "ignore_eos": True,
        # a model's generation_config must not change what is sampled from
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _vllm_piece(event: dict[str, Any], prompt: Sequence[int], so_far: int) -> Piece:
    choices = event.get("choices")
    if choices == [] or (choices is None and "usage" in event):
        return Piece(())  # the line that counts tokens
    try:
        choice = choices[0]  # type: ignore[index]
        ids, read = choice.get("token_ids"), choice.get("prompt_token_ids")
        finish, matched = choice.get("finish_reason"), choice.get("stop_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Again("the reply is not a completion") from None
    if not so_far:
        if ids is None or read is None:
            raise Refused(NO_IDS, for_all=True)
        if read != list(prompt):
            raise Refused(OTHER_PROMPT, for_all=True)
    return _piece([] if ids is None else ids, finish, matched)


def _sglang_body(
    config: ServerConfig,
    model: str,
    prompt: Sequence[int],
    row: Row,
    how: SampleConfig,
    stop_ids: frozenset[int],
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "input_ids": list(prompt),
        "stream": config.stream,
        "sampling_params": {
            "n": 1,
            "sampling_seed": row.seed & 0x7FFFFFFF,
            "temperature": how.temperature,
            "top_p": how.top_p if how.temperature else 1.0,
            "max_new_tokens": how.max_tokens,
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        },
    }
    if model != config.name:
        body["lora_path"] = model
    return body


def _sglang_piece(event: dict[str, Any], prompt: Sequence[int], so_far: int) -> Piece:
    """SGLang streams all ids so far, or with one of its options only the new ones; the count that
    comes along tells which."""
    ids, meta = event.get("output_ids"), event.get("meta_info")
    if not isinstance(meta, dict):
        raise Again("the reply is not that of /generate")
    if not isinstance(ids, list):
        raise Refused(NO_IDS, for_all=True)
    if meta.get("prompt_tokens", len(prompt)) != len(prompt):
        raise Refused(OTHER_PROMPT, for_all=True)
    total = meta.get("completion_tokens")
    if total == len(ids):
        ids = ids[so_far:]
    elif total != so_far + len(ids):
        raise Again(f"{len(ids)} token ids came where {total} were sampled")
    finish = meta.get("finish_reason") or {}
    return _piece(ids, finish.get("type"), finish.get("matched"))


def _piece(ids: Any, finish: Any, matched: Any) -> Piece:
    if not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise Refused("its token ids are not whole numbers; use another server", for_all=True)
    return Piece(
        tuple(ids),
        finish if isinstance(finish, str) else "",
        matched if isinstance(matched, int) else None,
    )


FORMS = {
    "vllm": Form(
        "/v1/completions",
        _vllm_body,
        _vllm_piece,
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "start vLLM with --enable-lora and the environment variable "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    ),
    "sglang": Form(
        "/generate",
        _sglang_body,
        _sglang_piece,
        "/load_lora_adapter",
        "/unload_lora_adapter",
        "start SGLang with --enable-lora, --max-lora-rank and --lora-target-modules all",
    ),
}


def read_row(
    pieces: Iterator[bytes],
    form: Form,
    prompt: Sequence[int],
    how: SampleConfig,
    stop_ids: frozenset[int],
    vocabulary: int,
    done: Callable[[Sequence[int]], bool],
) -> Sample:
    """The sample that a reply holds, cut at the first token that ends it.

    The order of the checks is that of local sampling: end mark, answer's end, length. No log-probs
    (see above). Raises :class:`Again` for a reply that ends early and :class:`Refused` for one
    that cannot be used.
    """
    ids: list[int] = []

    def sampled(ended: Ended) -> Sample:
        return Sample(tuple(ids), (), ended)

    for event in events(pieces):
        piece = form.piece(event, prompt, len(ids))
        tokens = piece.ids
        if piece.matched in stop_ids and piece.matched not in tokens[-1:]:
            tokens = (*tokens, piece.matched)  # some servers leave the end mark out
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise Refused(
                    f"it sampled token {token} of a vocabulary of {vocabulary}; serve the model "
                    "that model.name names",
                    for_all=True,
                )
            ids.append(token)
            if token in stop_ids:
                return sampled("eos")
            if done(ids):
                return sampled("answer")
            if len(ids) >= how.max_tokens:
                return sampled("length")
        if piece.finish in ("abort", "error"):
            raise Again("the server gave a row up")
        if piece.finish:
            raise Refused(
                f"it stopped after {len(ids)} of {how.max_tokens} tokens ({piece.finish}) where no "
                "end mark is; give the server a longer context, or lower the token budget"
            )
    raise Again("the reply ended early")
