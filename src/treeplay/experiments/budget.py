"""Equal budgets: what an arm of an experiment is given of the tokens that the reference took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treeplay.errors import ConfigError
from treeplay.experiments.plan import BASE, Cell, Plan, plan_digest
from treeplay.play_grow import UNJUDGED
from treeplay.run import read_json

# More branches a node than any budget has room for.
MANY = 1000
# How far what an arm was given may be from what the reference took by now, played again.
NEAR = 0.1
# What an arm is given of the reference's tokens.
BUDGETS = ("train.budget", "grow.budget", "grow.branches", "grow.wave", "grpo.budget")


def budget_of(plan: Plan, cell: Cell) -> tuple[str, ...]:
    """Settings that give an arm the tokens that the reference took, as far as these are known:
    as many gradient tokens, and for methods that judge no branch, and so may sample for nothing,
    as many sampled ones. Raises :class:`ConfigError` for a result of the reference that is not of
    this plan."""
    if cell.arm in (BASE, plan.protocol.reference):
        return ()
    path = plan.result(plan.protocol.reference, cell.seed)
    if not path.is_file() or plan.size == "smoke":
        return ()
    told = read_json(path)
    runs = [run for run in told["runs"] if run["fold"] == cell.fold]
    if not runs:
        return ()
    if told["digest"] != plan_digest(plan, plan.protocol.reference, cell.seed):
        if told["faults"]:  # it will be played again
            return ()
        raise ConfigError(
            f"{path}, whose tokens are the budget of {cell.arm}, was made with other settings or "
            "data; remove it and play it again, or choose another folder with --results"
        )
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
    settings, or far from as many. (Where the reference has no result, nothing is known of it.)"""
    given = [run["budget"] for run in old["runs"] if run["fold"] == cell.fold]
    now = budget_of(plan, cell)
    if not now or not given:
        return False
    ours, theirs = _tokens(now), _tokens(given[0])
    return ours.keys() != theirs.keys() or any(
        abs(theirs[key] - number) > NEAR * number for key, number in ours.items()
    )


def _tokens(budget: Sequence[str]) -> dict[str, int]:
    return {key: int(number) for key, _, number in (one.partition("=") for one in budget)}


def _common_budget(plan: Plan) -> int:
    """``train.budget`` as the protocol gives it to all arms."""
    layers = (plan.protocol.settings, plan.protocol.sizes.get(plan.size, {}))
    return max((int(layer.get("train", {}).get("budget", 0)) for layer in layers), default=0)
