"""The state of the training loop on disk: the adapter's weights, AdamW's moments, the log.

Every file is replaced at once, so that a killed run finds an old one or a new one, never half.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from treeplay.policy.model import tokenizer_digest


def write_log(log: Path, lines: Sequence[str]) -> None:
    part = log.with_name(log.name + ".tmp")
    part.write_text("\n".join(lines) + "\n")
    part.replace(log)


def save_state(
    folder: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any, step: int
) -> None:
    """Write parameters and AdamW's moments; one file, replaced at once."""
    tensors = {"step": torch.tensor(step)}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors[f"p/{name}"] = parameter.detach().contiguous()
        tensors[f"m/{name}"] = state["exp_avg"].contiguous()
        tensors[f"v/{name}"] = state["exp_avg_sq"].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.safetensors.part"
    save_file(tensors, part)
    part.replace(folder / "state.safetensors")


def load_state(folder: Path, trained: dict[str, torch.nn.Parameter], optimizer: Any) -> int:
    """Restore what :func:`save_state` wrote; returns the number of steps already taken."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    tensors = load_file(path)
    step = int(tensors["step"])
    for name, parameter in trained.items():
        device = parameter.device
        parameter.data.copy_(tensors[f"p/{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"m/{name}"].to(device),
            "exp_avg_sq": tensors[f"v/{name}"].to(device),
        }
    return step


def save_adapter(model: Any, tokenizer: Any, final: Path) -> None:
    """Write the adapter as a PEFT folder, with a note of the tokenizer that it was trained with
    (see :func:`treeplay.policy.model.load_policy`)."""
    part = final.with_name("adapter.part")
    for lora in model.peft_config.values():
        # Written in one order, whatever the hash seed; a prefix has none.
        if isinstance(getattr(lora, "target_modules", None), set):
            lora.target_modules = sorted(lora.target_modules)
    # Embeddings are never trained; asking to look for them would ask the model hub.
    model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False)
    # PEFT's model card is a form nobody filled in, with the path of the base model on this machine.
    (part / "README.md").unlink(missing_ok=True)
    note = {"tokenizer": tokenizer_digest(tokenizer)}
    (part / "treeplay.json").write_text(json.dumps(note) + "\n")
    part.replace(final)
