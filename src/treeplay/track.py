"""A run's figures in experiment trackers (TensorBoard, Weights & Biases, ...), by Accelerate's own.

A tracker is told what the run folder holds anyway. So one that fails is left out with a warning,
and the run goes on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeplay.errors import ConfigError, RunError
from treeplay.metrics import METRICS, Scored, rows
from treeplay.words import nearest

if TYPE_CHECKING:
    from treeplay.run import Run
    from treeplay.tasks.task import Task
    from treeplay.tree import Tree

PROJECT = "treeplay"


class Tracks:
    """Trackers of one run; none by default. All figures go by one count, the training steps of all
    rounds so far, since some trackers take no step that is behind an earlier one."""

    def __init__(
        self, trackers: Sequence[Any] = (), step: int = 0, say: Callable[[str], None] = print
    ) -> None:
        self._trackers, self._step, self._say = list(trackers), step, say
        self._before, self._last = step, 0  # what this training's own count begins behind

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def trained(self, figures: Mapping[str, float]) -> None:
        """A training step was taken; ``figures`` is its row of ``train.jsonl``, with the ``step``
        of its training."""
        step = int(figures["step"])
        if step <= self._last:  # another training: of the next round, or at another rate
            self._before = self._step
        self._last, self._step = step, self._before + step
        self.now({f"train/{key}": value for key, value in figures.items() if key != "step"})

    def now(self, figures: Mapping[str, float]) -> None:
        """What was found after the steps so far."""
        # Some take no other signs in a name.
        told = {re.sub(r"[^\w/.: -]", "-", name): value for name, value in figures.items()}
        for tracker in list(self._trackers):
            self._try(tracker, lambda one: one.log(told, step=self._step))

    def close(self) -> None:
        for tracker in list(self._trackers):
            self._try(tracker, lambda one: one.finish())
        self._trackers = []

    def _try(self, tracker: Any, what: Callable[[Any], object]) -> None:
        try:
            what(tracker)
        except Exception as error:  # each of them has errors of its own
            self._trackers.remove(tracker)
            self._say(f"warning: the tracker {tracker.name} failed ({error}); it is told no more")


def tracker_names(given: str) -> list[str]:
    """The trackers of a comma separated list. Raises :class:`ConfigError` for one that Accelerate
    does not know or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"--track {name}: {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        there = {str(getattr(one, "value", one)) for one in get_available_trackers()}
        if name not in there and not _installed(name):
            raise ConfigError(f"--track {name}: its package is missing; run 'pip install {name}'")
    return names


def _installed(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def open_tracks(names: Sequence[str], run: Run, say: Callable[[str], None]) -> Tracks:
    """The trackers of a run, told its configuration. TensorBoard and others that ask for a folder,
    and Weights & Biases, write into the run's, in ``track/``.

    Raises :class:`RunError` where one does not start (it wants a login, say).
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if names:
        PartialState()  # their own messages go through it
    started: list[Any] = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        given: dict[str, Any] = {}
        if kind.requires_logging_directory:
            given["logging_dir"] = run.folder / "track"
        if name in ("wandb", "trackio"):  # whose first argument is the project
            given["name"] = run.folder.resolve().name
        if name == "wandb":
            (run.folder / "track").mkdir(exist_ok=True)
            given["dir"] = str(run.folder / "track")
        try:
            tracker = kind(PROJECT, **given)
            tracker.start()
            tracker.store_init_configuration(_flat(asdict(run.config)))
        except Exception as error:
            Tracks(started, say=say).close()
            raise RunError(
                f"the tracker {name} does not start ({error}); mend that, or leave --track out, "
                "and resume"
            ) from error
        started.append(tracker)
    return Tracks(started, _steps(run.folder), say)


def branch_figures(trees: Sequence[Tree]) -> dict[str, float]:
    """Percent of all judged branches of a round, by label."""
    labels = Counter(
        branch.verdict.label for tree in trees for branch in tree.branches if branch.verdict
    )
    return {f"branches/{label}": 100 * n / labels.total() for label, n in sorted(labels.items())}


def answer_figures(samples: Sequence[Scored], tasks: Mapping[str, Task]) -> dict[str, float]:
    """Percent, by suite and split, of everything that the report's table has."""
    found: dict[str, float] = {}
    for row in rows(samples, tasks=tasks):
        if row["language"] == "all" and row["cwe"] is None:
            where = "/".join(part for part in ("eval", row["suite"], row["split"]) if part)
            known = {name: row[name] for name in METRICS if row[name] is not None}
            found |= {f"{where}/{name}": 100 * value for name, value in known.items()}
    return found


def _flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings as ``train.learning_rate: 0.0001``; what is neither text nor a number as
    text."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            plain = isinstance(value, (bool, int, float, str))
            flat[above + key] = value if plain else str(value)
    return flat


def _steps(folder: Path) -> int:
    """Steps of all trainings of a run that came to their end; a round that tried several rates has
    as many."""
    count = 0
    for place in folder.glob("round-*"):
        ended = list(place.glob("rate-*/adapter")) or list(place.glob("adapter"))
        logs = [adapter.with_name("train.jsonl") for adapter in ended]
        count += sum(len(log.read_text(encoding="utf-8").splitlines()) for log in logs)
    return count
