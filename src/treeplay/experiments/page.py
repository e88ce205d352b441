"""The results page: tables and plots made from ``results/``, between two marks of a page whose
other text is written by hand."""

from __future__ import annotations

from pathlib import Path

from treeplay.errors import RunError
from treeplay.experiments.cells import folded
from treeplay.experiments.goals import goals_table
from treeplay.experiments.plots import study_plot
from treeplay.experiments.results import Study, read_studies
from treeplay.experiments.tables import study_tables
from treeplay.run import write_text

BEGIN = "<!-- begin: made by treeplay experiment --tables -->"
END = "<!-- end: made by treeplay experiment --tables -->"
NOTE = """Rates are percent over all samples, differences are points. Intervals are 95 % bootstrap
intervals over tasks and seeds drawn anew together (with one seed: over tasks alone); tasks of
SecCodePLT go by CWE; [experiments.md](experiments.md) says what p-values are of. `tokens` is the
mean number sampled; SPR@1 of valid leaves broken answers out, as the paper does: read it next to
`valid`."""


def page_files(results: Path, page: Path) -> dict[Path, str]:
    """What the page and its plots are to be: path -> text. Raises :class:`RunError` where there
    are no results, or where the page lacks the two marks."""
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
        lines += ["", *folded("All claims, protocol by protocol", goals)]
    for study in studies:
        plot = Path("img") / f"results-{study.protocol}-{study.model}.svg"
        files[page.parent / plot] = study_plot(study)
        lines += ["", f"### {_heading(study)}", ""]
        lines += [f"![SPR@1 and vulnerable rate by arm]({plot.as_posix()})", ""]
        lines += study_tables(study)
    files[page] = head + "\n".join([*lines, "", END]) + tail
    return files


def write_page(results: Path, page: Path) -> list[Path]:
    """Write what :func:`page_files` says; returns the paths."""
    files = page_files(results, page)
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def _heading(study: Study) -> str:
    return f"`{study.protocol}`, {study.model}: {study.title}"
