"""Tables and plots from results: by hand, and the committed page from the committed results."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from treeplay.errors import RunError
from treeplay.experiments.collect import COLUMNS, write_result
from treeplay.experiments.page import BEGIN, END, page_files, write_page
from treeplay.experiments.protocol import load_protocol
from treeplay.experiments.results import read_studies

CONFIG: dict[str, Any] = {
    "tasks": {"eval": ["OUT/data/s.jsonl@token"]},
    "train": {"learning_rate": 5e-4},
    "eval": {"samples": 10, "max_tokens": 64, "temperature": 0.8, "top_p": 0.95},
}
DATA = {
    "fold": 0,
    "train": {"starter": 4},
    "train_cwes": ["CWE-89"],
    "contamination": {"s@token": []},
}


def row(task: str, secure: int, vulnerable: int, **more: Any) -> list[Any]:
    """Counts of ten samples of a task; what is neither secure nor vulnerable is invalid."""
    counts = {
        **dict.fromkeys(COLUMNS, 0),
        "suite": "s@token",
        "split": "eval",
        "language": "python",
        "cwe": ["CWE-89"],
        "task": task,
        "tested": True,
        "general": False,
        "n": 10,
        "secure": secure,
        "vulnerable": vulnerable,
        "invalid": 10 - secure - vulnerable,
        "passed": secure + vulnerable,
        "both": secure,
        "chars": 30.0,
        "tokens": 12.0,
        **more,
    }
    return [counts[name] for name in COLUMNS]


def write(folder: Path, arm: str, seed: int, rows: list[list[Any]], **more: Any) -> None:
    run = {
        "fold": 0,
        "run": {"versions": {"python": "3.11"}, "config": CONFIG},
        "timings": {"round-1 grow": 5.0, "round-1 judge": 2.0, "round-1 eval judge": 1.0},
        "used": {"sampled": 700, "nodes": 7, "gradient": 9000},
        "training": {"round-1": {"steps": 20}, "round-2": {"steps": 10}},
        "tasks": rows,
    }
    told = {
        "protocol": "main",
        "model": "tiny",
        "arm": arm,
        "seed": seed,
        "size": "cpu",
        "overrides": [],
        "faults": [],
        "data": [DATA],
        **more,
    }
    write_result(folder / "main" / "tiny" / arm / f"{seed}.json", [run] if rows else [], told)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for seed in (0, 1):
        write(folder, "base", seed, [row("a", 1, 4), row("b", 2, 4)])
        write(folder, "tsp", seed, [row("a", 4, 2), row("b", 5, 2)])
        write(folder, "sft", seed, [row("a", 2, 4), row("b", 3, 4)])
    write(folder, "dpo", 0, [], faults=[{"fold": 0, "fault": "there are no pairs"}])
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"# By hand\n\n{BEGIN}\nold\n{END}\n\nBy hand too.\n")
    return path


def tables(page: Path, name: str = "main-tiny") -> str:
    """The page of tables of the only study, or another that belongs to ``page``."""
    return (page.parent / page.stem / f"{name}.md").read_text()


def line(text: str, *starts: str) -> list[str]:
    """The cells of the only table row that begins with ``starts``."""
    (found,) = [one for one in text.splitlines() if one.startswith("| " + " | ".join(starts))]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_rates_and_differences_by_hand(results: Path, page: Path) -> None:
    write_page(results, page)
    text = page.read_text()
    assert text.startswith("# By hand\n")
    assert text.endswith("By hand too.\n")
    assert "old" not in text
    # On the page itself what was found, and the rest behind a link.
    rates = ["`tsp`", "45.0 [40.0, 50.0]", "69.0 [66.7, 71.4]", "20.0 [20.0, 20.0]", "65.0"]
    assert line(text, "`tsp`", "45.0")[:5] == rates
    assert "(page/main-tiny.md)" in text
    assert "against every other arm" not in text
    text = tables(page)
    assert "](../img/results-main-tiny.svg)" in text
    # Every resample of two tasks has 40, 45 or 50 % secure; the interval reaches both ends.
    rates = line(text, "`tsp`", "45.0")
    valid = "69.0 [66.7, 71.4]"  # 4 of 6, 5 of 7
    assert rates[1:6] == ["45.0 [40.0, 50.0]", valid, "20.0 [20.0, 20.0]", "65.0", "0.0"]
    assert line(text, "executed, decision form", "`tsp`", "`sft`")[3:7] == [
        "+20.0 [+20.0, +20.0]",
        "1.80",  # of two tasks: no interval
        "0.500",  # two tasks: half of the four ways of flipping are as far out
        "1.000",  # the smallest of two p-values, times two
    ]
    fewer = line(text, "executed, decision form", "`tsp`", "+30.0")[3]
    assert fewer.replace("\u2212", "-") == "-20.0 [-20.0, -20.0]"
    took = line(text, "`tsp`", "2", "700")[1:]
    assert took == ["2", "700", "9,000", "30", "0.0005", "7", "0", "1"]
    assert "- `dpo`, seed 0 has no result: there are no pairs" in text


def test_every_arm_of_which_something_is_claimed_is_compared(results: Path, page: Path) -> None:
    for seed in (0, 1):
        write(results, "tsp-own", seed, [row("a", 3, 2), row("b", 4, 2)])
    write_page(results, page)
    text = tables(page)
    start = "executed, decision form"
    assert line(text, start, "`tsp-own`", "`sft`")[3] == "+10.0 [+10.0, +10.0]"
    assert line(text, start, "`tsp`", "`tsp-own`")[3] == "+10.0 [+10.0, +10.0]"
    # The pair stands there once, and all five are corrected together.
    assert f"| {start} | `tsp-own` | `tsp` |" not in text
    assert "Holm's correction over these 5 comparisons" in text
    # Of valid answers: 4/6 and 5/7 against 2/6 and 3/7.
    assert line(text, start, "`tsp`", "`sft`")[9] == "+31.0 [+28.6, +33.3]"


def test_seeds_that_were_given_tokens_by_different_rules_are_refused(
    results: Path, page: Path
) -> None:
    for seed, rule in ((0, "grow.branches=1"), (1, "grow.budget=700")):
        write(results, "spin", seed, [row("a", 1, 4), row("b", 2, 4)])
        path = results / "main" / "tiny" / "spin" / f"{seed}.json"
        told = json.loads(path.read_text())
        told["runs"][0]["budget"] = ["train.budget=9000", rule]
        path.write_text(json.dumps(told))
    words = r"spin was given its sampled tokens by grow.branches in seed 0 and by grow.budget in"
    with pytest.raises(RunError, match=words):
        page_files(results, page)


def test_the_starter_pack_and_other_data_are_told_apart(results: Path, page: Path) -> None:
    write_page(results, page)
    assert "apart" not in tables(page)
    for seed in (0, 1):
        for arm, here, there in (("base", 1, 2), ("tsp", 6, 2), ("sft", 3, 3)):
            pack = [row(task, here, 1, suite="starter-seen@token") for task in "ab"]
            write(results, arm, seed, [*pack, *(row(task, there, 1) for task in "cd")])
    write_page(results, page)
    text = tables(page)
    assert line(text, "starter pack, decision form", "`tsp`", "+50.0")[2] == "+50.0 [+50.0, +50.0]"
    assert line(text, "public sets, decision form", "`tsp`", "0.0")[2] == "0.0 [0.0, 0.0]"
    apart = line(text, "public sets, decision form", "`tsp`", "`sft`")[3]
    assert apart.replace("\u2212", "-") == "-10.0 [-10.0, -10.0]"


def test_weaknesses_of_training_and_others_are_told_apart(results: Path, page: Path) -> None:
    other = {"cwe": ["CWE-22"]}
    for seed in (0, 1):
        for arm, pack, known, new in (("base", 1, 2, 3), ("tsp", 6, 4, 3), ("sft", 3, 3, 4)):
            rows = [row("a", pack, 1, suite="starter-seen@token")]
            rows.append(row("c", known, 1, cwe=["CWE-564"]))  # a kind of training's CWE-89
            write(results, arm, seed, [*rows, row("d", new, 1, **other)])
    write_page(results, page)
    text = tables(page)
    parts = {
        "starter pack": "+50.0",
        "public sets": "+10.0",
        "trained CWEs": "+35.0",
        "other CWEs": "0.0",
        "public sets, trained CWEs": "+20.0",  # the pack has no other CWE: no part appears twice
    }
    titles = re.findall(r"\*\*(.*), decision form\*\* \(", text)
    assert titles == ["executed", *parts]
    for part, change in parts.items():
        assert line(text, f"{part}, decision form", "`tsp`", change)
    # Where nothing is left on one side there is no division.
    for arm, pack, new in (("base", 1, 3), ("tsp", 6, 3), ("sft", 3, 4)):
        for seed in (0, 1):
            rows = [
                row("a", pack, 1, suite="starter-seen@token", **other),
                row("d", new, 1, **other),
            ]
            write(results, arm, seed, rows)
    write_page(results, page)
    assert re.findall(r"\*\*(.*), decision form\*\* \(", tables(page)) == [
        "executed",
        "starter pack",
        "public sets",
    ]


def test_a_claimant_alone_has_nothing_to_compare_with(tmp_path: Path, page: Path) -> None:
    write(tmp_path / "one", "tsp", 0, [row("a", 1, 4), row("b", 2, 4)])
    write_page(tmp_path / "one", page)
    text = tables(page)
    claims = ", ".join(f"`{arm}`" for arm in load_protocol("main").claims)
    assert f"There are no results of {claims} and of another arm, so nothing is compared." in text


def test_a_task_in_both_forms_is_one_cluster(results: Path, page: Path) -> None:
    for arm in ("base", "tsp"):
        forms = [
            row(t, 3, 2, suite=f"c@{form}", tested=False)
            for t in "ab"
            for form in ("token", "full")
        ]
        for seed in (0, 1):
            write(results, arm, seed, forms)
    write_page(results, page)
    text = tables(page)
    assert "**judged by static tools, decision form** (2 tasks)" in text
    assert "**judged by static tools** (2 tasks)" in text


def test_answers_that_the_budget_ended_are_counted(results: Path, page: Path) -> None:
    write(results, "tsp", 0, [row("a", 4, 2, cut=3), row("b", 5, 2, cut=1)])
    write_page(results, page)
    text = tables(page)
    heads = line(text, "arm", "SPR@1")
    assert line(text, "`tsp`", "45.0")[heads.index("cut off")] == "10.0"  # seed 1: none
    path = results / "main" / "tiny" / "sft" / "1.json"  # from before they were counted
    told = json.loads(path.read_text())
    told["columns"].remove("cut")
    told["tasks"] = [counts[:-1] for counts in told["tasks"]]
    path.write_text(json.dumps(told))
    write_page(results, page)
    assert line(tables(page), "`sft`", "25.0")[heads.index("cut off")] == "0.0"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"eval": {**CONFIG["eval"], "max_tokens": 96}}, "eval.max_tokens"),
        ({"tasks": {"eval": ["elsewhere/s.jsonl@token,max_tokens=256"]}}, "suites"),
    ],
)
def test_answers_to_other_questions_are_not_compared(
    results: Path, page: Path, change: dict[str, Any], key: str
) -> None:
    path = results / "main" / "tiny" / "tsp" / "1.json"
    told = json.loads(path.read_text())
    told["runs"][0]["run"]["config"] = {**CONFIG, "tasks": {"eval": ["elsewhere/s.jsonl@token"]}}
    path.write_text(json.dumps(told))
    write_page(results, page)  # the same file in another folder
    told["runs"][0]["run"]["config"] |= change
    path.write_text(json.dumps(told))
    message = rf"main/tiny: .* and tsp, seed 1 were not trained on, .* alike \({key} differ\)"
    with pytest.raises(RunError, match=message):
        write_page(results, page)


@pytest.mark.parametrize("name", ["train.jsonl", "token/s.jsonl"])
def test_players_of_other_tasks_are_not_compared(name: str, results: Path) -> None:
    path = results / "main" / "tiny" / "tsp" / "1.json"
    told = json.loads(path.read_text())
    told["data"][0]["digests"] = {name: "1f"}
    path.write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"tsp, seed 1 were not .* alike \(tasks differ"):
        read_studies(results)


def test_verdicts_of_other_judges_are_not_compared(results: Path) -> None:
    path = results / "main" / "tiny" / "tsp" / "1.json"
    told = json.loads(path.read_text())
    told["runs"][0]["run"]["identities"] = {"judge": "judge 3; bandit absent"}
    path.write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"tsp, seed 1 were not .* judged alike \(judge differ"):
        read_studies(results)


def test_arms_of_other_settings_have_a_command_of_their_own(results: Path, page: Path) -> None:
    for seed in (0, 1):
        path = results / "main" / "tiny" / "sft" / f"{seed}.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "overrides": ["train.learning_rate=0.001"]}))
    write_page(results, page)
    commands = [one for one in tables(page).splitlines() if one.startswith("treeplay exp")]
    assert len(commands) == 2
    assert "--methods tsp,dpo" in commands[0]
    assert "--methods sft train.learning_rate=0.001" in commands[1]
    assert "learning_rate" not in commands[0]


def test_the_code_that_made_the_results_is_told(results: Path, page: Path) -> None:
    write_page(results, page)
    (told,) = [one for one in tables(page).splitlines() if one.startswith("Code ")]
    digest = told.removeprefix("Code ").split(";")[0]
    assert " " not in digest
    path = results / "main" / "tiny" / "sft" / "1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "0ther"}))
    write_page(results, page)
    # Of several, which arms each made: a comparison across them is to be seen as one.
    assert "Code of 2 versions; python" in tables(page)
    assert line(tables(page), digest)[1] == "`base`, `tsp`, `sft`, `dpo`"
    assert line(tables(page), "0ther")[1] == "`sft`"
    # A player that was trained by other code than evaluated it, say.
    result = json.loads(path.read_text())
    result["runs"][0]["run"]["code"] = ["began", "ended"]
    path.write_text(json.dumps(result))
    write_page(results, page)
    assert line(tables(page), "began, then ended")[1] == "`sft`"


def test_what_is_to_be_known_of_runs_is_told(results: Path, page: Path) -> None:
    path = results / "main" / "tiny" / "tsp" / "1.json"
    told = json.loads(path.read_text())
    (run,) = told["runs"]
    run["fold"] = 3
    run["branches"] = [{"round": "round-1", "warning": "the judge flagged all"}, {"warning": ""}]
    run["run"]["warnings"] = ["base: s@token: the judge flagged none"]
    run["run"]["ended"] = {"round": 2, "reason": "round-1 made no mistake to learn from"}
    told["tasks"] = told["tasks"][:1]
    path.write_text(json.dumps(told))
    write(results, "sft", 0, [row("a", 2, 4)])
    write(results, "sft", 1, [row("a", 2, 4)])
    write_page(results, page)
    text = tables(page)
    for words in (
        "round-1: the judge flagged all",
        "base: s@token: the judge flagged none",
        "the game ended before round 2: round-1 made no mistake to learn from",
    ):
        assert f"- `tsp`, seed 1, fold 3: {words}\n" in text
    assert text.count("seed 0, fold") == 0
    assert "never trained" not in text
    # An arm that lacks tasks (a fold of it failed) is not to be read beside the others unseen.
    assert line(text, "`sft`, 1 of the tasks", "20.0")
    assert line(text, "`tsp`", "45.0")


def test_an_arm_that_was_not_trained_or_has_fewer_seeds_is_told(results: Path, page: Path) -> None:
    write(results, "grpo", 1, [row("a", 1, 4), row("b", 2, 4)])
    path = results / "main" / "tiny" / "grpo" / "1.json"
    told = json.loads(path.read_text())
    told["runs"][0]["used"]["gradient"] = 0
    told["runs"][0]["run"]["method"] = "grpo"
    path.write_text(json.dumps(told))
    told["runs"][0]["training"] = {"round-1": {"steps": 3, "groups": 2}}
    told["runs"][0]["used"]["gradient"] = 900
    path.write_text(json.dumps(told))
    assert "never trained" not in page_files(results, page)[page.parent / "page" / "main-tiny.md"]
    # Every answer was sampled, and passed through the model, for nothing.
    told["runs"][0]["training"]["round-1"]["groups"] = 0
    path.write_text(json.dumps(told))
    files = page_files(results, page)
    text = files[page.parent / "page" / "main-tiny.md"]
    assert "- `grpo`, seed 1: never trained: its answers are the base model's (all" in text
    assert line(text, "`grpo`, 1 seed", "15.0")
    assert line(text, "executed, decision form", "`tsp`", "`grpo`, 1 seed", "+30.0")
    (plot,) = (content for path, content in files.items() if path.suffix == ".svg")
    assert ">grpo, 1 seed<" in plot
    assert ">tsp<" in plot


def test_copies_of_a_scenario_are_one_cluster(results: Path, page: Path) -> None:
    for arm, secure in (("base", 1), ("tsp", 4)):
        copies = [row(f"seccodeplt/{i}", secure, 4, cwe=["CWE-77"]) for i in range(9)]
        for seed in (0, 1):
            write(results, arm, seed, [*copies, row("a", 1, 4)])
    write_page(results, page)
    # Two clusters: the copies together, of which each resample has all or none, and the task.
    # (Task b has sft alone.)
    shared = "executed, decision form, 10 of the tasks"
    change = line(tables(page), shared, "`tsp`", "`base`", "+27.0")
    assert change[3] == "+27.0 [0.0, +30.0]"
    assert "(11 tasks, 3 clusters)" in tables(page)  # with task b, which sft alone answered


def test_seeds_of_an_arm_are_players_of_one_kind(results: Path) -> None:
    path = results / "main" / "tiny" / "sft" / "1.json"
    told = json.loads(path.read_text())
    (run,) = told["runs"]
    run["budget"] = ["train.budget=900"]
    run["run"]["config"] |= {"seed": 1, "out": "OUT/1"}
    run["run"]["config"]["train"] |= {"budget": 900, "checkpoint_steps": 2}
    run["run"]["config"]["judge"] = {"workers": 9}
    path.write_text(json.dumps(told))
    read_studies(results)
    run["run"]["config"]["train"]["learning_rate"] = 0.01
    path.write_text(json.dumps(told))
    words = r"main/tiny: sft, seed 0 and sft, seed 1 .* different settings \(train.learning_rate\)"
    with pytest.raises(RunError, match=words):
        read_studies(results)
    run["run"]["config"]["train"]["learning_rate"] = 5e-4
    run["run"]["identities"] = {"base": "f00"}
    path.write_text(json.dumps(told))
    with pytest.raises(RunError, match="began from different weights"):
        read_studies(results)


def test_results_of_two_sizes_are_no_study(results: Path) -> None:
    write(results, "sft", 2, [row("a", 2, 4)], size="gpu")
    path = results / "main" / "tiny" / "sft" / "2.json"  # which asks more, too
    path.write_text(path.read_text().replace('"max_tokens": 64', '"max_tokens": 256'))
    with pytest.raises(RunError, match="main/tiny has results of the sizes cpu and gpu"):
        read_studies(results)


def test_the_plot_is_svg_with_a_mark_for_every_rate(results: Path, page: Path) -> None:
    plot = next(path for path in write_page(results, page) if path.suffix == ".svg")
    root = ET.fromstring(plot.read_text())
    space = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in root.iter(f"{space}text")]
    assert {"base", "tsp", "sft"} <= set(texts)
    assert "dpo" not in texts  # it has no result
    assert len(list(root.iter(f"{space}circle"))) == 3 + 1  # an arm each, and the legend


def test_files_that_are_no_results_are_named(results: Path, page: Path, tmp_path: Path) -> None:
    wrong = results / "main" / "tiny" / "sft" / "7.json"
    wrong.write_text((results / "main" / "tiny" / "sft" / "0.json").read_text())
    with pytest.raises(RunError, match=r"sft/7\.json: this is no result"):
        read_studies(results)
    with pytest.raises(RunError, match="holds no results"):
        read_studies(tmp_path / "none")
    bare = tmp_path / "bare.md"
    bare.write_text("no marks")
    with pytest.raises(RunError, match="lacks the lines"):
        page_files(results, bare)
