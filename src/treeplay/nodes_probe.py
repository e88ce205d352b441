"""Node source ``probe``: rollouts of the opponent show which statement decides.

State ``i`` is the golden path up to the start of its statement ``i`` (of the answer's own level).
V(i) is the share of the judged rollouts from there that end vulnerable; behind the last statement
it is 0, since the golden answer is secure. A rollout is a branch as :mod:`treeplay.grow` samples
and completes it, so rollouts at states that become nodes are kept as branches.

Where the opponent writes on to the end (``grow.completion`` ``model``), golden statement ``i``
changes the value by V(i) - V(i+1), and these differences add up: whatever stands between two states
of values u and v is worth u - v. So stretches are halved, the widest difference first. Where V
never rises, the search ends with exactly the greatest drops, with some log2(statements) states for
each; elsewhere it ends with a statement whose difference is at least the mean one, |V(0)| / n.

With ``graft``, golden code follows the rollout's own statement, so V(i+1) after the golden one is 0
whatever comes later: a state's value is the whole difference, its neighbours' say nothing of it,
and there is nothing to halve. States are then spread evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from treeplay.nodes import ProbeConfig, Risk, boundary
from treeplay.policy.model import TokenPath
from treeplay.tasks.answer import statement_ends
from treeplay.tasks.task import Task
from treeplay.tree import Branch, Completion, Node, Probe, Tree

State = tuple[int, int]  # (token position, character offset) on the golden path
Values = Mapping[int, float | None]  # of the states tried so far; None: nothing could be judged


def path_of(tree: Tree) -> TokenPath:
    """The tree's golden path in the form that :mod:`treeplay.nodes` reads."""
    count = len(tree.prompt_ids)
    return TokenPath(tree.path(None), count, (-1,) * count + tree.golden_starts)


def states_of(task: Task, tree: Tree) -> list[State]:
    """The states before each statement of the golden answer, in order, one a token position."""
    path = path_of(tree)
    states: dict[int, int] = {}
    start = 0
    for end in statement_ends(task, tree.golden):
        text = tree.golden[start:end]
        if text.strip():
            position = boundary(path, start + len(text) - len(text.lstrip()))
            if 1 <= position < len(path.ids):
                states.setdefault(position, path.starts[position])
        start = end
    return sorted(states.items())


def propose(
    values: Values, count: int, wanted: int, config: ProbeConfig, completion: Completion
) -> list[int]:
    """Which of ``count`` states to try next, in order; none where the search is over.

    ``values``: what is known of the states tried so far. ``wanted``: how many nodes are looked
    for. The search ends when no stretch can hide a difference that is greater than the ``wanted``
    greatest found, or than ``config.drop``, or after ``config.states`` states.
    """
    left = min(config.states, count) - len(values)
    if left <= 0:
        return []
    if completion == "graft":
        return _spread(count, left) if not values else []
    if not values:
        return [0]
    found: list[float] = []
    stretches: list[tuple[float, int, int]] = []
    for low, high, bound in _stretches(values, count):
        free = [i for i in range(low, high) if i not in values]
        if free:
            middle = min(free, key=lambda i: (abs(2 * i - low - high), i))
            stretches.append((-bound, low - high, middle))
        elif values.get(low) is not None:  # from a state without a judged rollout nothing is found
            found.append(bound)
    found.sort(reverse=True)
    enough = found[wanted - 1] if len(found) >= wanted else 0.0
    hidden = sorted(s for s in stretches if -s[0] > enough and -s[0] >= config.drop)
    return sorted(middle for _, _, middle in hidden[: min(config.spans, left)])


def choose(
    values: Values, count: int, wanted: int, drop: float, completion: Completion
) -> list[tuple[int, float]]:
    """At most ``wanted`` (state, difference) of at least ``drop``, the greatest first.

    The difference is V(state) - V(the next state tried); the state is that of the higher value,
    since only there the opponent makes mistakes: a statement that drops the value gives the state
    before it (a positive difference), one that raises it the state behind it (a negative one).
    """
    known = [(i, value) for i, value in sorted(values.items()) if value is not None]
    if completion == "graft":
        found = [(-value, 1, i, value) for i, value in known]
    else:
        # Of equal differences, that of fewer statements is known better.
        found = [
            (-abs(here - there), j - i, i if here >= there else j, here - there)
            for (i, here), (j, there) in pairwise([*known, (count, 0.0)])
        ]
    best: dict[int, float] = {}
    for size, _, state, change in sorted(found):
        if size and -size >= drop:
            best.setdefault(state, change)
    return list(best.items())[:wanted]


def _stretches(values: Values, count: int) -> list[tuple[int, int, float]]:
    """(first state, state behind it, bound of its difference) between states of known value."""
    known = {i: value for i, value in values.items() if value is not None}
    first: dict[int, float | None] = {} if 0 in known else {0: None}
    points = sorted({**first, **known, count: 0.0}.items())
    out = []
    for (low, here), (high, there) in pairwise(points):
        unknown = here is None or there is None
        out.append((low, high, 1.0 if unknown else abs((here or 0.0) - (there or 0.0))))
    return out


def _spread(count: int, left: int) -> list[int]:
    """``left`` of ``count`` states, evenly spaced, the first among them."""
    return sorted({i * count // left for i in range(left)})


# Probing trees: a tree whose nodes are the states tried so far, in the order they were tried.


def with_states(tree: Tree, states: Sequence[State], cwe: str | None) -> Tree:
    """``tree`` with a node at each of ``states``."""
    first = len(tree.nodes)
    new = [Node(first + i, None, at, offset, "probe", cwe) for i, (at, offset) in enumerate(states)]
    return replace(tree, nodes=(*tree.nodes, *new))


def probes_of(tree: Tree) -> tuple[Probe, ...]:
    """What the rollouts of a probing tree came to, in token order."""
    out = []
    for node in tree.nodes:
        labels = [b.verdict.label for b in tree.branches if b.node == node.id and b.verdict]
        bad = labels.count("vulnerable")
        out.append(Probe(node.position, node.offset, bad + labels.count("secure"), bad))
    return tuple(sorted(out, key=lambda probe: probe.position))


def values_of(probes: Sequence[Probe], states: Sequence[State]) -> dict[int, float | None]:
    """The values of the states that were tried."""
    place = {position: i for i, (position, _) in enumerate(states)}
    return {place[p.position]: p.value for p in probes}


def risks_of(
    chosen: Sequence[tuple[int, float]], states: Sequence[State], task: Task
) -> list[Risk]:
    """The chosen states as what :func:`treeplay.nodes.find_nodes` takes."""
    return [(states[i][1], task.cwe[0] if task.cwe else None) for i, _ in chosen]


def reuse(nodes: Sequence[Node], tree: Tree) -> tuple[Branch, ...]:
    """The rollouts of a probing tree at the positions of ``nodes``, as branches of these."""
    tried = {node.position: node.id for node in tree.nodes}
    out: list[Branch] = []
    for node in nodes:
        for branch in tree.branches:
            if node.branch is None and branch.node == tried.get(node.position):
                out.append(replace(branch, id=len(out), node=node.id))
    return tuple(out)
