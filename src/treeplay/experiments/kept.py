"""Results that are there already: are they what the plan would make?"""

from __future__ import annotations

from typing import Any

from treeplay.errors import ModelError
from treeplay.experiments.budget import other_rule
from treeplay.experiments.plan import Plan, plan_digest
from treeplay.policy.model import locate


def weights_here(plan: Plan) -> str:
    """The identity of the plan's model; nothing where it is not here. Reads all weights."""
    try:
        return locate(plan.model, _revision(plan))[2]
    except ModelError:
        return ""


def _revision(plan: Plan) -> str:
    """``model.revision`` as the command line has it."""
    given = [one.partition("=") for one in plan.overrides]
    return next((value for key, _, value in reversed(given) if key == "model.revision"), "")


def made_with_other(plan: Plan, arm: str, seed: int, told: dict[str, Any], model: str) -> str:
    """What a result was made with that is not the plan's, in words; nothing where it is the same.
    ``model``: see :func:`weights_here`; without, models are not compared."""
    if told["digest"] != plan_digest(plan, arm, seed):
        return "other settings or data"
    if any(other_rule(plan, cell, told) for cell in plan.cells(arm, seed)):
        return "other budgets of tokens"
    if not model:
        return ""
    names = [run["run"]["identities"]["base"].partition("+")[0] for run in told["runs"]]
    return next((f"another model ({name}, not {model})" for name in names if name != model), "")
