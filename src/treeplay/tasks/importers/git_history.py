"""Fixes of vulnerabilities in the history of a git repository: the functions that they changed.

A commit counts whose message speaks of security and that changes few functions. Its functions are
pairs, the vulnerable side from before it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from treeplay.errors import TaskError
from treeplay.judge.rules import find_vulnerable
from treeplay.tasks.importers.functions import FUNCTIONS, changed_functions
from treeplay.tasks.importers.git_objects import Objects
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
MOST_FILES = 20
NO_FUNCTION = "changes no function in a known language"
MANY_FUNCTIONS = f"changes more than {MOST_FUNCTIONS} functions"
MANY_FILES = f"changes more than {MOST_FILES} files of code"
NO_PARENT = "the commit before it is not there (the first one, or a shallow clone)"
UNREADABLE = "a file is not there, is no text, or is too long"
REVERTS = "reverts another commit"
REVERTED = "was reverted"


@dataclass(frozen=True)
class _Fix:
    """A commit that may be one. ``parents``: the names of those before it."""

    commit: str
    parents: str
    message: str

    @property
    def subject(self) -> str:
        return self.message.strip().split("\n", 1)[0]

    @property
    def reverts(self) -> str | None:
        """The commit that it takes back; "" where it does not say which."""
        found = re.search(r"This reverts commit ([0-9a-f]{7,64})", self.message)
        if found:
            return found[1]
        return "" if self.subject.startswith('Revert "') else None


def load(path: str | Path, max_chars: int | None) -> ImportResult:
    """Every function that a fix in the history of HEAD changed, the latest fix first; tests and
    functions that were added or removed are left out, and so are fixes that were reverted.

    A pair's CWEs are those that the message names or speaks of, else those of certain mistakes
    that treeplay's rules find before the fix and not after it; one with none is flagged.

    Raises TaskError where ``path`` is no repository, or git is not installed.
    """
    repository = Path(path)
    if not repository.is_dir():
        raise TaskError(f"{path}: no such file or folder; give the folder of a git repository")
    with tempfile.TemporaryDirectory() as folder:
        objects = Objects(repository, Path(folder))
        name = objects.name
        fixes = list(_fixes(objects))
        reverted = tuple(fix.reverts for fix in fixes if fix.reverts)
        pairs: list[Pair] = []
        dropped: list[ReportLine] = []
        for fix in fixes:
            item, where = f"git/{name}/{fix.commit[:12]}", f"{path} {fix.commit[:12]}"
            found = _functions_of(objects, fix, reverted)
            if isinstance(found, str):
                dropped.append(ReportLine(item, "dropped", found, where, fix.subject))
                continue
            for number, (file, function, before, after) in enumerate(found):
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
                        name=function,
                        file_name=file,
                        commit_link=f"{name}/commit/{fix.commit}",
                        upstream_split="",
                        source=f"git/{name}",
                        license="",
                        faults=() if cwe else (NO_CWE,),
                        meta={"subject": fix.subject},
                    )
                )
    tasks, lines, remarks = pairs_to_tasks(pairs, comment=False, max_chars=max_chars)
    remarks.append("no licence is looked for: tasks are under that of the repository")
    return make_report("git", len(pairs) + len(dropped), tasks, [*dropped, *lines], remarks)


def _functions_of(
    objects: Objects, fix: _Fix, reverted: tuple[str, ...]
) -> list[tuple[str, str, str, str]] | str:
    """(file, function, text before, text after) of all that a fix changed, or why it is none."""
    if fix.reverts is not None:
        return REVERTS
    if fix.commit.startswith(reverted):
        return REVERTED
    if not fix.parents:
        return NO_PARENT
    files = _changed(objects, fix.commit)
    if len(files) > MOST_FILES:
        return MANY_FILES
    sides = objects.texts(
        [f"{side}:{file}" for file in files for side in (f"{fix.commit}^", fix.commit)]
    )
    if None in sides:
        return UNREADABLE
    changed = (
        (file, function, before, after)
        for file, old, new in zip(files, sides[::2], sides[1::2], strict=True)
        for function, before, after in changed_functions(
            language_of(file) or "", old or "", new or ""
        )
    )
    found = list(islice(changed, MOST_FUNCTIONS + 1))
    if len(found) > MOST_FUNCTIONS:
        return MANY_FUNCTIONS
    return found or NO_FUNCTION


def _fixes(objects: Objects) -> Iterator[_Fix]:
    said = objects.ask(
        *("log", "-z", "--no-merges", "--regexp-ignore-case", "--extended-regexp"),
        *("--encoding=UTF-8", f"--grep={SPEAKS}", "--format=%H%x00%P%x00%B", objects.head, "--"),
    )
    parts = said.split("\0")
    for commit, parents, message in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit.strip()):
            yield _Fix(commit.strip(), parents, message)


def _changed(objects: Objects, commit: str) -> list[str]:
    """The files of code that a commit changed, tests left out."""
    said = objects.raw(
        *("diff-tree", "-r", "-z", "--no-commit-id", "--name-only", "--diff-filter=M"),
        *("--no-ext-diff", "--no-textconv", "--no-renames", commit, "--"),
    )
    files = said.decode("utf-8", "surrogateescape").split("\0")
    return [file for file in files if language_of(file) in FUNCTIONS and not _is_test(file)]


def _is_test(file: str) -> bool:
    path = Path(file.lower())
    folders = {"test", "tests", "testing", "spec", "__tests__", "vendor", "node_modules"}
    of_test = path.stem.startswith("test_") or path.stem.endswith(
        ("_test", ".test", ".spec", "_spec")
    )
    return of_test or bool(folders.intersection(path.parts[:-1]))


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
