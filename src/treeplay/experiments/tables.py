"""Markdown tables of one study, made from counts alone. Rates are percent, differences points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from treeplay.experiments.cells import estimate_cell, folded, p_cell, table_head, table_line
from treeplay.experiments.facts import costs, failed, made_by, noted
from treeplay.experiments.plan import BASE
from treeplay.experiments.results import MEASURES, Group, Study
from treeplay.experiments.stats import difference, estimate, holm, p_no_difference, ratio

HEADINGS = {
    "spr1_all": "SPR@1",
    "spr1_valid": "SPR@1 of valid",
    "vulnerable": "vulnerable",
    "valid": "valid",
    "inert": "inert",
    "unknown": "unknown",
    "cut": "cut off",
    "tokens": "tokens",
    "pass1": "pass@1",
    "secure_pass1": "secure-pass@1",
}
WITH_INTERVAL = ("spr1_all", "spr1_valid", "vulnerable", "secure_pass1")


def study_tables(study: Study) -> list[str]:
    """The lines of a study's page: what methods are compared on, and, folded away, the
    comparisons, tasks apart by source and CWE, and every suite by itself."""
    out = made_by(study)
    main = study.main_groups()
    for group in main:
        out += ["", *rates_table(study, group)]
    if study.seeds(BASE):
        out += ["", *folded("Every arm against the base model", _against_base(study, main))]
    out += ["", *_comparisons(study)]
    if parts := study.parts():
        title = "Tasks apart, by source and by whether training had their CWE"
        out += ["", *folded(title, _apart(study, parts))]
    if suites := [group for group in study.groups() if group not in main]:
        out += ["", *folded("Every suite by itself", _all_rates(study, suites))]
    for some in (costs(study), noted(study), failed(study)):
        out += ["", *some] if some else []
    return out


def _all_rates(study: Study, groups: Sequence[Group]) -> list[str]:
    return [line for group in groups for line in ("", *rates_table(study, group))][1:]


def rates_table(study: Study, group: Group) -> list[str]:
    """One group: every arm's SPR@1 and, beside it, all by which it could have been bought."""
    shown = [
        measure
        for measure in MEASURES
        if any(
            estimate(study.values(arm, group, measure), resamples=1).value is not None
            for arm in study.arms
        )
    ]
    heads = ["arm", *(HEADINGS[measure] for measure in shown)]
    clusters = len(set(group.clusters))
    few = f", {clusters} clusters" if clusters < len(group.keys) else ""
    out = [f"**{group.name}** ({len(group.keys)} tasks{few})", "", *table_head(heads)]
    for arm in study.arms:
        if not study.seeds(arm):
            continue
        there = int((~np.isnan(study.values(arm, group, "valid"))).any(axis=0).sum())
        cells = [f"`{arm}`{study.fewer(study.seeds(arm))}{group.fewer(there)}"]
        for measure in shown:
            found = estimate(study.values(arm, group, measure), group.clusters)
            scale = 1 if measure == "tokens" else 100
            cells.append(estimate_cell(found, scale, interval=measure in WITH_INTERVAL))
            if measure == "spr1_valid" and 0 < found.tasks < there:  # others have no valid answer
                cells[-1] += f", {found.tasks} tasks"
        out.append(table_line(cells))
    return out


def _comparisons(study: Study) -> list[str]:
    """Arms of which something is claimed against every other on the main groups; p-values
    corrected by Holm over all of these comparisons."""
    rows: list[list[str]] = []
    p_values: list[float] = []
    for group in study.main_groups():
        for mine, other in _pairs(study):
            seeds = study.together(mine, other)
            ours = study.values(mine, group, "spr1_all", seeds)
            theirs = study.values(other, group, "spr1_all", seeds)
            p_value = p_no_difference(ours, theirs, group.clusters)
            if p_value is None:
                continue
            p_values.append(p_value)
            rows.append(
                [
                    _shared(study, group, mine, other),
                    f"`{mine}`",
                    f"`{other}`{study.fewer(seeds)}",
                    estimate_cell(difference(ours, theirs, group.clusters), 100, sign=True),
                    estimate_cell(ratio(ours, theirs, group.clusters), 1, digits=2),
                    p_cell(p_value),
                    *(
                        _change(study, mine, other, group, measure)
                        for measure in ("vulnerable", "secure_pass1", "spr1_valid")
                    ),
                ]
            )
    if not rows:
        claims = ", ".join(f"`{arm}`" for arm in study.claims)
        return [f"There are no results of {claims} and of another arm, so nothing is compared."]
    heads = ["tasks", "arm", "against", "SPR@1", "SPR@1, ratio", "p", "p (Holm)"]
    heads += ["vulnerable", "secure-pass@1", "SPR@1 of valid"]
    out = [
        "Paired by task and seed (p-values of SPR@1 by sign flips, with several seeds no "
        "smaller than with seeds drawn at random too; Holm's correction over "
        f"these {len(rows)} comparisons; SPR@1 of valid over tasks where both have some):",
        "",
        *table_head(heads),
    ]
    for row, corrected in zip(rows, holm(p_values), strict=True):
        out.append(table_line([*row[:6], p_cell(corrected), *row[6:]]))
    claimed = " and ".join(f"<code>{arm}</code>" for arm in study.claims if study.seeds(arm))
    return folded(f"{claimed} against every other arm", out)


def _pairs(study: Study) -> list[tuple[str, str]]:
    """(arm of which something is claimed, another), each pair with seeds in common once."""
    claims = [arm for arm in study.claims if study.seeds(arm)]
    return [
        (mine, other)
        for number, mine in enumerate(claims)
        for other in study.arms
        if other != mine and other not in claims[:number] and study.together(mine, other)
    ]


def _apart(study: Study, parts: Sequence[Group]) -> list[str]:
    """Where a gain is: on tasks of the pack that most training tasks are of or beyond it, on
    weaknesses that training had or on others."""
    measures = ("spr1_all", "vulnerable", "valid", "pass1")
    out = _all_rates(study, parts)
    if study.seeds(BASE):
        out += ["", "Against the base model:", "", *_against_base(study, parts)]
    heads = ["tasks", "arm", "against", *(HEADINGS[measure] for measure in measures)]
    pairs = [(mine, other) for mine, other in _pairs(study) if other != BASE]
    if pairs:
        out += ["", "Against the others (intervals alone):", "", *table_head(heads)]
    for group in parts:
        for mine, other in pairs:
            names = [
                _shared(study, group, mine, other),
                f"`{mine}`",
                f"`{other}`{study.fewer(study.together(mine, other))}",
            ]
            changes = [_change(study, mine, other, group, measure) for measure in measures]
            out.append(table_line([*names, *changes]))
    return out


def _against_base(study: Study, groups: Sequence[Group]) -> list[str]:
    """What every arm changed, and at what price."""
    measures = ("spr1_all", "vulnerable", "valid", "inert", "pass1", "secure_pass1")
    heads = ["tasks", "arm", *(HEADINGS[measure] for measure in measures), "vulnerable, ratio"]
    out = table_head(heads)
    for group in groups:
        for arm in study.arms:
            seeds = study.together(arm, BASE)
            if arm == BASE or not seeds:
                continue
            bad = [study.values(one, group, "vulnerable", seeds) for one in (arm, BASE)]
            cells = [_shared(study, group, arm, BASE), f"`{arm}`{study.fewer(seeds)}"]
            cells += [_change(study, arm, BASE, group, measure) for measure in measures]
            out.append(
                table_line(
                    [*cells, estimate_cell(ratio(bad[0], bad[1], group.clusters), 1, digits=2)]
                )
            )
    return out


def _shared(study: Study, group: Group, arm: str, against: str) -> str:
    """The group's name, and how many of its tasks both arms have where that is not all."""
    seeds = study.together(arm, against)
    both = study.values(arm, group, "valid", seeds) - study.values(against, group, "valid", seeds)
    return group.name + group.fewer(int((~np.isnan(both)).any(axis=0).sum()))


def _change(study: Study, arm: str, against: str, group: Group, measure: str) -> str:
    seeds = study.together(arm, against)
    mine = study.values(arm, group, measure, seeds)
    theirs = study.values(against, group, measure, seeds)
    return estimate_cell(difference(mine, theirs, group.clusters), 100, sign=True)
