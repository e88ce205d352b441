"""The trie of a model's own samples as a tree: where accepted and vulnerable ones part.

Samples of one task begin with the same prompt, so together they are a trie of token ids. Its golden
path is an accepted answer. A vulnerable sample parts from it at one token, and that is a risk node
(source ``trie``): the rest of the sample is a branch there, with the log-probs it was sampled with.
Vulnerable samples that keep longer to another accepted one part from that one instead, on a branch
of the tree. Nothing is sampled for any of this, and nothing is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from treeplay.tree import Branch, Node, Tree


@dataclass(frozen=True)
class Path:
    """A whole answer behind a prompt: ``ids``, their character offsets ``starts`` in ``text``, and
    whether the token budget ``cut`` it off (golden paths never are)."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    text: str
    cut: bool = False


def accepted(branch: Branch) -> bool:
    """Whether judge and tests accept an answer, and its end was seen."""
    verdict = branch.verdict
    secure = verdict is not None and verdict.label == "secure" and verdict.functional is not False
    return secure and branch.ended != "length"


def vulnerable(branch: Branch) -> bool:
    return branch.verdict is not None and branch.verdict.label == "vulnerable"


def _judged(samples: Sequence[Branch]) -> tuple[int, int]:
    """How many were found secure or vulnerable, and how many vulnerable."""
    labels = [sample.verdict.label for sample in samples if sample.verdict]
    bad = labels.count("vulnerable")
    return bad + labels.count("secure"), bad


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def nearest(good: Iterable[Branch], bad: Sequence[Branch]) -> Branch:
    """Of ``good``, the one that parts latest from ``bad`` (the sum of shared tokens), so that what
    differs is the decision and little else; of equals the likeliest, then the first."""

    def merit(branch: Branch) -> tuple[int, float, int]:
        likely = sum(branch.logps) / len(branch.logps) if branch.logps else 0.0
        return sum(shared(branch.ids, other.ids) for other in bad), likely, -branch.id

    return max(good, key=merit)


def path_of(branch: Branch) -> Path:
    """A whole answer as a path: its own tokens up to the end of the answer; a last token
    that holds more than white space of what follows the answer is left out."""
    solid, end = len(branch.answer.rstrip()), len(branch.answer)
    ends = (*branch.starts[1:], len(branch.text))
    count = 0
    for number, (start, stop) in enumerate(zip(branch.starts, ends, strict=True), start=1):
        if start < solid or start < stop <= end:
            count = number
    return Path(branch.ids[:count], branch.starts[:count], branch.answer, branch.ended == "length")


def mistake(tree: Tree) -> Path | None:
    """Of the vulnerable samples in a tree made by :func:`trie`, the whole answer that keeps longest
    to its golden path; None where there is none."""
    best, found = -1, None
    for branch in tree.branches:
        if tree.nodes[branch.node].source == "trie" and vulnerable(branch):
            left, whole = _whole(tree, branch)
            if left > best:
                best, found = left, whole
    return path_of(found) if found else None


def _whole(tree: Tree, branch: Branch) -> tuple[int, Branch]:
    """Where a branch's path leaves the golden one, and the branch from the prompt's end on."""
    node = tree.nodes[branch.node]
    at = node.position - len(tree.prompt_ids)
    if node.branch is None:
        left, ids, starts, text = at, tree.golden_ids, tree.golden_starts, tree.golden
    else:
        left, above = _whole(tree, tree.branches[node.branch])
        ids, starts, text = above.ids, above.starts, above.text
    return left, replace(
        branch,
        ids=ids[:at] + branch.ids,
        starts=starts[:at] + branch.starts,
        text=text[: node.offset] + branch.text,
    )


def trie(samples: Tree, golden: Path) -> Tree:
    """The tree of ``samples`` (a tree whose only node is the root) with ``golden`` as its path.

    Kept are samples that part from the golden path where a vulnerable one does too. The path of
    each branch is a sample, token for token; an accepted sample that others part from later has its
    rest once more as a branch there, because it is what to prefer at that node.
    """
    bare = replace(
        samples,
        golden_ids=golden.ids,
        golden_starts=golden.starts,
        golden=golden.text,
        nodes=(),
        branches=(),
    )
    made = _Trie(len(samples.prompt_ids), [], [])
    made.hang(None, golden.ids, golden.starts, 0, list(samples.branches))
    return replace(bare, nodes=tuple(made.nodes), branches=tuple(made.branches))


@dataclass
class _Trie:
    """Nodes and branches as they come; positions of samples count from the prompt's end."""

    prompt: int
    nodes: list[Node]
    branches: list[Branch]

    def hang(
        self,
        trunk: int | None,
        ids: Sequence[int],
        starts: Sequence[int],
        behind: int,
        samples: Sequence[Branch],
        leader: Branch | None = None,
    ) -> list[Branch]:
        """Hang ``samples`` on the path ``ids`` of branch ``trunk``, where they part from it behind
        position ``behind``. Returns those that were not hung: no vulnerable one parts there."""
        groups: dict[int, list[Branch]] = {}
        left: list[Branch] = []
        for sample in samples:
            at = shared(ids, sample.ids)
            if behind <= at < min(len(ids), len(sample.ids)):
                groups.setdefault(at, []).append(sample)
            else:  # it is the path itself, as far as that goes
                left.append(sample)
        for at in sorted(groups):
            group = groups[at]
            bad = [sample for sample in group if vulnerable(sample)]
            if not bad:
                left += group
                continue
            found = bad[0].verdict.findings if bad[0].verdict else ()
            cwe = found[0].cwe if found else None
            every = [*samples, leader] if leader else samples
            passed, stayed = (
                _judged([sample for sample in every if shared(ids, sample.ids) >= least])
                for least in (at, at + 1)
            )
            number, position = len(self.nodes), self.prompt + at
            node = Node(number, trunk, position, starts[at], "trie", cwe, passed, stayed)
            self.nodes.append(node)
            if leader is not None:
                self.branch(node, leader, at)
            self.fork(node, at, group)
        return left

    def fork(self, node: Node, at: int, group: Sequence[Branch]) -> None:
        """Branches at ``node`` for samples that all left its path there."""
        classes: dict[int, list[Branch]] = {}
        for sample in group:
            classes.setdefault(sample.ids[at], []).append(sample)
        for same in classes.values():
            good = [sample for sample in same if accepted(sample)]
            bad = [sample for sample in same if vulnerable(sample)]
            rest: Sequence[Branch] = same
            if good and bad:
                leader = nearest(good, bad)
                number = self.branch(node, leader, at)
                others = [sample for sample in same if sample is not leader]
                rest = self.hang(number, leader.ids, leader.starts, at + 1, others, leader)
            for sample in rest:
                self.branch(node, sample, at)

    def branch(self, node: Node, sample: Branch, at: int) -> int:
        """The rest of ``sample`` as a branch of ``node``; returns the branch's id."""
        number = len(self.branches)
        self.branches.append(
            replace(
                sample,
                id=number,
                node=node.id,
                ids=sample.ids[at:],
                logps=sample.logps[at:],
                starts=sample.starts[at:],
                text=sample.text[sample.starts[at] :],
            )
        )
        return number
