"""Branches sampled and judged wave by wave, whole and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from treeplay.config import load_config
from treeplay.errors import ConfigError
from treeplay.grow import missing
from treeplay.play import Game
from treeplay.progress import Reporter
from treeplay.run import open_run
from treeplay.tree import Tree

GROW = {"branches": 8, "adaptive": 0.6, "wave": 2, "depth": 2, "max_tokens": 90}


pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


def grown(recipe: Path, out: Path, *overrides: str, resume: bool = False) -> list[Tree]:
    config = load_config(recipe, [f"out={out}", *overrides])
    game = Game(open_run(config, resume=resume), Reporter(quiet=True))
    try:
        return game.grow(1)
    finally:
        game.close()


def test_waves_stop_where_a_node_is_known_and_resume_the_same(writer: Path, tmp_path: Path) -> None:
    source = str(writer / "tasks.jsonl")
    data: dict[str, Any] = {
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "nodes": {"sources": ["diff"], "place": "both"},
        "grow": {**GROW, "rows_at_once": 8, "completion": "model"},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(data))
    out = tmp_path / "run"
    trees = grown(recipe, out)
    config = load_config(recipe).grow
    counts = Counter((tree.task, branch.node) for tree in trees for branch in tree.branches)
    assert set(counts.values()) <= {2, 4, 6, 8}
    assert min(counts.values()) < 8  # some node was known early
    assert max(counts.values()) > 2  # and some was not
    assert not any(missing(tree, node, config) for tree in trees for node in tree.nodes)

    whole = grown(recipe, tmp_path / "whole", "grow.adaptive=0", "grow.depth=1")
    for tree, other in zip(trees, whole, strict=True):
        for node in other.nodes:
            first, every = (
                [branch.ids for branch in one.branches if branch.node == node.id]
                for one in (tree, other)
            )
            assert first == every[: len(first)]

    folder = out / "round-1"
    before = (folder / "judged.jsonl").read_bytes()
    for name in ("judged.jsonl", "grown-1-2.jsonl", "grown-2.jsonl"):
        (folder / name).unlink(missing_ok=True)
    assert grown(recipe, out, resume=True) == trees
    assert (folder / "judged.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["spin", "tsp"])
def test_a_budget_of_tokens_ends_the_waves(method: str, writer: Path, tmp_path: Path) -> None:
    """As nearly as whole waves come, judged or not, and the same after a kill."""
    source = str(writer / "tasks.jsonl")
    data: dict[str, Any] = {
        "method": method,
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "grow": {"branches": 9, "wave": 1, "max_tokens": 60, "completion": "model"},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(data))

    def waves(trees: list[Tree]) -> list[int]:
        """Tokens of each wave: of the first branch of every node, of the second, ..."""
        counts: Counter[int] = Counter()
        for tree in trees:
            seen: Counter[int] = Counter()
            for branch in tree.branches:
                counts[seen[branch.node]] += len(branch.ids)
                seen[branch.node] += 1
        return [counts[number] for number in sorted(counts)]

    whole = waves(grown(recipe, tmp_path / "whole"))
    assert len(whole) == 9
    for budget, count in ((1, 1), (sum(whole[:3]), 3), (sum(whole[:4]) + 1, 4), (10**9, 9)):
        out = tmp_path / str(budget)
        trees = grown(recipe, out, f"grow.budget={budget}")
        assert waves(trees) == whole[:count]
        if count == 4:
            for name in ("judged.jsonl", "grown-1-3.jsonl", "grown-1-4.jsonl"):
                (out / "round-1" / name).unlink(missing_ok=True)
            assert grown(recipe, out, f"grow.budget={budget}", resume=True) == trees


def test_a_budget_is_of_one_level() -> None:
    with pytest.raises(ConfigError, match="a budget is of one level"):
        load_config(None, ["grow.budget=100", "grow.depth=2", "grow.completion=model"])


def test_waves_need_a_judge() -> None:
    with pytest.raises(ConfigError, match="asks no judge"):
        load_config(None, ["method=spin", "grow.adaptive=0.3"])
