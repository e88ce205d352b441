"""The results page: what was found, between two marks of a page whose other text is written by
hand, and beside it a page of tables for every study, all made from ``results/``."""

from __future__ import annotations

from pathlib import Path

from treeplay.errors import RunError
from treeplay.experiments.goals import goals_table
from treeplay.experiments.plots import study_plot
from treeplay.experiments.results import Group, Study, read_studies
from treeplay.experiments.tables import rates_table, study_tables
from treeplay.run import write_text

BEGIN = "<!-- begin: made by treeplay experiment --tables -->"
END = "<!-- end: made by treeplay experiment --tables -->"
MADE = "<!-- made by treeplay experiment --tables: edit nothing here -->"
NOTE = """Rates are percent over all samples, differences are points. Intervals are 95 % bootstrap
intervals over tasks and seeds drawn anew together (with one seed: over tasks alone); tasks of
SecCodePLT go by CWE; [experiments.md](experiments.md) says what p-values are of. `tokens` is the
mean number sampled; SPR@1 of valid leaves broken answers out, as the paper does: read it next to
`valid`."""


def page_files(results: Path, page: Path) -> dict[Path, str]:
    """What the page, the pages of tables in a folder of its name, and the plots are to be: path ->
    text. Raises :class:`RunError` where there are no results, or where the page lacks the two
    marks."""
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot read {page}: {error.strerror}; --page names a Markdown file with the lines "
            f"{BEGIN!r} and {END!r}, between which the tables go"
        ) from error
    head, begin, rest = old.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RunError(f"{page} lacks the lines {BEGIN!r} and {END!r}; add them where tables go")
    studies = read_studies(results)
    files: dict[Path, str] = {}
    lines = [BEGIN, "", *NOTE.split("\n")]
    if goals := goals_table(studies):
        claims = Path(page.stem) / "claims.md"
        files[page.parent / claims] = _below(page, "All claims, protocol by protocol", goals)
        lines += ["", f"[All claims, protocol by protocol]({claims.as_posix()})"]
    for study in studies:
        name = f"{study.protocol}-{study.model}"
        plot, tables = Path("img") / f"results-{name}.svg", Path(page.stem) / f"{name}.md"
        shown = f"![SPR@1 and vulnerable rate by arm]({{}}{plot.as_posix()})"
        files[page.parent / plot] = study_plot(study)
        text = [*NOTE.replace("](", "](../").split("\n"), "", shown.format("../"), ""]
        files[page.parent / tables] = _below(page, _heading(study), [*text, *study_tables(study)])
        lines += ["", f"### {_heading(study)}", "", shown.format("")]
        for group in _first_of_all(study):
            lines += ["", *rates_table(study, group)]
        lines += ["", f"[Commands, all suites, comparisons and costs]({tables.as_posix()})"]
    files[page] = head + "\n".join([*lines, "", END]) + tail
    return files


def _below(page: Path, heading: str, lines: list[str]) -> str:
    """A page of tables that belongs to ``page``."""
    return "\n".join([MADE, "", f"# {heading}", "", f"[Results](../{page.name})", "", *lines, ""])


def write_page(results: Path, page: Path) -> list[Path]:
    """Write what :func:`page_files` says; returns the paths. Pages of tables of an earlier time
    are removed."""
    files = page_files(results, page)
    for path, text in files.items():
        write_text(path, text)
    for old in (page.parent / page.stem).glob("*.md"):
        if old not in files and old.read_text(encoding="utf-8").startswith(MADE):
            old.unlink()
    return list(files)


def _first_of_all(study: Study) -> list[Group]:
    """The tasks that the page shows rates of: those of the first kind there is, in every language
    where languages are told apart."""
    groups = study.main_groups()
    if not study.by_language:
        return groups[:1]
    kind = groups[0].name.rpartition(", ")[0] if groups else ""
    return [group for group in groups if group.name.startswith(f"{kind}, ")] or groups[:1]


def _heading(study: Study) -> str:
    return f"`{study.protocol}`, {study.model}: {study.title}"
