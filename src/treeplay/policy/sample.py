"""Decode many continuations together, at the cost of the distinct tokens among them.

A request is one token path and rows that leave it at given positions. The path's keys and values
are computed once. Rows that have sampled the same tokens behind the same node so far are one *lane*
of the batch (see :mod:`treeplay.policy.lanes`); where they part, the lane forks, and where they
end, it leaves the batch. A row's randomness is its own (one seed a row, see
:mod:`treeplay.policy.draw`), so what it samples does not depend on its neighbours, up to rounding
in the model's arithmetic: a batch of another shape moves float32 logits by some 1e-5, and changes a
token only where two were within that of each other.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakSet

import torch

from treeplay.errors import ModelError
from treeplay.policy.attention import why_not_packable
from treeplay.policy.draw import draw
from treeplay.policy.lanes import Lanes, Trunk, Unexchangeable
from treeplay.policy.matmul import quicken
from treeplay.policy.prefix import base_of, prefix_cache, prefix_length
from treeplay.policy.static import StaticLanes
from treeplay.policy.trunks import Kept, Request, Row, prefill

__all__ = ["Request", "Row", "Sample", "SampleConfig", "Sampler", "sample", "seed_of"]

Ended = Literal["answer", "eos", "length"]
# Kinds of devices that are faster with fixed shapes.
STATIC = ("cuda",)


@dataclass(frozen=True)
class SampleConfig:
    """How continuations are drawn. ``temperature`` 0 is greedy; ``max_tokens`` bounds each one."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 64
    rows_at_once: int = 64


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
    kept: Kept | None = None,
) -> list[list[Sample]]:
    """One list of samples a request, one sample a row, in order.

    ``progress`` is called with the number of tokens sampled since its last call; ``kept`` keeps
    stems from one call to the next. A model that cannot decode rows together decodes them one by
    one, with a warning. Raises :class:`ModelError` for a path longer than the model's context and
    for logits that are no numbers, and ``ValueError`` for a row whose position is not within
    1..len(path).
    """
    _check(model, requests, config)
    quicken(model)
    reason = why_not_packable(model)
    out: list[list[Sample]] = [[] for _ in requests]
    # Alike shapes go together, so that lanes end together; a stem's requests stay together.
    order = sorted(
        (i for i in range(len(requests)) if requests[i].rows),
        key=lambda i: (len(requests[i].stem or requests[i].path), requests[i].stem, i),
    )
    kept = kept or Kept(256)
    for chunk in _chunks(order, requests, config.rows_at_once):
        rows = [
            [_Live(i, number, row) for number, row in enumerate(requests[i].rows)] for i in chunk
        ]
        how = _How(config, stop_ids, done, progress, requests)
        if not reason:
            try:
                _together(model, [requests[i] for i in chunk], rows, how, kept)
            except Unexchangeable as error:
                reason = str(error)
        if reason:
            _tell(model, reason)
            for request_rows in rows:
                for live in request_rows:
                    one_by_one(model, live, how)
        for i, request_rows in zip(chunk, rows, strict=True):
            out[i] = [
                Sample(tuple(r.ids), tuple(r.logps), r.ended or "length") for r in request_rows
            ]
    return out


# Models that somebody was told are sampled slowly.
_told: WeakSet[Any] = WeakSet()


def told_slow(model: Any) -> bool:
    """Whether it was said already that ``model`` is computed row by row; from now on, it was."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = core in _told
    _told.add(core)
    return known


def _tell(model: Any, reason: str) -> None:
    if not told_slow(model):
        warnings.warn(f"rows are sampled one by one, slowly: {reason}", stacklevel=3)


def _check(model: Any, requests: Sequence[Request], config: SampleConfig) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:
        longest -= prefix_length(model)
    for request in requests:
        if any(not 1 <= row.position <= len(request.path) for row in request.rows):
            raise ValueError("a row must leave its path behind at least one token")
        need = max((row.position for row in request.rows), default=0) + config.max_tokens
        if longest and need > longest:
            raise ModelError(
                f"{_named(request)}{need - config.max_tokens} tokens and up to {config.max_tokens} "
                f"more do not fit into the model's context of {longest}; shorten the task or lower "
                "max_tokens"
            )


def _named(request: Request) -> str:
    return f"task {request.name!r}: " if request.name else ""


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


@dataclass(frozen=True)
class _How:
    """What ends a row, and whom to tell."""

    config: SampleConfig
    stop_ids: frozenset[int]
    done: Done | None
    progress: Callable[[int], None] | None
    requests: Sequence[Request]


class _Live:
    """A row while it is being sampled."""

    def __init__(self, request: int, number: int, row: Row) -> None:
        self.request, self.number, self.row = request, number, row
        self.ids: list[int] = []
        self.logps: list[float] = []
        self.ended: Ended | None = None

    def take(self, token: int, logp: float, how: _How) -> None:
        if logp != logp:
            raise ModelError(
                f"{_named(how.requests[self.request])}the model's predictions are not numbers "
                f"(NaN) after {self.row.position + len(self.ids)} tokens; use "
                "model.dtype=float32, or an adapter that has not diverged"
            )
        self.ids.append(token)
        self.logps.append(logp)
        if token in how.stop_ids:
            self.ended = "eos"
        elif how.done is not None and how.done(self.request, self.number, self.ids):
            self.ended = "answer"
        elif len(self.ids) >= how.config.max_tokens:
            self.ended = "length"


@dataclass
class _Lane:
    """Rows that have sampled the same so far; the next token to read, and where it stands."""

    rows: list[_Live]
    token: int
    position: int
    place: tuple[int, int] = field(default=(0, 0))


def _together(
    model: Any, requests: list[Request], rows: list[list[_Live]], how: _How, kept: Kept
) -> None:
    """Sample all rows to their ends."""
    trunks, places = prefill(model, requests, kept)
    first: dict[tuple[int, int], _Lane] = {}
    for request, live, at in zip(requests, rows, places, strict=True):
        for row, place in zip(live, at, strict=True):
            position = row.row.position
            if place not in first:
                first[place] = _Lane([], request.path[position - 1], position - 1, place)
            first[place].rows.append(row)
    lanes = list(first.values())
    batch = _lanes(model, trunks, lanes, how.config.max_tokens)
    del trunks  # the batch may hold them in other numbers
    while lanes:
        logits_LV = batch.step(
            model, [lane.token for lane in lanes], [lane.position for lane in lanes]
        )
        drawing = [(number, row) for number, lane in enumerate(lanes) for row in lane.rows]
        tokens, logps = draw(
            logits_LV,
            [(row.row.seed, len(row.ids)) for _, row in drawing],
            how.config.temperature,
            how.config.top_p,
            [number for number, _ in drawing],
        )
        for (_, row), token, logp in zip(drawing, tokens, logps, strict=True):
            row.take(token, logp, how)
        if how.progress:
            how.progress(len(drawing))
        lanes, keep = _forked(lanes)
        batch.change(keep)


def _lanes(model: Any, trunks: list[Trunk], lanes: list[_Lane], tokens: int) -> Lanes | StaticLanes:
    starts = [lane.place for lane in lanes]
    device = next(iter(model.parameters())).device
    if device.type not in STATIC:
        return Lanes(trunks, starts)
    rows = [0] * len(trunks)
    for lane in lanes:
        rows[lane.place[0]] += len(lane.rows)
    return StaticLanes(trunks, starts, rows, tokens, device)


def _forked(lanes: list[_Lane]) -> tuple[list[_Lane], list[int]]:
    """The lanes of the next step, and which lane of this one each goes on from."""
    stay: dict[int, _Lane] = {}
    new: list[tuple[_Lane, int]] = []
    for number, lane in enumerate(lanes):
        parted: dict[int, list[_Live]] = {}
        for row in lane.rows:
            if row.ended is None:
                parted.setdefault(row.ids[-1], []).append(row)
        for token, rows in parted.items():
            after = _Lane(rows, token, lane.position + 1, lane.place)
            if number in stay:
                new.append((after, number))
            else:
                stay[number] = after
    # Nothing moves but what must: into the places of the lanes that ended, or behind all.
    count = len(stay) + len(new)
    new += [(stay.pop(number), number) for number in sorted(stay) if number >= count]
    free = (place for place in range(count) if place not in stay)
    keep = list(range(count))
    for place, (lane, source) in zip(free, new, strict=True):
        stay[place], keep[place] = lane, source
    return [stay[place] for place in range(count)], keep


@torch.inference_mode()
def one_by_one(model: Any, live: _Live, how: _How) -> None:
    """Sample one row as any other program would, with the model's own cache."""
    device = next(iter(model.parameters())).device
    past, model = prefix_cache(model), base_of(model)
    ids = list(how.requests[live.request].path[: live.row.position])
    while live.ended is None:
        seen = model(
            input_ids=torch.tensor([ids], device=device),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = seen.past_key_values
        (token,), (logp,) = draw(
            seen.logits[:, -1],
            [(live.row.seed, len(live.ids))],
            how.config.temperature,
            how.config.top_p,
        )
        live.take(token, logp, how)
        ids = [token]
        if how.progress:
            how.progress(1)
