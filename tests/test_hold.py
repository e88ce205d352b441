"""One process at a time works in a run folder."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treeplay.config import load_config
from treeplay.errors import RunError
from treeplay.hold import BusyError, Hold, hold
from treeplay.run import open_run

HOLDING = """
import sys, pathlib
from treeplay.hold import hold
held = hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_that_another_process_works_in_is_left_alone(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(BusyError, match="another process is at work"):
        open_run(load_config(None, [f"out={tmp_path}"]), resume=False)
    assert list(tmp_path.iterdir()) == []
    # However it ends, the folder is free then.
    other.kill()
    other.wait()
    assert open_run(load_config(None, [f"out={tmp_path}"]), resume=False).held is not None


def test_the_same_process_may_open_a_run_twice_and_lets_it_go(tmp_path: Path) -> None:
    config = load_config(None, [f"out={tmp_path}"])
    one = open_run(config, resume=False)
    two = open_run(config, resume=True)
    assert one.held is two.held
    tried = [sys.executable, "-c", HOLDING, str(tmp_path)]
    said = subprocess.run(tried, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "BusyError" in said.stderr
    del one, two
    gc.collect()
    said = subprocess.run(tried, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert said.stdout == "held\n"


def test_a_file_system_without_locks_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", without)
    held = hold(tmp_path)
    assert held is not None
    assert os.fstat(held._open).st_ino == tmp_path.stat().st_ino


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder"):
        open_run(load_config(None, [f"out={tmp_path / 'run'}"]), resume=False)


def test_a_folder_that_is_moved_away_is_not_held_by_its_old_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    held = hold(tmp_path / "run")
    assert held is not None
    assert held.is_of(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "old")
    (tmp_path / "run").mkdir()
    assert not held.is_of(tmp_path / "run")
    assert hold(tmp_path / "run") is not held


def test_a_folder_that_cannot_be_opened(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(FileNotFoundError):
        Hold(tmp_path / "gone")
    gc.collect()
    assert not recwarn.list
