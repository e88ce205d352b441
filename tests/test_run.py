"""The run folder: stage files whole or not at all, and resuming to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeplay import run as run_module
from treeplay.config import Config, load_config, to_dict
from treeplay.errors import RunError
from treeplay.run import (
    open_run,
    read_json,
    read_jsonl,
    staged,
    write_json,
    write_jsonl,
    write_text,
)

GROUPS = [[1, 2], [3], [], [4, 5, 6], [7]]


def rows_of(group: Sequence[int]) -> list[dict[str, Any]]:
    """Rows with what may confuse a reader of lines: breaks, braces, other alphabets."""
    return [{"item": i, "text": f'é\u2028{{"group": {i}}}\n' * i, "list": [i]} for i in group]


class Work:
    def __init__(self, fail_at: int | None = None) -> None:
        self.done: list[list[int]] = []
        self.fail_at = fail_at

    def __call__(self, group: Sequence[int]) -> list[dict[str, Any]]:
        if len(self.done) == self.fail_at:
            raise KeyboardInterrupt
        self.done.append(list(group))
        return rows_of(group)


def quiet(count: int) -> None:
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(the final file, the part file just before it became final)."""
    path = tmp_path_factory.mktemp("staged") / "x.jsonl"
    part = b""

    def keep(count: int) -> None:
        nonlocal part
        part = (
            path.with_name("x.jsonl.part").read_bytes()
            if path.parent.joinpath("x.jsonl.part").exists()
            else b""
        )

    rows = staged(path, GROUPS, Work(), keep)
    assert rows == [row for group in GROUPS for row in rows_of(group)]
    return path.read_bytes(), part


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_part_file_cut_anywhere_leads_to_the_same_file(
    data: st.DataObject, finished: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    final, part = finished
    assert part.count(b'\n{"group": ') >= len(GROUPS) - 1
    at = data.draw(st.integers(0, len(part)))
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    path.with_name("x.jsonl.part").write_bytes(part[:at])
    counts: list[int] = []
    work = Work()
    staged(path, GROUPS, work, counts.append)
    assert path.read_bytes() == final
    assert counts == sorted(counts)
    assert counts[-1] == sum(len(group) for group in GROUPS)
    assert [path.name for path in path.parent.iterdir()] == ["x.jsonl"]
    # Nothing whole is made twice: only the group it died in, and those behind it.
    whole = part[:at].count(b'\n{"group": ') - (not part[:at].endswith((b"}", b"}\n")))
    assert len(work.done) <= len(GROUPS) - whole


def test_every_cut_twice(finished: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Interrupted again while resuming, at every group."""
    final, part = finished
    for at in range(0, len(part), 29):
        for fail_at in range(3):
            path = tmp_path / f"{at}-{fail_at}" / "x.jsonl"
            path.parent.mkdir()
            path.with_name("x.jsonl.part").write_bytes(part[:at])
            try:
                staged(path, GROUPS, Work(fail_at), quiet)
            except KeyboardInterrupt:
                staged(path, GROUPS, Work(), quiet)
            assert path.read_bytes() == final


def test_a_finished_stage_is_only_read(finished: tuple[bytes, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(finished[0])
    path.with_name("x.jsonl.part").write_bytes(finished[1])  # killed before it was removed
    counts: list[int] = []
    work = Work()
    rows = staged(path, GROUPS, work, counts.append)
    assert work.done == []
    assert counts == [7]
    assert [row["item"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("write", [write_text, write_json, write_jsonl])
def test_a_file_is_written_whole_or_not_at_all(
    write: Callable[[Path, Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "x"
    first, second = ("a", "b") if write is write_text else ([{"a": 1}], [{"b": "é"}])
    write(path, first)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, second)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write(path, second)
    assert path.read_bytes() != before
    assert [item.name for item in path.parent.iterdir()] == ["x"]


def test_json_reads_back_and_a_broken_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = rows_of([1, 2])
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(RunError, match=r"x\.jsonl:2: this line is broken .*remove the file"):
        read_jsonl(path)
    with pytest.raises(RunError, match=r"cannot read .*x\.jsonl.*remove it"):
        read_json(path)


def begun(out: Path, *overrides: str) -> Config:
    """A run with something made in it."""
    config = load_config(None, [f"out={out}", *overrides])
    open_run(config, resume=False)
    (out / "eval").mkdir(exist_ok=True)
    (out / "eval/base.jsonl").write_text("{}\n")
    return config


def test_a_new_run_has_a_manifest(tmp_path: Path) -> None:
    config = load_config(None, [f"out={tmp_path / 'a/b'}", "seed=3"])
    run = open_run(config, resume=False)
    manifest = read_json(tmp_path / "a/b/manifest.json")
    assert manifest == run.manifest
    assert manifest["config"]["seed"] == 3
    assert {"python", "treeplay", "torch", "transformers", "peft"} <= manifest["versions"].keys()


def test_resuming_needs_to_be_said(tmp_path: Path) -> None:
    config = begun(tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        open_run(config, resume=False)
    assert open_run(config, resume=True).manifest["config"]["seed"] == 0


def test_a_changed_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    changed = load_config(None, [f"out={tmp_path / 'run'}", "seed=1", "train.lora.r=4"])
    with pytest.raises(RunError, match=r"other settings: seed, train\.lora\.r differ"):
        open_run(changed, resume=True)


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    config = begun(tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    old = read_json(path)
    del old["config"]["contrasts"]["ordinary_text"], old["config"]["play"]
    write_json(path, old)
    assert open_run(config, resume=True).manifest["config"] == to_dict(config)
    other = load_config(None, [f"out={tmp_path / 'run'}", "play.replay=0.5"])
    with pytest.raises(RunError, match=r"other settings: play\.replay differ"):
        open_run(other, resume=True)


def test_the_code_that_worked_on_a_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begun(tmp_path / "run")
    monkeypatch.setattr(run_module, "code_digest", lambda: "later")
    for _ in range(2):
        codes = open_run(config, resume=True).manifest["code"]
        assert codes[1:] == ["later"]
    assert read_json(tmp_path / "run/manifest.json")["code"] == codes


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = begun(tmp_path / "run")
    now = {**run_module.versions(), "torch": "9.9"}
    monkeypatch.setattr(run_module, "versions", lambda method: now)
    with pytest.raises(RunError, match=r"other versions: torch .* \(now 9\.9\)"):
        open_run(config, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_in_which_nothing_was_made_may_begin_again(tmp_path: Path, resume: bool) -> None:
    """A wrong model name is found after the manifest was written; mending it is no other run."""
    out = tmp_path / "run"
    run = open_run(load_config(None, [f"out={out}", "model.name=typo"]), resume=False)
    with run.timed("load"):
        pass
    (out / "tasks.jsonl").write_text("{}\n")
    mended = load_config(None, [f"out={out}"])
    assert open_run(mended, resume=resume).manifest["identities"] == {}
    assert read_json(out / "manifest.json")["config"]["model"]["name"] == "smollm2"
    assert not (out / "tasks.jsonl").exists()


def test_a_run_in_which_nothing_was_made_goes_on_when_it_is_the_same(tmp_path: Path) -> None:
    config = load_config(None, [f"out={tmp_path / 'run'}"])
    open_run(config, resume=False).name("base", "tiny@1")
    assert open_run(config, resume=True).manifest["identities"] == {"base": "tiny@1"}
    assert open_run(config, resume=False).manifest["identities"] == {}


def test_killed_while_writing_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.tmp").write_text('{"config": {')
    run = open_run(load_config(None, [f"out={tmp_path}"]), resume=True)
    assert read_json(tmp_path / "manifest.json") == run.manifest


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, resume: bool) -> None:
    config = load_config(None, [f"out={tmp_path}"])
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        open_run(config, resume=resume)
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(RunError, match=r"manifest\.json is no manifest of a run"):
        open_run(config, resume=resume)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*manifest\.json"):
        open_run(config, resume=resume)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(RunError, match="cannot make the run folder"):
            open_run(load_config(None, [f"out={out}"]), resume=False)


def test_identities_are_recorded_and_checked(tmp_path: Path) -> None:
    config = begun(tmp_path / "run")
    run = open_run(config, resume=True)
    run.name("base", "tiny@1")
    run.name("base", "tiny@1")
    run.name("judge", "judge 1")
    again = open_run(config, resume=True)
    again.name("base", "tiny@1")
    with pytest.raises(RunError, match="base was tiny@1 when the run began and is tiny@2 now"):
        again.name("base", "tiny@2")
    saved = read_json(tmp_path / "run/manifest.json")["identities"]
    assert saved == {"base": "tiny@1", "judge": "judge 1"}


def test_time_adds_up_over_interruptions(tmp_path: Path) -> None:
    config = begun(tmp_path / "run")
    run = replace(open_run(config, resume=True), timings={"grow": 5.0})
    with pytest.raises(KeyboardInterrupt), run.timed("grow"):
        raise KeyboardInterrupt
    timings = open_run(config, resume=True).timings
    assert timings["grow"] >= 5.0
    assert timings["peak_memory_mb"] > 50
    assert json.loads((tmp_path / "run/timings.json").read_text()) == timings
