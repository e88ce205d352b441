"""Public data sets: upstream and converted form, faults, and the real files where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from treeplay.errors import TaskError
from treeplay.tasks.importers import KINDS, ImportResult, import_tasks
from treeplay.tasks.importers.pairs import repository_of
from treeplay.tasks.importers.reading import cwe_names, object_of
from treeplay.tasks.importers.signature import cut_pair, signature_end
from treeplay.tasks.jsonl import read_tasks, write_tasks
from treeplay.tasks.notes import place_notes
from treeplay.tasks.task import Task

DATA = Path(os.environ.get("TREEPLAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(good: str, bad: str, **more: Any) -> dict[str, Any]:
    """An upstream record of SVEN, SafeCoder or TSP."""
    return {
        "func_name": "greet",
        "func_src_before": bad,
        "func_src_after": good,
        "file_name": "app/greet.py",
        "vul_type": "cwe-078",
        "commit_link": "github.com/Some/Repo/commit/abc",
        **more,
    }


GOOD = "def greet(name):\n    subprocess.run(['echo', name])\n    return name\n"
BAD = "def greet(name):\n    os.system('echo ' + name)\n    return name\n"


def programs(task: Task) -> tuple[str, str]:
    assert task.golden is not None
    assert task.vulnerable is not None
    return task.program(task.golden), task.program(task.vulnerable)


def counts_fit(result: ImportResult) -> None:
    report = result.report
    assert report.kept == len(result.tasks)
    assert report.read == report.kept + sum(report.dropped.values())
    for action, counted in (("dropped", report.dropped), ("flagged", report.flagged)):
        assert sum(counted.values()) == sum(line.action == action for line in report.lines)
    flags = [fault for task in result.tasks for fault in task.meta["faults"]]
    assert len(flags) == sum(report.flagged.values())


# Signatures and cutting


@pytest.mark.parametrize(
    ("language", "code", "rest"),
    [
        ("python", "def f(a: dict = {'k:': 1}) -> int:  # say:\n    return 1\n", "    return 1\n"),
        ("python", "@app.route('/:id')\nasync def f(\n    a,\n):\n    pass\n", "    pass\n"),
        ("python", "def f(): return 1\n", " return 1\n"),
        ("c", "static int\nf(char c /* '{' */)\n{\n  return 1;\n}\n", "  return 1;\n}\n"),
        ("c", "int f(void) { return 1; }", " return 1; }"),
        ("go", "func f(m map[string]interface{}) interface{} {\n\treturn m\n}", "\treturn m\n}"),
        ("javascript", "f = ({a, b}) => {\n  return a;\n}", "  return a;\n}"),
        ("javascript", "on('x', function (e) {\n  go();\n});", "  go();\n});"),
        ("java", '@Get("{id}")\npublic int f() throws E {\n  return 1;\n}', "  return 1;\n}"),
        ("ruby", "  def f(a,\n        b = nil)\n    a\n  end", "    a\n  end"),
        ("python", "x = 1\n", "x = 1\n"),
        ("c", "return 1;", "return 1;"),
    ],
)
def test_signature_ends_where_the_body_begins(language: str, code: str, rest: str) -> None:
    assert code[signature_end(code, language) :] == rest


def test_the_given_prompt_is_used_when_it_begins_both() -> None:
    cut = cut_pair(GOOD, BAD, "python", given="def greet(name):\n")
    assert cut is not None
    assert (cut.prompt, cut.prompt_from) == ("def greet(name):\n", "given")
    other = cut_pair(GOOD, BAD, "python", given="def other(name):\n")
    assert other is not None
    assert (other.prompt, other.prompt_from) == ("def greet(name):\n", "signature")


def test_a_changed_signature_leaves_the_common_lines_or_the_comment() -> None:
    head = "@app.route('/')\n"
    changed = BAD.replace("(name)", "(name, x)")
    cut = cut_pair(head + GOOD, head + changed, "python", comment="Greet  a\nuser")
    assert cut is not None
    assert (cut.prompt, cut.prompt_from) == (f"# Greet a user\n{head}", "common lines")
    assert (cut.golden, cut.vulnerable) == (GOOD, changed)
    bare = cut_pair(GOOD, changed, "python", name="greet")
    assert bare is not None
    assert (bare.prompt, bare.golden, bare.prompt_from) == ("# greet\n", GOOD, "comment")
    assert cut_pair(GOOD, changed, "python") is None


def test_an_answer_is_never_empty() -> None:
    cut = cut_pair("int f() {\n", "int f() {\n  g();\n", "c", comment="do")
    assert cut is not None
    assert (cut.prompt, cut.golden) == ("// do\n", "int f() {\n")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("cwe-089", ("CWE-89",)),
        ("CWE_327", ("CWE-327",)),
        ("CWE-20, CWE 79 and cwe20", ("CWE-20", "CWE-79")),
        (["CWE-1", "502"], ("CWE-1", "CWE-502")),
        ("022", ("CWE-22",)),
        (94, ("CWE-94",)),
        ("none", ()),
        (None, ()),
    ],
)
def test_cwe_names(value: object, names: tuple[str, ...]) -> None:
    assert cwe_names(value) == names


@pytest.mark.parametrize("meta", [{"a": 1}, '{"a": 1}', "{'a': 1}"])
def test_an_object_may_be_text(meta: object) -> None:
    assert object_of({"meta": meta}, "meta", "x:1") == {"a": 1}
    with pytest.raises(TaskError, match="x:1: 'meta' is text that holds no object"):
        object_of({"meta": "a, b"}, "meta", "x:1")


def test_repositories() -> None:
    assert repository_of("https://github.com/A/B/commit/12") == "github.com/a/b"
    assert repository_of("gitlab.com/a/b/c/-/commit/12") == "gitlab.com/a/b/c"
    assert repository_of("") == ""


# Pairs and their faults


@pytest.mark.parametrize("kind", ["sven", "safecoder"])
def test_upstream_and_converted_pairs_agree(tmp_path: Path, kind: str) -> None:
    name = {"sven": "cwe-078.jsonl", "safecoder": "sec-new-desc.jsonl"}[kind]
    words = {} if kind == "sven" else {"description": "Greet a user."}
    up = jsonl(tmp_path / "data_train_val" / "train" / name, [pair(GOOD, BAD, **words)])
    instruct = kind == "safecoder"
    record = {
        "id": f"{kind}/train/{up.stem}/0",
        "source": kind,
        "license": "MIT",
        "language": "python",
        "cwe": "CWE-78",
        "task": "instruct" if instruct else "complete",
        "prompt": "Greet a user." if instruct else "def greet(name):\n",
        "secure": GOOD,
        "vulnerable": BAD,
        "meta": repr({k: pair("", "")[k] for k in ("func_name", "file_name", "commit_link")}),
    }
    converted = jsonl(tmp_path / f"{kind}.train.jsonl", [record])
    left, right = import_tasks(kind, up), import_tasks(kind, converted)
    counts_fit(left)
    left.tasks[0].meta.pop("prompt_from")
    right.tasks[0].meta.pop("prompt_from")
    assert left.tasks == right.tasks
    task = left.tasks[0]
    head = "# Greet a user.\n" if instruct else ""
    assert programs(task) == (head + GOOD, head + BAD)
    assert task.prompt == f"{head}def greet(name):"
    assert task.instruction == ("Greet a user." if instruct else "")
    assert import_tasks(kind, tmp_path / "data_train_val").report.read == 1
    with pytest.raises(TaskError, match="this record is of"):
        import_tasks("tsp", converted)


def test_faults_are_found_counted_and_flagged(tmp_path: Path) -> None:
    other = "def greet(name):\n    print(name)\n"
    link = "github.com/Other/Thing/commit/1"
    train = [
        pair(GOOD, BAD),
        pair(GOOD, BAD),
        pair(GOOD, GOOD),
        pair(GOOD, GOOD.replace("    ", "\t")),
        pair(BAD + "\n", other),  # BAD is vulnerable in the first pair
        pair("def f():\n    print 'a'\n", "def f():\n    print 'b'\n"),
        pair("def g():\n    a(1)\n" + "#" * 90, "def g():\n    b(1)\n"),
        pair("x", "y", file_name="page.html"),
    ]
    val = [
        pair("def h():\n    a(1)\n", "def h():\n    b(1)\n"),
        pair(
            "def i():\n    a(1)\n",
            "def i():\n    b(1)\n",
            commit_link="github.com/Some/Repo/commit/2",
        ),
        pair("def j():\n    a(1)\n", "def j():\n    b(1)\n", commit_link=link),
    ]
    jsonl(tmp_path / "train" / "cwe-078.jsonl", train)
    jsonl(tmp_path / "val" / "cwe-078.jsonl", val)
    result = import_tasks("sven", tmp_path, max_chars=100)
    counts_fit(result)
    assert result.report.dropped == {
        "identical pair": 1,
        "whitespace-only pair": 1,
        "duplicate pair": 1,
        "language not supported": 1,
    }
    assert result.report.flagged == {
        "text is secure in one pair and vulnerable in another": 2,
        "secure version does not parse": 1,
        "vulnerable version does not parse": 1,
        "longer than 100 characters": 1,
        "validation pair shares its commit with train": 1,
        "validation pair shares its repository with train": 1,
    }
    splits = {task.id.split("/", 1)[1]: task.split for task in result.tasks}
    assert {name for name, split in splits.items() if split == "eval"} == {"val/cwe-078/2"}
    printed = str(result.report)
    assert "sven/train/cwe-078/1: dropped: duplicate pair (of sven/train/cwe-078/0)" in printed
    assert f"{tmp_path / 'train' / 'cwe-078.jsonl'}:2" in printed
    assert "left in split eval: 1" in printed


def test_one_split_alone_says_that_leaks_were_not_looked_for(tmp_path: Path) -> None:
    result = import_tasks("sven", jsonl(tmp_path / "val" / "cwe-078.jsonl", [pair(GOOD, BAD)]))
    assert result.tasks[0].split == "eval"
    assert "leaks between train and val were not looked for" in str(result.report)


def test_methods_lose_their_common_indentation(tmp_path: Path) -> None:
    def deeper(code: str) -> str:
        return "".join(f"    {line}" for line in code.splitlines(keepends=True))

    path = jsonl(tmp_path / "cwe-078.jsonl", [pair(deeper(GOOD), deeper(BAD))])
    task = import_tasks("sven", path).tasks[0]
    assert programs(task) == (GOOD, BAD)
    assert task.meta["faults"] == []


def test_sven_scenarios(tmp_path: Path) -> None:
    for name, end in (("0-py", "    q = "), ("1-py", "    q = "), ("2-c", "  strcpy")):
        folder = tmp_path / "data_eval" / "trained" / "cwe-089" / name
        folder.mkdir(parents=True)
        suffix = name.split("-")[1]
        (folder / f"file_context.{suffix}").write_text("import x\n\n")
        (folder / f"func_context.{suffix}").write_text(f"def f(a):\n{end}")
        (folder / "info.json").write_text(json.dumps({"cwe": "CWE-089", "description": "ask"}))
    result = import_tasks("sven", tmp_path / "data_eval")
    assert [task.id for task in result.tasks] == [
        "sven/trained/cwe-089/0-py",
        "sven/trained/cwe-089/2-c",
    ]
    task = result.tasks[0]
    assert (task.prompt, task.language, task.split) == (
        "import x\n\ndef f(a):\n    q =",
        "python",
        "eval",
    )
    assert (task.cwe, task.instruction, task.golden) == (("CWE-89",), "ask", None)
    assert result.report.dropped == {"duplicate pair": 1}


# SecurityEval, CWEval


def test_securityeval(tmp_path: Path) -> None:
    prompt = "def load(f):  \n    '''\n    Load f.\n    '''\n"
    rows = [
        {"ID": "CWE-502_a_1.py", "Prompt": prompt, "Insecure_code": prompt + "    return 1"},
        {"ID": "CWE-502_a_2.py", "Prompt": prompt, "Insecure_code": "def load(f):\n    pass"},
        {"ID": "CWE-502_a_3.py", "Prompt": prompt, "Insecure_code": prompt + "    return 1"},
        {
            "ID": "CWE-020_b.py",
            "Prompt": prompt + "\n",
            "Insecure_code": prompt.replace("  \n", "\n") + "    return 2",
        },
    ]
    result = import_tasks("securityeval", jsonl(tmp_path / "dataset.jsonl", rows))
    counts_fit(result)
    first, second, third = result.tasks
    assert (first.id, first.cwe, first.split) == (
        "securityeval/CWE-502_a_1.py",
        ("CWE-502",),
        "eval",
    )
    assert first.program(first.vulnerable or "") == prompt + "    return 1"
    assert second.vulnerable is None
    assert second.meta["faults"] == ["insecure code does not begin with the prompt"]
    assert second.meta["vulnerable_program"] == "def load(f):\n    pass"
    assert third.program(third.vulnerable or "") == prompt + "    return 2"
    assert result.report.dropped == {"duplicate pair": 1}


def test_cweval(tmp_path: Path) -> None:
    core = tmp_path / "benchmark" / "core"
    for name in ("py", "c"):
        (core / name).mkdir(parents=True)
    (core / "py" / "cwe_020_0_task.py").write_text(
        "def f(a: str) -> str:\n    '''Doc.'''\n    # BEGIN SOLUTION\n    return a.strip()\n"
    )
    (core / "py" / "cwe_020_0_test.py").write_text(
        "import os\nimport pytest\nfrom cwe_020_0_task import f\n\n\n"
        "def f_unsafe_0(a: str) -> str:\n    return os.path.join(a)\n"
    )
    (core / "c" / "cwe_078_0_c_task.c").write_text(
        "#include <stdio.h>\n// BEGIN PROMPT\n/** Doc. */\nint f(char *a) {\n"
        "    // BEGIN SOLUTION\n    return 0;\n}\n\n// BEGIN ENTRYPOINT\nint main() {}\n"
    )
    (core / "c" / "cwe_078_0_c_unsafe.c").write_text(
        "#include <stdio.h>\nint f(char * a)\n{\n    return system(a);\n}\n"
        "// BEGIN ENTRYPOINT\nint main(int n) {}\n"
    )
    result = import_tasks("cweval", tmp_path)
    counts_fit(result)
    c, python = sorted(result.tasks, key=lambda task: task.language)
    assert (c.id, c.cwe, c.tests) == ("cweval/core/c/cwe_078_0_c.c", ("CWE-78",), None)
    head, tail = "#include <stdio.h>\n/** Doc. */\nint f(char *a) {\n", "int main() {}\n"
    assert programs(c) == (
        f"{head}    return 0;\n}}\n\n{tail}",
        f"{head}    return system(a);\n}}\n{tail}",
    )
    assert c.meta["faults"] == []
    assert python.id == "cweval/core/py/cwe_020_0.py"
    assert python.vulnerable == "\n    return os.path.join(a)\n"
    assert python.meta["faults"] == [
        "vulnerable program has other imports or definitions before the function"
    ]
    assert python.tests is not None
    assert python.tests.functional.startswith("import os\nimport pytest")
    assert (python.tests.form, python.tests.name) == ("pytest", "cwe_020_0_test.py")
    assert "published pytest files" in str(result.report)


# Whatever the kind


def test_unknown_kind_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="unknown data set 'svn'; use one of tsp, safecoder"):
        import_tasks("svn", tmp_path)
    for kind in KINDS:
        with pytest.raises(TaskError, match="no such file or folder"):
            import_tasks(kind, tmp_path / "none")
        there = "cannot read a history here" if kind == "git" else r"holds no .* \(looked for"
        with pytest.raises(TaskError, match=there):
            import_tasks(kind, tmp_path)


def test_broken_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cwe-078.jsonl"
    path.write_text(json.dumps(pair(GOOD, BAD)) + "\n{oops\n")
    with pytest.raises(TaskError, match=r"cwe-078\.jsonl:2: not valid JSON"):
        import_tasks("sven", path)
    path.write_text(json.dumps({"func_src_after": "x"}) + "\n")
    with pytest.raises(TaskError, match=r":1: 'file_name' is missing"):
        import_tasks("sven", path)
    listed = tmp_path / "annotated.json"
    listed.write_text('[\n{"a": 1},\n{]')
    with pytest.raises(TaskError, match=r"annotated\.json:3: not valid JSON"):
        import_tasks("tsp", listed)


# The real files. (kind, file or "" for the folder): read, kept, some of dropped and flagged
REAL: list[tuple[str, str, int, int, dict[str, int]]] = [
    ("tsp", "tsp.annotated.json", 421, 405, {"identical pair": 1, "whitespace-only pair": 3}),
    (
        "safecoder",
        "safecoder.train.jsonl",
        421,
        405,
        {"identical pair": 1, "whitespace-only pair": 3, "duplicate pair": 12},
    ),
    (
        "sven",
        "",
        873,
        867,
        {
            "identical pair": 4,
            "whitespace-only pair": 1,
            "duplicate pair": 1,
            "validation pair shares its commit with train": 34,
            "validation pair shares its repository with train": 34,
        },
    ),
    ("seccodeplt", "seccodeplt.jsonl", 1411, 1406, {"secure version does not parse": 40}),
    ("securityeval", "securityeval.eval.jsonl", 121, 121, {}),
    ("cweval", "cweval.eval.jsonl", 119, 119, {}),
]


@pytest.mark.parametrize(("kind", "name", "read", "kept", "counts"), REAL)
def test_real_files(
    tmp_path: Path, kind: str, name: str, read: int, kept: int, counts: dict[str, int]
) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no data at {DATA}; set TREEPLAY_DATA")
    result = import_tasks(kind, DATA / name)
    counts_fit(result)
    report = result.report
    assert (report.read, report.kept) == (read, kept)
    assert counts.items() <= {**report.dropped, **report.flagged}.items()
    write_tasks(tmp_path / "t.jsonl", result.tasks)
    assert read_tasks(tmp_path / "t.jsonl") == result.tasks
    if kind == "tsp":
        notes = sum(len(task.notes) for task in result.tasks)
        placed, missed = report.notes_placed, report.notes_unplaced
        assert notes == sum(placed.values()) + sum(missed.values())
        assert sum(placed.values()) / notes > 0.97
        for task in result.tasks:
            for found in place_notes(task).placed:
                assert not (task.golden or " ")[found.char_start].isspace()
