"""Sampling through a server: branches over shared prefixes against the same number without.

    python benchmarks/server_sampling.py http://127.0.0.1:8471 smollm2 [--pid PID] [--quick]

Each repeat draws the same number of tokens
twice, in turn: branches that leave one trunk, and rows whose trunks differ from their first token
on. Trunks are new in every repeat, so that nothing is left over from the repeat before. Rates are
tokens a second of wall time, or with ``--pid`` of the CPU time of the server's processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from treeplay.endpoint import Endpoint
from treeplay.policy.sample import Request, Row, SampleConfig, seed_of
from treeplay.policy.server_config import ServerConfig
from treeplay.policy.server_sample import sample_on_server

NO_STOP: frozenset[int] = frozenset()


def requests(shared: bool, repeat: int, args: argparse.Namespace) -> list[Request]:
    """``rows`` rows behind ``prefix`` tokens each, in one trunk or in one trunk a row."""
    out = []
    for number in range(1 if shared else args.rows):
        rng = random.Random(seed_of(args.seed, shared, repeat, number))
        path = tuple(rng.randrange(100, 20_000) for _ in range(args.prefix))
        count = args.rows if shared else 1
        rows = tuple(Row(len(path), seed_of(args.seed, repeat, number, k)) for k in range(count))
        out.append(Request(path, rows))
    return out


def clock(pid: int | None) -> float:
    """Seconds: of wall time, or of CPU time spent by process ``pid`` and those below it."""
    if pid is None:
        return time.perf_counter()
    server = psutil.Process(pid)
    every = [server, *server.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("name", help="what the server calls the model")
    parser.add_argument("--api", choices=("vllm", "sglang"), default="vllm")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="the server's process, if it runs here")
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two repeats")
    args = parser.parse_args()
    repeats = 2 if args.quick else args.repeats
    config = ServerConfig(args.url, args.name, args.api, "", args.rows, stream=not args.no_stream)
    how = SampleConfig(max_tokens=args.tokens)
    seen: dict[bool, list[float]] = {True: [], False: []}
    with Endpoint(config.root, "", timeout_s=600, retries=0, concurrency=args.rows) as endpoint:
        draw = partial(sample_on_server, endpoint, config, args.name, 1 << 20)
        draw(requests(True, -1, args), how, NO_STOP)  # warm
        for repeat in range(repeats):
            for shared in (True, False):
                start = clock(args.pid)
                made = draw(requests(shared, repeat, args), how, NO_STOP)
                spent = clock(args.pid) - start
                count = sum(len(one.ids) for row in made for one in row)
                seen[shared].append(count / spent)
    shared_rate, apart_rate = (statistics.median(seen[key]) for key in (True, False))
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "model": args.name,
        "seconds": "wall" if args.pid is None else "CPU",
        "stream": config.stream,
        "rows": args.rows,
        "prefix": args.prefix,
        "tokens": args.tokens,
        "repeats": repeats,
        "shared_tokens_per_s": [round(rate, 1) for rate in seen[True]],
        "apart_tokens_per_s": [round(rate, 1) for rate in seen[False]],
        "ratios": [round(a / b, 2) for a, b in zip(seen[True], seen[False], strict=True)],
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    unit = f"tokens a {result['seconds']} second"
    print(
        f"{args.rows} x {args.tokens} tokens behind {args.prefix}: one trunk {shared_rate:.0f} "
        f"{unit}, a trunk each {apart_rate:.0f} (ratio {statistics.median(result['ratios']):.1f}; "
        f"medians of {repeats})"
    )


if __name__ == "__main__":
    main()
