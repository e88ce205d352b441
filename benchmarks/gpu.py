"""The tree benchmarks on one CUDA GPU: a step against TRL, sampling against generate, utilisation.

    python benchmarks/gpu.py [--quick] [--model NAME] [--json OUT]
        [--trl-python PATH | --trl install]

32 trees of 2,048 unique tokens (16 nodes with 4 branches of 24 tokens on a path of 512) are one
step, and are sampled together. The model is, unless --model names one, a Qwen2 of 0.5B parameters
with random weights: the times are those of the real one. Times are wall clock between
synchronisations, memory is what PyTorch's allocator had at its peak over the loaded model.

Model FLOPs utilisation: the FLOPs that the unique tokens need (benchmarks/floors.py) over time and
the GPU's dense bfloat16 peak, from --peak-tflops or a short list of names.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import train_step
import tree_sampling
from common import (
    WORK,
    Shape,
    arguments,
    goal,
    goals_table,
    load_text,
    machine,
    middle,
    model_folder,
    ok,
    shape_arguments,
    shape_of,
    told,
    write,
)
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

QWEN = "qwen2-0.5b-shape"
DTYPE = "bfloat16"
# Dense bfloat16 TFLOP/s, from the makers' data sheets.
PEAK = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
}


def main() -> None:
    parser = arguments(__doc__ or "")
    shape_arguments(parser)
    parser.set_defaults(model=QWEN)
    parser.add_argument("--trees", type=int, default=None, help="trees of one step: 32")
    parser.add_argument("--budget", type=int, default=16384, help="unique tokens of one pass")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the GPU")
    parser.add_argument("--trl", choices=("install", "no"), default="no")
    parser.add_argument("--trl-python", type=Path, help="a Python that has TRL")
    parser.add_argument("--trl-batch", type=int, default=8, help="contrasts in a micro batch")
    parser.add_argument("--trl-checkpointing", action="store_true")
    parser.add_argument("--lora-r", type=int, default=16)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "error: this benchmark needs a CUDA GPU, and PyTorch sees none; nothing was measured"
        )
    given.ways = ["packed", "packed+ref", "trl", "trl-given"]
    given.slow_repeats, given.no_llama, given.vllm = 1, True, None
    shape = shape_of(given, Shape(nodes=16, path=512))
    trees = given.trees or (4 if given.quick else 32)
    about = machine() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    print(told(about))
    folder = qwen_folder() if given.model == QWEN else model_folder(given.model, DTYPE)
    trl_python = train_step.find_trl(given)
    step = train_step.run(
        given, shape, DTYPE, trl_python, "cuda", folder, trees=trees, budget=given.budget
    )
    step["goals"] = []  # those are the CPU's
    train_step.tell(step, DTYPE)
    sampled = tree_sampling.run(
        given, shape, DTYPE, "cuda", folder, trees=trees, names=("treeplay", "per-node")
    )
    sampled["goals"] = []
    tree_sampling.tell(sampled, DTYPE)
    rows = step["rows"]
    against = train_step.ratio(rows, "trl", "packed")
    speed = sampled["tokens_per_s"]
    per_node = speed.get("treeplay", float("nan")) / speed.get("per-node", float("nan"))
    peak = given.peak_tflops or next(
        (float(value) for name, value in PEAK.items() if name in about["gpu"]), float("nan")
    )
    used = float("nan")
    if ok(rows.get("packed", [])):
        used = 100 * rows["packed"][0]["flops"] / middle(rows["packed"]) / (peak * 1e12)
    goals = [
        goal("TRL's step / packed: at least 9", against, against >= 9),
        goal("sampling / generate per node: at least 6", per_node, per_node >= 6),
        goal("model FLOPs utilisation, %: at least 35", used, used >= 35),
    ]
    print("\nOn this GPU\n\n" + goals_table(goals))
    write(
        given.json,
        {
            "machine": about,
            "command": sys.argv[1:],
            "seed": given.seed,
            "shape": asdict(shape),
            "trees": trees,
            "step": step,
            "sampling": sampled,
            "goals": goals,
        },
    )


def qwen_folder() -> Path:
    """A folder with a Qwen2 of 0.5B parameters and random weights, and the embedded model's
    tokenizer, whose ids all lie within the vocabulary."""
    folder = WORK / "models" / f"{QWEN}-{DTYPE}"
    if not (folder / "text.json").is_file():
        small = model_folder("smollm2", DTYPE)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            use_sliding_window=False,
        )
        folder.mkdir(parents=True, exist_ok=True)
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(str(folder))
        AutoTokenizer.from_pretrained(str(small)).save_pretrained(str(folder))
        (folder / "text.json").write_text(json.dumps(load_text(small)))
    return folder


if __name__ == "__main__":
    main()
