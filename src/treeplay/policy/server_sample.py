"""Decode many continuations on a server, as :func:`treeplay.policy.sample.sample` does here.

Every row is one request with its own seed, so what it samples does not depend on its neighbours,
up to rounding on the server. Rows of one trunk are sent one behind the other, and trunks that
begin alike too: a server with a prefix cache computes what they share once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace

from treeplay.endpoint import Endpoint
from treeplay.policy.sample import Done, Request, Sample, SampleConfig, Told, most
from treeplay.policy.server_config import ServerConfig
from treeplay.policy.server_wire import FORMS, read_row


class _Cancelled(Exception):
    """Another row failed; this one is not needed any more."""


def sample_on_server(
    endpoint: Endpoint,
    server: ServerConfig,
    model: str,
    width: int,
    requests: Sequence[Request],
    config: SampleConfig,
    stop_ids: frozenset[int],
    done: Done | None = None,
    told: Told | None = None,
) -> list[list[Sample]]:
    """One list of samples a request from the served ``model``, one sample a row, in order, without
    log-probs. ``width``: how many token ids the model has.

    ``told`` hears of each finished row.
    Raises :class:`treeplay.endpoint.Refused` where a row cannot be had, and ``ValueError`` for a
    row whose position is not within 1..len(path).
    """
    for request in requests:
        if any(not 1 <= row.position <= len(request.path) for row in request.rows):
            raise ValueError("a row must leave its trunk behind at least one token")
    form = FORMS[server.api]
    lock = threading.Lock()
    found: list[dict[int, Sample]] = [{} for _ in requests]
    over = threading.Event()

    def go_on() -> None:
        if over.is_set():
            raise _Cancelled

    def one(i: int, r: int) -> None:
        row = requests[i].rows[r]
        prompt = requests[i].path[: row.position]
        how = replace(config, max_tokens=most(row, config))

        def ended(ids: Sequence[int]) -> bool:
            go_on()
            with lock:  # tokenizers and parsers are not made for several threads
                return done is not None and done(i, r, ids)

        def read(pieces: Iterator[bytes]) -> Sample:
            return read_row(pieces, form, prompt, how, stop_ids, width, ended)

        body = form.body(server, model, prompt, row, how, stop_ids)
        made = endpoint.ask(form.path, body, read, sent=go_on)
        with lock:
            found[i][r] = made
            if told:
                whole = len(found[i]) == len(requests[i].rows)
                told(len(made.ids), {i: in_order(i)} if whole else {})

    def in_order(i: int) -> list[Sample]:
        return [found[i][r] for r in range(len(requests[i].rows))]

    workers = ThreadPoolExecutor(server.concurrency, thread_name_prefix="server")
    try:
        jobs = {(i, r): workers.submit(one, i, r) for i, r in in_cache_order(requests)}
        wait(jobs.values(), return_when=FIRST_EXCEPTION)
        for job in jobs.values():
            error = job.exception() if job.done() else None
            if error is not None and not isinstance(error, _Cancelled):
                raise error
        return [in_order(i) for i in range(len(requests))]
    finally:
        over.set()
        workers.shutdown(wait=True, cancel_futures=True)


def in_cache_order(requests: Sequence[Request]) -> list[tuple[int, int]]:
    """(request, row) pairs so that rows with the longest common beginnings are neighbours."""
    pairs = [(i, r) for i, request in enumerate(requests) for r in range(len(request.rows))]

    def key(pair: tuple[int, int]) -> tuple[tuple[int, ...], int, int, int]:
        i, r = pair
        return requests[i].path, i, requests[i].rows[r].position, r

    return sorted(pairs, key=key)
