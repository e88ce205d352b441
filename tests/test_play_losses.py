"""The methods that differ from tsp in their loss, and safecoder, from recipe to report."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_play import game, recipe, settings

from treeplay.report import build_report
from treeplay.run import read_jsonl

pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


@pytest.mark.parametrize("method", ["tdpo", "ipo", "simpo", "hinge", "safecoder"])
def test_every_loss_plays(method: str, writer: Path, tmp_path: Path) -> None:
    data = settings(writer, method=method)
    data["eval"]["samples"] = 1
    data["contrasts"] = {"anchor": 0.5, "anchor_kind": "kl"}
    data.setdefault("train", {})["budget"] = 3000
    one = game(recipe(tmp_path, data), tmp_path / "run")
    one.play()
    one.close()
    contrasts = read_jsonl(tmp_path / "run/round-1/contrasts.jsonl")
    rows = read_jsonl(tmp_path / "run/round-1/train.jsonl")
    assert any(row["rejected"] for row in contrasts)
    assert any("kl" in row for row in contrasts)
    assert all(bool(row.get("chosen_mask")) for row in contrasts if "kl" in row)
    assert any(row.get("rejected_mask") for row in contrasts) == (method == "safecoder")
    assert sum(row["learnt"] for row in rows[:-1]) < 3000 <= sum(row["learnt"] for row in rows)
    assert build_report(tmp_path / "run")["rows"]
