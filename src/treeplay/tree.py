"""A task's tree: the golden path, the risk nodes on it, and the branches that leave them.

A branch stores only the tokens it adds; :meth:`Tree.prefix` walks up to get the rest. Token ids
are what was tokenised or sampled, never re-tokenised. Every character offset is in the *answer*
that the path spells (see :mod:`treeplay.tasks.task`), so 0 is the end of the prompt.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from treeplay.judge.verdict import Verdict, verdict_from_json, verdict_to_json

Source = Literal["root", "annotated", "diff", "sink", "probe", "llm", "trie", "late"]
Completion = Literal["model", "graft"]


@dataclass(frozen=True)
class Node:
    """A risk node: the next token is where it may go wrong.

    ``branch`` is the id of the branch the node sits on, ``None`` for the golden path. ``position``
    counts tokens of that path from its very beginning; ``offset`` is the character offset of the
    first token behind the node. ``source`` says who put it there (``late``: a branch went wrong
    later than in its first statement). ``passed``, of a trie's node: of the samples that came by,
    how many were judged (secure or vulnerable), and how many of these vulnerable; ``stayed``: the
    same of those that took the next token of the node's own path.
    """

    id: int
    branch: int | None
    position: int
    offset: int
    source: Source
    cwe: str | None
    passed: tuple[int, int] | None = None
    stayed: tuple[int, int] | None = None


@dataclass(frozen=True)
class Branch:
    """One continuation the opponent sampled at a node.

    ``ids`` and ``logps`` (raw opponent log-probs) are as sampled; ``starts`` are the character
    offsets at which the tokens begin. ``text`` is what the tokens spell; ``answer`` is the whole
    answer that was judged, from the end of the prompt on, completed as ``completion`` says.
    ``ended``: the answer's end was seen, the model closed the text, or the token budget ran out.
    ``opponent`` is the player that sampled it.
    """

    id: int
    node: int
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    starts: tuple[int, ...]
    text: str
    answer: str
    completion: Completion
    ended: Literal["answer", "eos", "length"]
    verdict: Verdict | None = None
    opponent: str = ""


@dataclass(frozen=True)
class Probe:
    """What rollouts from a state of the golden path came to: of ``judged`` ones (secure or
    vulnerable), ``vulnerable`` ended so. ``position`` and ``offset`` are as a node's."""

    position: int
    offset: int
    judged: int
    vulnerable: int

    @property
    def value(self) -> float | None:
        """V(state), the share that ends vulnerable; None where none could be judged."""
        return self.vulnerable / self.judged if self.judged else None


@dataclass(frozen=True)
class Tree:
    """``prompt_ids`` then ``golden_ids`` is the golden path; ``golden`` its text (the answer), in
    which token ``i`` of ``golden_ids`` begins at ``golden_starts[i]``. ``probes``: states of the
    golden path that were tried out while nodes were looked for."""

    task: str
    prompt_ids: tuple[int, ...]
    golden_ids: tuple[int, ...]
    golden_starts: tuple[int, ...]
    golden: str
    nodes: tuple[Node, ...]
    branches: tuple[Branch, ...]
    probes: tuple[Probe, ...] = ()

    def prefix(self, node: Node) -> tuple[int, ...]:
        """Token ids from the beginning up to the node."""
        return self.path(node.branch)[: node.position]

    def path(self, branch: int | None) -> tuple[int, ...]:
        """Token ids of the golden path, or of a branch from the very beginning."""
        if branch is None:
            return self.prompt_ids + self.golden_ids
        leaf = self.branches[branch]
        return self.prefix(self.nodes[leaf.node]) + leaf.ids


_OF_TRIES = {"passed", "stayed"}  # fields that other nodes do not have


def tree_to_json(tree: Tree) -> dict[str, Any]:
    """The one on-disk form of a tree (a line of ``trees.jsonl``)."""
    data = asdict(tree)
    data["nodes"] = [{k: v for k, v in n.items() if k not in _OF_TRIES or v} for n in data["nodes"]]
    for branch, row in zip(tree.branches, data["branches"], strict=True):
        row["verdict"] = verdict_to_json(branch.verdict) if branch.verdict else None
        row["logps"] = [round(logp, 6) for logp in branch.logps]
    return data


def _node_from_json(data: dict[str, Any]) -> Node:
    for key in _OF_TRIES & data.keys():
        data = data | {key: tuple(data[key])}
    return Node(**data)


def tree_from_json(data: dict[str, Any]) -> Tree:
    nodes = tuple(_node_from_json(node) for node in data["nodes"])
    branches = tuple(
        Branch(
            **{
                **row,
                "ids": tuple(row["ids"]),
                "logps": tuple(row["logps"]),
                "starts": tuple(row["starts"]),
                "verdict": verdict_from_json(row["verdict"]) if row["verdict"] else None,
            }
        )
        for row in data["branches"]
    )
    return Tree(
        data["task"],
        tuple(data["prompt_ids"]),
        tuple(data["golden_ids"]),
        tuple(data["golden_starts"]),
        data["golden"],
        nodes,
        branches,
        tuple(Probe(**probe) for probe in data.get("probes", ())),
    )
