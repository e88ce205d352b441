"""A flow of rows through the model: as some end, the next ones come in.

Much of what a step of the model costs does not depend on how many rows there are: all weights are
read. So rows that wait join those that are being sampled as soon as there is room, rather than when
the last of them has ended. Rows that came in together are a *cohort*: their own tokens are equally
many, and they have a memory of their own (:class:`treeplay.policy.lanes.Lanes`). One pass of the
model computes a token for the lanes of all cohorts. On devices that are faster with fixed shapes
(:class:`treeplay.policy.static.StaticLanes`) there is one cohort at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from treeplay.errors import ModelError
from treeplay.policy.draw import draw
from treeplay.policy.lanes import Lanes, Trunk, step
from treeplay.policy.prefix import base_of, prefix_cache
from treeplay.policy.static import StaticLanes
from treeplay.policy.trunks import Kept, Request, Row, prefill

if TYPE_CHECKING:
    from treeplay.policy.sample import Done, Ended, SampleConfig

# Kinds of devices that are faster with fixed shapes.
STATIC = ("cuda",)
# Rows come in when this share of all there may be is free: each cohort is a call more a layer.
SHARE = 8


@dataclass(frozen=True)
class How:
    """What ends a row, and who hears which rows have a token more."""

    config: SampleConfig
    stop_ids: frozenset[int]
    done: Done | None
    heard: Callable[[Sequence[Live]], None]
    requests: Sequence[Request]


class Live:
    """A row while it is being sampled. ``most``: how many tokens it may have."""

    def __init__(self, request: int, number: int, row: Row, most: int) -> None:
        self.request, self.number, self.row, self.most = request, number, row, most
        self.ids: list[int] = []
        self.logps: list[float] = []
        self.ended: Ended | None = None

    def take(self, token: int, logp: float, how: How) -> None:
        if logp != logp:
            raise ModelError(
                f"{how.requests[self.request].about}the model's predictions are not numbers (NaN) "
                f"after {self.row.position + len(self.ids)} tokens; use model.dtype=float32, or an "
                "adapter that has not diverged"
            )
        self.ids.append(token)
        self.logps.append(logp)
        if token in how.stop_ids:
            self.ended = "eos"
        elif how.done is not None and how.done(self.request, self.number, self.ids):
            self.ended = "answer"
        elif len(self.ids) >= self.most:
            self.ended = "length"


@dataclass
class _Lane:
    """Rows that have sampled the same so far; the next token to read, and where it stands."""

    rows: list[Live]
    token: int
    position: int
    place: tuple[int, int] = field(default=(0, 0))


@dataclass
class _Cohort:
    """Rows that came in together: their lanes, and what these have read."""

    lanes: list[_Lane]
    batch: Lanes | StaticLanes

    @property
    def rows(self) -> int:
        return sum(len(lane.rows) for lane in self.lanes)


def flow(
    model: Any,
    units: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Live]],
    how: How,
    kept: Kept,
    limit: int,
) -> None:
    """Sample all ``rows`` (those of each request) to their ends, no more than ``limit`` at a time
    where possible. Requests of a unit (their numbers) come in together, units in their order."""
    waiting = deque(units)
    cohorts: list[_Cohort] = []
    device = next(iter(model.parameters())).device
    while waiting or cohorts:
        free = limit - sum(cohort.rows for cohort in cohorts)
        if not cohorts or (free * SHARE >= limit and device.type not in STATIC):
            coming: list[int] = []
            while waiting:
                count = sum(len(rows[i]) for i in waiting[0])
                if count > free and (cohorts or coming):
                    break
                coming += waiting.popleft()
                free -= count
            if coming:
                cohorts.append(_cohort(model, coming, rows, how, kept, device))
        _advance(model, cohorts, how)
        cohorts = [cohort for cohort in cohorts if cohort.lanes]


def _cohort(
    model: Any,
    coming: Sequence[int],
    rows: Sequence[Sequence[Live]],
    how: How,
    kept: Kept,
    device: torch.device,
) -> _Cohort:
    requests = [how.requests[i] for i in coming]
    trunks, places = prefill(model, requests, kept)
    first: dict[tuple[int, int], _Lane] = {}
    for request, i, at in zip(requests, coming, places, strict=True):
        for row, place in zip(rows[i], at, strict=True):
            position = row.row.position
            if place not in first:
                first[place] = _Lane([], request.path[position - 1], position - 1, place)
            first[place].rows.append(row)
    lanes = list(first.values())
    return _Cohort(lanes, _batch(trunks, lanes, device))


def _batch(trunks: list[Trunk], lanes: list[_Lane], device: torch.device) -> Lanes | StaticLanes:
    starts = [lane.place for lane in lanes]
    if device.type not in STATIC:
        return Lanes(trunks, starts)
    rows = [0] * len(trunks)
    for lane in lanes:
        rows[lane.place[0]] += len(lane.rows)
    most = max(row.most for lane in lanes for row in lane.rows)
    return StaticLanes(trunks, starts, rows, most, device)


def _advance(model: Any, cohorts: Sequence[_Cohort], how: How) -> None:
    """A token more for every row."""
    lanes = [lane for cohort in cohorts for lane in cohort.lanes]
    logits_LV = _step(
        model,
        [cohort.batch for cohort in cohorts],
        [lane.token for lane in lanes],
        [lane.position for lane in lanes],
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
    how.heard([row for _, row in drawing])
    for cohort in cohorts:
        cohort.lanes, keep = _forked(cohort.lanes)
        cohort.batch.change(keep)


def _step(
    model: Any,
    batches: Sequence[Lanes | StaticLanes],
    ids: Sequence[int],
    positions: Sequence[int],
) -> torch.Tensor:
    if isinstance(batches[0], StaticLanes):
        return batches[0].step(model, ids, positions)
    return step(model, [b for b in batches if isinstance(b, Lanes)], ids, positions)


def _forked(lanes: list[_Lane]) -> tuple[list[_Lane], list[int]]:
    """The lanes of the next step, and which lane of this one each goes on from."""
    stay: dict[int, _Lane] = {}
    new: list[tuple[_Lane, int]] = []
    for number, lane in enumerate(lanes):
        parted: dict[int, list[Live]] = {}
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
def one_by_one(model: Any, live: Live, how: How) -> None:
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
        how.heard([live])
