"""Experiments on a tiny model: two steps of every protocol and method, faults, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tinydata import make_data
from typer.testing import CliRunner
from writer import make_writer

from treeplay.cli import app
from treeplay.errors import SandboxError
from treeplay.sandbox import check_sandbox

RUNNER = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(f"generated code cannot be run here: {error}")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def play(name: str, data: Path, writer: Path, folder: Path, *more: str) -> Any:
    return RUNNER.invoke(
        app,
        [
            *("experiment", name, "--data", str(data), "--model", str(writer)),
            *("--size", "smoke", "--seeds", "0"),
            *("--out", str(folder / "runs"), "--results", str(folder / "results")),
            *("model.dtype=float32", "train.lora.r=4"),
            *more,
        ],
    )


def result(folder: Path, writer: Path, name: str, arm: str) -> dict[str, Any]:
    path = folder / "results" / name / writer.name / arm / "0.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["main", "unseen", "transfer", "ablation", "paper"])
def test_two_steps_of_every_protocol(name: str, data: Path, writer: Path, tmp_path: Path) -> None:
    arms = "nodes-diff" if name == "ablation" else "tsp"
    done = play(name, data, writer, tmp_path, "--methods", arms)
    assert done.exit_code == 0, done.output
    told = result(tmp_path, writer, name, arms)
    assert told["faults"] == []
    assert len(told["runs"]) == (5 if name == "unseen" else 1)
    assert all(run["training"]["round-1"]["steps"] >= 1 for run in told["runs"])
