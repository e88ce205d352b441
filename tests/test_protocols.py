"""Protocols on the real data sets, where they are there: every size has what it evaluates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from treeplay.experiments.data import prepare
from treeplay.experiments.protocol import SIZES, Size, load_protocol
from treeplay.tasks.jsonl import read_tasks

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "seccodeplt.jsonl").is_file(),
    reason=f"{DATA} is not there; name a folder of public data sets with TREEPLAY_DATA",
)


@pytest.mark.parametrize("size", SIZES)
def test_development_tasks_are_left_over_in_every_size(size: Size, tmp_path: Path) -> None:
    (fold,) = prepare(load_protocol("ablation"), DATA, tmp_path, size, lambda _: None)
    trained = {task.id for task in read_tasks(fold.train)}
    for entry in fold.eval:
        left = read_tasks(Path(entry.partition("@")[0]))
        assert left
        assert not trained & {task.id for task in left}
