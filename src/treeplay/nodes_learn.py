"""The stage that finds nodes by asking: the opponent (``probe``) or a language model (``llm``).

annotated.jsonl           what the language model said of each task that was asked about
probing-K.jsonl           level K of the search, as sampled
probed-K.jsonl            the same, judged
planted.jsonl             trees with their nodes, and the rollouts that are branches by now
nodes.json                what was counted
llm-nodes.jsonl           (in the run folder) the language model's answers, kept for later rounds

All tasks' states of one level are sampled in the same batches and judged together. A task is asked
about only while ``nodes.sources`` before leave it fewer than ``nodes.per_task`` nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from treeplay.grow import grow, missing
from treeplay.nodes import LEARNT, Risk, find_nodes
from treeplay.nodes_llm import annotation_from_json, annotation_to_json, load_annotator
from treeplay.nodes_probe import (
    choose,
    path_of,
    probes_of,
    propose,
    reuse,
    risks_of,
    states_of,
    values_of,
    with_states,
)
from treeplay.policy.model import Policy
from treeplay.policy.sample import seed_of
from treeplay.policy.trunks import Kept
from treeplay.run import batches, read_jsonl, staged, write_json, write_jsonl
from treeplay.tasks.notes import place_notes
from treeplay.tasks.task import Task
from treeplay.tree import Tree, tree_from_json, tree_to_json

if TYPE_CHECKING:
    from treeplay.play import Game

ASKED_AT_ONCE = 16  # tasks whose annotations are written down together
Learnt = list[dict[str, list[Risk]]]  # of each tree: source -> risks


def learn_nodes(game: Game, policy: Policy, number: int, trees: list[Tree]) -> list[Tree]:
    """``trees`` (planted, without branches) with the nodes that ``probe`` and ``llm`` find, and
    with the rollouts at nodes as branches. A trie of samples has its nodes already.

    Raises :class:`RunError` where the endpoint of ``llm`` does not answer, :class:`ConfigError`
    where its settings are wrong.
    """
    wanted = [source for source in game.config.nodes.sources if source in LEARNT]
    if not wanted:
        return trees
    player = game.player(number)
    final = game.run.path(player, "planted.jsonl")
    if final.is_file():
        return [tree_from_json(row) for row in read_jsonl(final)]
    golden = [
        replace(task, golden=tree.golden)
        for task, tree in zip(game.tasks_of(trees), trees, strict=True)
    ]
    learnt: Learnt = [{} for _ in trees]
    told: dict[str, Any] = {}
    tried = list(trees)
    for source in wanted:
        room = [
            0 if any(node.source == "trie" for node in tree.nodes) else left
            for tree, left in zip(trees, _room(game, golden, trees, learnt, source), strict=True)
        ]
        if source == "llm":
            told[source] = _annotate(game, number, golden, room, learnt)
        else:
            tried, told[source] = _probe(game, policy, number, golden, trees, room, learnt)
    out = []
    for task, tree, probing, found in zip(golden, trees, tried, learnt, strict=True):
        if found:
            nodes = find_nodes(task, path_of(tree), game.config.nodes, found)
            branches = reuse(nodes, probing) if probing is not tree else ()
            probes = probes_of(probing) if probing is not tree else ()
            tree = replace(tree, nodes=tuple(nodes), branches=branches, probes=probes)
        out.append(tree)
    if "probe" in told:
        told["probe"]["reused"] = sum(len(tree.branches) for tree in out if tree.probes)
    for source in wanted:
        told[source]["nodes"] = sum(n.source == source for tree in out for n in tree.nodes)
        words = ", ".join(f"{k} {v}" for k, v in told[source].items() if v and k != "dropped_by")
        game.reporter.say(f"{player} {source}: {words}")
    bare = sum(not tree.nodes for tree in out)
    if bare:
        game.reporter.say(f"{bare} of {len(out)} training tasks have no risk node")
    write_json(game.run.path(player, "nodes.json"), told)
    write_jsonl(final, [tree_to_json(tree) for tree in out])
    return out


def _room(
    game: Game, tasks: Sequence[Task], trees: Sequence[Tree], learnt: Learnt, source: str
) -> list[int]:
    """How many nodes the sources before ``source`` leave to find, of each task."""
    config = game.config.nodes
    before = replace(config, sources=config.sources[: config.sources.index(source)])
    return [
        config.per_task - len(find_nodes(task, path_of(tree), before, found))
        for task, tree, found in zip(tasks, trees, learnt, strict=True)
    ]


def _annotate(
    game: Game, number: int, tasks: Sequence[Task], room: Sequence[int], learnt: Learnt
) -> dict[str, Any]:
    """Ask the language model; its risks go into ``learnt``."""
    player = game.player(number)
    cache = game.run.path("llm-nodes.jsonl")
    annotator = load_annotator(game.config.nodes.llm, cache, game.reporter.say)
    asked = [i for i in range(len(tasks)) if room[i] > 0]
    groups = [asked[at : at + ASKED_AT_ONCE] for at in range(0, len(asked), ASKED_AT_ONCE)]
    with (
        game.run.timed(f"{player} annotate"),
        game.reporter.stage(f"{player} annotate", len(asked)) as meter,
    ):

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            said = annotator.annotate([tasks[i] for i in group])
            rows = zip(group, said, strict=True)
            return [{"task": tasks[i].id, **annotation_to_json(one)} for i, one in rows]

        rows = staged(game.run.path(player, "annotated.jsonl"), groups, work, meter.reach)
    by_task = {row["task"]: annotation_from_json(row) for row in rows}
    dropped: Counter[str] = Counter()
    lines = failed = 0
    for i in asked:
        one = by_task[tasks[i].id]
        placed = place_notes(replace(tasks[i], notes=one.notes)).placed
        first_cwe = tasks[i].cwe[0] if tasks[i].cwe else None
        learnt[i]["llm"] = [(p.char_start, p.note.cwe or first_cwe) for p in placed]
        lines += len(placed)
        failed += bool(one.failed)
        dropped.update(dict(one.dropped))
    told: dict[str, Any] = {"tasks": len(asked), "lines": lines, "dropped": dropped.total()}
    told |= {"failed": failed, "dropped_by": dict(sorted(dropped.items()))}
    if failed:
        reason, count = Counter(row["failed"] for row in rows if row["failed"]).most_common(1)[0]
        game.reporter.say(f"{player} llm: {failed} tasks without an answer ({count}: {reason})")
    return told | {k: v for k, v in asdict(annotator.usage).items() if v is not None}


def _probe(
    game: Game,
    policy: Policy,
    number: int,
    tasks: Sequence[Task],
    trees: Sequence[Tree],
    room: Sequence[int],
    learnt: Learnt,
) -> tuple[list[Tree], dict[str, Any]]:
    """Search all tasks level by level; risks go into ``learnt``. Returns the probing trees (a tree
    that was not probed is returned as it is) and what was counted."""
    config = game.config.nodes.probe
    completion = game.config.grow.completion
    longest = policy.max_length - game.config.grow.max_tokens
    states = [
        [s for s in states_of(task, tree) if s[0] <= longest] if left > 0 else []
        for task, tree, left in zip(tasks, trees, room, strict=True)
    ]
    found = list(trees)
    for i, tree in enumerate(trees):
        if states[i]:
            found[i] = replace(tree, nodes=(), branches=())
    kept = Kept(game.config.grow.keep_mb)
    level = 0
    while True:
        level += 1
        asked = []
        for i in range(len(trees)):
            values = values_of(probes_of(found[i]), states[i]) if states[i] else {}
            new = propose(values, len(states[i]), room[i], config, completion)
            if new:
                cwe = tasks[i].cwe[0] if tasks[i].cwe else None
                found[i] = with_states(found[i], [states[i][k] for k in new], cwe)
                asked.append(i)
        if not asked:
            break
        done = _level(game, policy, number, level, tasks, [found[i] for i in asked], asked, kept)
        for i, tree in zip(asked, done, strict=True):
            found[i] = tree
    flat = 0
    for i in range(len(trees)):
        if states[i]:
            values = values_of(probes_of(found[i]), states[i])
            best = choose(values, len(states[i]), room[i], config.drop, completion)
            learnt[i]["probe"] = risks_of(best, states[i], tasks[i])
            flat += not best
    some = [tree for tree, own in zip(found, states, strict=True) if own]
    return found, {
        "tasks": len(some),
        "levels": level - 1,
        "states": sum(len(tree.nodes) for tree in some),
        "rollouts": sum(len(tree.branches) for tree in some),
        "sampled_tokens": sum(len(b.ids) for tree in some for b in tree.branches),
        "judged": sum(probe.judged for tree in some for probe in probes_of(tree)),
        "without_a_drop": flat,
    }


def _level(
    game: Game,
    policy: Policy,
    number: int,
    level: int,
    tasks: Sequence[Task],
    trees: list[Tree],
    which: Sequence[int],
    kept: Kept,
) -> list[Tree]:
    """Sample and judge the rollouts that ``trees`` (of the tasks ``which``) lack."""
    player = game.player(number)
    final = game.run.path(player, f"probed-{level}.jsonl")
    if final.is_file():
        return [tree_from_json(row) for row in read_jsonl(final)]
    config = replace(
        game.config.grow, branches=game.config.nodes.probe.rollouts, adaptive=0.0, budget=0
    )
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].prompt_ids))
    rows = [sum(missing(tree, node, config) for node in tree.nodes) for tree in trees]
    seed = seed_of("probe", game.config.seed * 1000 + number)
    own = [tasks[i] for i in which]
    title = f"{player} probe level {level}"
    with game.run.timed(f"{player} probe"), game.reporter.stage(title, len(trees)) as meter:

        def work(group: Sequence[int]) -> list[dict[str, Any]]:
            asked = [own[i] for i in group]
            some = [trees[i] for i in group]
            made = grow(policy, asked, some, config, seed, meter.sampled, kept)
            game.judge.judge_ahead(_unjudged(asked, made))
            return [tree_to_json(tree) for tree in made]

        path = game.run.path(player, f"probing-{level}.jsonl")
        sampled = staged(path, batches(order, rows, config.rows_at_once), work, meter.reach)
    by_task = {row["task"]: tree_from_json(row) for row in sampled}
    grown = [by_task[tree.task] for tree in trees]
    items = _unjudged(own, grown)
    with (
        game.run.timed(f"{player} probe judge"),
        game.reporter.stage(f"{player} judge probe level {level}", len(items)) as meter,
    ):
        verdicts = iter(game.judge.judge_many(items, meter.reach))
    judged = [
        replace(
            tree,
            branches=tuple(
                branch if branch.verdict else replace(branch, verdict=next(verdicts))
                for branch in tree.branches
            ),
        )
        for tree in grown
    ]
    write_jsonl(final, [tree_to_json(tree) for tree in judged])
    return judged


def _unjudged(tasks: Sequence[Task], trees: Sequence[Tree]) -> list[tuple[Task, str]]:
    return [
        (task, branch.answer)
        for task, tree in zip(tasks, trees, strict=True)
        for branch in tree.branches
        if branch.verdict is None
    ]
