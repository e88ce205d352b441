"""Risk notes: parsing the TSP annotation format, and finding the lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeplay.tasks.importers import import_tasks
from treeplay.tasks.importers.tsp import parse_annotations
from treeplay.tasks.notes import Placement, place_notes
from treeplay.tasks.task import RiskNote, make_task

# Text that could stand in a note: brackets inside are fine, but not a part's name at a line start.
# A colon may stand behind a part's name, so text that begins with one is not told apart.
line = st.text(st.sampled_from("ab[]({ :;'\"=\t1"), min_size=1, max_size=15).filter(
    lambda value: value.strip() != "" and not value.lstrip().startswith(("[", ":"))
)
code = st.lists(line, min_size=1, max_size=3).map("\n".join).map(str.strip)
numbers = st.integers(1, 1500)
notes = st.builds(
    RiskNote,
    code=code,
    cwe=st.none() | numbers.map(lambda number: f"CWE-{number}"),
    description=st.just("") | code,
)


def render(note: RiskNote, number: int, gap: str, spelling: str) -> str:
    rows = [f"[[{number}]]", f"[Code_Line]{gap}{note.code}"]
    if note.cwe is not None:
        rows.append(f"[CWE_ID]{gap}" + spelling.format(note.cwe[4:]))
    if note.description:
        rows.append(f"[Description]{gap}{note.description}")
    return "\n".join(rows)


@given(
    st.lists(notes, max_size=4),
    st.sampled_from(["", " ", "  ", ": "]),
    st.sampled_from(["CWE-{}", "CWE_{}", "cwe {}", "{}", "['CWE-{}']"]),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from([("", ""), ("```\n", "\n```"), ("```text\n", "\n```\n"), ("```\n", "")]),
)
def test_annotations_come_back(
    written: list[RiskNote], gap: str, spelling: str, between: str, fences: tuple[str, str]
) -> None:
    blocks = [render(note, number, gap, spelling) for number, note in enumerate(written, 1)]
    assert parse_annotations(fences[0] + between.join(blocks) + fences[1]) == written


@given(st.text(max_size=80) | st.text(st.sampled_from("[]1Code_LinCWE\n` "), max_size=80))
def test_any_text_parses(text: str) -> None:
    for note in parse_annotations(text):
        assert note.code == note.code.strip()


def test_odd_annotations() -> None:
    text = """Here are the lines:
[[1]] [Code_Line] `a(b)`
[CWE-ID]: CWE-327, CWE_330
[Description] First.
[Not a part] stays.
```
bad(b)
```
[Code_Line]
```python
x = 1
y = 2
```
[CWE_ID] none
[[3]]
[CWE_ID] CWE-089
[[4]]"""
    assert parse_annotations(text) == [
        RiskNote("a(b)", "CWE-327", "First.\n[Not a part] stays.\n```\nbad(b)\n``` (also CWE-330)"),
        RiskNote("x = 1\ny = 2", None, ""),
        RiskNote("", "CWE-89", ""),
    ]
    assert parse_annotations("nothing here") == []


GOLDEN = """
    path = join(ROOT, name)
    if bad(path):
        raise ValueError(name)
    with open(path,
              "rb") as file:
        data = file.read()
    if ready: log(data); return data
    if bad(path):
        return None
    return loads(data, safe=True)
"""


def place(*codes: str, golden: str | None = GOLDEN) -> Placement:
    return place_notes(
        make_task(
            id="a",
            language="python",
            cwe=(),
            prompt="def load(name):",
            golden=golden,
            vulnerable="\n    return unpickle(name)\n",
            notes=tuple(RiskNote(code, None) for code in codes),
        )
    )


@pytest.mark.parametrize(
    ("code", "line", "how"),
    [
        ("path = join(ROOT, name)", "path = join(ROOT, name)", "exact"),
        ("path=join( ROOT,name )", "path = join(ROOT, name)", "whitespace"),
        (
            'with open(path, "rb") as file:',
            'with open(path,\n              "rb") as file:',
            "whitespace",
        ),
        (
            "if bad(path):\n    raise ValueError(name)",
            "if bad(path):\n        raise ValueError(name)",
            "whitespace",
        ),
        ("return data", "if ready: log(data); return data", "part"),
        ("return loads(data, safe=False)", "return loads(data, safe=True)", "fuzzy"),
    ],
)
def test_a_note_is_placed_on_its_line(code: str, line: str, how: str) -> None:
    (found,) = place(code).placed
    assert GOLDEN[found.char_start : found.char_end] == line
    assert found.how == how


def test_repeated_lines_are_given_in_turn() -> None:
    found = place("if bad(path):", "if bad(path):", "if bad(path):").placed
    starts = [placed.char_start for placed in found]
    first = GOLDEN.index("if bad")
    assert starts == [first, GOLDEN.index("if bad", first + 1), first]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (" \n", "empty"),
        ("def load(name):", "in the prompt"),
        ("return unpickle(name)", "only in the vulnerable version"),
        ("something(else)", "not found"),
    ],
)
def test_a_note_that_cannot_be_placed_has_a_reason(code: str, reason: str) -> None:
    placement = place(code)
    assert placement.placed == ()
    assert [missed.reason for missed in placement.unplaced] == [reason]


def test_several_similar_lines_are_no_place() -> None:
    golden = "\n    first = read(path_one)\n    first = read(path_two)\n"
    assert place("first = read(path_ten)", golden=golden).unplaced[0].reason == (
        "several similar lines"
    )
    assert place("x", golden=None).unplaced[0].reason == "no golden answer"


@given(st.lists(st.sampled_from(["a = 1", "b(a)", "  if c:", "", "x = [a,  b]"]), min_size=1))
def test_every_line_of_a_golden_finds_itself(lines: list[str]) -> None:
    golden = "\n    pass\n" + "\n".join(f"    {line}" for line in lines) + "\n"
    codes = [line.strip() for line in lines if line.strip()]
    placement = place(*codes, golden=golden)
    assert [golden[p.char_start : p.char_end] for p in placement.placed] == codes
    assert len({p.char_start for p in placement.placed}) == len(codes)
    assert {p.how for p in placement.placed} <= {"exact"}


def test_the_tsp_importer_counts_its_notes(tmp_path: Path) -> None:
    output = """```
[[1]]
[Code_Line]  run([cmd])
[CWE_ID]CWE-78
[Description]A command.
[[2]]
[Code_Line]  def go(cmd):
[CWE_ID]CWE-20
[[3]]
[Code_Line]  nowhere()
```"""
    record = {
        "func_name": "go",
        "func_src_before": "def go(cmd):\n    system(cmd)\n",
        "func_src_after": "def go(cmd):\n    run([cmd])\n",
        "file_name": "a.py",
        "vul_type": "cwe-078",
        "description": "Run a command.",
        "output": output,
    }
    path = tmp_path / "x_annotated.json"
    path.write_text(json.dumps([record]))
    result = import_tasks("tsp", tmp_path)
    (task,) = result.tasks
    assert (task.id, task.split, task.prompt) == (
        "tsp/0",
        "train",
        "# Run a command.\ndef go(cmd):",
    )
    assert task.notes[0] == RiskNote("run([cmd])", "CWE-78", "A command.")
    assert result.report.notes_placed == {"exact": 1}
    assert result.report.notes_unplaced == {"in the prompt": 1, "not found": 1}
    assert "tsp/0: note unplaced: not found (nowhere())" in str(result.report)
