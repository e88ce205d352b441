"""How the results of a study were made: data, code, commands, tokens, time, and what is to be
known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from treeplay.experiments.cells import folded, table_head, table_line
from treeplay.experiments.plan import BASE
from treeplay.experiments.results import Study
from treeplay.play_grow import UNJUDGED

# Beyond this share of the reference's tokens a run's own are told as another budget. A budget ends
# with a whole step or wave of branches.
FAR = 0.25


def made_by(study: Study) -> list[str]:
    """Data, code and commands."""
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
        f"Code {', '.join(codes) if len(codes) == 1 else f'of {len(codes)} versions'}; {named}.",
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


def costs(study: Study) -> list[str]:
    """What every arm was given: mean over seeds of the sum over folds."""
    heads = ["arm", "seeds", "sampled tokens", "gradient tokens", "steps", "learning rate"]
    heads += ["grow s", "train s", "evaluate s"]
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
        cells.append(mean([sum(_steps(run) for run in told["runs"]) for told in some]))
        cells.append(_learning_rates(arm, some))
        for part in ("grow", "train", "evaluate"):
            cells.append(mean([_seconds(told["runs"], arm, part) for told in some]))
        out.append(table_line(cells))
    return out


def _steps(run: Mapping[str, Any]) -> int:
    """Optimizer steps of all rounds."""
    return sum(told["steps"] for told in run.get("training", {}).values())


def _learning_rates(arm: str, results: Sequence[Mapping[str, Any]]) -> str:
    if arm == BASE:
        return ""
    configs = [run["run"]["config"] for told in results for run in told["runs"]]
    rates = {config.get("train", {}).get("learning_rate") for config in configs}
    return ", ".join(f"{rate:g}" for rate in sorted(rates - {None}))


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


def noted(study: Study) -> list[str]:
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
    kinds = ["gradient"]
    kinds += ["sampled"] if method in (*UNJUDGED, "grpo") else []
    far = [
        f"{used[kind]:,} {kind} tokens, where {study.reference} took {theirs[0][kind]:,}"
        for kind in kinds
        if abs(used[kind] - theirs[0][kind]) > FAR * theirs[0][kind]
    ]
    return f"another budget: {' and '.join(far)}" if far else ""


def failed(study: Study) -> list[str]:
    """Runs that have no result, and why."""
    out = []
    for arm in study.arms:
        for seed, told in sorted(study.told[arm].items()):
            for fault in told["faults"]:
                fold = f", fold {fault['fold']}" if fault["fold"] else ""
                out.append(f"- `{arm}`, seed {seed}{fold} has no result: {fault['fault']}")
    return ["What failed:", "", *out] if out else []
