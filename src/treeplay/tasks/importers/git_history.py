"""Fixes of vulnerabilities in the history of a git repository: the functions that they changed.

A commit counts whose message speaks of security and that changes few functions. Its functions are
pairs, the vulnerable side from before it. A repository's own settings can name programs for git to
run, and places to fetch from; so its objects are read from an empty repository beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
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
MOST_FILES = 20
MOST_BYTES = 1_000_000  # of a file; what is longer was written by no one
NO_FUNCTION = "changes no function in a known language"
MANY_FUNCTIONS = f"changes more than {MOST_FUNCTIONS} functions"
MANY_FILES = f"changes more than {MOST_FILES} files of code"
NO_PARENT = "the commit before it is not there (the first one, or a shallow clone)"
UNREADABLE = "a file is not there, is no text, or is too long"
REVERTS = "reverts another commit"
REVERTED = "was reverted"
PATIENCE = 600.0  # seconds for one answer of git's

_FUNCTIONS = {
    "python": ("function_definition",),
    "c": ("function_definition",),
    "cpp": ("function_definition",),
    "javascript": (
        *("function_declaration", "generator_function_declaration", "method_definition"),
        *("function_expression", "arrow_function", "generator_function"),
    ),
    "go": ("function_declaration", "method_declaration"),
    "java": ("method_declaration", "constructor_declaration"),
    "ruby": ("method", "singleton_method"),
    "rust": ("function_item",),
    "php": ("function_definition", "method_declaration"),
}
# What may be around a function and is still one with it.
_AROUND = (
    *("decorated_definition", "export_statement", "lexical_declaration", "variable_declaration"),
    *("expression_statement", "variable_declarator", "assignment_expression", "pair"),
    *("arguments", "call_expression"),
)
_Name = tuple[str, ...]  # what it stands in, and its own


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
        objects = _Objects(repository, Path(folder))
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
    objects: _Objects, fix: _Fix, reverted: tuple[str, ...]
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
        for function, before, after in _changed_functions(
            language_of(file) or "", old or "", new or ""
        )
    )
    found = list(islice(changed, MOST_FUNCTIONS + 1))
    if len(found) > MOST_FUNCTIONS:
        return MANY_FUNCTIONS
    return found or NO_FUNCTION


class _Objects:
    """The objects of a repository, read with none of its settings: from an empty repository whose
    alternate they are."""

    def __init__(self, repository: Path, folder: Path) -> None:
        asked = ("--git-path", "objects", "--git-path", "shallow", "--show-object-format")
        self._command = ["git", "-C", str(repository), "-c", "core.fsmonitor=false"]
        self._repository = repository
        lines = self.ask("rev-parse", *asked, "HEAD^{commit}").split("\n")
        objects, shallow, form, self.head = lines[0], lines[1], lines[2], lines[3]
        top = self.ask("rev-parse", "--absolute-git-dir").strip()
        self.name = Path(top.removesuffix("/.git")).name.removesuffix(".git")
        self._command = ["git", "--git-dir", str(folder)]
        self.ask("init", "--quiet", "--bare", "--template=", f"--object-format={form}")
        (folder / "objects/info").mkdir(parents=True, exist_ok=True)
        (folder / "objects/info/alternates").write_text(f"{(repository / objects).resolve()}\n")
        if (repository / shallow).is_file():
            (folder / "shallow").write_bytes((repository / shallow).read_bytes())

    def ask(self, *arguments: str, given: str = "") -> str:
        """What git says. Raises TaskError where it fails."""
        return self.raw(*arguments, given=given).decode(errors="replace")

    def raw(self, *arguments: str, given: str = "") -> bytes:
        # None of the settings of a hook that this may be called from; nothing is fetched.
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        env |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "", "GIT_TERMINAL_PROMPT": "0"}
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                input=given.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
                env=env,
                timeout=PATIENCE,
            )
        except FileNotFoundError:
            raise TaskError("git is not installed, and reads the history; install it") from None
        except subprocess.TimeoutExpired:
            raise TaskError(
                f"{self._repository}: git took more than {PATIENCE:.0f} s; give a smaller clone"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().split("\n")[0]
            raise TaskError(
                f"{self._repository}: git cannot read a history here ({said}); give the folder of "
                "a repository"
            )
        return done.stdout

    def texts(self, names: list[str]) -> list[str | None]:
        """The text of each object; None where it is not there, is too long or no UTF-8."""
        if any("\n" in name for name in names):
            return [None] * len(names)
        lines = "".join(f"{name}\n" for name in names)
        sizes = self.ask("cat-file", "--batch-check=%(objecttype) %(objectsize)", given=lines)
        found: list[str | None] = []
        for name, told in zip(names, sizes.splitlines(), strict=False):
            kind, _, size = told.partition(" ")
            text = None
            if kind == "blob" and int(size) <= MOST_BYTES:
                try:
                    text = self.raw("cat-file", "blob", name).decode()
                except UnicodeDecodeError:
                    text = None
            found.append(text)
        return found + [None] * (len(names) - len(found))


def _fixes(objects: _Objects) -> Iterator[_Fix]:
    said = objects.ask(
        *("log", "-z", "--no-merges", "--regexp-ignore-case", "--extended-regexp"),
        *("--encoding=UTF-8", f"--grep={SPEAKS}", "--format=%H%x00%P%x00%B", objects.head, "--"),
    )
    parts = said.split("\0")
    for commit, parents, message in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit.strip()):
            yield _Fix(commit.strip(), parents, message)


def _changed(objects: _Objects, commit: str) -> list[str]:
    """The files of code that a commit changed, tests left out."""
    said = objects.raw(
        *("diff-tree", "-r", "-z", "--no-commit-id", "--name-only", "--diff-filter=M"),
        *("--no-ext-diff", "--no-textconv", "--no-renames", commit, "--"),
    )
    files = said.decode("utf-8", "surrogateescape").split("\0")
    return [file for file in files if language_of(file) in _FUNCTIONS and not _is_test(file)]


def _is_test(file: str) -> bool:
    path = Path(file.lower())
    folders = {"test", "tests", "testing", "spec", "__tests__", "vendor", "node_modules"}
    of_test = path.stem.startswith("test_") or path.stem.endswith(
        ("_test", ".test", ".spec", "_spec")
    )
    return of_test or bool(folders.intersection(path.parts[:-1]))


def _changed_functions(language: str, before: str, after: str) -> Iterator[tuple[str, str, str]]:
    """(name, text before, text after) of every outermost function that both have, differently.

    Of several with one name in one place (overloads) only the last that is left over counts, when
    those that are alike are taken away.
    """
    old, new = _functions(language, before), _functions(language, after)
    for name, texts in new.items():
        gone = list((Counter(old.get(name, ())) - Counter(texts)).elements())
        come = list((Counter(texts) - Counter(old.get(name, ()))).elements())
        if len(gone) == len(come) == 1:
            yield name[-1], gone[0], come[0]


def _functions(language: str, program: str) -> dict[_Name, list[str]]:
    """The outermost functions of a program by name, whole lines of text."""
    found: dict[_Name, list[str]] = defaultdict(list)
    lines = program.split("\n")
    nothing: _Name = ()
    stack = [(SgRoot(program, language).root(), nothing)]
    while stack:
        node, names = stack.pop()
        own = _own_name(node) if node.kind() in _FUNCTIONS[language] else ""
        if not own:
            inside = node.field("type" if node.kind() == "impl_item" else "name")
            inner = names if inside is None else (*names, inside.text())
            stack += [(child, inner) for child in reversed(node.children())]
            continue
        receiver = node.field("receiver")  # Go
        where = names if receiver is None else (*names, receiver.text().strip("()").split()[-1])
        whole = _whole(node)
        first, last = whole.range().start, whole.range().end
        alone = not lines[first.line][: first.column].strip()
        text = "\n".join(lines[first.line : last.line + 1]) if alone else whole.text()
        which = (*where, own)
        found[which].append(text.rstrip() + "\n")
    return found


def _own_name(function: SgNode) -> str:
    """A function's name. C declares it inside what it returns, JavaScript where it is put; "" for
    one that is put nowhere: it is a part of what is around it."""
    named = function.field("name")
    if named is not None:
        return str(named.text())
    declared = function.field("declarator")
    while declared is not None and (inner := declared.field("declarator")) is not None:
        declared = inner
    if declared is not None:
        return str(declared.text())
    around = function.parent()
    if around is None:
        return ""
    if around.kind() == "arguments":
        call = around.parent()
        texts = [child for child in around.children() if child.kind() == "string"]
        called = call.field("function") if call is not None else None
        return f"{called.text()}({texts[0].text()}" if called is not None and texts else ""
    named = next((n for f in ("name", "left", "key") if (n := around.field(f)) is not None), None)
    return str(named.text()) if named is not None else ""


def _whole(function: SgNode) -> SgNode:
    """The statement that a function is, with decorators."""
    whole = function
    while (above := whole.parent()) is not None and above.kind() in _AROUND:
        whole = above
    return whole


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
