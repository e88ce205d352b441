"""Figures of a run in trackers: in TensorBoard's own files, and in one that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import recipe, refused, run, sandbox  # noqa: F401

from treeplay import play_train
from treeplay.errors import ConfigError
from treeplay.judge.verdict import Verdict
from treeplay.metrics import Scored
from treeplay.progress import Reporter
from treeplay.track import Tracks, answer_figures, tracker_names


class Notebook(GeneralTracker):  # type: ignore[misc,unused-ignore]
    """Writes down what it is told; fails after ``good`` messages."""

    name = "notebook"
    requires_logging_directory = False
    main_process_only = False
    made: ClassVar[list[Notebook]] = []
    good = 10_000

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project, self.told, self.settings = project, [], {}  # type: ignore[var-annotated]
        self.ended = False
        Notebook.made.append(self)

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        if len(self.told) >= self.good:
            raise OSError("no network")
        self.told.append((step, values))

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    # Under the name of a package that is here.
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "json", Notebook)
    monkeypatch.setattr(Notebook, "made", [])
    return Notebook


def changed(recipe: Path, **more: Any) -> Path:  # noqa: F811
    data = yaml.safe_load(recipe.read_text())
    data["contrasts"] = {"anchor": 1.0}
    recipe.write_text(yaml.safe_dump({**data, **more}))
    return recipe


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / "train.jsonl").read_text().splitlines()]


def test_tensorboard_has_every_step_and_rate(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    result = run("play", changed(recipe, rounds=2), "--track", "tensorboard")
    assert result.exit_code == 0, result.output
    written = tmp_path / "run" / "track" / "treeplay"
    events = EventAccumulator(str(written)).Reload()
    first, second = (steps_of(tmp_path / "run" / f"round-{n}") for n in (1, 2))
    losses = [(one.step, one.value) for one in events.Scalars("train/loss")]
    rows = [row["loss"] for row in (*first, *second)]
    assert losses == [(n, pytest.approx(loss)) for n, loss in enumerate(rows, 1)]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (base,) = (
        row["vulnerable"]
        for row in report["rows"]
        if row["player"] == "base" and row["language"] == "all" and row["cwe"] is None
    )
    (tag,) = (tag for tag in events.Tags()["scalars"] if tag.endswith("/spr1_all"))
    rates = events.Scalars(tag.replace("spr1_all", "vulnerable"))
    assert [one.step for one in rates] == [0, len(first), len(first) + len(second)]
    assert rates[0].value == pytest.approx(100 * base)
    shares = [tag for tag in events.Tags()["scalars"] if tag.startswith("branches/")]
    assert sum(events.Scalars(tag)[0].value for tag in shares) == pytest.approx(100)


def test_a_run_that_goes_on_counts_on(
    recipe: Path,  # noqa: F811
    tmp_path: Path,
    notebook: type[Notebook],
) -> None:
    assert run("train", changed(recipe, rounds=2), "--track", "json").exit_code == 0
    done = len(steps_of(tmp_path / "run" / "round-1"))
    assert run("train", recipe, "--round", 2, "--track", "json").exit_code == 0
    first, second = notebook.made
    assert [step for step, told in first.told if "train/loss" in told] == [*range(1, done + 1)]
    assert next(step for step, told in second.told if "train/loss" in told) == done + 1
    assert first.settings["train.lora.r"] == 4
    assert first.project == "treeplay"
    assert first.ended
    assert second.ended


def test_a_training_that_was_interrupted_counts_as_before(
    recipe: Path,  # noqa: F811
    tmp_path: Path,
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = changed(recipe, train={"epochs": 8, "checkpoint_steps": 2, "lora": {"r": 4}})
    real, left = play_train._stage, 5

    @contextmanager
    def stops(*given: Any) -> Iterator[Any]:
        with real(*given) as told:

            def until(step: int, steps: int, row: dict[str, float]) -> None:
                told(step, steps, row)
                if step == left:
                    raise KeyboardInterrupt

            yield until

    with monkeypatch.context() as patch:
        patch.setattr(play_train, "_stage", stops)
        assert run("train", several, "--track", "json").exit_code == 130
    assert run("train", several, "--track", "json").exit_code == 0
    first, second = notebook.made
    told = [[step for step, row in one.told if "train/loss" in row] for one in (first, second)]
    steps = len(steps_of(tmp_path / "run" / "round-1"))
    assert told == [[1, 2, 3, 4, 5], [*range(5, steps + 1)]]


def test_trainings_follow_each_other() -> None:
    book = Notebook("p")
    tracks = Tracks([book], step=10)
    for step in (1, 2, 3, 1, 2):  # two rates of one round
        tracks.trained({"step": step, "loss": 0.5})
    tracks.now({"eval/s@token/valid": 1.0})
    assert [step for step, _ in book.told] == [11, 12, 13, 14, 15, 15]
    assert list(book.told[-1][1]) == ["eval/s-token/valid"]
    later = Tracks([book], step=10)
    later.trained({"step": 4, "loss": 0.5})  # goes on behind a checkpoint
    assert book.told[-1][0] == 14


def test_a_rate_that_one_task_in_many_has_is_told() -> None:
    """Tasks drawn anew may all be without it."""

    def scored(number: int) -> Scored:
        verdict = Verdict("secure" if number < 2 else "invalid", evidence="executed")
        where = ("player", 0, "suite", "eval", "python", ("CWE-78",), f"task-{number}")
        return Scored(*where, sample=0, answer="x", tokens=1, ended="eos", verdict=verdict)

    for count in range(60, 80):
        told = answer_figures([scored(number) for number in range(count)], {})
        assert told["eval/suite/eval/spr1_valid"] == 100
        assert told["eval/suite/eval/spr1_all"] == pytest.approx(200 / count, abs=1e-4)


def test_a_tracker_that_fails_is_left_out(
    recipe: Path,  # noqa: F811
    tmp_path: Path,
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notebook, "good", 1)
    result = run("play", changed(recipe), "--track", "json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("the tracker notebook failed (no network)") == 1
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_tracker_that_does_not_start_is_told(
    recipe: Path,  # noqa: F811
    notebook: type[Notebook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_key(self: Notebook) -> None:
        raise ValueError("no API key")

    monkeypatch.setattr(notebook, "start", no_key)
    said = r"the tracker json does not start \(no API key\); .*leave --track out, and resume"
    other = Notebook("p")
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "yaml", lambda *_: other)
    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["yaml"], "requires_logging_directory", False, False)
    monkeypatch.setattr(other, "start", lambda: None)
    refused(run("play", recipe, "--track", "yaml,json"), said)
    assert other.ended  # the one that had started


def test_names_are_checked_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    refused(run("play", recipe, "--track", "tensorbord"), "did you mean 'tensorboard'")
    refused(run("play", recipe, "--track", "tensorbord", "--dry-run"), "did you mean 'tensorboard'")
    assert not (tmp_path / "run").exists()
    assert tracker_names("") == []
    assert tracker_names(" tensorboard, tensorboard") == ["tensorboard"]
    with pytest.raises(ConfigError, match="--track clearml: its package is missing; run 'pip"):
        tracker_names("clearml")


def test_without_a_tracker_nothing_is_told() -> None:
    tracks = Reporter(quiet=True).tracks
    assert not tracks
    tracks.trained({"step": 1, "loss": 0.5})
    tracks.close()
    assert not Tracks([])
