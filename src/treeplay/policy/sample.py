"""Decode many continuations together, at the cost of the distinct tokens among them.

A request is one token path and rows that leave it at given positions. The path's keys and values
are computed once. Rows that have sampled the same tokens behind the same node so far are one *lane*
of the batch (see :mod:`treeplay.policy.lanes`); where they part, the lane forks, and where they
end, it leaves the batch and others come in (:mod:`treeplay.policy.flow`). A row's randomness is its
own (one seed a row, see :mod:`treeplay.policy.draw`), so what it samples does not depend on its
neighbours, up to rounding in the model's arithmetic: a batch of another shape moves float32 logits
by some 1e-5, and changes a token only where two were within that of each other.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakSet

from treeplay.errors import ModelError
from treeplay.policy.attention import why_not_packable
from treeplay.policy.flow import How, Live, flow, one_by_one
from treeplay.policy.lanes import Unexchangeable
from treeplay.policy.matmul import quicken
from treeplay.policy.prefix import prefix_length
from treeplay.policy.trunks import Kept, Request, Row

__all__ = ["Request", "Row", "Sample", "SampleConfig", "Sampler", "sample", "seed_of"]

Ended = Literal["answer", "eos", "length"]


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


# told(tokens sampled, samples of the requests whose last row has ended), both since the last call
Told = Callable[[int, Mapping[int, list[Sample]]], None]


class Sampler(Protocol):
    """:func:`sample` without its model: what samples in the place of the local one."""

    def __call__(
        self,
        requests: Sequence[Request],
        config: SampleConfig,
        stop_ids: frozenset[int],
        done: Done | None = None,
        told: Told | None = None,
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
    told: Told | None = None,
    kept: Kept | None = None,
) -> list[list[Sample]]:
    """One list of samples a request, one sample a row, in order.

    ``told`` hears of what is finished; ``kept`` keeps stems from one call to the next. A model that
    cannot decode rows together decodes them one by one, with a warning. Raises :class:`ModelError`
    for a path longer than the model's context and for logits that are no numbers, and
    ``ValueError`` for a row whose position is not within 1..len(path).
    """
    _check(model, requests, config)
    quicken(model)
    rows = [
        [Live(i, number, row, most(row, config)) for number, row in enumerate(request.rows)]
        for i, request in enumerate(requests)
    ]
    left = [len(request.rows) for request in requests]

    def heard(live: Sequence[Live]) -> None:
        whole = {}
        for row in live:
            if row.ended is not None:
                left[row.request] -= 1
                if not left[row.request]:
                    whole[row.request] = _samples(rows[row.request])
        if told:
            told(len(live), whole)

    how = How(config, stop_ids, done, heard, requests)
    # Those that may become long first, so that the last ones have company. Alike shapes go
    # together, and a stem's requests stay together.
    order = sorted(
        (i for i in range(len(requests)) if requests[i].rows),
        key=lambda i: (
            -max(row.most for row in rows[i]),
            len(requests[i].stem or requests[i].path),
            requests[i].stem,
            i,
        ),
    )
    reason = why_not_packable(model)
    if not reason:
        units = _units(order, requests, config.rows_at_once)
        try:
            flow(model, units, rows, how, kept or Kept(256), config.rows_at_once)
        except Unexchangeable as error:  # before the first token
            reason = str(error)
    if reason:
        _tell(model, reason)
        for i in order:
            for live in rows[i]:
                one_by_one(model, live, how)
    return [_samples(request_rows) for request_rows in rows]


def _samples(rows: Sequence[Live]) -> list[Sample]:
    return [Sample(tuple(row.ids), tuple(row.logps), row.ended or "length") for row in rows]


def most(row: Row, config: SampleConfig) -> int:
    """How many tokens ``row`` may have."""
    return config.max_tokens if row.max_tokens is None else row.max_tokens


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
        for row in request.rows:
            more = most(row, config)
            if longest and row.position + more > longest:
                raise ModelError(
                    f"{request.about}{row.position} tokens and up to {more} more do not fit into "
                    f"the model's context of {longest}; shorten the task or lower max_tokens"
                )


def _units(order: Sequence[int], requests: Sequence[Request], limit: int) -> list[list[int]]:
    """What comes in together: requests of one stem, as many as have no more than ``limit`` rows."""
    units: list[list[int]] = []
    used = 0
    for i in order:
        stem, count = requests[i].stem, len(requests[i].rows)
        same = stem and units and requests[units[-1][0]].stem == stem
        if not same or used + count > limit:
            units.append([])
            used = 0
        units[-1].append(i)
        used += count
    return units
