"""What the tree benchmarks share: the tree, the model, fresh processes, tables.

The tree is token ids: a golden path and branches that leave it at nodes, cut from real code (the
starter pack's golden answers) with a fixed seed. By default it is 8 nodes with 4 branches of 24
tokens on a path of 256: 1,024 unique tokens. Each branch is contrasted with the golden tokens at
its node; written out flat those 32 contrasts are 13,280 tokens.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from treeplay.contrast import Contrast
from treeplay.packing import pack
from treeplay.policy.model import ModelConfig, Policy, load_policy
from treeplay.tasks.pack import load_pack

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "benchmarks"
# One thread: on a busy machine two can be ten times slower than one.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Shape:
    """A tree's size in tokens. ``depth``: 1 puts every node on the golden path; ``d`` puts the
    nodes of each level at the end of a first branch of the level above."""

    nodes: int = 8
    branches: int = 4
    branch: int = 24
    path: int = 256
    depth: int = 1

    @property
    def unique(self) -> int:
        return self.path + self.nodes * self.branches * self.branch


SMALL = Shape(nodes=3, branches=3, branch=16, path=96)


@dataclass(frozen=True)
class Node:
    """``prefix``: all tokens before the node; ``golden``: the preferred tokens behind it (none for
    a node on a branch); ``branches``: what was sampled there."""

    prefix: tuple[int, ...]
    golden: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class BenchTree:
    """``prompt``: how many of ``path``'s tokens stand before the first node."""

    path: tuple[int, ...]
    prompt: int
    nodes: tuple[Node, ...]


def make_tree(text_ids: Sequence[int], shape: Shape, seed: int) -> BenchTree:
    """A tree of exactly ``shape.unique`` distinct tokens, cut from ``text_ids`` by ``seed``.

    Nodes are spread evenly from just behind the middle of the path to one short branch's length
    before its end. Raises ``ValueError`` where so many nodes do not fit.
    """
    draw = random.Random(f"{seed}/{shape}")
    start = draw.randrange(len(text_ids) - shape.path)
    path = tuple(text_ids[start : start + shape.path])
    first_level = -(-shape.nodes // shape.depth)
    last = shape.path - min(shape.branch, 24)
    first = min(shape.path // 2 + 7, last)
    step = (last - first) / max(1, first_level - 1)
    places = [round(first + step * i) for i in range(first_level)]
    if len(set(places)) < first_level:
        raise ValueError(f"{first_level} nodes do not fit on a path of {shape.path} tokens")
    nodes: list[Node] = []
    for number in range(shape.nodes):
        if number < first_level:
            at = places[number]
            prefix, golden = path[:at], path[at : at + shape.branch]
        else:
            above = nodes[number - first_level]
            prefix, golden = above.prefix + above.branches[0], ()
        branches: list[tuple[int, ...]] = []
        taken = {golden[0]} if golden else set()
        while len(branches) < shape.branches:
            cut = draw.randrange(len(text_ids) - shape.branch)
            branch = tuple(text_ids[cut : cut + shape.branch])
            if branch[0] not in taken:  # else it would share a token with a sibling
                taken.add(branch[0])
                branches.append(branch)
        nodes.append(Node(prefix, golden, tuple(branches)))
    tree = BenchTree(path, places[0], tuple(nodes))
    unique = unique_tokens(make_contrasts(tree))
    if unique != shape.unique:
        raise ValueError(f"the tree has {unique} unique tokens, not {shape.unique}")
    return tree


def make_contrasts(tree: BenchTree, name: str = "tree", logp: float = -2.0) -> list[Contrast]:
    """Every branch against the golden tokens of its node, or else against the first branch.

    ``logp`` stands for the opponent's log-prob of each token, as sampling left it.
    """
    out = []
    for number, node in enumerate(tree.nodes):
        chosen = node.golden or node.branches[0]
        for branch in node.branches if node.golden else node.branches[1:]:
            opponent = ((logp,) * len(chosen), (logp,) * len(branch))
            out.append(Contrast(name, number, node.prefix, chosen, branch, 1.0, *opponent))
    return out


def sequences(contrasts: Sequence[Contrast]) -> list[tuple[int, ...]]:
    return [c.prefix + tail for c in contrasts for tail in (c.chosen, c.rejected) if tail]


def unique_tokens(contrasts: Sequence[Contrast]) -> int:
    return len(pack(sequences(contrasts)).ids)


def flat_tokens(contrasts: Sequence[Contrast]) -> int:
    return sum(len(sequence) for sequence in sequences(contrasts))


def text_ids(policy: Policy) -> list[int]:
    """Token ids of the starter pack's programs, one behind another."""
    text = "\n\n".join(task.prompt + (task.golden or "") for task in load_pack())
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# Models ---------------------------------------------------------------------------------------


def model_folder(name: str, dtype: str, work: Path = WORK) -> Path:
    """``name`` as a plain safetensors folder in ``dtype``, so that every way loads the same bytes.

    Also has ``text.json``, the token ids that trees are cut from.
    """
    label = name if name.isidentifier() else f"{Path(name).name}-{zlib.crc32(name.encode()):x}"
    folder = work / "models" / f"{label}-{dtype}"
    if not (folder / "text.json").is_file():
        policy = load_policy(ModelConfig(name=name, dtype=_dtype(dtype), device="cpu"))
        folder.mkdir(parents=True, exist_ok=True)
        policy.model.save_pretrained(str(folder), safe_serialization=True)
        policy.tokenizer.save_pretrained(str(folder))
        (folder / "text.json").write_text(json.dumps(text_ids(policy)))
    return folder


def load_text(folder: Path) -> list[int]:
    ids: list[int] = json.loads((folder / "text.json").read_text())
    return ids


def load(folder: str, dtype: str, device: str = "cpu") -> Policy:
    return load_policy(
        ModelConfig(
            name=folder, dtype=_dtype(dtype), device=device, threads=1 if device == "cpu" else 0
        )
    )


def _dtype(name: str) -> Any:
    return {"fp32": "float32", "bf16": "bfloat16"}.get(name, name)


# Running --------------------------------------------------------------------------------------


def fresh(
    script: str, spec: dict[str, Any], python: str = sys.executable, limit_s: float = 7200
) -> dict[str, Any]:
    """What ``script --worker SPEC`` prints last, as JSON, from a new process; ``{"error": ...}``
    where it fails. A new process has no memory of what ran before it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(spec, file)
        file.flush()
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if spec.get("device", "cpu") == "cpu":
            env |= ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                [python, str(HERE / script), "--worker", file.name],
                capture_output=True,
                text=True,
                env=env,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {limit_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        told = done.stderr.strip().splitlines()
        return {"error": told[-1] if told else f"ended with status {done.returncode}"}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


Way = Callable[[], dict[str, Any]]


def take_turns(
    ways: dict[str, Way], repeats: int, fewer: Mapping[str, int] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """``repeats`` rounds in which every way has its turn, so that other load on the machine meets
    all of them. ``fewer``: ways (minutes each) that take part in so many rounds only.
    Interrupted, it returns what there is."""
    rows: dict[str, list[dict[str, Any]]] = {}
    try:
        for turn in range(repeats):
            for name, way in ways.items():
                so_far = rows.get(name, [])
                if turn >= (fewer or {}).get(name, repeats) or (so_far and "error" in so_far[0]):
                    continue
                began = time.perf_counter()
                row = way()
                rows.setdefault(name, []).append(row)
                said = row.get("error") or f"{statistics.median(row['seconds']):.3f} s"
                took = time.perf_counter() - began
                print(
                    f"  round {turn + 1}, {name}: {said} ({took:.0f} s with loading)",
                    file=sys.stderr,
                    flush=True,
                )
    except KeyboardInterrupt:
        if "rate" not in rows:
            raise
        print("  interrupted: the tables have what was measured so far", file=sys.stderr)
    return rows


def middle(rows: Sequence[dict[str, Any]], key: str = "seconds") -> float:
    """The median over repeats of each repeat's own median (or single figure)."""
    each = [
        statistics.median(row[key]) if isinstance(row[key], list) else float(row[key])
        for row in rows
        if "error" not in row
    ]
    return statistics.median(each) if each else float("nan")


def ok(rows: Sequence[dict[str, Any]]) -> bool:
    return bool(rows) and "error" not in rows[0]


# Telling --------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Kind of machine and versions: what a figure must stand beside."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            elif line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    fast = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{model}, {os.cpu_count()} cores" + (f" ({', '.join(fast)})" if fast else ""),
        "memory_gb": round(memory),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "treeplay")
        },
    }


def told(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats get three significant digits, None a dash."""
    lines = [list(head), ["---"] * len(head), *[[cell(c) for c in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def goal(text: str, value: float, reached: bool) -> dict[str, Any]:
    """A goal, the figure that this run gave, and whether it was reached."""
    return {"goal": text, "value": value, "reached": reached if value == value else None}


def goals_table(goals: Sequence[dict[str, Any]]) -> str:
    words = {True: "reached", False: "missed", None: "not measured"}
    return table(
        ("goal", "measured", ""),
        [(g["goal"], float(g["value"]), words[g["reached"]]) for g in goals],
    )


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="hub id, folder, .gguf or smollm2")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--quick", action="store_true", help="smaller: under ten minutes")
    parser.add_argument("--repeats", type=int, help="rounds in which every way has its turn")
    parser.add_argument("--seed", type=int, default=0, help="of the tree's tokens")
    return parser


def shape_arguments(parser: argparse.ArgumentParser) -> None:
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=None, help=f"of the tree: {value}")


def shape_of(given: argparse.Namespace, default: Shape) -> Shape:
    asked = {name: getattr(given, name) for name in asdict(default)}
    return Shape(**asdict(default) | {k: v for k, v in asked.items() if v is not None})


def write(path: Path | None, data: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
