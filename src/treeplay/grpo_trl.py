"""TRL's side of :mod:`treeplay.grpo`: the only module that imports TRL.

TRL's trainer gets our answers through its ``rollout_func`` and our rewards through a reward
function; it works out advantages, loss and gradient. What else it would do is turned off: no
checkpoints of its own (they hold pickled parts), no telemetry, no logging services. The state on
disk is that of every method, adapter weights and AdamW's moments as safetensors.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from treeplay.errors import LearningError, ModelError, RunError
from treeplay.grpo import Course, Judged, Progress, finished_rows, order, reward_of, rows_at_once
from treeplay.judge.verdict import LABELS
from treeplay.lora import checkpointing, with_adapter
from treeplay.policy.model import Policy, decode, quiet
from treeplay.policy.sample import Request, Row, Sample, sample, seed_of
from treeplay.policy.score import plain_logps
from treeplay.tasks.answer import cut_answer
from treeplay.tasks.task import Task
from treeplay.train_state import load_state, save_adapter, save_state, write_log


class _Trainer(GRPOTrainer):  # type: ignore[misc]
    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""


def learn(
    policy: Policy,
    tasks: Sequence[Task],
    prompts: Sequence[tuple[int, ...]],
    course: Course,
    judged: Judged,
    seed: int,
    out: Path,
    start_from: Path | None,
    progress: Progress | None,
) -> None:
    """Train as :func:`treeplay.grpo.train_grpo` says; its arguments. Writes ``out/adapter``."""
    torch.manual_seed(seed)
    with _as_it_was(policy.model):
        model = with_adapter(policy.model, course.train.lora, start_from)
        try:
            with checkpointing(policy.model, course.train.checkpointing), _hushed():
                _learn(policy, model, tasks, prompts, course, judged, seed, out, progress)
            if "ref" in model.peft_config:  # TRL's copy of what the round began with
                model.delete_adapter("ref")
            save_adapter(model, policy.tokenizer, out / "adapter")
        except torch.OutOfMemoryError as error:
            raise RunError(
                "the device's memory is too small for GRPO; lower train.max_tokens, "
                "grpo.rows_at_once or grpo.max_tokens, or set train.checkpointing=true"
            ) from error
        except SafetensorError as error:  # its writer turns a full disk into an error of its own
            raise RunError(
                f"cannot write the adapter or its state in {out}: {error}; free some space, then "
                "resume"
            ) from error
        finally:
            policy.model.eval()
            model.unload()


def _learn(
    policy: Policy,
    model: Any,
    tasks: Sequence[Task],
    prompts: Sequence[tuple[int, ...]],
    course: Course,
    judged: Judged,
    seed: int,
    out: Path,
    progress: Progress | None,
) -> None:
    train = course.train
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=train.learning_rate, weight_decay=0.0)
    # Where a killed run died it has a log longer than its state, never a shorter one.
    done = _steps_taken(out / "state")
    course.rows[:] = finished_rows(out / "train.jsonl", done)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # see on_step_begin
    size = train.groups_per_step
    left = course.steps - done
    if left <= 0 or course.over():
        load_state(out / "state", trained, optimizer)
        return
    numbers = islice(order(len(tasks), seed), done * size, course.steps * size)
    answers = _Answers(policy, model, tasks, prompts, course, judged, seed)
    steps = _Steps(course, trained, optimizer, answers, seed, out, progress)
    with quiet():
        try:
            trainer = _Trainer(
                model=model,
                args=_arguments(policy, prompts, course, left, seed, out),
                train_dataset=Dataset.from_dict({"prompt": [str(number) for number in numbers]}),
                processing_class=_tokenizer(policy),
                reward_funcs=[answers.rewards],
                rollout_func=answers.roll_out,
                optimizers=(optimizer, schedule),
                callbacks=[steps],
            )
        except ValueError as error:
            raise ModelError(
                f"TRL cannot train this adapter: {str(error).splitlines()[0]}; change train.lora"
            ) from error
    trainer.remove_callback(PrinterCallback)
    load_state(out / "state", trained, optimizer)  # now: TRL has copied what the round began with
    try:
        trainer.train()
    finally:
        trainer.accelerator.free_memory()
    steps.write()
    _check_player(model, *answers.last)


def _check_player(model: Any, path: Sequence[int], samples: Sequence[Sample]) -> None:
    """Raises :class:`LearningError` where the player has been destroyed: where its last answers
    to a task, behind ``path``, are less likely than by guessing for the base model or, after the
    last update, for itself."""
    count = sum(len(one.ids) for one in samples)
    spans = [(len(path), len(path) + len(one.ids)) for one in samples]
    sequences = [(*path, *one.ids) for one in samples]
    worst = -math.log(model.get_input_embeddings().weight.shape[0])
    model.eval()
    with torch.no_grad():
        now = plain_logps(model, sequences, spans)
        with model.disable_adapter():
            base = plain_logps(model, sequences, spans)
    for logps, whom in ((base, "the base model"), (now, "itself, after the last update")):
        mean = math.fsum(float(one.sum()) for one in logps) / max(1, count)
        if not mean >= worst:
            raise LearningError(
                f"the training exploded: a token of the player's answers is {-mean:.0f} nats "
                f"unlikely for {whom}, which is worse than guessing; lower train.learning_rate "
                "or train.max_grad_norm, or raise grpo.beta"
            )


def _arguments(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    course: Course,
    steps: int,
    seed: int,
    out: Path,
) -> Any:
    config, train = course.config, course.train
    longest = max(len(ids) for ids in prompts) + config.max_tokens
    rows = rows_at_once(longest, course.answers, train.max_tokens)
    arguments = GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=course.answers // rows,
        num_generations=config.generations,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        beta=config.beta,
        loss_type=config.loss,
        max_grad_norm=train.max_grad_norm,
        shuffle_dataset=False,
        gradient_checkpointing=False,  # see learn()
        bf16=False,  # the model's own dtype
        use_cpu=policy.device.type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=seed % 2**32,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device, however many there are
    return arguments


class _Answers:
    """Samples the answers of a step and has them judged: what TRL calls."""

    def __init__(
        self,
        policy: Policy,
        model: Any,
        tasks: Sequence[Task],
        prompts: Sequence[tuple[int, ...]],
        course: Course,
        judged: Judged,
        seed: int,
    ) -> None:
        self.policy, self.model, self.tasks, self.prompts = policy, model, tasks, prompts
        self.course, self.judged, self.seed = course, judged, seed
        self.figures: dict[str, Any] = {}
        self.last: tuple[Sequence[int], Sequence[Sample]] = ((), ())  # path, answers

    def roll_out(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Answers of the player as it is now; equal prompts stand side by side, one group each
        (two where a task is met twice in a step). Prompts are numbers of tasks."""
        size = self.course.config.generations
        numbers = [int(text) for text in prompts[::size]]
        step = len(self.course.rows)
        requests = [
            Request(
                self.prompts[number],
                tuple(
                    Row(len(self.prompts[number]), seed_of("grpo", self.seed, step, place, row))
                    for row in range(size)
                ),
                name=self.tasks[number].id,
            )
            for place, number in enumerate(numbers)
        ]

        def done(request: int, row: int, ids: Sequence[int]) -> bool:
            text = decode(self.policy, list(ids))
            return cut_answer(self.tasks[numbers[request]], text).complete

        self.model.eval()
        try:
            drawn = sample(self.model, requests, self.course.config, self.policy.stop_ids, done)
        finally:
            self.model.train()
        self.last = requests[0].path, drawn[0]
        samples = [one for some in drawn for one in some]
        prompt_tokens = sum(len(request.path) * size for request in requests)
        sampled = sum(len(one.ids) for one in samples)
        both = prompt_tokens + sampled
        self.figures = {"sampled": sampled, "tokens": both, "learnt": both}
        return {
            "prompt_ids": [list(self.prompts[int(text)]) for text in prompts],
            "completion_ids": [list(one.ids) for one in samples],
            "logprobs": [list(one.logps) for one in samples],
        }

    def rewards(
        self, prompts: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        """The reward of each answer, ``None`` where the verdict says nothing."""
        items = []
        for text, ids in zip(prompts, completion_ids, strict=True):
            task = self.tasks[int(text)]
            items.append((task, cut_answer(task, decode(self.policy, ids)).text))
        verdicts = self.judged(items)
        worths = [reward_of(verdict, self.course.config.rewards) for verdict in verdicts]
        size = self.course.config.generations
        groups = [set(worths[i : i + size]) - {None} for i in range(0, len(worths), size)]
        known = [worth for worth in worths if worth is not None]
        labels = Counter(verdict.label for verdict in verdicts)
        if known:
            self.figures["reward"] = round(math.fsum(known) / len(known), 4)
        self.figures["groups"] = sum(len(group) > 1 for group in groups)
        self.figures.update({label: labels[label] for label in LABELS})
        return worths


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Seeds every step, keeps its figures, writes the state, ends the round."""

    def __init__(
        self,
        course: Course,
        trained: dict[str, torch.nn.Parameter],
        optimizer: Any,
        answers: _Answers,
        seed: int,
        out: Path,
        progress: Progress | None,
    ) -> None:
        self.course, self.trained, self.optimizer = course, trained, optimizer
        self.answers, self.seed, self.out, self.progress = answers, seed, out, progress

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Dropout, and which answers share a pass, are the same after resuming.
        torch.manual_seed(seed_of("step", self.seed, len(self.course.rows)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.train.learning_rate * self.course.rate()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return  # the summary of the whole training
        step = len(self.course.rows) + 1
        loss, norm = float(logs["loss"]), float(logs["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LearningError(
                f"the loss or gradient is not a number at step {step}; lower "
                "train.learning_rate, or use model.dtype=float32"
            )
        row = {"step": step, "loss": loss, **self.answers.figures, "grad_norm": round(norm, 4)}
        self.course.rows.append(row)
        if self.course.over():
            control.should_training_stop = True
        elif step % self.course.train.checkpoint_steps == 0:
            self.write()
            save_state(self.out / "state", self.trained, self.optimizer, step)
        if self.progress:
            now, goal = self.course.place
            figures = {key: float(value) for key, value in row.items()}
            self.progress(min(now, goal), goal, figures)

    def write(self) -> None:
        """Write the log, before the state that counts its lines."""
        write_log(self.out / "train.jsonl", [json.dumps(row) for row in self.course.rows])


def _steps_taken(folder: Path) -> int:
    """How many steps the state holds (see :func:`treeplay.train_state.save_state`)."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as tensors:
        return int(tensors.get_tensor("step"))


def _tokenizer(policy: Policy) -> Any:
    """A copy: TRL changes how it pads."""
    return copy.deepcopy(policy.tokenizer)


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Undo what TRL leaves on a model: a forward that gives log-probs, another padding token."""
    configs = (model.config.get_text_config(), model.generation_config)
    tokens = [config.pad_token_id for config in configs]
    forward: Callable[..., Any] | None = model.__dict__.get("forward")
    try:
        yield
    finally:
        for config, token in zip(configs, tokens, strict=True):
            config.pad_token_id = token
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward


@contextmanager
def _hushed() -> Iterator[None]:
    """No warnings from TRL: an answer without a reward, say, is one of ours to count."""
    loggers = [logging.getLogger(name) for name in ("trl", "transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
