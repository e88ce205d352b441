"""One optimiser step of TRL's DPOTrainer over contrasts given as token ids; run by train_step.py.

    PYTHON_WITH_TRL benchmarks/trl_worker.py --worker SPEC.json

Runs where treeplay is not installed: nothing of it is imported. What differs from plain use of the
trainer is one method: the data set already has ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``,
so preparing it (which would join texts, add an end mark and tokenise again) is left out. What is
timed is TRL's own step, from ``on_step_begin`` to ``on_step_end``: all micro batches, clipping and
the optimiser.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from probe import Probe


def main() -> None:
    spec = json.loads(Path(sys.argv[2]).read_text())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    if spec["device"] == "cpu":
        torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    bf16 = spec["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(
        spec["folder"], dtype=getattr(torch, spec["dtype"]), attn_implementation="sdpa"
    ).to(spec["device"])
    tokenizer = AutoTokenizer.from_pretrained(spec["folder"])
    probe = Probe(spec["device"])

    columns = [
        {"prompt_ids": c["prefix"], "chosen_ids": c["chosen"], "rejected_ids": c["rejected"]}
        for c in spec["contrasts"]
    ]
    if spec["precomputed"]:
        for column, contrast in zip(columns, spec["contrasts"], strict=True):
            column["ref_chosen_logps"] = sum(contrast["chosen_opp"])
            column["ref_rejected_logps"] = sum(contrast["rejected_opp"])

    class Ids(trl.DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            probe.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            probe.stop()

    def warm_up(trainer: Any) -> None:
        """A small batch once through the model, so that what is made at first use is there."""
        small = [{k: v[-8:] if isinstance(v, list) else v for k, v in c.items()} for c in columns]
        batch = trainer.data_collator(small[:2])
        batch = {k: v.to(spec["device"]) for k, v in batch.items()}
        trainer.model.train()
        with trainer.accelerator.autocast():
            trainer.compute_loss(trainer.model, batch).backward()
        trainer.model.zero_grad(set_to_none=True)
        trainer._metrics["train"].clear()

    with tempfile.TemporaryDirectory() as out:
        trainer = Ids(
            model=model,
            args=trl.DPOConfig(
                output_dir=out,
                per_device_train_batch_size=spec["batch"],
                gradient_accumulation_steps=-(-len(columns) // spec["batch"]),
                max_steps=spec["steps"],
                num_train_epochs=1000,
                learning_rate=1e-4,
                lr_scheduler_type="constant",
                beta=spec["beta"],
                max_length=None,
                bf16=bf16,
                gradient_checkpointing=spec["checkpointing"],
                precompute_ref_log_probs=spec["precomputed"],
                use_cpu=spec["device"] == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=spec["seed"],
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(
                r=spec["lora_r"],
                lora_alpha=2 * spec["lora_r"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Timer()],
        )
        warm_up(trainer)
        trainer.train()
        told = [row for row in trainer.state.log_history if "loss" in row]
    row = probe.row() | {
        "loss": told[0]["loss"],
        "grad_norm": told[0]["grad_norm"],
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "peft": peft.__version__,
        },
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
