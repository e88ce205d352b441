"""Equal budgets: what an arm of an experiment is given of the tokens that the reference took."""

from __future__ import annotations

from typing import Any

from treeplay.experiments.plan import BASE, Cell, Plan
from treeplay.play_grow import UNJUDGED
from treeplay.run import read_json

# More branches a node than any budget has room for.
MANY = 1000
# What an arm is given of the reference's tokens.
BUDGETS = ("train.budget", "grow.budget", "grow.branches", "grow.wave", "grpo.budget")


def budget_of(plan: Plan, cell: Cell) -> tuple[str, ...]:
    """Settings that give an arm the tokens that the reference took, as far as these are known:
    as many gradient tokens, and for methods that judge no branch, and so may sample for nothing,
    as many sampled ones."""
    if cell.arm in (BASE, plan.protocol.reference):
        return ()
    path = plan.result(plan.protocol.reference, cell.seed)
    if not path.is_file() or plan.size == "smoke":
        return ()
    runs = [run for run in read_json(path)["runs"] if run["fold"] == cell.fold]
    if not runs:
        return ()
    spent, config = runs[0]["used"], plan.config(cell)
    arm = plan.recipe(cell)
    out = []
    if arm.get("train", {}).get("budget", 0) in (0, _common_budget(plan)):
        out.append(f"train.budget={max(1, spent['gradient'] // config.rounds)}")
    if config.method in UNJUDGED and "branches" not in arm.get("grow", {}):
        sampled = max(1, spent["sampled"] // config.rounds)
        out += [f"grow.budget={sampled}", f"grow.branches={MANY}", "grow.wave=1"]
    if config.method == "grpo":
        out.append(f"grpo.budget={max(1, spent['sampled'] // config.rounds)}")
    return tuple(out)


def other_rule(plan: Plan, cell: Cell, old: dict[str, Any]) -> bool:
    """Whether a result's run was given its tokens by another rule than :func:`budget_of`'s: other
    settings. (An arm may have been played, or is asked about, without the reference.)"""
    given = [run["budget"] for run in old["runs"] if run["fold"] == cell.fold]
    now = budget_of(plan, cell)
    if not now or not given or not given[0]:
        return False
    return {one.partition("=")[0] for one in now} != {one.partition("=")[0] for one in given[0]}


def _common_budget(plan: Plan) -> int:
    """``train.budget`` as the protocol gives it to all arms."""
    layers = (plan.protocol.settings, plan.protocol.sizes.get(plan.size, {}))
    return max((int(layer.get("train", {}).get("budget", 0)) for layer in layers), default=0)
