"""One training step on a tree: packed, plain, and TRL's DPOTrainer on the same contrasts.

    python benchmarks/train_step.py [--quick] [--dtype bfloat16 float32] [--json OUT]
        [--trl-python PATH | --trl install | --trl no]

A step is forward, backward, clipping and AdamW over all contrasts of one tree, with LoRA (r=16) on
every linear layer of the model. The ways:

packed       treeplay: one packed pass; the opponent's log-probs are those that sampling left
packed+ref   the same, and the opponent's log-probs computed by a packed pass without gradient
plain        treeplay with packed=false: every sequence for itself, opponent's log-probs as given
sft          treeplay: the likelihood of the golden path behind its prompt, nothing else
sft-hf       the same with the model's own loss (input_ids, labels)
trl          TRL's DPOTrainer as it is: padded micro batches, its reference pass in the step
trl-given    the same with the reference's log-probs given, so no reference pass

TRL is given token ids as columns of its data set; the step that would join texts, add an end mark
and tokenise again is overridden to do nothing. It runs in a Python of its own: --trl-python names
one that has it, --trl install makes one in build/benchmarks/trl. Its gradient checkpointing is off
(slower with it; --trl-checkpointing turns it on), its micro batch 4 contrasts: at its default of 8
it needs twice the memory. The first step's gradient norm is printed for each way: packed and
trl-given are the same gradient, packed+ref and trl too.

Every way runs in new processes, in turns; time is processor time of one thread. Memory is the peak
of the resident set over what was resident when the model had been loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    SMALL,
    WORK,
    BenchTree,
    Shape,
    arguments,
    flat_tokens,
    fresh,
    goal,
    goals_table,
    load,
    load_text,
    machine,
    make_contrasts,
    make_tree,
    middle,
    model_folder,
    ok,
    shape_arguments,
    shape_of,
    table,
    take_turns,
    told,
    unique_tokens,
    write,
)
from floors import rates, step_floor
from probe import Probe

from treeplay.contrast import Contrast, contrast_from_json

SLOW = ("plain", "trl", "trl-given")
WAYS = ("packed", "packed+ref", "sft", "sft-hf", "plain", "trl", "trl-given")
BETA = 0.1


def main() -> None:
    parser = arguments(__doc__ or "")
    shape_arguments(parser)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="float32, bfloat16")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--slow-repeats", type=int, default=1, help="rounds of plain and TRL")
    parser.add_argument("--trl", choices=("install", "no"), default="no")
    parser.add_argument("--trl-python", type=Path, help="a Python that has TRL")
    parser.add_argument("--trl-batch", type=int, default=4, help="contrasts in a micro batch")
    parser.add_argument("--trl-checkpointing", action="store_true")
    parser.add_argument("--lora-r", type=int, default=16)
    given = parser.parse_args()
    shape = shape_of(given, Shape(nodes=4, branches=3) if given.quick else Shape())
    trl_python = find_trl(given)
    data: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "seed": given.seed}
    print(told(data["machine"]))
    for dtype in given.dtype:
        data[dtype] = run(given, shape, dtype, trl_python)
        tell(data[dtype], dtype)
    write(given.json, data)


def find_trl(given: argparse.Namespace) -> Path | None:
    """A Python that has TRL, made if that was asked for; None leaves TRL out."""
    if given.trl_python:
        return Path(given.trl_python)
    home = WORK / "trl"
    python = home / "bin" / "python"
    if given.trl == "no":
        return None
    if not python.is_file():
        import torch

        print("installing TRL in", home, file=sys.stderr)
        version = torch.__version__.split("+")[0]
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"torch=={version}"], check=True)
        subprocess.run([*pip, "trl==1.16.*", "peft"], check=True)
    return python


def run(
    given: argparse.Namespace,
    shape: Shape,
    dtype: str,
    trl_python: Path | None,
    device: str = "cpu",
    folder: Path | None = None,
    trees: int = 1,
    budget: int = 0,
) -> dict[str, Any]:
    """Measure all ways for one dtype. ``trees`` such trees are one step; ``budget``: unique tokens
    of one packed pass (0: a whole tree)."""
    folder = folder or model_folder(given.model, dtype)
    made = [make_tree(load_text(folder), shape, given.seed + i) for i in range(trees)]
    contrasts = [make_contrasts(tree, f"tree {i}") for i, tree in enumerate(made)]
    flat = [c for some in contrasts for c in some]
    steps = 2 if given.quick else 3
    spec = step_spec(folder, dtype, device, made, budget or shape.unique, given.seed, given.lora_r)
    ways: dict[str, Callable[[], dict[str, Any]]] = {"rate": partial(rates, device)}
    for name in given.ways:
        if not name.startswith("trl"):
            count = 1 if name in SLOW else steps
            ways[name] = partial(fresh, "train_step.py", spec | {"way": name, "steps": count})
        elif trl_python is not None:
            more = {
                "batch": given.trl_batch,
                "steps": 1,
                "precomputed": name == "trl-given",
                "checkpointing": given.trl_checkpointing,  # TRL's, not ours
            }
            ways[name] = partial(fresh, "trl_worker.py", spec | more, str(trl_python))
    repeats = given.repeats or (2 if given.quick else 3)
    rows = take_turns(ways, repeats, {name: given.slow_repeats for name in ways if name in SLOW})
    unique = sum(unique_tokens(some) for some in contrasts)
    return {
        "shape": asdict(shape) | {"trees": trees, "unique": unique, "flat": flat_tokens(flat)},
        "rows": rows,
        "rate": {
            key: middle(rows["rate"], key) for key in rows["rate"][0] if not key.endswith("each")
        },
        "goals": goals(rows, dtype),
    }


def step_spec(
    folder: Path,
    dtype: str,
    device: str,
    trees: Sequence[BenchTree],
    budget: int,
    seed: int,
    lora_r: int = 16,
    checkpointing: bool = False,
) -> dict[str, Any]:
    """What :func:`work` needs, less ``way`` and ``steps``."""
    contrasts = [c for i, tree in enumerate(trees) for c in make_contrasts(tree, f"tree {i}")]
    return {
        "folder": str(folder),
        "dtype": dtype,
        "device": device,
        "seed": seed,
        "lora_r": lora_r,
        "layers": 0,
        "checkpointing": checkpointing,
        "beta": BETA,
        "budget": budget,
        "contrasts": [asdict(c) for c in contrasts],
        "golden": [{"prompt": tree.prompt, "path": tree.path} for tree in trees],
    }


def share(rows: dict[str, list[dict[str, Any]]], way: str, dtype: str) -> float:
    """Useful FLOP/s of ``way`` over the rate of matrix products measured in the same rounds."""
    if way not in rows or not ok(rows[way]) or "flops" not in rows[way][0]:
        return float("nan")
    rate = middle(rows["rate"], f"{dtype}_gflops") * 1e9
    return float(rows[way][0]["flops"]) / middle(rows[way]) / rate


def ratio(rows: dict[str, list[dict[str, Any]]], a: str, b: str, key: str = "seconds") -> float:
    if a not in rows or b not in rows or not ok(rows[a]) or not ok(rows[b]):
        return float("nan")
    return middle(rows[a], key) / middle(rows[b], key)


def goals(rows: dict[str, list[dict[str, Any]]], dtype: str) -> list[dict[str, Any]]:
    """Each goal beside what this run gave. The faster way of SFT counts."""
    without, with_ref = ratio(rows, "trl", "packed"), ratio(rows, "trl", "packed+ref")
    memory = 100 * ratio(rows, "packed", "trl", "extra_mb")
    golden = [ratio(rows, "packed", name) for name in ("sft", "sft-hf")]
    against = max((g for g in golden if g == g), default=float("nan"))
    used, wanted = 100 * share(rows, "packed", dtype), 70 if dtype == "float32" else 55
    return [
        goal("TRL's step / packed, no reference pass: at least 30", without, without >= 30),
        goal("TRL's step / packed with reference pass: at least 22", with_ref, with_ref >= 22),
        goal("peak extra memory, % of TRL's: at most 40", memory, memory <= 40),
        goal("packed / SFT on the golden path: at most 4.0", against, against <= 4.0),
        goal(f"% of the rate of matrix products: at least {wanted}", used, used >= wanted),
    ]


def tell(data: dict[str, Any], dtype: str) -> None:
    shape, rows = data["shape"], data["rows"]
    print(
        f"\n{dtype}: {shape['trees']} tree(s), {shape['unique']:,} unique tokens, "
        f"{shape['flat']:,} flat; matrix products {data['rate'][f'{dtype}_gflops']:.0f} GFLOP/s, "
        f"reading {data['rate']['read_gb_s']:.1f} GB/s\n"
    )
    lines: list[tuple[Any, ...]] = []
    for name, each in rows.items():
        if name == "rate":
            continue
        if not ok(each):
            lines.append((name, each[0].get("error", "")[:60], None, None, None, None, None))
            continue
        lines.append(
            (
                name,
                middle(each),
                ratio(rows, name, "packed"),
                middle(each, "extra_mb"),
                100 * share(rows, name, dtype),
                float(each[0]["grad_norm"]),
                len(each),
            )
        )
    head = ("way", "s", "times packed", "extra MB", "% of rate", "gradient norm", "rounds")
    print(table(head, lines) + "\n")
    if data["goals"]:
        print(goals_table(data["goals"]))


# In the new process ---------------------------------------------------------------------------


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure one way of treeplay's; ``spec`` is what :func:`run` wrote."""
    import torch
    from accelerate import Accelerator

    from treeplay.groups import Budget, arrange, make_groups
    from treeplay.lora import LoraSettings, Weights, checkpointing, with_adapter
    from treeplay.opponent import score_opponent
    from treeplay.train import TrainConfig, step_gradient

    way, device = spec["way"], spec["device"]
    policy = load(spec["folder"], spec["dtype"], device)
    probe = Probe(device)
    torch.manual_seed(spec["seed"])
    r = spec["lora_r"]
    lora = LoraSettings(r=r, alpha=2 * r, dtype="model", layers=spec["layers"])
    config = TrainConfig(
        beta=BETA,
        alpha=0.0,
        max_tokens=spec["budget"],
        packed=way != "plain",
        checkpointing=spec["checkpointing"],
        lora=lora,
    )
    model = with_adapter(policy.model, lora, None)
    model.train()
    weights = Weights(model, lora)
    optimizer = torch.optim.AdamW(weights.masters.values(), lr=1e-4, weight_decay=0.0)
    accelerator = Accelerator(cpu=device == "cpu")
    norms: list[float] = []

    def golden_only(golden: list[dict[str, Any]]) -> list[Contrast]:
        halves = [
            (tuple(g["path"][: g["prompt"]]), tuple(g["path"][g["prompt"] :])) for g in golden
        ]
        return [Contrast(str(i), -1, *both, (), 1.0) for i, both in enumerate(halves)]

    def add_gradients(contrasts: Sequence[Contrast]) -> None:
        if way == "packed+ref":
            with model.disable_adapter():
                contrasts = score_opponent(policy, contrasts, config)
        groups = make_groups(contrasts, config.packed)
        step_gradient(model, weights, groups, config, Budget(config.max_tokens), accelerator)

    def add_gradients_hf(golden: list[dict[str, Any]]) -> None:
        for g in golden:
            ids = torch.tensor(g["path"], device=device)[None]
            labels = ids.clone()
            labels[:, : g["prompt"]] = -100
            (model(input_ids=ids, labels=labels, use_cache=False).loss / len(golden)).backward()
        weights.keep()
        weights.ready()

    # What is made at first use is not a step's cost: a small tree first, without an update.
    small = make_tree(load_text(Path(spec["folder"])), SMALL, 1)
    contrasts, few = [contrast_from_json(c) for c in spec["contrasts"]], make_contrasts(small)
    few_golden = [{"prompt": small.prompt, "path": small.path}]
    if way == "sft":
        contrasts, few = golden_only(spec["golden"]), golden_only(few_golden)

    def step() -> None:
        if way == "sft-hf":
            add_gradients_hf(spec["golden"])
        else:
            add_gradients(contrasts)
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.masters.values(), 1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.spread()

    with checkpointing(policy.model, config.checkpointing):
        if way == "sft-hf":
            add_gradients_hf(few_golden)
        else:
            add_gradients(few)
        optimizer.zero_grad(set_to_none=True)
        for _ in range(spec.get("before", 0)):
            step()
        probe.timed(step, spec["steps"])
    row = probe.row() | {"grad_norm": norms[0]}
    if way in ("packed", "sft"):
        bins = arrange(make_groups(contrasts), config.max_tokens)
        floors = [step_floor(model, one.contrasts) for one in bins]
        row |= {"flops": sum(f.flops for f in floors), "bytes": sum(f.bytes for f in floors)}
    return row


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(work(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()
