"""Judging programs that belong to no task: files, standard input, labelled records.

There is nothing to compare with and nothing to run, so a verdict is what the panel says of the
program alone, and silence counts for as much as it was measured to be worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from treeplay.judge.complete import complete
from treeplay.judge.ensemble import Opinion, trusted, weigh
from treeplay.judge.panel import Panel
from treeplay.judge.rules import parses
from treeplay.judge.static import evidence, flagged, hardly, missing, spoken
from treeplay.judge.tools.base import Program
from treeplay.judge.validity import Validity, check_valid_many
from treeplay.judge.verdict import Verdict

LONGEST = 1_000_000  # characters of a program that tools are asked to read
LONGEST_LINE = 100_000
# fragments of these rarely compile alone, so that not compiling says nothing about them
NEED_CONTEXT = ("c", "cpp")


def judge_programs(
    programs: Sequence[Program], panel: Panel, opinions: Sequence[Opinion] | None = None
) -> list[Verdict]:
    """A verdict on each program, in order; ``opinions`` are those of the panel if known already.

    secure, vulnerable, invalid (does not parse) or unknown; never inert, which only a task can
    tell. Raises :class:`~treeplay.errors.SandboxError` when a tool must run and no sandbox is here.
    """
    odd = [_odd(program) for program in programs]
    if opinions is None:
        asked = [one for one, why in zip(programs, odd, strict=True) if not why]
        answered = iter(panel.look_many(asked))
        opinions = [Opinion() if why else next(answered) for why in odd]
    valid = _validity(programs, odd, panel)
    return [
        Verdict("unknown", reason=why) if why else _verdict(program, opinion, validity, panel)
        for program, opinion, validity, why in zip(programs, opinions, valid, odd, strict=True)
    ]


def _odd(program: Program) -> str:
    """Why no tool should be asked about the text at all, "" when there is no reason."""
    if not program.text.strip():
        return "the program is empty"
    if "\0" in program.text:
        return "the program holds null bytes: it is no text"
    if len(program.text) > LONGEST:
        return f"the program is longer than {LONGEST:,} characters"
    if max(map(len, program.text.splitlines())) > LONGEST_LINE:
        return f"the program has a line of more than {LONGEST_LINE:,} characters"
    return ""


def _validity(programs: Sequence[Program], odd: Sequence[str], panel: Panel) -> list[Validity]:
    found = [Validity(None, "not checked")] * len(programs)
    by_language: dict[str, list[int]] = {}
    for place, (program, why) in enumerate(zip(programs, odd, strict=True)):
        if not why and program.language not in NEED_CONTEXT:
            by_language.setdefault(program.language, []).append(place)
    for language, places in by_language.items():
        texts = [programs[place].text for place in places]
        checked = check_valid_many(language, texts, panel.sandbox)
        again = [n for n, one in enumerate(checked) if one.valid is False]
        whole = [complete(language, texts[n]).text for n in again]
        for n, validity in zip(
            again, check_valid_many(language, whole, panel.sandbox) if whole else (), strict=True
        ):
            if validity.valid is not False or _reads(language, texts[n]):
                checked[n] = Validity(None, "only with context added")
        for place, validity in zip(places, checked, strict=True):
            found[place] = validity
    return found


def _verdict(program: Program, opinion: Opinion, validity: Validity, panel: Panel) -> Verdict:
    config = panel.config
    not_looked = missing(opinion)

    def unknown(reason: str) -> Verdict:
        return Verdict("unknown", reason=reason, not_looked=not_looked)

    if validity.valid is False:
        reason = f"does not parse: {validity.detail}"[:300]
        return Verdict("invalid", reason=reason, not_looked=not_looked)
    whole = panel.is_whole(program.language, opinion)
    weighed = weigh(
        opinion.findings,
        opinion.looked,
        program.language,
        config.policy,
        panel.calibration,
        config.threshold,
        whole=whole,
    )
    if weighed.findings:
        return flagged(weighed, not_looked)
    if opinion.missed:
        return unknown(f"a tool could not look: {opinion.missed[0]}")
    what = ", ".join(program.cwe) or "any CWE"
    if not panel.covered(program.language, program.cwe, opinion.looked):
        return unknown(f"no tool here looks for {what} in {program.language}")
    trust = panel.calibration.silence(spoken(program.language, opinion), program.cwe)
    if trust < config.silence:
        return unknown(
            f"no finding counts, but in {program.language} that is so for much that is vulnerable: "
            f"{trust:.0%} likely to be secure"
        )
    left = trusted(trust, weighed.doubt, whole=whole)
    if left < config.silence:
        return unknown(hardly(weighed))
    reason = f"no finding of {what} counts"
    return Verdict("secure", evidence(opinion.looked), (), None, reason, round(left, 4), not_looked)


def _reads(language: str, text: str) -> bool:
    try:
        return parses(language, text)
    except (RuntimeError, ValueError):
        return False
