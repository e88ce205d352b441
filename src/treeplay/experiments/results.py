"""Read results and turn counts into arrays of rates, (seeds, tasks) an arm.

results/PROTOCOL/MODEL/ARM/SEED.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from treeplay.config import differing_keys, with_newer_keys, without_places
from treeplay.errors import RunError
from treeplay.experiments.collect import COLUMNS
from treeplay.experiments.data import alike
from treeplay.experiments.plan import BASE
from treeplay.experiments.protocol import load_protocol, protocol_names
from treeplay.experiments.stats import Floats
from treeplay.run import read_json

# What is worked out for every task; see :func:`rate`.
MEASURES = (
    *("spr1_all", "spr1_valid", "vulnerable", "valid", "inert", "unknown"),
    *("cut", "tokens", "pass1", "secure_pass1"),
)
# Settings of evaluation by which rates change.
ASKED = ("samples", "max_tokens", "temperature", "top_p")
# Settings of what a machine does at once, whatever their section: no result depends on them.
MACHINE = ("threads", "workers", "rows_at_once", "keep_mb", "checkpoint_steps")
Key = tuple[str, str]  # suite, task
# Data sets that have many tasks a scenario, as ids begin: there a CWE is the unit that intervals
# and tests take for independent. (SecCodePLT: 1,411 tasks of about 45 scenarios and 28 CWEs.)
COPIED = ("seccodeplt/",)
PACK = "starter"  # how names of suites of the starter pack begin


@dataclass(frozen=True)
class Group:
    """Tasks that are looked at together: a suite, or several. ``clusters``: for every task what
    it counts as an independent part of: itself, or its CWE where the set has copies."""

    name: str
    keys: tuple[Key, ...]
    clusters: tuple[str, ...]

    def fewer(self, tasks: int) -> str:
        """What is said of something that does not rest on all tasks of the group, else nothing."""
        return f", {tasks} of the tasks" if tasks < len(self.keys) else ""


@dataclass(frozen=True)
class Study:
    """All results of one protocol and model. ``rows``: arm -> seed -> (suite, task) -> counts;
    ``told``: arm -> seed -> the rest of the file; ``claims``: arms that are compared with all;
    ``reference``: the arm whose tokens are the budget."""

    protocol: str
    model: str
    title: str
    claims: tuple[str, ...]
    reference: str
    by_language: bool
    arms: tuple[str, ...]
    rows: dict[str, dict[int, dict[Key, dict[str, Any]]]]
    told: dict[str, dict[int, dict[str, Any]]]

    def seeds(self, arm: str) -> list[int]:
        """Seeds with results, faults left out."""
        return sorted(seed for seed, rows in self.rows.get(arm, {}).items() if rows)

    def fewer(self, seeds: Sequence[int]) -> str:
        """What is said of something that does not rest on all seeds there are, else nothing."""
        most = len({seed for arm in self.arms for seed in self.seeds(arm)})
        number = len(seeds)
        return f", {number} seed{'s' * (number != 1)}" if number < most else ""

    def groups(self) -> list[Group]:
        """The main groups, then every suite that is not one of them."""
        main = self.main_groups()
        known = {group.keys for group in main}
        suites = sorted({suite for suite, _ in self._counts()}, key=_suite_order)
        every = [self._group(suite, partial(_is_of, suite)) for suite in suites]
        return main + [group for group in every if group.keys not in known]

    def main_groups(self) -> list[Group]:
        """What methods are compared on: the executed tasks of all suites together in a decision
        form and in full form, and the tasks without tests likewise (``by_language``: in each
        language); then those of general ability."""
        found = self._counts().values()
        languages = sorted({row["language"] for row in found}) if self.by_language else [""]
        kinds = [
            ("executed, decision form", True, False),
            ("executed, full form", True, True),
            ("judged by static tools, decision form", False, False),
            ("judged by static tools", False, True),
        ]
        out = []
        for kind, tested, full in kinds:
            for language in languages:

                def wanted(
                    row: dict[str, Any],
                    tested: bool = tested,
                    full: bool = full,
                    language: str = language,
                ) -> bool:
                    return (
                        row["tested"] == tested
                        and not row["general"]
                        and _full(row) == full
                        and language in ("", row["language"])
                    )

                name = kind + (f", {language}" if language else "")
                out.append(self._group(name, wanted))
        out.append(self._group("general ability", lambda row: row["general"]))
        return [group for group in out if group.keys]

    def parts(self) -> list[Group]:
        """Executed tasks in a decision form by where a gain may end: those of the starter pack and
        all others; those about a weakness that training has a task of (the same CWE, or one that
        folds keep together with it) and all others; and both together. Only divisions that leave
        tasks on both sides, and no part twice."""

        def within(names: tuple[str, ...], row: Mapping[str, Any]) -> bool:
            executed = row["tested"] and not row["general"] and not _full(row)
            return bool(executed and all(self._is_of_part(name, row) for name in names))

        by_source, by_weakness = ("starter pack", "public sets"), ("trained CWEs", "other CWEs")
        out: list[Group] = []
        both = list(product(by_source, by_weakness))
        for division in ([(name,) for name in by_source], [(name,) for name in by_weakness], both):
            found = [
                self._group(", ".join((*names, "decision form")), partial(within, names))
                for names in division
            ]
            found = [group for group in found if group.keys]
            known = {group.keys for group in out}
            if len(found) > 1:
                out += [group for group in found if group.keys not in known]
        return out

    def _is_of_part(self, name: str, row: Mapping[str, Any]) -> bool:
        if name in ("starter pack", "public sets"):
            return bool(row["suite"].startswith(PACK) == (name == "starter pack"))
        trained = self._trained_cwes[row["fold"]]
        known = any(alike(cwe, one) for cwe in row["cwe"] for one in trained)
        return known == (name == "trained CWEs")

    @cached_property
    def _trained_cwes(self) -> dict[int, set[str]]:
        """CWEs of the training tasks of each fold."""
        files = [file for seeds in self.told.values() for file in seeds.values()]
        return {fold["fold"]: set(fold["train_cwes"]) for file in files for fold in file["data"]}

    def _group(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> Group:
        counts = self._counts()
        keys = tuple(sorted(key for key, row in counts.items() if wanted(row)))
        return Group(name, keys, tuple(_cluster(counts[key]) for key in keys))

    def _counts(self) -> dict[Key, dict[str, Any]]:
        """Some arm's counts of every task there is."""
        found: dict[Key, dict[str, Any]] = {}
        for seeds in self.rows.values():
            for rows in seeds.values():
                found |= rows
        return found

    def values(
        self, arm: str, group: Group, measure: str, seeds: Sequence[int] | None = None
    ) -> Floats:
        """(seeds, tasks) rates, NaN where an arm has none."""
        chosen = self.seeds(arm) if seeds is None else list(seeds)
        rows = self.rows.get(arm, {})
        table = [
            [rate(rows.get(seed, {}).get(key), measure) for key in group.keys] for seed in chosen
        ]
        return np.array(table, dtype=np.float64).reshape(len(chosen), len(group.keys))

    def together(self, one: str, other: str) -> list[int]:
        """Seeds that both arms have."""
        return sorted(set(self.seeds(one)) & set(self.seeds(other)))


def _is_of(suite: str, row: Mapping[str, Any]) -> bool:
    return bool(row["suite"] == suite)


def _cluster(row: Mapping[str, Any]) -> str:
    copied = row["task"].startswith(COPIED) and row["cwe"]
    return str(row["cwe"][0] if copied else row["task"])  # in both forms, say


def rate(row: Mapping[str, Any] | None, measure: str) -> float:
    """One measure of one task's counts (see :mod:`treeplay.metrics` for the formulas); ``tokens``
    is the mean number sampled, ``cut`` the share that the token budget ended. NaN where there is
    nothing to measure."""
    if row is None:
        return float("nan")
    n, secure = row["n"], row["secure"]
    judged = secure + row["vulnerable"] + row["inert"]
    if measure == "tokens":
        return float(row["tokens"])
    if measure == "valid":
        return float((judged + row["plain"]) / n)
    if measure == "unknown":
        return float(row["unknown"] / n)
    if measure == "cut":  # not counted in the first results
        return float(row["cut"] / n) if "cut" in row else float("nan")
    if measure == "pass1":
        return float(row["passed"] / n) if row["tested"] else float("nan")
    if row["general"]:
        return float("nan")
    if measure == "secure_pass1":
        return float(row["both"] / n) if row["tested"] else float("nan")
    if measure == "spr1_valid":
        return float(secure / judged) if judged else float("nan")
    return float(row[{"spr1_all": "secure"}.get(measure, measure)] / n)


def read_studies(folder: Path) -> list[Study]:
    """Every protocol and model under ``folder``. Raises :class:`RunError` for a file that cannot
    be read or is no result, where there is none, and where results of two sizes lie together."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*/*/*.json")):
        data = read_json(path)
        place = (data.get("protocol"), data.get("model"), data.get("arm"), str(data.get("seed")))
        columns = data.get("columns")
        known = columns in (list(COLUMNS), list(COLUMNS[:-1]))
        if place != (*path.parts[-4:-1], path.stem) or not known:
            raise RunError(f"{path}: this is no result of treeplay experiment; remove it")
        found.setdefault((data["protocol"], data["model"]), []).append(data)
    if not found:
        raise RunError(
            f"{folder} holds no results; run treeplay experiment NAME --results {folder} first"
        )
    return [_study(*key, found[key]) for key in sorted(found, key=_study_order)]


def _study(protocol: str, model: str, results: list[dict[str, Any]]) -> Study:
    sizes = sorted({data["size"] for data in results})
    if len(sizes) > 1:  # other tasks, other numbers of samples: no mean over them means anything
        raise RunError(
            f"{protocol}/{model} has results of the sizes {' and '.join(sizes)}; keep each size "
            "in a folder of its own (--results)"
        )
    _check_same_questions(f"{protocol}/{model}", results)
    _check_same_budgets(f"{protocol}/{model}", results)
    _check_same_players(f"{protocol}/{model}", results)
    rows: dict[str, dict[int, dict[Key, dict[str, Any]]]] = {}
    told: dict[str, dict[int, dict[str, Any]]] = {}
    for data in results:
        tasks = [dict(zip(data["columns"], row, strict=True)) for row in data["tasks"]]
        rows.setdefault(data["arm"], {})[data["seed"]] = {
            (row["suite"], row["task"]): row for row in tasks
        }
        told.setdefault(data["arm"], {})[data["seed"]] = {
            key: value for key, value in data.items() if key != "tasks"
        }
    title, order = protocol, list[str]()
    claims: tuple[str, ...] = ("tsp",)
    by_language, reference = False, "tsp"
    if protocol in protocol_names():
        known = load_protocol(protocol)
        title, claims = known.title, known.claims
        order, by_language = list(known.arms), known.by_language
        reference = known.reference
    arms = sorted(rows, key=lambda arm: (arm != BASE, _place(order, arm), arm))
    return Study(protocol, model, title, claims, reference, by_language, tuple(arms), rows, told)


def _check_same_questions(name: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Raises :class:`RunError` where players were not asked alike (other suites, tasks, samples or
    token budgets), were judged by other tools or had other training tasks: rates of such answers
    must not stand side by side."""
    asked: dict[int, tuple[str, dict[str, Any]]] = {}
    for data in results:
        files = {fold["fold"]: fold.get("digests", {}) for fold in data["data"]}
        for one in data["runs"]:
            config = one["run"]["config"]
            suites = [suite.rpartition("/")[2] for suite in config["tasks"]["eval"]]
            this = {
                **{f"eval.{key}": config["eval"][key] for key in ASKED},
                "suites": suites,
                "tasks": files.get(one["fold"]),
                "judge": one["run"].get("identities", {}).get("judge"),
            }
            who = f"{data['arm']}, seed {data['seed']}"
            first, other = asked.setdefault(one["fold"], (who, this))
            if keys := [key for key in this if this[key] != other[key]]:
                raise RunError(
                    f"{name}: {first} and {who} were not trained on, asked or judged alike "
                    f"({', '.join(keys)} differ); play one of them again, or keep them in "
                    "different folders (--results)"
                )


def _check_same_budgets(name: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Raises :class:`RunError` where seeds of an arm were given their sampled tokens by different
    rules: a mean over them would be of two methods."""
    rules: dict[str, tuple[int, set[str]]] = {}
    for data in results:
        for run in data["runs"]:
            names = {one.partition("=")[0] for one in run.get("budget", ())} - {"train.budget"}
            seed, first = rules.setdefault(data["arm"], (data["seed"], names))
            if names != first:
                raise RunError(
                    f"{name}: {data['arm']} was given its sampled tokens by {_listed(first)} in "
                    f"seed {seed} and by {_listed(names)} in seed {data['seed']}; play one of them "
                    "again, or keep them in different folders (--results)"
                )


def _check_same_players(name: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Raises :class:`RunError` where players began from different weights, or seeds of an arm were
    played with different settings (their tokens, the budget of a seed, left out)."""
    weights: tuple[str, str] | None = None
    settings: dict[str, tuple[str, dict[str, Any]]] = {}
    for data in results:
        who = f"{data['arm']}, seed {data['seed']}"
        for one in data["runs"]:
            base = one["run"].get("identities", {}).get("base", "")
            first, other = weights = weights or (who, base)
            if base != other:
                raise RunError(
                    f"{name}: {first} and {who} began from different weights ({other} and {base}); "
                    "play one of them again, or keep them in different folders (--results)"
                )
            given = {"seed", "train.budget"}
            given |= {part.partition("=")[0] for part in one.get("budget", ())}
            config = without_places(with_newer_keys(one["run"]["config"]))
            first, asked = settings.setdefault(data["arm"], (who, config))
            keys = [
                key
                for key in differing_keys(asked, config)
                if key not in given and key.rpartition(".")[2] not in MACHINE
            ]
            if keys:
                raise RunError(
                    f"{name}: {first} and {who} were played with different settings "
                    f"({', '.join(keys)}); play one of them again, or keep them in different "
                    "folders (--results)"
                )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "its recipe"


def _place(order: list[str], arm: str) -> int:
    return order.index(arm) if arm in order else len(order)


def _study_order(key: tuple[str, str]) -> tuple[int, str, str]:
    order = ["main", "unseen", "transfer", "scale", "ablation", "paper"]
    return (_place(order, key[0]), *key)


def _suite_order(suite: str) -> tuple[bool, str]:
    return suite.endswith("@full"), suite


def _full(row: Mapping[str, Any]) -> bool:
    return str(row["suite"]).endswith("@full")
