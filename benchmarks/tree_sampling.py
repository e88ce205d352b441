"""Sampling all branches of a tree: treeplay, transformers' generate three ways, servers.

    python benchmarks/tree_sampling.py [--quick] [--dtype bfloat16 float32] [--json OUT]
        [--vllm URL] [--no-llama]

The task: behind each of 8 nodes on a golden path of 256 tokens, 4 continuations of exactly 24
tokens (no end mark stops them), at temperature 1 and top-p 0.95. The ways:

treeplay     treeplay.policy.sample.sample: one request, 32 rows; also gives raw log-probs
per-branch   generate, 32 calls of one sequence
per-node     generate, 8 calls with num_return_sequences=4
padded       generate, one batch of 32 prompts padded on the left
vllm         a vLLM server of yours at --vllm (http://host:port), token ids, one request a node with
             n=4, all at once; start it with --enable-prefix-caching and one thread
llama.cpp    a llama.cpp server from the package xllamacpp on the same GGUF file, one thread, 8
             slots; its weights stay 4-bit, so its arithmetic is not the others'

The first four run in new processes, in turns, and are timed in processor time of one thread; of
a server the processor time of its processes counts (where they can be seen, else the wall clock).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from common import (
    HERE,
    SMALL,
    BenchTree,
    Shape,
    arguments,
    fresh,
    goal,
    goals_table,
    load,
    load_text,
    machine,
    make_tree,
    middle,
    model_folder,
    ok,
    shape_arguments,
    shape_of,
    table,
    take_turns,
    told,
    write,
)
from floors import Floor, decode_floor, rates
from probe import Probe

from treeplay.policy.model import locate
from treeplay.policy.sample import Request, Row, SampleConfig, sample

LOCAL = ("treeplay", "per-branch", "per-node", "padded")
TOP_P = 0.95


def main() -> None:
    parser = arguments(__doc__ or "")
    shape_arguments(parser)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="float32, bfloat16")
    parser.add_argument("--ways", nargs="+", default=list(LOCAL), choices=LOCAL)
    parser.add_argument("--vllm", help="address of a vLLM server that has the same model")
    parser.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
    given = parser.parse_args()
    shape = shape_of(given, Shape(nodes=4) if given.quick else Shape())
    data: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "seed": given.seed}
    print(told(data["machine"]))
    for dtype in given.dtype:
        data[dtype] = run(given, shape, dtype, names=given.ways)
        tell(data[dtype], dtype)
    write(given.json, data)


def run(
    given: argparse.Namespace,
    shape: Shape,
    dtype: str,
    device: str = "cpu",
    folder: Path | None = None,
    trees: int = 1,
    names: Sequence[str] = LOCAL,
) -> dict[str, Any]:
    """Measure ways for one dtype; ``trees`` such trees are sampled, treeplay's together."""
    folder = folder or model_folder(given.model, dtype)
    made = [make_tree(load_text(folder), shape, given.seed + i) for i in range(trees)]
    tokens = trees * shape.nodes * shape.branches * shape.branch
    spec = {
        "folder": str(folder),
        "dtype": dtype,
        "device": device,
        "seed": given.seed,
        "shape": asdict(shape),
        "trees": trees,
        "steps": 1 if given.quick else 2,
    }
    ways: dict[str, Callable[[], dict[str, Any]]] = {"rate": partial(rates, device)}
    for name in names:
        ways[name] = partial(fresh, "tree_sampling.py", spec | {"way": name})
    repeats = given.repeats or (2 if given.quick else 3)
    with contextlib.ExitStack() as stack:
        if getattr(given, "vllm", None):
            ways["vllm"] = partial(time_vllm, given.vllm, made, shape)
        if device == "cpu" and not given.no_llama:
            server = stack.enter_context(llama_server(given.model, shape))
            if server:
                ways["llama.cpp"] = partial(time_llama, *server, made, shape)
        rows = take_turns(ways, repeats)
    each = {
        name: tokens / middle(some) for name, some in rows.items() if name != "rate" and ok(some)
    }
    per_node = each.get("treeplay", float("nan")) / each.get("per-node", float("nan"))
    per_branch = each.get("treeplay", float("nan")) / each.get("per-branch", float("nan"))
    return {
        "shape": asdict(shape) | {"trees": trees, "sampled": tokens},
        "rows": rows,
        "rate": {
            key: middle(rows["rate"], key) for key in rows["rate"][0] if not key.endswith("each")
        },
        "tokens_per_s": each,
        "goals": [
            goal("treeplay / generate per node: at least 8", per_node, per_node >= 8),
            goal("treeplay / generate per branch: at least 12", per_branch, per_branch >= 12),
        ],
    }


def tell(data: dict[str, Any], dtype: str) -> None:
    rows, speed = data["rows"], data["tokens_per_s"]
    shape = data["shape"]
    print(f"\n{dtype}: {shape['sampled']:,} tokens sampled in {shape['trees']} tree(s)\n")
    lines: list[tuple[Any, ...]] = []
    for name, some in rows.items():
        if name == "rate":
            continue
        if name not in speed:
            lines.append((name, some[0]["error"][:60], None, None, None, None))
            continue
        times = speed["treeplay"] / speed[name] if "treeplay" in speed else None
        extra = middle(some, "extra_mb") if "extra_mb" in some[0] else None
        clock = some[0].get("clock", "processor")
        lines.append((name, speed[name], times, extra, clock, len(some)))
    head = ("way", "tokens/s", "treeplay is times as fast", "extra MB", "clock", "rounds")
    print(table(head, lines) + "\n")
    row = rows["treeplay"][0] if "treeplay" in rows else {}
    if "flops" in row:
        least = Floor(row["flops"], row["bytes"]).seconds(data["rate"], dtype)
        print(
            f"The least that this machine needs for it (matrix products, and reading all weights "
            f"at every step): {least:.2f} s; treeplay took {middle(rows['treeplay']):.2f} s.\n"
        )
    if data["goals"]:
        print(goals_table(data["goals"]))


# Servers --------------------------------------------------------------------------------------


def post(url: str, body: dict[str, Any], limit_s: float = 600) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=limit_s) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    return answer


def cpu_of(process: psutil.Process | None) -> float | None:
    """Processor seconds of a process and those below it; None where they cannot be seen."""
    if process is None:
        return None
    try:
        family = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)
    except psutil.Error:
        return None


def listener(port: int) -> psutil.Process | None:
    """The process that listens on ``port`` of this machine."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == "LISTEN" and one.laddr[1:2] == (port,) and one.pid:
                return psutil.Process(one.pid)
    except psutil.Error:
        pass
    return None


def timed(process: psutil.Process | None, work: Callable[[], Any]) -> dict[str, Any]:
    before, start = cpu_of(process), time.perf_counter()
    try:
        work()
    except (OSError, KeyError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    wall, after = time.perf_counter() - start, cpu_of(process)
    seen = before is not None and after is not None
    used = after - before if before is not None and after is not None else wall
    return {"seconds": [used], "wall": [wall], "clock": "processor" if seen else "wall"}


def time_vllm(url: str, trees: list[BenchTree], shape: Shape) -> dict[str, Any]:
    """All nodes asked at the same time; the server shares their prefixes."""
    root = url.rstrip("/").removesuffix("/v1")
    process = listener(urlsplit(root).port or 80)
    try:
        with urllib.request.urlopen(f"{root}/v1/models", timeout=30) as reply:
            name = json.loads(reply.read())["data"][0]["id"]
    except (OSError, KeyError, ValueError) as error:
        return {"error": f"no vLLM server at {root}: {error}"}

    def ask(prefix: tuple[int, ...]) -> None:
        body = {
            "model": name,
            "prompt": list(prefix),
            "n": shape.branches,
            "max_tokens": shape.branch,
            "min_tokens": shape.branch,
            "temperature": 1.0,
            "top_p": TOP_P,
            "top_k": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        choices = post(f"{root}/v1/completions", body)["choices"]
        counts = [len(choice["token_ids"]) for choice in choices]
        if counts != [shape.branch] * shape.branches:
            raise ValueError(f"the server sampled {counts} tokens")

    def work() -> None:
        prefixes = [node.prefix for tree in trees for node in tree.nodes]
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, prefixes))

    return timed(process, work)


@contextlib.contextmanager
def llama_server(model: str, shape: Shape) -> Iterator[tuple[str, psutil.Process] | None]:
    """(address, process) of a llama.cpp server; None where it or a GGUF file is missing."""
    try:
        folder, gguf, _ = locate(model)
        importlib.import_module("xllamacpp")
    except Exception as error:
        print(f"  llama.cpp left out: {error}", file=sys.stderr)
        yield None
        return
    if not gguf:
        print("  llama.cpp left out: the model is no GGUF file", file=sys.stderr)
        yield None
        return
    slots = 8
    context = slots * (shape.path + shape.branch + 64)
    command = [sys.executable, str(HERE / "llama_server.py"), str(Path(folder) / gguf)]
    command += ["--slots", str(slots), "--context", str(context), "--threads", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip().removesuffix("/v1")
        try:
            yield (address, psutil.Process(server.pid)) if address else None
        finally:
            server.terminate()


def time_llama(
    root: str, process: psutil.Process, trees: list[BenchTree], shape: Shape
) -> dict[str, Any]:
    def ask(prefix: tuple[int, ...]) -> None:
        body = {
            "prompt": list(prefix),
            "n_predict": shape.branch,
            "temperature": 1.0,
            "top_p": TOP_P,
            "top_k": 0,
            "min_p": 0.0,
            "ignore_eos": True,
            "cache_prompt": True,
        }
        count = post(f"{root}/completion", body)["tokens_predicted"]
        if count != shape.branch:
            raise ValueError(f"the server sampled {count} tokens")

    def work() -> None:
        prefixes = [n.prefix for tree in trees for n in tree.nodes for _ in range(shape.branches)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, prefixes))

    return timed(process, work)


# In the new process ---------------------------------------------------------------------------


def requests_of(trees: list[BenchTree], shape: Shape, seed: int) -> list[Request]:
    """One request a tree for the nodes on its golden path, one for every node elsewhere."""
    out = []
    for number, tree in enumerate(trees):
        rows = []
        for at, node in enumerate(tree.nodes):
            here = [
                Row(len(node.prefix), seed + 7919 * number + 97 * at + branch)
                for branch in range(shape.branches)
            ]
            if node.golden:
                rows += here
            else:
                out.append(Request(node.prefix, tuple(here)))
        out.append(Request(tree.path, tuple(rows)))
    return out


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure one local way; ``spec`` is what :func:`run` wrote."""
    import torch

    way, device = spec["way"], spec["device"]
    policy = load(spec["folder"], spec["dtype"], device)
    model = policy.model
    probe = Probe(device)
    text = load_text(Path(spec["folder"]))
    pad = policy.tokenizer.pad_token_id or policy.tokenizer.eos_token_id or 0

    def generate(prefixes: list[tuple[int, ...]], count: int, length: int) -> None:
        """Left-padded prompts, ``count`` continuations each."""
        wide = max(map(len, prefixes))
        ids = torch.tensor([[pad] * (wide - len(p)) + list(p) for p in prefixes], device=device)
        mask = torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prefixes], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_return_sequences=count,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=True,
            temperature=1.0,
            top_p=TOP_P,
            top_k=0,
            pad_token_id=pad,
        )
        assert out.shape == (len(prefixes) * count, wide + length)

    def go(trees: list[BenchTree], shape: Shape) -> None:
        if way == "treeplay":
            config = SampleConfig(temperature=1.0, top_p=TOP_P, max_tokens=shape.branch)
            made = sample(model, requests_of(trees, shape, spec["seed"]), config, frozenset())
            assert all(len(one.ids) == shape.branch for some in made for one in some)
            return
        with torch.inference_mode():
            for tree in trees:
                prefixes = [node.prefix for node in tree.nodes]
                if way == "padded":
                    each = [p for p in prefixes for _ in range(shape.branches)]
                    generate(each, 1, shape.branch)
                    continue
                for prefix in prefixes:
                    if way == "per-node":
                        generate([prefix], shape.branches, shape.branch)
                    else:
                        for _ in range(shape.branches):
                            generate([prefix], 1, shape.branch)

    shape = Shape(**spec["shape"])
    trees = [make_tree(text, shape, spec["seed"] + i) for i in range(spec["trees"])]
    torch.manual_seed(spec["seed"])
    go([make_tree(text, SMALL, 1)], Shape(**asdict(SMALL) | {"branch": 4}))
    probe.timed(lambda: go(trees, shape), spec["steps"])
    row = probe.row()
    if way == "treeplay":
        least = decode_floor(
            model, shape.branch, len(trees) * shape.nodes * shape.branches, len(trees) * shape.path
        )
        row |= {"flops": least.flops, "bytes": least.bytes}
    return row


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(work(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()
