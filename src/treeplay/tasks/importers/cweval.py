"""CWEval (Co1lin/CWEval, benchmark/): whole programs with pytest files that compile and run them.

A task file marks the parts: ``BEGIN PROMPT``, ``BEGIN SOLUTION``, ``BEGIN ENTRYPOINT``. The prompt
here is everything before the solution, the suffix the entry point. The tests stay upstream's and
are run as published (:mod:`treeplay.judge.pytest_runner`).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from treeplay.errors import TaskError
from treeplay.tasks.importers.pairs import NO_LANGUAGE, NO_PROMPT, UNUSABLE
from treeplay.tasks.importers.reading import (
    Located,
    cwe_names,
    find_inputs,
    language_of,
    object_of,
    read_records,
    text_of,
    text_or_none,
)
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report
from treeplay.tasks.importers.signature import parse_python, signature_end
from treeplay.tasks.task import Task, Tests, make_task

PATTERNS = (
    "cweval*.jsonl",
    "benchmark/*/*/*_task.*",
    "*/*/*_task.*",
    "*_task.*",
)
NO_VULNERABLE = "no vulnerable version found"
NO_DROP_IN = "vulnerable program has another form: it gives no answer to this prompt"
OTHER_HEAD = "vulnerable program has other imports or definitions before the function"
_MARK = re.compile(r"^[ \t]*(?://|#)[ \t]*BEGIN (PROMPT|SOLUTION|ENTRYPOINT)[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class _Item:
    id: str
    where: str
    language: str | None
    secure: str
    vulnerable: str | None
    test_file: str
    test_name: str
    sanitize: bool
    cwe: tuple[str, ...]


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every task of the benchmark folder (or of its converted form), split "eval"."""
    del max_chars  # the set has no long items
    items: list[_Item] = []
    for file in find_inputs(path, PATTERNS, "CWEval's benchmark folder"):
        if file.suffix == ".jsonl":
            items += [_converted(located) for located in read_records(file)]
        else:
            items.append(_upstream(file))
    lines: list[ReportLine] = []
    tasks = [task for item in items if (task := _task(item, lines)) is not None]
    remark = (
        "the published pytest files judge the answers; scripts/cweval-packages.sh installs what "
        "they and the programs import"
    )
    return make_report("cweval", len(items), tasks, lines, [remark])


def _converted(located: Located) -> _Item:
    data, where = located.data, located.where
    meta = object_of(data, "meta", where)
    language = text_of(data, "language", where)
    tests = text_of(meta, "test_file", where, "")
    vulnerable = text_or_none(data, "vulnerable", where)
    if language == "python" and vulnerable is not None:
        # Taken from the test file, where it may rest on names that the record does not carry.
        vulnerable = unsafe_function(tests) or vulnerable
    return _Item(
        id=text_of(data, "id", where),
        where=where,
        language=language,
        secure=text_of(data, "secure", where),
        vulnerable=vulnerable,
        test_file=tests,
        test_name=text_of(meta, "test_name", where, ""),
        sanitize=upstream_sanitizes(text_of(meta, "path", where, "")),
        cwe=cwe_names(data.get("cwe")),
    )


def _upstream(file: Path) -> _Item:
    test = file.with_name(f"{file.stem.removesuffix('_task')}_test.py")
    unsafe = file.with_name(file.name.replace("_task.", "_unsafe."))
    try:
        secure = file.read_text(encoding="utf-8")
        tests = test.read_text(encoding="utf-8") if test.exists() else ""
        vulnerable = unsafe.read_text(encoding="utf-8") if unsafe.exists() else None
    except (OSError, ValueError) as error:
        raise TaskError(f"{file}: cannot be read ({error}); fetch it again") from None
    language = language_of(file.name)
    if vulnerable is None and language == "python":
        vulnerable = unsafe_function(tests)
    group, folder = file.parent.parts[-2:]
    return _Item(
        id=f"cweval/{group}/{folder}/{file.name.replace('_task.', '.')}",
        where=str(file),
        language=language,
        secure=secure,
        vulnerable=vulnerable,
        test_file=tests,
        test_name=test.name if tests else "",
        sanitize=upstream_sanitizes(f"{group}/{folder}/{file.name}"),
        cwe=cwe_names(file.name),
    )


def unsafe_function(test_file: str) -> str | None:
    """The first ``NAME_unsafe`` function of a Python test file, under the name NAME, with the
    file's imports above it and the file's constants that it uses in it. None when there is none."""
    tree = parse_python(test_file)
    imports = []
    constants: dict[str, str] = {}
    for node in tree.body if tree else ():
        segment = ast.get_source_segment(test_file, node) or ""
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = segment
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if "pytest" not in segment and "cwe_" not in segment:
                imports.append(segment)
        elif isinstance(node, ast.FunctionDef):
            found = re.fullmatch(r"(\w+?)_unsafe(?:_\d+)?", node.name)
            if found and not node.name.startswith(("_", "test_")):
                code = _with_constants(segment, node, constants)
                code = code.replace(f"def {node.name}(", f"def {found[1]}(", 1)
                head = "\n".join(imports)
                return f"{head}\n\n\n{code}\n" if head else f"{code}\n"
    return None


def _with_constants(code: str, node: ast.FunctionDef, constants: dict[str, str]) -> str:
    """The function's source with the constants that it uses at the start of its body, so that the
    body alone is an answer."""
    names = [name for name in ast.walk(node) if isinstance(name, ast.Name)]
    own = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    own |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
    used = {name.id for name in names} - own
    wanted = [text for name, text in constants.items() if name in used]
    if not wanted:
        return code
    lines = code.split("\n")
    first = node.body[0]
    at = first.lineno - node.lineno
    margin = " " * first.col_offset
    added = [margin + line for text in wanted for line in text.split("\n")]
    return "\n".join([*lines[:at], *added, *lines[at:]])


def upstream_sanitizes(path: str) -> bool:
    """Whether upstream builds the task at ``path`` with the address sanitizer: those of its
    ``lang`` folder but one, which must see the allocator fail."""
    parts = PurePosixPath(path).parts
    return "lang" in parts and not parts[-1].startswith("cwe_476_0_c")


def _task(item: _Item, lines: list[ReportLine]) -> Task | None:
    if item.language is None:
        lines.append(ReportLine(item.id, "dropped", NO_LANGUAGE, item.where))
        return None
    parts = _parts(item.secure)
    if parts is None:
        lines.append(ReportLine(item.id, "dropped", NO_PROMPT, item.where, "no BEGIN SOLUTION"))
        return None
    prompt, golden, suffix = parts
    answer, faults = None, []
    if item.vulnerable is None:
        faults.append(NO_VULNERABLE)
    else:
        answer, fault = _answer(item.vulnerable, prompt, item.language)
        faults += [fault] if fault else []
    meta: dict[str, Any] = {
        "secure_program": item.secure,
        "vulnerable_program": item.vulnerable,
        "faults": faults,
    }
    tests = None
    if item.test_file and re.fullmatch(r"\w+_test\.py", item.test_name):
        tests = Tests(item.test_file, item.test_file, "pytest", item.test_name, item.sanitize)
    try:
        task = make_task(
            id=item.id,
            language=item.language,
            cwe=item.cwe,
            prompt=prompt,
            golden=golden,
            vulnerable=answer,
            suffix=suffix,
            tests=tests,
            split="eval",
            source="cweval",
            license="Apache-2.0",
            meta=meta,
        )
    except TaskError as error:
        lines.append(ReportLine(item.id, "dropped", UNUSABLE, item.where, str(error)))
        return None
    lines += [ReportLine(item.id, "flagged", fault, item.where) for fault in faults]
    return task


def _parts(program: str) -> tuple[str, str, str] | None:
    """(before the solution, the solution, the entry point), the marker lines left out."""
    marks = {found[1]: found for found in _MARK.finditer(program)}
    solution, entry = marks.get("SOLUTION"), marks.get("ENTRYPOINT")
    if solution is None:
        return None
    prompt = _MARK.sub("", program[: solution.start()])
    end = len(program) if entry is None else entry.start()
    return prompt, program[solution.end() : end], "" if entry is None else program[entry.end() :]


def _answer(program: str, prompt: str, language: str) -> tuple[str | None, str]:
    """(the vulnerable program's answer to ``prompt``, a fault or "").

    The body counts as an answer when the function's signature is the prompt's; what stands before
    the function is the prompt's then, which may lack an import that the body needs.
    """
    parts = _parts(program)
    signature = _signature(prompt, language)
    if parts is not None and _squeezed(parts[0]).endswith(signature):
        head, body = parts[0], parts[1]
    else:
        entry = next((m for m in _MARK.finditer(program) if m[1] == "ENTRYPOINT"), None)
        code = program if entry is None else program[: entry.start()]
        end = _end_of(code, signature)
        if not signature or end is None:
            return None, NO_DROP_IN
        head, body = code[:end], code[end:].removeprefix("\n")
    same = _imports(head, language) == _imports(prompt, language)
    return body, "" if same else OTHER_HEAD


def _signature(prompt: str, language: str) -> str:
    """The last function head of the prompt without white space, "" when there is none."""
    if language == "python":
        start = max(prompt.rfind("\ndef "), 0 if prompt.startswith("def ") else -1)
        if start < 0:
            return ""
        code = prompt[start:]
        return _squeezed(code[: signature_end(code, "python")])
    last = prompt.rstrip().split("\n")[-1]
    return _squeezed(last)


def _end_of(code: str, signature: str) -> int | None:
    """The offset in ``code`` right behind the text that is ``signature`` but for white space."""
    places = [index for index, char in enumerate(code) if not char.isspace()]
    found = "".join(code[index] for index in places).find(signature)
    return None if found < 0 else places[found + len(signature) - 1] + 1


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _imports(code: str, language: str) -> set[str]:
    """What the code brings in; Go refuses an import too many as much as one too few."""
    if language == "go":
        return set(re.findall(r'^\s*(?:import\s+)?(?:\w+\s+)?"([\w./-]+)"\s*$', code, re.MULTILINE))
    found = re.findall(r"^\s*(?:#include|import|from|const .*require)\b.*$", code, re.MULTILINE)
    return {_squeezed(line) for line in found}
