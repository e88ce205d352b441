"""The report of small made-up run folders: JSON keys, missing parts, escaping, size, words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from treeplay.errors import RunError
from treeplay.judge.verdict import Finding, Label, Verdict
from treeplay.metrics import METRICS, Scored, paired, rows, scored_to_json
from treeplay.report import build_report, print_table
from treeplay.tasks.jsonl import task_to_json, write_tasks
from treeplay.tasks.task import Task, make_task
from treeplay.tree import Branch, Node, Tree, tree_to_json
from treeplay.view import words
from treeplay.view.page import render

EVIL = "</script><img src=x onerror=alert(1)><!--"
PROMPT = 'import os\n\n\ndef show(name):\n    """Show a file."""'
GOLDEN = "\n    path = os.path.basename(name)\n    return open(path).read()\n"
TASK = make_task(id="py-022-show", language="python", cwe=("CWE-22",), prompt=PROMPT, golden=GOLDEN)


def samples(player: str, number: int, secure: int, tasks: int = 8, n: int = 5) -> list[Scored]:
    out = []
    for t in range(tasks):
        for i in range(n):
            label: Label = "secure" if i < secure + (t % 2) else "vulnerable"
            verdict = Verdict(label, "executed", (), True, f"reason {i} & more")
            out.append(
                Scored(
                    player, number, "starter", "eval-seen", "python", ("CWE-22",), f"task-{t}",
                    i, f"\n    return open({i!r})\n", 9, "answer", verdict,
                )
            )  # fmt: skip
    return out


def write_eval(folder: Path, *players: list[Scored]) -> None:
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    for some in players:
        lines = [json.dumps(scored_to_json(one)) + "\n" for one in some]
        (folder / "eval" / f"{some[0].player}.jsonl").write_text("".join(lines))


def tree(text: str = "path = name\n", message: str = "a path from outside") -> Tree:
    """Golden path with one node; two equal vulnerable branches, one of which went on to a late
    node, a secure branch, and one nobody judged."""
    offset = GOLDEN.index("path")
    rest = "    return open(path).read()\n"
    finding = Finding("CWE-22", 6, 6, "R1", "rules", message)
    bad = Verdict("vulnerable", "static", (finding,), None, message)

    def branch(number: int, node: int, text: str, verdict: Verdict | None) -> Branch:
        answer = GOLDEN[:offset] + text + rest
        return Branch(
            number, node, (1, 2), (-0.5, -0.25), (offset, offset + 1), text, answer, "graft",
            "answer", verdict,
        )  # fmt: skip

    nodes = (
        Node(0, None, 4, offset, "diff", "CWE-22"),
        Node(1, 1, 6, offset + 7, "late", "CWE-22"),
    )
    branches = (
        branch(0, 0, text, bad),
        branch(1, 0, text, bad),
        branch(2, 0, text, bad),
        branch(3, 0, "path = os.path.basename(name)\n", Verdict("secure", "executed")),
        branch(4, 0, "pass\n", None),
        branch(5, 1, "name.strip()\n", Verdict("inert", "executed")),
    )
    return Tree(TASK.id, (1, 2, 3), (4, 5, 6), (0, 5, 9), GOLDEN, nodes, branches)


def full_run(folder: Path, grown: Tree | None = None, task: Task = TASK) -> None:
    write_eval(folder, samples("base", 0, 1), samples("round-1", 1, 3))
    write_tasks(folder / "tasks.jsonl", [task])
    for number in (2, 10):
        place = folder / f"round-{number}"
        place.mkdir()
        (place / "judged.jsonl").write_text(json.dumps(tree_to_json(grown or tree())) + "\n")
        (place / "contrasts.json").write_text('{"counts": {"contrasts": 3, "undecided": 1}}')
        lines = [
            {"step": s, "loss": 1 / s, "margin": s, "won": 0.5, "chosen_nll": 1, "grad_norm": 2}
            for s in range(1, 6)
        ]
        (place / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "timings.json").write_text('{"grow": 75.4, "train": 5.25, "peak_memory_mb": 512.4}')
    manifest = {
        "config": {"model": {"path": "tiny"}, "method": "tsp", "train": {"lr": 0.001}},
        "seed": 7,
        "versions": {"torch": "2.9"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Reader(HTMLParser):
    """All tags with their attributes, all text, and whether every tag is closed."""

    VOID = frozenset({"meta", "input", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Reader:
    reader = Reader((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_report_json(tmp_path: Path) -> None:
    full_run(tmp_path)
    report = build_report(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert list(report) == [
        "treeplay", "created", "run", "rows", "paired", "branches", "training", "timings"
    ]  # fmt: skip
    first = ["player", "round", "suite", "split", "language", "cwe", "n_tasks", "n_samples"]
    named = [name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")]
    for row in report["rows"]:
        assert list(row) == first + named
    for row in report["paired"]:
        assert list(row) == [
            "player", "against", "suite", "split", "language", "metric", "diff", "low", "high"
        ]  # fmt: skip
    run = report["run"]
    assert (run["model"], run["method"], run["rounds"], run["seed"]) == ("tiny", "tsp", 1, 7)
    assert [entry["round"] for entry in report["branches"]] == ["round-2", "round-10"]
    assert report["branches"][0]["labels"] == {
        "secure": 1, "vulnerable": 3, "invalid": 0, "inert": 1, "unknown": 0, "plain": 0,
        "unjudged": 1,
    }  # fmt: skip
    assert report["branches"][0]["contrasts"] == {"contrasts": 3, "undecided": 1}
    assert len(report["training"]["round-10"]) == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_page_stands_alone(tmp_path: Path) -> None:
    full_run(tmp_path)
    build_report(tmp_path)
    page = page_of(tmp_path)
    assert not {"img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if tag == "a":
            assert str(attributes["href"])[0] == "#"
            assert str(attributes["href"])[1:] in ids
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_explorer_shows_nodes_and_branches_where_they_are(tmp_path: Path) -> None:
    full_run(tmp_path)
    build_report(tmp_path)
    text = squeezed(page_of(tmp_path).text)
    assert "Trees of round-10" in text
    assert "Risk node 0 diff CWE-22 3 of 5 branches vulnerable" in text
    assert "Risk node 1 late CWE-22" in text  # the late node, inside its branch
    assert (
        "vulnerable \N{MULTIPLICATION SIGN} 2 static a path from outside" in text
    )  # equal branches together
    assert "line 6: a path from outside (CWE-22, rules R1)" in text
    assert "6 path = name ◀ CWE-22" in text
    assert "unjudged" in text
    assert "1 min 15 s" in text
    assert "512 MB" in text
    assert "train.lr0.001" in text


def test_everything_generated_is_escaped(tmp_path: Path) -> None:
    grown = tree(text=f"{EVIL}\n", message=EVIL)
    task = replace(TASK, instruction=EVIL, suffix=f"\n# {EVIL}\n", cwe=(EVIL,))
    full_run(tmp_path, replace(grown, golden=GOLDEN + EVIL))
    (tmp_path / "tasks.jsonl").unlink()
    write_tasks(tmp_path / "tasks.jsonl", [replace(task, cwe=("CWE-22",), prompt=PROMPT + EVIL)])
    finding = Finding(EVIL, 5, 6, EVIL, EVIL, EVIL)
    verdict = Verdict("vulnerable", "executed", (finding,), True, EVIL)
    odd = [
        replace(one, answer=EVIL, task=EVIL, suite=EVIL, verdict=verdict, player="round-2", round=2)
        for one in samples("base", 0, 1, tasks=1)
    ]
    write_eval(tmp_path, [*odd, *samples("round-2", 2, 4)])
    (tmp_path / "manifest.json").write_text(json.dumps({"config": {EVIL: EVIL}, "model": EVIL}))
    build_report(tmp_path)
    page = page_of(tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.text.count(EVIL) > 10  # shown, as text
    assert EVIL not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_only_the_samples_are_needed(tmp_path: Path) -> None:
    write_eval(tmp_path, samples("base", 0, 2))
    report = build_report(tmp_path)
    assert report["paired"] == []
    assert report["branches"] == []
    assert report["training"] == {}
    assert report["timings"] == {}
    text = squeezed(page_of(tmp_path).text)
    assert "nothing to compare" in text
    assert "Trees of" not in text
    assert "This run folder has no manifest." in text


def test_without_the_prompt_no_line_is_blamed(tmp_path: Path) -> None:
    full_run(tmp_path)
    (tmp_path / "tasks.jsonl").unlink()
    build_report(tmp_path)
    text = squeezed(page_of(tmp_path).text)
    assert "line 6: a path from outside" in text
    assert "◀ CWE-22" not in text


def test_a_task_may_be_listed_twice(tmp_path: Path) -> None:
    full_run(tmp_path)
    once = (tmp_path / "tasks.jsonl").read_text()
    (tmp_path / "tasks.jsonl").write_text(once + once)
    build_report(tmp_path)
    assert "Show a file." in page_of(tmp_path).text
    other = json.dumps(task_to_json(replace(TASK, prompt="x = 1")))
    (tmp_path / "tasks.jsonl").write_text(once + other + "\n")
    build_report(tmp_path)
    assert "Show a file." not in page_of(tmp_path).text  # which of the two was meant?


def test_each_optional_part_may_be_missing(tmp_path: Path) -> None:
    full_run(tmp_path)
    stages = ("train.jsonl", "contrasts.json", "judged.jsonl")
    parts = ["tasks.jsonl", "timings.json", "manifest.json", "round-2/judged.jsonl"]
    for part in [*parts, *(f"round-10/{stage}" for stage in stages)]:
        (tmp_path / part).unlink()
        build_report(tmp_path)
        page_of(tmp_path)


def test_labels_come_from_the_contrasts_where_the_trees_are_gone(tmp_path: Path) -> None:
    write_eval(tmp_path, samples("base", 0, 2))
    (tmp_path / "round-1").mkdir()
    counts = {"branches_vulnerable": 4, "branches_secure": 2, "contrasts": 4}
    (tmp_path / "round-1" / "contrasts.json").write_text(json.dumps({"counts": counts}))
    (entry,) = build_report(tmp_path)["branches"]
    assert entry["trees"] is None
    assert (entry["branches"], entry["labels"]["vulnerable"]) == (6, 4)


def test_nothing_evaluated_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no scored samples"):
        build_report(tmp_path)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "base.jsonl").write_text("\n")
    with pytest.raises(RunError, match="no scored samples"):
        build_report(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    full_run(tmp_path)
    base = tmp_path / "eval" / "base.jsonl"
    whole = base.read_text()
    base.write_text(whole[:-40])
    with pytest.raises(RunError, match=r"base\.jsonl:40: not valid JSON"):
        build_report(tmp_path)
    base.write_text(whole + whole.split("\n")[0] + "\n")
    with pytest.raises(RunError, match=r"base\.jsonl:41: sample 0 of task 'task-0' .* already in"):
        build_report(tmp_path)
    base.write_text(whole)
    (tmp_path / "round-2" / "judged.jsonl").write_text('{"task": "t"}\n')
    with pytest.raises(RunError, match=r"judged\.jsonl:1: not a tree"):
        build_report(tmp_path)
    (tmp_path / "round-2" / "judged.jsonl").unlink()
    (tmp_path / "timings.json").write_text("[]")
    with pytest.raises(RunError, match=r"timings\.json: not a JSON object"):
        build_report(tmp_path)


def test_a_large_run_gives_a_small_page(tmp_path: Path) -> None:
    filler = "".join(f"    # filler line number {i} of a long answer\n" for i in range(70))
    long = [
        replace(one, answer=f"\n    # {one.player} {one.sample}\n{filler}")
        for one in samples("base", 0, 2, tasks=130, n=10) + samples("z", 1, 4, tasks=130, n=10)
    ]
    write_eval(tmp_path, long[:1300], long[1300:])
    build_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    text = squeezed(page_of(tmp_path).text)
    assert re.search(r"\d+ more samples? not shown", text)
    assert re.search(r"\d+ more lines? not shown", text)


def test_less_is_shown_rather_than_too_much(tmp_path: Path) -> None:
    few = [*samples("base", 0, 2, tasks=30), *samples("z", 1, 4, tasks=30)]
    write_eval(tmp_path, few[:150], few[150:])
    report = build_report(tmp_path)
    whole = squeezed(page_of(tmp_path).text)
    assert "not shown" not in whole
    tight = render(report, few, "", [], {}, largest=1000)
    assert "10 more tasks not shown" in tight
    assert tight.count("4 more samples not shown") == 40
    assert len(tight) < (tmp_path / "report.html").stat().st_size


def headline(base: int, other: int, **changes: Any) -> dict[str, str]:
    both = samples("base", 0, base) + [
        replace(one, **changes) for one in samples("round-1", 1, other)
    ]
    return words.headline({"rows": rows(both), "paired": paired(both)})


def test_headline_is_honest() -> None:
    better = headline(1, 3)
    assert better["kind"] == "better"
    assert "+40.0 points" in better["text"]
    assert "over 8 tasks" in better["text"]
    assert headline(3, 1)["title"] == "round-1 is less secure than base on eval-seen"
    same = headline(2, 2)
    assert same["kind"] == "open"
    assert "contains zero" in same["text"]
    assert same["title"].startswith("No clear difference")
    broken = headline(1, 3, verdict=Verdict("invalid", functional=False))
    assert broken["kind"] == "worse"
    assert "Clearly worse: pass@1 and valid" in broken["cost"]


def test_the_larger_suite_comes_first() -> None:
    some = samples("base", 0, 2)
    small = [replace(one, suite="a") for one in some if one.task == some[0].task]
    large = [replace(one, suite="b") for one in some]
    assert [suite for suite, _ in words.places({"rows": rows(small + large)})] == ["b", "a"]
    assert [suite for suite, _ in words.places({"rows": rows(small)})] == ["a"]


def test_a_run_that_is_named_by_its_seed_is_told_with_its_arm(tmp_path: Path) -> None:
    for name, title in (("sft/0", "sft/0"), ("mine", "mine")):
        (tmp_path / name).mkdir(parents=True)
        full_run(tmp_path / name)
        assert build_report(tmp_path / name)["run"]["folder"] == title


@pytest.mark.parametrize("width", [100, 80])
def test_table_fits(tmp_path: Path, width: int) -> None:
    full_run(tmp_path)
    report = build_report(tmp_path)
    out = StringIO()
    print_table(report, Console(file=out, width=width, color_system=None))
    text = out.getvalue()
    assert max(len(line.rstrip()) for line in text.split("\n")) <= width
    assert "round-1 minus base on eval-seen: SPR@1 +40.0 points [+40.0, +40.0]" in text
    assert "vulnerable \N{MINUS SIGN}40.0 points" in text
    assert "valid 0.0 points [0.0, 0.0] (contains zero)" in text
    for word in ("base", "SPR@5", "inert", "unkn.", "30.0", "70.0"):
        assert word in text
    assert "…" not in text


def test_points_and_percent() -> None:
    assert words.points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert words.points(0.00001) == words.points(-0.00001) == "0.0"
    assert words.percent(None) == words.points(None) == "\N{EN DASH}"
    assert words.percent(1.0) == "100.0"
