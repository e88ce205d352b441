"""The rate that early ends and the choice of tasks go by, where branches do not tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from test_golden import branch, sampled
from test_selfplay import branch as grown_branch
from test_selfplay import pair, tree

from treeplay.contrast import Contrast
from treeplay.golden import Own, own_to_json
from treeplay.play_over import why_over
from treeplay.play_rates import measured
from treeplay.run import write_json, write_jsonl
from treeplay.selfplay import PlayConfig, Rate, mean_rate
from treeplay.tree import Probe, Tree
from treeplay.trie import nearest, path_of, trie

ANCHORS = [pair(())]


def game(
    folder: Path,
    *trees: Tree,
    source: str = "reference",
    below: float = 0.0,
    contrasts: Sequence[Contrast] = ANCHORS,
) -> Any:
    config = SimpleNamespace(
        method="tsp", golden=SimpleNamespace(source=source), play=PlayConfig(stop_below=below)
    )
    return SimpleNamespace(
        config=config,
        player=lambda number: f"round-{number}",
        adapter=lambda number: folder / "adapter",
        run=SimpleNamespace(folder=folder, path=lambda *parts: folder.joinpath(*parts)),
        grow=lambda number: list(trees),
        contrasts=lambda number: contrasts,
    )


def own(folder: Path, secure: int, vulnerable: int) -> Tree:
    """The trie of so many samples, which are on disk."""
    good = [branch(i, [i + 1, 3, 4], "secure") for i in range(secure)]
    bad = [branch(secure + i, [1, 3, 9], "vulnerable") for i in range(vulnerable)]
    samples = sampled(*good, *bad)
    golden = path_of(nearest(good, bad))
    (folder / "round-2").mkdir()
    write_jsonl(folder / "round-2" / "golden.jsonl", [own_to_json(Own(samples, golden))])
    return trie(samples, golden)


def test_a_trie_s_rate_is_that_of_all_samples(tmp_path: Path) -> None:
    made = own(tmp_path, 15, 1)
    assert len(made.branches) == 1  # the others part elsewhere
    found = measured(game(tmp_path, made, source="self"), 2)
    assert found == {made.task: Rate(16, 15, 1)}


def test_a_player_whose_samples_are_all_secure_is_done(tmp_path: Path) -> None:
    made = own(tmp_path, 4, 0)
    assert not made.nodes
    one = game(tmp_path, made, source="self")
    assert mean_rate(measured(one, 2)) == 0
    assert why_over(one, 2) == "round-1 made no mistake to learn from"
    below = game(tmp_path, made, source="self", below=0.1)
    assert "0.0% is below play.stop_below" in why_over(below, 2)


def test_rollouts_that_gave_no_node_count(tmp_path: Path) -> None:
    bare = replace(tree(), nodes=(), probes=(Probe(1, 0, 4, 1), Probe(2, 1, 4, 4)))
    assert measured(game(tmp_path, bare), 2) == {"t": Rate(4, 3, 1)}
    fine = replace(bare, probes=(Probe(1, 0, 4, 0),))
    assert why_over(game(tmp_path, fine), 2) == "round-1 made no mistake to learn from"


def test_a_player_of_whom_nothing_could_be_decided_is_not_called_faultless(tmp_path: Path) -> None:
    broken = [grown_branch(i, 0, (5 + i,), "round-1", "invalid") for i in range(2)]
    one = game(tmp_path, tree(*broken), contrasts=())
    assert why_over(one, 2) == "none of round-1's branches could be judged secure or vulnerable"
    assert why_over(one, 1) == ""  # an error of the settings, which another place names


def test_staying_close_to_an_opponent_without_mistakes_is_no_lesson(tmp_path: Path) -> None:
    safe = tree(grown_branch(0, 0, (5,), "round-0", "secure"))
    kept = [replace(ANCHORS[0], kl=True)]
    assert why_over(game(tmp_path, safe, contrasts=kept), 1) == (
        "round-0 made no mistake to learn from"
    )
    broken = tree(grown_branch(0, 0, (5,), "round-0", "invalid"))
    assert "could be judged" in why_over(game(tmp_path, broken, contrasts=kept), 1)
    assert why_over(game(tmp_path, safe, contrasts=[*kept, *ANCHORS]), 1) == ""
    assert why_over(game(tmp_path, safe, contrasts=[*kept, pair((9,))]), 1) == ""


def test_a_round_that_won_nothing_on_held_out_tasks_ends_the_game(tmp_path: Path) -> None:
    wrong = tree(grown_branch(0, 0, (5,), "round-1", "vulnerable"))
    one = game(tmp_path, wrong, contrasts=[pair((9,))])
    assert why_over(one, 2) == ""
    for epoch, over in ((2, False), (0, True)):
        mark = {"epoch": epoch, "secure": 0.5, "able": 0.5, "score": 0.5}
        write_json(tmp_path / "round-1" / "kept.json", {"mark": mark})
        assert ("no epoch of round-1 did better" in why_over(one, 2)) == over


def test_branches_come_first(tmp_path: Path) -> None:
    grown = tree(grown_branch(0, 0, (5,), "round-1", "vulnerable"))
    probed = replace(grown, probes=(Probe(1, 0, 4, 0),))
    assert measured(game(tmp_path, probed), 2) == {"t": Rate(1, 0, 1)}
