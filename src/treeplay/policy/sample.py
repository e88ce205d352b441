"""Decode many continuations together against shared keys and values.

A request is one trunk (a token path) and rows that leave it at given positions. The trunk's keys
and values are computed once; every row appends its own tokens to the same cache and sees, through
the mask, the trunk up to its node and itself. Several trunks go as one batch. Rows that finish
leave the batch. A row's randomness is its own (one seed a row), so what it samples does not depend
on its neighbours, up to rounding in the model's arithmetic.

Axes: B trunks, P trunk length, Q rows of a trunk, K cache slots, R all active rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from transformers.cache_utils import Cache, DynamicLayer

from treeplay.errors import ModelError
from treeplay.policy.attention import model_mask, why_not_packable

Ended = Literal["answer", "eos", "length"]


@dataclass(frozen=True)
class SampleConfig:
    """How continuations are drawn. ``temperature`` 0 is greedy; ``max_tokens`` bounds each one."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 64
    rows_at_once: int = 64


@dataclass(frozen=True)
class Row:
    """Sample once behind ``path[:position]`` with its own ``seed``."""

    position: int
    seed: int


@dataclass(frozen=True)
class Request:
    path: tuple[int, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Sample:
    """Sampled ids (an end mark included), the raw log-prob of each (temperature 1, untruncated;
    empty where a server sampled), and why sampling stopped."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    ended: Ended


# done(request index, row index, ids so far) -> the answer's end has been seen
Done = Callable[[int, int, Sequence[int]], bool]


class Sampler(Protocol):
    """:func:`sample` without its model: what samples in the place of the local one."""

    def __call__(
        self,
        requests: Sequence[Request],
        config: SampleConfig,
        stop_ids: frozenset[int],
        done: Done | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]: ...


def seed_of(*parts: object) -> int:
    """A 63-bit seed from whatever names a row: run seed, task, node, branch."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample(
    model: Any,
    requests: Sequence[Request],
    config: SampleConfig,
    stop_ids: frozenset[int],
    done: Done | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Sample]]:
    """One list of samples a request, one sample a row, in order.

    ``progress`` is called with the number of tokens sampled since its last call.
    Raises :class:`ModelError` for a model that cannot decode packed rows and ``ValueError`` for a
    row whose position is not within 1..len(path).
    """
    reason = why_not_packable(model)
    if reason:
        raise ModelError(f"this model cannot sample packed trees: {reason}")
    for request in requests:
        if any(not 1 <= row.position <= len(request.path) for row in request.rows):
            raise ValueError("a row must leave its trunk behind at least one token")
    # Alike shapes go together, so that little of a batch is padding.
    order = sorted(
        range(len(requests)), key=lambda i: (len(requests[i].path), len(requests[i].rows), i)
    )
    out: list[list[Sample]] = [[] for _ in requests]
    for chunk in _chunks(order, requests, config.rows_at_once):
        batch = _Batch(model, [requests[i] for i in chunk], config)
        while batch.trunks:
            count = batch.step(stop_ids, done, chunk)
            if progress:
                progress(count)
        for i, samples in zip(chunk, batch.samples(), strict=True):
            out[i] = samples
    return out


def _chunks(order: list[int], requests: Sequence[Request], limit: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    rows = 0
    for i in order:
        count = len(requests[i].rows)
        if not chunks or rows + count > limit:
            chunks.append([])
            rows = 0
        chunks[-1].append(i)
        rows += count
    return chunks


@dataclass
class _Live:
    """A row while it is being sampled. ``slots``: its own places in the cache."""

    row: Row
    number: int
    uniforms: torch.Tensor
    last: int
    slots: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    ended: Ended | None = None


class _SlabLayer(DynamicLayer):  # type: ignore[misc]
    """A growing cache layer that writes in place instead of copying itself at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = key_states[:, :, :0]
            self.values = value_states[:, :, :0]
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys = _grown(self.keys, self.length, end)
            self.values = _grown(self.values, self.length, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


def _grown(slab: torch.Tensor, used: int, need: int) -> torch.Tensor:
    batch, heads, _, width = slab.shape
    bigger = slab.new_zeros(batch, heads, max(need, int(need * 1.5)), width)
    bigger[:, :, :used] = slab[:, :, :used]
    return bigger


class _Batch:
    """The trunks of one chunk and their live rows."""

    def __init__(self, model: Any, requests: list[Request], config: SampleConfig) -> None:
        self.model, self.config = model, config
        self.device = next(iter(model.parameters())).device
        self.rows = [
            [
                _Live(
                    row,
                    number,
                    _uniforms(row.seed, config.max_tokens),
                    request.path[row.position - 1],
                )
                for number, row in enumerate(request.rows)
            ]
            for request in requests
        ]
        # Indices (into rows) of the trunks still in the batch, in cache order.
        self.trunks = [i for i, rows in enumerate(self.rows) if rows]
        self.cache = Cache(layers=[_SlabLayer() for _ in range(model.config.num_hidden_layers)])
        self._prefill([requests[i].path for i in self.trunks])

    @torch.inference_mode()
    def _prefill(self, paths: list[tuple[int, ...]]) -> None:
        """Fill the cache with every trunk but its last token, which no row needs to see: a row
        begins by reading the token before its node, in a slot of its own."""
        self.width = max((len(path) - 1 for path in paths), default=0)
        if not self.width:
            return
        ids_BP = torch.zeros(len(paths), self.width, dtype=torch.long)
        for b, path in enumerate(paths):
            ids_BP[b, : len(path) - 1] = torch.tensor(path[:-1], dtype=torch.long)
        allowed = torch.ones(self.width, self.width, dtype=torch.bool).tril()
        self.model(
            input_ids=ids_BP.to(self.device),
            position_ids=torch.arange(self.width, device=self.device)[None],
            attention_mask=model_mask(self.model, allowed.to(self.device)[None]).expand(
                len(paths), -1, -1, -1
            ),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )

    @torch.inference_mode()
    def step(self, stop_ids: frozenset[int], done: Done | None, names: list[int]) -> int:
        """Sample one token for every live row; returns how many there were."""
        live = [[row for row in self.rows[i] if row.ended is None] for i in self.trunks]
        wide = max(len(rows) for rows in live)
        start = self.cache.get_seq_length()
        ids_BQ = torch.zeros(len(live), wide, dtype=torch.long)
        position_BQ = torch.zeros_like(ids_BQ)
        allowed_BQK = torch.zeros(len(live), wide, start + wide, dtype=torch.bool)
        pick: list[int] = []
        for b, rows in enumerate(live):
            for q, row in enumerate(rows):
                ids_BQ[b, q] = row.last
                position_BQ[b, q] = row.row.position - 1 + len(row.ids)
                row.slots.append(start + q)
                allowed_BQK[b, q, : row.row.position - 1] = True
                allowed_BQK[b, q, row.slots] = True
                pick.append(b * wide + q)
            # A padded query must see something, or its softmax is not a number.
            allowed_BQK[b, len(rows) :, start] = True
        logits_BQV = self.model(
            input_ids=ids_BQ.to(self.device),
            position_ids=position_BQ.to(self.device),
            attention_mask=model_mask(self.model, allowed_BQK.to(self.device)),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        logits_RV = logits_BQV.flatten(0, 1)[torch.tensor(pick, device=self.device)].float()
        active = [(i, row) for i, rows in zip(self.trunks, live, strict=True) for row in rows]
        uniform_R = torch.stack([row.uniforms[len(row.ids)] for _, row in active])
        token_R = draw(logits_RV, uniform_R.to(self.device), self.config)
        logp_R = logits_RV.gather(1, token_R[:, None])[:, 0] - torch.logsumexp(logits_RV, dim=-1)
        for (i, row), token, logp in zip(active, token_R.tolist(), logp_R.tolist(), strict=True):
            row.ids.append(token)
            row.logps.append(logp)
            row.last = token
            if token in stop_ids:
                row.ended = "eos"
            elif done is not None and done(names[i], row.number, row.ids):
                row.ended = "answer"
            elif len(row.ids) >= self.config.max_tokens:
                row.ended = "length"
        self._drop_finished()
        return len(active)

    def _drop_finished(self) -> None:
        keep = [b for b, i in enumerate(self.trunks) if any(r.ended is None for r in self.rows[i])]
        if len(keep) == len(self.trunks):
            return
        self.trunks = [self.trunks[b] for b in keep]
        index = torch.tensor(keep, dtype=torch.long, device=self.device)
        for layer in self.cache.layers:
            layer.keep(index)

    def samples(self) -> list[list[Sample]]:
        return [
            [Sample(tuple(row.ids), tuple(row.logps), row.ended or "length") for row in rows]
            for rows in self.rows
        ]


def _uniforms(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def draw(logits_RV: torch.Tensor, uniform_R: torch.Tensor, config: SampleConfig) -> torch.Tensor:
    """Token ids (R,) by inverting the nucleus's cumulative distribution at ``uniform_R``.

    The nucleus (Holtzman et al. 2020) is the smallest set of most likely tokens whose probability
    reaches ``top_p``. The 256 likeliest tokens almost always hold it; only where they do not is
    the whole vocabulary sorted.
    """
    if config.temperature == 0:
        return logits_RV.argmax(-1)
    prob_RV = torch.softmax(logits_RV / config.temperature, dim=-1)
    top, index = prob_RV.topk(min(256, prob_RV.shape[1]), dim=-1)
    if bool((top.sum(-1) < config.top_p).any()):
        top, index = prob_RV.sort(dim=-1, descending=True)
    cumulative = top.cumsum(-1)
    inside = (cumulative - top) < config.top_p  # the token that crosses top_p belongs to it
    mass = (top * inside).sum(-1, keepdim=True)
    place = torch.searchsorted(cumulative.contiguous(), (uniform_R[:, None] * mass).contiguous())
    place = torch.minimum(place, inside.sum(-1, keepdim=True) - 1)
    return index.gather(1, place)[:, 0]
