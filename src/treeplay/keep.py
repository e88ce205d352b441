"""Which snapshot of a training run becomes the player: chosen by tasks that were held out.

Training on security decisions costs ability, and how much depends on how long and how fast one
trains. So a share of the training tasks (``tasks.hold_out``) is kept out of training; after every
epoch the player answers them, a few samples each, and each snapshot gets a mark:

    secure = mean over tasks of the share of samples that are secure and do not fail the tests
    able   = mean over tasks of the share that pass the functional tests
             (that are valid, for a task without tests)
    score  = secure - max(0, able of base - able)

A point of ability lost against the base model costs as much as a point of security is worth; what
is gained in ability counts for nothing, for that is not what is trained. ``train.keep=best`` keeps
the snapshot with the highest score, the earliest of equal ones. Evaluation tasks have no part in
this.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeplay.errors import TaskError
from treeplay.judge.verdict import Verdict
from treeplay.tasks.task import Task
from treeplay.train_state import save_adapter

if TYPE_CHECKING:
    from treeplay.lora import Weights
    from treeplay.train import TrainConfig

_VALID = ("secure", "vulnerable", "inert", "plain")


@dataclass(frozen=True)
class Mark:
    """How a snapshot did on the held-out tasks; every figure lies in 0..1, ``score`` in -1..1."""

    epoch: int
    secure: float
    able: float
    score: float


def hold_out(tasks: Sequence[Task], share: float, seed: int) -> tuple[list[Task], list[Task]]:
    """(training tasks, held-out tasks), both in the given order; the held-out ones are drawn with
    ``seed``, at least one where ``share`` is above 0.

    Raises :class:`TaskError` where none would be left to train on.
    """
    if not share:
        return list(tasks), []
    number = max(1, round(share * len(tasks)))
    if number >= len(tasks):
        raise TaskError(
            f"tasks.hold_out is {share}, which leaves none of {len(tasks)} tasks to train on; "
            "lower it, or give more tasks (tasks.train)"
        )
    held = set(random.Random(f"hold-out/{seed}").sample(range(len(tasks)), number))
    return (
        [task for i, task in enumerate(tasks) if i not in held],
        [task for i, task in enumerate(tasks) if i in held],
    )


def mark(judged: Sequence[tuple[Task, Verdict]], epoch: int, base: Mark | None) -> Mark:
    """The mark of the player that gave these answers; ``base`` None for the base model itself."""
    verdicts: dict[str, list[Verdict]] = {}
    tasks = {task.id: task for task, _ in judged}
    for task, verdict in judged:
        verdicts.setdefault(task.id, []).append(verdict)
    safe: list[float] = []
    able: list[float] = []
    for name, some in verdicts.items():
        if not tasks[name].general:
            good = [v.label == "secure" and v.functional is not False for v in some]
            safe.append(sum(good) / len(good))
        if tasks[name].tests is not None:
            able.append(sum(v.functional is True for v in some) / len(some))
        else:
            able.append(sum(v.label in _VALID for v in some) / len(some))
    secure_rate, able_rate = _mean(safe), _mean(able)
    lost = 0.0 if base is None else max(0.0, base.able - able_rate)
    return Mark(epoch, secure_rate, able_rate, secure_rate - lost)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def best(marks: Sequence[Mark]) -> Mark:
    """The mark with the highest score, the earliest of equal ones."""
    return max(marks, key=lambda one: (one.score, -one.epoch))


# examine(model with the adapter, the adapter's folder, number of epochs done) -> mark
Examine = Callable[[Any, Path, int], Mark]


class Keeper:
    """Follows one training run: has each snapshot examined, ends the run early where ability
    falls, and tells at the end which snapshot to keep. Everything is read again from files after
    an interruption, through ``examine``."""

    def __init__(self, folder: Path, base: Mark, config: TrainConfig, examine: Examine) -> None:
        self.folder, self.base, self.config = folder, base, config
        self.examine = examine
        self.marks: dict[int, Mark] = {}

    def snapshot(self, epoch: int) -> Path:
        """Where the adapter after ``epoch`` lies."""
        return self.folder / f"epoch-{epoch}" / "adapter"

    def watch(self, model: Any, tokenizer: Any) -> Callable[[Weights, int], bool]:
        """What the training loop does at the end of an epoch: save the adapter, have it examined.
        True where training is to end."""

        def after_epoch(weights: Weights, epoch: int) -> bool:
            final = self.snapshot(epoch)
            if not (final / "adapter_model.safetensors").is_file():
                final.parent.mkdir(parents=True, exist_ok=True)
                used = [parameter.data for parameter in weights.used]
                weights.whole()
                save_adapter(model, tokenizer, final)
                for parameter, data in zip(weights.used, used, strict=True):
                    parameter.data = data
            return self.after_epoch(model.eval(), epoch)

        return after_epoch

    def after_epoch(self, model: Any, epoch: int) -> bool:
        """Examine the snapshot of ``epoch``; true where training is to end."""
        found = self.examine(model, self.snapshot(epoch), epoch)
        self.marks[epoch] = found
        limit = self.config.max_drop
        return bool(limit) and found.able < self.base.able - limit

    def able(self, one: Mark) -> bool:
        """Whether ability has not fallen too far in the snapshot that ``one`` marks."""
        limit = self.config.max_drop
        return not limit or one.able >= self.base.able - limit

    def best(self) -> Mark:
        """The mark of the snapshot to keep: the best, or the last where ``train.keep`` is so and
        ability has not fallen too far; after an early stop, the best of those that are left."""
        marks = self._known()
        fine = [one for one in marks if self.able(one)]
        if self.config.keep == "best":
            return best(fine or marks)
        return (fine or marks)[-1]

    def put(self, final: Path) -> None:
        """Make the kept snapshot the adapter ``final``, whole or not at all."""
        part = final.with_name(final.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self.snapshot(self.best().epoch), part)
        part.replace(final)

    def _known(self) -> list[Mark]:
        """All marks, by epoch. Of epochs before an interruption, the files have them."""
        for folder in self.folder.glob("epoch-*"):
            epoch = int(folder.name.partition("-")[2])
            if epoch not in self.marks:
                self.marks[epoch] = self.examine(None, self.snapshot(epoch), epoch)
        return [self.marks[epoch] for epoch in sorted(self.marks)]

    def to_json(self) -> dict[str, Any]:
        """Every snapshot's mark, and the epoch that was kept."""
        return {"epochs": [asdict(one) for one in self._known()], "kept": self.best().epoch}


def mark_from_json(data: Mapping[str, Any]) -> Mark:
    return Mark(**data)
