"""Markdown tables of one study, made from counts alone. Rates are percent, differences points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from treeplay.experiments.plan import BASE
from treeplay.experiments.results import MEASURES, Group, Study
from treeplay.experiments.stats import Estimate, difference, estimate, holm, p_no_difference, ratio
from treeplay.play_grow import UNJUDGED

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
MINUS = "\u2212"
# Beyond this share of the reference's tokens a run's own are told as another budget. A budget ends
# with a whole step or wave of branches.
FAR = 0.25
WITH_INTERVAL = ("spr1_all", "spr1_valid", "vulnerable", "secure_pass1")


def study_tables(study: Study) -> list[str]:
    """The lines of a study's section below its heading: what methods are compared on, and, folded
    away, the comparisons and every suite by itself."""
    out = _facts(study)
    main = study.main_groups()
    for group in main:
        out += ["", *_rates(study, group)]
    if study.seeds(BASE):
        out += ["", *folded("Every arm against the base model", _against_base(study))]
    out += ["", *_comparisons(study)]
    if suites := [group for group in study.groups() if group not in main]:
        lines = [line for group in suites for line in ("", *_rates(study, group))]
        out += ["", *folded("Every suite by itself", lines[1:])]
    out += ["", *_costs(study)]
    for some in (_noted(study), _faults(study)):
        out += ["", *some] if some else []
    return out


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """``lines`` below a title that opens them; Markdown stands between empty lines there."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>"]


def _facts(study: Study) -> list[str]:
    first = next(told for seeds in study.told.values() for told in seeds.values())
    seeds = sorted({seed for arm in study.arms for seed in study.seeds(arm)})
    runs = [run for seeds in study.told.values() for t in seeds.values() for run in t["runs"]]
    versions = runs[0]["run"]["versions"] if runs else {}
    codes = _codes_of(study)
    shared = {
        (suite, one["task"])
        for data in first["data"]
        for suite, some in data["contamination"].items()
        for one in some
    }
    trained = [sum(data["train"].values()) for data in first["data"]]
    sizes = sorted({t["size"] for some in study.told.values() for t in some.values()})
    model = runs[0]["run"].get("model", study.model) if runs else study.model
    command = f"treeplay experiment {study.protocol} --data DIR --model {model}"
    command += f" --size {sizes[0]} --seeds {','.join(map(str, seeds))}"
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [
        f"Trained on {' / '.join(map(str, trained))} tasks; {len(seeds)} "
        f"seed{'s' * (len(seeds) != 1)}; evaluation tasks that share a tenth of their 13-grams "
        f"with training: {len(shared)}.",
        f"Code {', '.join(codes) if len(codes) == 1 else f'of {len(codes)} digests'}; {named}.",
        "",
        "```",
        *_commands(study, command),
        "```",
        *(["", *folded("The code of each arm", _codes_table(codes))] if len(codes) > 1 else []),
    ]


def _commands(study: Study, command: str) -> list[str]:
    """One for every set of settings that arms were played with."""
    made: dict[tuple[str, ...], dict[str, None]] = {}
    for arm in study.arms:
        for told in study.told[arm].values():
            made.setdefault(tuple(told["overrides"]), {})[arm] = None
    out = []
    for overrides, arms in made.items():
        some = [arm for arm in arms if arm != BASE]
        only = f" --methods {','.join(some)}" if len(made) > 1 and some else ""
        out.append(" ".join([command + only, *overrides]))
    return out


def _codes_of(study: Study) -> dict[str, list[str]]:
    """The digests of the code that made the results, and which arms each made."""
    made: dict[str, list[str]] = {}
    for arm in study.arms:
        codes = {code for told in study.told[arm].values() for code in _codes(told)}
        for digest in sorted(codes):
            made.setdefault(digest, []).append(f"`{arm}`")
    return made


def _codes_table(codes: Mapping[str, Sequence[str]]) -> list[str]:
    rows = [table_line([digest, ", ".join(arms)]) for digest, arms in codes.items()]
    return [*table_head(["code", "arms"]), *rows]


def _codes(told: Mapping[str, Any]) -> Iterator[str]:
    """The code that worked on each run of a result, the latest last."""
    for run in told["runs"] or [{}]:
        yield ", then ".join(run.get("run", {}).get("code") or [told["code"]])


def _rates(study: Study, group: Group) -> list[str]:
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
        some = f", {there} of the tasks" if there < len(group.keys) else ""
        cells = [f"`{arm}`{study.fewer(study.seeds(arm))}{some}"]
        for measure in shown:
            found = estimate(study.values(arm, group, measure), group.clusters)
            scale = 1 if measure == "tokens" else 100
            cells.append(estimate_cell(found, scale, interval=measure in WITH_INTERVAL))
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
                    group.name,
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


def _against_base(study: Study) -> list[str]:
    """What every arm changed, and at what price."""
    measures = ("spr1_all", "vulnerable", "valid", "inert", "pass1", "secure_pass1")
    heads = ["tasks", "arm", *(HEADINGS[measure] for measure in measures), "vulnerable, ratio"]
    out = table_head(heads)
    for group in study.main_groups():
        for arm in study.arms:
            seeds = study.together(arm, BASE)
            if arm == BASE or not seeds:
                continue
            bad = [study.values(one, group, "vulnerable", seeds) for one in (arm, BASE)]
            cells = [group.name, f"`{arm}`{study.fewer(seeds)}"]
            cells += [_change(study, arm, BASE, group, measure) for measure in measures]
            out.append(
                table_line(
                    [*cells, estimate_cell(ratio(bad[0], bad[1], group.clusters), 1, digits=2)]
                )
            )
    return out


def _change(study: Study, arm: str, against: str, group: Group, measure: str) -> str:
    seeds = study.together(arm, against)
    mine = study.values(arm, group, measure, seeds)
    theirs = study.values(against, group, measure, seeds)
    return estimate_cell(difference(mine, theirs, group.clusters), 100, sign=True)


def _costs(study: Study) -> list[str]:
    """What every arm was given: mean over seeds of the sum over folds."""
    heads = ["arm", "seeds", "sampled tokens", "gradient tokens", "grow s", "train s", "evaluate s"]
    out = ["What it took (means over seeds; stages that a run shares with another are not in it):"]
    out += ["", *table_head(heads)]
    for arm in study.arms:
        some = [told for told in study.told[arm].values() if told["runs"]]
        if not some:
            continue

        def mean(values: Sequence[float]) -> str:
            return f"{sum(values) / len(values):,.0f}"

        cells = [f"`{arm}`", str(len(some))]
        for kind in ("sampled", "gradient"):
            cells.append(mean([sum(run["used"][kind] for run in told["runs"]) for told in some]))
        for part in ("grow", "train", "evaluate"):
            cells.append(mean([_seconds(told["runs"], arm, part) for told in some]))
        out.append(table_line(cells))
    return out


def _seconds(runs: Sequence[Mapping[str, Any]], arm: str, part: str) -> float:
    """Seconds of one part (grow, train, evaluate) of the runs of an arm."""
    return sum(
        float(spent)
        for run in runs
        for stage, spent in run["timings"].items()
        if (stage.split()[0] == BASE) == (arm == BASE) and _part(stage) == part
    )


def _part(stage: str) -> str:
    """Of which part of a run a key of ``timings`` is: ``round-1 eval judge`` is evaluation."""
    words = stage.split()[1:]
    if any(word.startswith("epoch-") for word in words):  # a snapshot's mark: training has it in
        return ""
    if "eval" in words:
        return "evaluate"
    if "train" in words or "score" in words:
        return "train"
    return "grow" if words else ""


def _noted(study: Study) -> list[str]:
    """What is to be known of runs that have results: games that ended early, doubts of a judge,
    players that were never trained."""
    out = []
    for arm in study.arms:
        for seed, told in sorted(study.told[arm].items()):
            for run in told["runs"]:
                fold = f", fold {run['fold']}" if run["fold"] else ""
                known = run["run"]
                warned = [one for one in run.get("branches", ()) if one.get("warning")]
                lines = [f"{one['round']}: {one['warning']}" for one in warned]
                lines += known.get("warnings", [])
                if ended := known.get("ended"):
                    lines.append(f"the game ended before round {ended['round']}: {ended['reason']}")
                if arm != BASE and _untrained(run):
                    why = " (all answers to a task had the same reward)"
                    lines.append(
                        "never trained: its answers are the base model's"
                        + (why if known.get("method") == "grpo" else "")
                    )
                if apart := _apart(study, arm, seed, run):
                    lines.append(apart)
                out += [f"- `{arm}`, seed {seed}{fold}: {line}" for line in lines]
    return ["To be known of these runs:", "", *out] if out else []


def _untrained(run: Mapping[str, Any]) -> bool:
    groups = [told["groups"] for told in run.get("training", {}).values() if "groups" in told]
    return not run["used"]["gradient"] or (bool(groups) and not any(groups))


def _apart(study: Study, arm: str, seed: int, run: Mapping[str, Any]) -> str:
    """A sentence where a run took far more or fewer tokens than the reference's that it is compared
    with: gradient tokens, and where it samples what nobody judges, sampled ones."""
    theirs = [
        other["used"]
        for other in study.told.get(study.reference, {}).get(seed, {"runs": []})["runs"]
        if other["fold"] == run["fold"]
    ]
    if arm in (BASE, study.reference) or not theirs or _untrained(run):
        return ""
    method, used = run["run"].get("method"), run["used"]
    kinds = ["gradient"] if method != "grpo" else []
    kinds += ["sampled"] if method in (*UNJUDGED, "grpo") else []
    far = [
        f"{used[kind]:,} {kind} tokens, where {study.reference} took {theirs[0][kind]:,}"
        for kind in kinds
        if abs(used[kind] - theirs[0][kind]) > FAR * theirs[0][kind]
    ]
    return f"another budget: {' and '.join(far)}" if far else ""


def _faults(study: Study) -> list[str]:
    out = []
    for arm in study.arms:
        for seed, told in sorted(study.told[arm].items()):
            for fault in told["faults"]:
                fold = f", fold {fault['fold']}" if fault["fold"] else ""
                out.append(f"- `{arm}`, seed {seed}{fold} has no result: {fault['fault']}")
    return ["What failed:", "", *out] if out else []


def estimate_cell(
    found: Estimate, scale: float, *, interval: bool = True, sign: bool = False, digits: int = 1
) -> str:
    """``value [low, high]``, times ``scale``; ``n/a`` where there is nothing to tell."""
    if found.value is None:
        return "n/a"

    def number(value: float) -> str:
        if math.isinf(value):
            return "∞"
        text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
        return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"

    text = number(found.value)
    if interval and found.low is not None and found.high is not None:
        text += f" [{number(found.low)}, {number(found.high)}]"
    return text


def p_cell(value: float) -> str:
    """A p-value to three places."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def table_head(cells: Sequence[str]) -> list[str]:
    """The two first lines of a Markdown table."""
    return [table_line(cells), "|" + "---|" * len(cells)]


def table_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
