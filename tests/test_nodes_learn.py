"""The stage that learns nodes, played on a tiny model and a real endpoint."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer, Request, Say, completion

import treeplay.nodes_learn
from treeplay.config import load_config
from treeplay.errors import ConfigError, RunError
from treeplay.estimate import estimate
from treeplay.grow import grow
from treeplay.play import Game
from treeplay.policy.score import plain_logps
from treeplay.progress import Reporter
from treeplay.run import open_run, read_json, read_jsonl
from treeplay.tree import Tree, tree_from_json, tree_to_json

pytest.importorskip("httpx2")
pytest.importorskip("tenacity")


pytestmark = pytest.mark.usefixtures("sandbox")  # skipped where generated code cannot be run


def game(writer: Path, out: Path, *overrides: str, resume: bool = False, **nodes: Any) -> Game:
    source = str(writer / "tasks.jsonl")
    data = {
        "model": {"name": str(writer), "threads": 1},
        "tasks": {"train": source, "eval": [source]},
        "nodes": {"sources": ["probe"], "probe": {"rollouts": 4}, **nodes},
        "grow": {"branches": 6, "rows_at_once": 8, "max_tokens": 90, "completion": "model"},
    }
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(data))
    config = load_config(recipe, [f"out={out}", *overrides])
    return Game(open_run(config, resume=resume), Reporter(quiet=True))


def stage_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "round-1").iterdir())}


@pytest.fixture(scope="module")
def probed(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Game, list[Tree]]:
    folder = tmp_path_factory.mktemp("probed") / "run"
    one = game(writer, folder, "contrasts.weights=value")
    return one, one.grow(1)


def test_probes_find_the_statements_that_decide(probed: tuple[Game, list[Tree]]) -> None:
    """The model writes the secure or the vulnerable line; after the secure one all is well."""
    one, trees = probed
    told = read_json(one.run.path("round-1", "nodes.json"))["probe"]
    assert told["rollouts"] == 4 * told["states"] == sum(4 * len(t.probes) for t in trees)
    assert told["sampled_tokens"] > 0
    found = [node for tree in trees for node in tree.nodes]
    assert len(found) == told["nodes"] > 0
    assert {node.source for node in found} == {"probe"}
    for tree in trees:
        values = {probe.position: probe.value or 0.0 for probe in tree.probes}
        assert len(tree.probes) <= one.config.nodes.probe.states
        for node in tree.nodes:
            assert values[node.position] >= one.config.nodes.probe.drop


def test_rollouts_are_branches_with_their_ids_and_log_probs(
    probed: tuple[Game, list[Tree]],
) -> None:
    one, trees = probed
    levels = [read_jsonl(path) for path in sorted((one.run.folder / "round-1").glob("probed-*"))]
    probing = {row["task"]: tree_from_json(row) for rows in levels for row in rows}
    reused = 0
    for tree in trees:
        assert [branch.id for branch in tree.branches] == list(range(len(tree.branches)))
        for node in tree.nodes:
            here = [b for b in tree.branches if b.node == node.id]
            assert len(here) == 6  # four rollouts and two more
            there = next(n for n in probing[tree.task].nodes if n.position == node.position)
            rollouts = [b for b in probing[tree.task].branches if b.node == there.id]
            assert [(b.ids, b.logps) for b in here[:4]] == [(b.ids, b.logps) for b in rollouts]
            assert [b.verdict for b in here[:4]] == [b.verdict for b in rollouts]
            reused += len(rollouts)
            for branch in here:
                whole = tree.prefix(node) + branch.ids
                (logps,) = plain_logps(one.policy.model, [whole], [(node.position, len(whole))])
                assert branch.logps == pytest.approx(logps.tolist(), abs=2e-3)
    assert reused == read_json(one.run.path("round-1", "nodes.json"))["probe"]["reused"] > 0


def test_a_budget_is_of_branches_not_of_rollouts(
    probed: tuple[Game, list[Tree]], writer: Path, tmp_path: Path
) -> None:
    one, _ = probed
    other = game(writer, tmp_path / "run", "grow.budget=1", "grow.wave=1")
    trees = other.grow(1)
    told = [read_json(g.run.path("round-1", "nodes.json"))["probe"] for g in (one, other)]
    assert told[0] == told[1]
    # One wave more than the rollouts, of one branch a node.
    at = Counter((tree.task, branch.node) for tree in trees for branch in tree.branches)
    assert set(at.values()) == {5}


def test_contrasts_are_weighed_by_value(probed: tuple[Game, list[Tree]]) -> None:
    one, _ = probed
    contrasts = one.contrasts(1)
    assert contrasts
    assert all(0 < contrast.weight < 1 for contrast in contrasts)


def test_an_interrupted_search_goes_on_to_the_same_end(
    probed: tuple[Game, list[Tree]], writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it samples, while it judges, and behind the search."""
    whole = stage_files(probed[0].run.folder)
    out = tmp_path / "run"
    calls = 0
    real = grow

    def dies(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(treeplay.nodes_learn, "grow", dies)
    ends = 0
    for attempt in range(6):
        one = game(writer, out, "contrasts.weights=value", resume=attempt > 0)
        if attempt == 1:
            monkeypatch.setattr(one.judge, "judge_many", interrupted)
        try:
            one.grow(1)
            break
        except KeyboardInterrupt:
            ends += 1
        finally:
            one.close()
    assert ends == 3
    made = stage_files(out)
    for name in (*(n for n in whole if n.startswith("prob")), "planted.jsonl", "judged.jsonl"):
        assert made[name] == whole[name], name


def interrupted(*args: Any) -> Any:
    raise KeyboardInterrupt


def test_graft(writer: Path, tmp_path: Path) -> None:
    one = game(writer, tmp_path / "run", "grow.completion=graft")
    trees = one.grow(1)
    assert not (one.run.folder / "round-1" / "probed-2.jsonl").exists()  # nothing to halve
    nodes = [node for tree in trees for node in tree.nodes]
    assert nodes
    assert {b.completion for tree in trees for b in tree.branches} == {"graft"}


def test_sources_before_leave_nothing_to_probe(writer: Path, tmp_path: Path) -> None:
    one = game(writer, tmp_path / "run", sources=["diff", "probe"], place="token", per_task=1)
    trees = one.grow(1)
    assert {node.source for tree in trees for node in tree.nodes} == {"diff"}
    assert read_json(one.run.path("round-1", "nodes.json"))["probe"]["tasks"] == 0


def test_the_estimate_bounds_what_probing_takes(
    probed: tuple[Game, list[Tree]],
) -> None:
    one, trees = probed
    told = read_json(one.run.path("round-1", "nodes.json"))["probe"]
    known = estimate(one)
    assert known.nodes >= sum(len(tree.nodes) for tree in trees)
    more = sum(len(b.ids) for tree in trees for b in tree.branches)
    assert known.grow_tokens >= told["sampled_tokens"] + more


@pytest.mark.parametrize("method", ["spin", "tsp-paper"])
def test_methods_without_a_judge_cannot_probe(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"method {method} asks no judge"):
        load_config(None, [f"method={method}", "nodes.sources=[probe]"])


@pytest.mark.parametrize(
    "setting", ["rollouts=0", "states=0", "spans=0", "drop=0", "drop=1.5", "drops=1"]
)
def test_limits(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"nodes\.probe\."):
        load_config(None, [f"nodes.probe.{setting}"])


# A language model's lines.


def lines(request: Request) -> Say:
    """The golden code's second line, and one that is made up."""
    asked = str(request.body["messages"][-1]["content"])
    made_up = "[[2]]\n[Code_Line] made_up()\n[CWE_ID] CWE-1\n[Description] no\n"
    known = [text for text in asked.split("\n") if text.startswith("    return")]
    first = f"[[1]]\n[Code_Line]{known[0]}\n[CWE_ID] CWE-89\n[Description] yes\n"
    return Say(completion(first + made_up))


def endpoint(folder: Path, url: str) -> str:
    path = folder / "llm.yaml"
    path.write_text(yaml.safe_dump({"base_url": url, "model": "tiny", "retries": 0}))
    return str(path)


def test_a_language_model_s_lines_are_nodes(writer: Path, tmp_path: Path) -> None:
    with ChatServer(answer=lines) as server:
        yaml_path = endpoint(tmp_path, server.url)
        one = game(writer, tmp_path / "run", sources=["llm"], llm=yaml_path, place="statement")
        trees = one.grow(1)
        asked = len(server.requests)
    assert asked == len(trees) == 2
    for tree in trees:
        (node,) = tree.nodes
        assert tree.golden[node.offset :].startswith("return")
        assert (node.source, node.cwe) == ("llm", "CWE-89")
        assert len(tree.branches) == 6
    told = read_json(one.run.path("round-1", "nodes.json"))["llm"]
    assert (told["lines"], told["dropped"], told["nodes"]) == (2, 2, 2)
    assert told["dropped_by"] == {"not found": 2}
    assert (told["requests"], told["prompt_tokens"], told["completion_tokens"]) == (2, 200, 40)
    rows = read_jsonl(one.run.path("round-1", "annotated.jsonl"))
    assert all(row["dropped"] == [["not found", 1]] for row in rows)


def test_an_endpoint_that_is_down_ends_the_run_in_a_sentence_and_is_resumed(
    writer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    down = Say(json.dumps({"error": {"message": "no such model"}}).encode(), 404)
    served = 0

    def answer(request: Request) -> Say:
        nonlocal served
        served += 1
        return down if served == 2 else lines(request)

    with ChatServer(answer=answer) as server:
        yaml_path = endpoint(tmp_path, server.url)
        one = game(writer, out, sources=["llm"], llm=yaml_path)
        with pytest.raises(RunError, match=r"node source llm .* does not answer: HTTP 404"):
            one.grow(1)
        one.close()
        again = game(writer, out, sources=["llm"], llm=yaml_path, resume=True)
        trees = again.grow(1)
        assert served == 3  # the answer that came before was kept
    assert all(tree.nodes for tree in trees)


def test_an_own_trie_is_left_alone(probed: tuple[Game, list[Tree]], tmp_path: Path) -> None:
    """A trie of samples has its nodes, with branches, already."""
    one, trees = probed
    tries = [
        replace(tree, nodes=tuple(replace(n, source="trie") for n in tree.nodes), probes=())
        for tree in trees
    ]
    run = replace(one.run, folder=tmp_path)
    other = Game.__new__(Game)
    other.__dict__.update({**one.__dict__, "run": run})
    kept = treeplay.nodes_learn.learn_nodes(other, one.policy, 1, tries)
    assert [tree_to_json(t) for t in kept if t.nodes] == [tree_to_json(t) for t in tries if t.nodes]
