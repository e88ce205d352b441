"""MBPP (Austin et al. 2021, arXiv 2108.07732; CC-BY-4.0): short Python functions, general ability.

Upstream records are those of ``mbpp.jsonl`` (``task_id``, ``text``, ``code``, ``test_list``,
``test_setup_code``) or of ``sanitized-mbpp.json`` (``prompt`` for the text, ``test_imports``), also
as parquet. Of them the prompt is made as in MultiPL-E's form: the imports and the helpers that the
reference has before its function, the signature, and a docstring with the text and the asserts.
Files of that form itself (a YAML file a task, as eth-sri/SafeCoder has them in data_eval/mbpp) and
converted records come with the prompt, and without a reference.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.importers.general import IN_ITS_NAMES, general_task, load_general
from treeplay.tasks.importers.reading import Located, object_of, text_of
from treeplay.tasks.importers.report import ImportResult, ReportLine
from treeplay.tasks.importers.signature import parse_python
from treeplay.tasks.task import Task, Tests

PATTERNS = (
    *("sanitized-mbpp.json", "mbpp*.jsonl", "mbpp_*.yaml", "data_eval/mbpp/mbpp_*.yaml"),
    *("*/*.parquet", "*.parquet", "*.jsonl"),
)
OTHER_FUNCTION = "the prompt begins another function than the tests call, so no answer can pass"
NO_FUNCTION = "the reference does not define the function that the tests call"
NO_PARSE = "the reference is no Python of this interpreter"
HELPERS = "helpers of the reference are in the prompt"
_INDENT = "    "


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every record that can be answered, split "eval"; the reference as ``golden`` where there is
    one."""
    del max_chars  # the set has no long items
    what = "MBPP's mbpp.jsonl, sanitized-mbpp.json or mbpp_*.yaml"
    result = load_general("mbpp", path, PATTERNS, what, _task)
    # Files of one task each come in the order of their names.
    return replace(result, tasks=sorted(result.tasks, key=_number))


def _number(task: Task) -> int:
    number = task.id.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _task(located: Located, lines: list[ReportLine]) -> Task | None:
    data, where = located.data, located.where
    if located.is_record:
        test = text_of(object_of(data, "meta", where), "test", where)
        return _from_prompt(located, lines, text_of(data, "id", where), test)
    if "tests" in data:
        name = text_of(data, "name", where).replace("_", "/")
        return _from_prompt(located, lines, name, text_of(data, "tests", where))
    return _from_upstream(located, lines)


def _from_prompt(located: Located, lines: list[ReportLine], name: str, test: str) -> Task | None:
    where = located.where
    prompt = text_of(located.data, "prompt", where)
    begun = re.findall(r"^def[ \t]+(\w+)", prompt, re.MULTILINE)
    called = _called(test, begun)
    if not begun or (called and called not in begun):
        lines.append(ReportLine(name, "dropped", OTHER_FUNCTION, where, called))
        return None
    return _make(lines, where, name, prompt, None, "", test, called or begun[-1])


def _from_upstream(located: Located, lines: list[ReportLine]) -> Task | None:
    data, where = located.data, located.where
    number = data.get("task_id")
    if not isinstance(number, int):
        raise TaskError(f"{where}: 'task_id' must be a whole number; is this file MBPP's?")
    name = f"mbpp/{number}"
    text = text_of(data, "text" if data.get("text") is not None else "prompt", where)
    test = "\n".join(_strings(data, "test_list", where))
    setup = "\n".join(
        [text_of(data, "test_setup_code", where, ""), *_strings(data, "test_imports", where)]
    )
    code = text_of(data, "code", where)
    tree = parse_python(code)
    if tree is None:
        lines.append(ReportLine(name, "dropped", NO_PARSE, where))
        return None
    called = _called(test, [n.name for n in tree.body if isinstance(n, ast.FunctionDef)])
    parts = _take_apart(code, tree, called)
    if parts is None:
        lines.append(ReportLine(name, "dropped", NO_FUNCTION, where, called))
        return None
    if parts.helpers:
        lines.append(ReportLine(name, "flagged", HELPERS, where))
    told = text.strip().replace("\\", "\\\\").replace('"""', "'''")
    shown = test.replace("\\", "\\\\").replace('"""', "'''")
    rows = ['"""', *told.splitlines(), "Test examples:", *shown.splitlines(), '"""']
    doc = "\n".join(_INDENT + row for row in rows)
    given = f"{parts.before}\n\n\n" if parts.before else ""
    prompt = f"{given}{parts.signature}\n{doc}\n"
    return _make(lines, where, name, prompt, parts.body, setup, test, called)


def _make(
    lines: list[ReportLine],
    where: str,
    name: str,
    prompt: str,
    golden: str | None,
    setup: str,
    test: str,
    called: str,
) -> Task | None:
    if re.search(r"\bmath\.", test) and not re.search(r"^import math", setup, re.MULTILINE):
        setup = f"import math\n{setup}"  # the sanitized form says so, the others forget it
    head = f"{setup.strip()}\n" if setup.strip() else ""
    return general_task(
        lines,
        where,
        id=name,
        prompt=prompt,
        golden=golden,
        tests=Tests(f"{head}{IN_ITS_NAMES}{test.strip()}\n", ""),
        source="mbpp",
        license="CC-BY-4.0",
        meta={"entry_point": called},
    )


@dataclass(frozen=True)
class _Parts:
    """``before``: imports, constants and helpers; the function's ``signature`` in one line;
    ``body``: the reference's, indented by four spaces."""

    before: str
    helpers: bool
    signature: str
    body: str


def _take_apart(code: str, tree: ast.Module, called: str) -> _Parts | None:
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == called]
    if not found:
        return None
    function = found[-1]
    lines = code.splitlines()
    others = [node for node in tree.body if node is not function]
    before = [
        "\n".join(line.rstrip() for line in lines[_first(node) - 1 : node.end_lineno])
        for node in others
    ]
    body = [_spaces(line) for line in lines[_first(function.body[0]) - 1 : function.end_lineno]]
    level = body[0][: len(body[0]) - len(body[0].lstrip())]
    if not level:  # on the signature's own line
        body[0] = level = _INDENT
        first = lines[function.body[0].lineno - 1].encode()  # ast counts bytes
        body[0] += first[function.body[0].col_offset :].decode()
    moved = [_INDENT + row[len(level) :] if row.startswith(level) else row for row in body]
    # A comment left of its block would look like the end of the function.
    moved = [_INDENT + row if row.startswith("#") else row.rstrip() for row in moved]
    helpers = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in others)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    signature = f"def {called}({ast.unparse(function.args)}){returns}:"
    return _Parts("\n".join(before), helpers, signature, "\n".join(moved) + "\n")


def _spaces(line: str) -> str:
    """The line with the tabs that it begins with as spaces, as Python counts them."""
    text = line.lstrip(" \t")
    return line[: len(line) - len(text)].expandtabs(8) + text


def _first(node: ast.stmt) -> int:
    """The line where a statement begins, its decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _called(test: str, defined: Collection[str]) -> str:
    """The function that the asserts call: the name they call most, of those that are ``defined``
    if any is, else of those that are no builtins; "" where there is none."""
    tree = parse_python(test)
    if tree is None:
        return ""
    counts: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            counts[node.func.id] += 1
    names = [name for name, _ in counts.most_common()]
    known = [name for name in names if name in defined]
    return next(iter([*known, *(name for name in names if not hasattr(builtins, name))]), "")


def _strings(data: dict[str, Any], key: str, where: str) -> list[str]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TaskError(f"{where}: {key!r} must be a list of strings; is this file MBPP's?")
    return value
