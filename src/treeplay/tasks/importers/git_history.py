"""Fixes of vulnerabilities in the history of a git repository: the functions that they changed.

A commit counts whose message speaks of security and that changes few functions. Its functions are
pairs, the vulnerable side from before it. Nothing of the repository is run or checked out: git is
asked for objects alone, and the programs that a repository's own settings may name (for
signatures, differences) are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_grep_py import SgNode, SgRoot

from treeplay.errors import TaskError
from treeplay.judge.rules import find_vulnerable
from treeplay.tasks.importers.pairs import NO_CWE, Pair, pairs_to_tasks
from treeplay.tasks.importers.reading import cwe_names, language_of
from treeplay.tasks.importers.report import ImportResult, ReportLine, make_report

# Extended regular expressions, in any case, and the weakness that they speak of. Words that mostly
# speak of something else ("inject", "overflow", "escape") need company.
WORDS = {
    r"sql.?injection": "CWE-89",
    r"(command|shell).?injection": "CWE-78",
    r"(code|eval).?injection": "CWE-94",
    r"template.?injection": "CWE-1336",
    r"(header|crlf).?injection|response.?splitting": "CWE-113",
    r"log.?injection": "CWE-117",
    r"ldap.?injection": "CWE-90",
    r"xpath.?injection": "CWE-643",
    r"\bxss\b|cross.?site.?scripting": "CWE-79",
    r"\bcsrf\b|cross.?site.?request": "CWE-352",
    r"\bssrf\b|server.?side.?request": "CWE-918",
    r"\bxxe\b|external.?entit": "CWE-611",
    r"\bredos\b|catastrophic.?backtrack": "CWE-1333",
    r"\btoctou\b": "CWE-367",
    r"(path|directory).?travers|zip.?slip": "CWE-22",
    r"(buffer|heap|stack).?over(flow|run)|out.of.bounds.?write": "CWE-787",
    r"(buffer|heap).?over.?read|out.of.bounds.?(read|access)": "CWE-125",
    r"integer.?(over|under)flow": "CWE-190",
    r"use.after.free": "CWE-416",
    r"double.free": "CWE-415",
    r"null.?(pointer|ptr).?deref": "CWE-476",
    r"format.?string.?(vuln|bug|attack)": "CWE-134",
    r"(unsafe|insecure|untrusted).?deseriali": "CWE-502",
    r"open.?redirect": "CWE-601",
    r"hard.?coded.?(password|secret|key|token|credential)": "CWE-798",
    r"timing.?(attack|side)|constant.?time": "CWE-208",
}
OF_MEMORY = ("CWE-125", "CWE-134", "CWE-190", "CWE-415", "CWE-416", "CWE-476", "CWE-787")
SPEAKS = "|".join(
    (r"CVE-[0-9]|CWE-?[0-9]|vulnerab|exploit|security (fix|issue|bug|hole|flaw|problem)", *WORDS)
)
MOST_FUNCTIONS = 3
MOST_CHARS = 1_000_000  # of a file; what is longer was written by no one
NO_FUNCTION = "changes no function in a known language"
MANY_FUNCTIONS = f"changes more than {MOST_FUNCTIONS} functions"
_FUNCTIONS = {
    "python": ("function_definition",),
    "c": ("function_definition",),
    "cpp": ("function_definition",),
    "javascript": ("function_declaration", "generator_function_declaration", "method_definition"),
    "go": ("function_declaration", "method_declaration"),
    "java": ("method_declaration", "constructor_declaration"),
    "ruby": ("method", "singleton_method"),
    "rust": ("function_item",),
    "php": ("function_definition", "method_declaration"),
}
_Function = tuple[str, ...]  # names of what it stands in, its own, and which of that name it is


@dataclass(frozen=True)
class _Fix:
    commit: str
    message: str


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every function that a fix in the history of HEAD changed, the latest fix first; tests and
    functions that were added or removed are left out.

    A pair's CWEs are those that the message names or speaks of, else those of certain mistakes
    that treeplay's rules find before the fix and not after it; one with none is flagged.

    Raises TaskError where ``path`` is no repository, or git is not installed.
    """
    repository = Path(path)
    if not repository.is_dir():
        raise TaskError(f"{path}: no such file or folder; give the folder of a git repository")
    name = _git(repository, "rev-parse", "--show-toplevel", fallback=str(repository.resolve()))
    name = Path(name.strip()).name.removesuffix(".git")
    pairs: list[Pair] = []
    dropped: list[ReportLine] = []
    for fix in _fixes(repository):
        item = f"git/{name}/{fix.commit[:12]}"
        where = f"{path} {fix.commit[:12]}"
        found = [
            (file, key, before, after)
            for file, old, new in _changed(repository, fix.commit)
            for key, before, after in _changed_functions(language_of(file) or "", old, new)
        ]
        if not 0 < len(found) <= MOST_FUNCTIONS:
            why = MANY_FUNCTIONS if found else NO_FUNCTION
            dropped.append(ReportLine(item, "dropped", why, where, _subject(fix)))
            continue
        for number, (file, key, before, after) in enumerate(found):
            language = language_of(file) or ""
            cwe = _named(fix.message, language) or _mended(language, before, after)
            pairs.append(
                Pair(
                    id=f"{item}/{number}",
                    where=where,
                    language=language,
                    cwe=cwe,
                    secure=after,
                    vulnerable=before,
                    name=key[-2],
                    file_name=file,
                    commit_link=f"{name}/commit/{fix.commit}",
                    upstream_split="",
                    source=f"git/{name}",
                    license="",
                    faults=() if cwe else (NO_CWE,),
                    meta={"subject": _subject(fix)},
                )
            )
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=False, max_chars=max_chars)
    remarks.append("no licence is looked for: tasks are under that of the repository")
    return make_report("git", len(pairs) + len(dropped), tasks, [*dropped, *lines], remarks)


def _subject(fix: _Fix) -> str:
    return fix.message.strip().split("\n", 1)[0]


def _git(repository: Path, *arguments: str, fallback: str | None = None) -> str:
    """What git says; ``fallback`` where it fails. Raises TaskError without one."""
    command = ["git", "-C", str(repository), "--no-pager", "-c", "log.showSignature=false"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            check=False,
            # Not the repository of a hook that this may be called from.
            env={key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        )
    except FileNotFoundError:
        raise TaskError("git is not installed, and reads the history; install it") from None
    if done.returncode and fallback is not None:
        return fallback
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().split("\n")[0]
        raise TaskError(f"{repository}: git cannot read a history here ({said}); name a repository")
    return done.stdout.decode(errors="replace")


def _fixes(repository: Path) -> Iterator[_Fix]:
    said = _git(
        repository,
        *("log", "-z", "--no-merges", "--regexp-ignore-case", "--extended-regexp"),
        *(f"--grep={SPEAKS}", "--format=%H%x00%B", "HEAD", "--"),
    )
    parts = said.split("\0")
    for commit, message in zip(parts[::2], parts[1::2], strict=False):
        yield _Fix(commit.strip(), message)


def _changed(repository: Path, commit: str) -> Iterator[tuple[str, str, str]]:
    """(file, text before, text after) of every file of code that a commit changed."""
    said = _git(
        repository,
        *("diff-tree", "-r", "-z", "--no-commit-id", "--name-only", "--diff-filter=M"),
        *("--no-ext-diff", "--no-textconv", "--no-renames", commit, "--"),
    )
    for file in said.split("\0"):
        if not file or language_of(file) not in _FUNCTIONS or _is_test(file):
            continue
        before, after = (
            _git(repository, "cat-file", "blob", f"{side}:{file}", fallback="")
            for side in (f"{commit}^", commit)
        )
        if 0 < max(len(before), len(after)) <= MOST_CHARS and "\ufffd" not in before + after:
            yield file, before, after


def _is_test(file: str) -> bool:
    path = Path(file.lower())
    folders = {"test", "tests", "testing", "spec", "__tests__", "vendor", "node_modules"}
    stem = path.stem
    return (
        bool(folders.intersection(path.parts[:-1]))
        or stem.startswith("test_")
        or (stem.endswith(("_test", ".test", ".spec", "_spec")))
    )


def _changed_functions(
    language: str, before: str, after: str
) -> Iterator[tuple[_Function, str, str]]:
    """(which, text before, text after) of every outermost function that both have, differently."""
    old, new = _functions(language, before), _functions(language, after)
    for key, text in new.items():
        if key in old and old[key] != text:
            yield key, old[key], text


def _functions(language: str, program: str) -> dict[_Function, str]:
    """The outermost functions of a program, whole lines of text. Functions of one name in one
    place are counted."""
    kinds = _FUNCTIONS[language]
    seen: Counter[_Function] = Counter()
    found: dict[_Function, str] = {}
    lines = program.split("\n")
    nothing: _Function = ()
    stack = [(SgRoot(program, language).root(), nothing)]
    while stack:
        node, names = stack.pop()
        if node.kind() not in kinds:
            inside = node.field("name")
            inner = names if inside is None else (*names, inside.text())
            stack += [(child, inner) for child in reversed(node.children())]
            continue
        key = (*names, _name(node))
        seen[key] += 1
        above = node.parent()
        whole = above if above is not None and above.kind() == "decorated_definition" else node
        first, last = whole.range().start, whole.range().end
        alone = not lines[first.line][: first.column].strip()
        text = "\n".join(lines[first.line : last.line + 1]) if alone else whole.text()
        which = (*key, str(seen[key]))
        found[which] = text.rstrip() + "\n"
    return found


def _name(function: SgNode) -> str:
    """A function's own name. C declares it inside what it returns."""
    named = function.field("name")
    while named is None:
        inner = function.field("declarator")
        if inner is None:
            return str(function.text()) if function.is_leaf() else ""
        function, named = inner, inner.field("name")
    return str(named.text())


def _named(message: str, language: str) -> tuple[str, ...]:
    """CWEs that a message names, else those that it speaks of and that the language can have."""
    spoken = [cwe for words, cwe in WORDS.items() if re.search(words, message, re.IGNORECASE)]
    if language not in ("c", "cpp"):
        spoken = [cwe for cwe in spoken if cwe not in OF_MEMORY]
    return cwe_names(message) or tuple(spoken)


def _mended(language: str, before: str, after: str) -> tuple[str, ...]:
    """CWEs of the certain mistakes that a fix took away."""

    def mistakes(program: str) -> Counter[str]:
        found = find_vulnerable(language, program)
        return Counter(finding.cwe for finding in found if finding.cwe)

    return tuple(sorted(mistakes(before) - mistakes(after)))
