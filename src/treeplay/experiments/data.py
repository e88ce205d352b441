"""Data of an experiment: public data sets become task files, the same for every arm and seed.

Which tasks a limit keeps depends on their ids alone: the CWEs take turns, and within a CWE the
order is that of a hash of the id. So a smaller limit keeps a part of what a larger one keeps, and
no seed changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from treeplay.errors import TaskError
from treeplay.experiments.protocol import FILES, Part, Protocol, Size
from treeplay.judge.cwe import ancestors, cwe_matches, cwe_number
from treeplay.run import read_json, write_json
from treeplay.tasks.contamination import shared_ngrams
from treeplay.tasks.decision import decision_form
from treeplay.tasks.fetch import SOURCES
from treeplay.tasks.importers import KINDS, import_tasks
from treeplay.tasks.jsonl import write_tasks
from treeplay.tasks.pack import load_pack
from treeplay.tasks.task import Task

# The share of a task's 13-grams from which on it counts as known from training.
CONTAMINATED = 0.1
# Weaknesses that are one and the same to a player, beside those that analysers name for one another
# (:func:`cwe_matches`): a check that is missing, and one that is wrong.
ALIKE = (("CWE-862", "CWE-863"),)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The task files of one fold. ``eval``: entries for ``tasks.eval``. ``facts``: counts, digests
    and contamination, as they go into the results."""

    train: Path
    eval: tuple[str, ...]
    facts: dict[str, Any]


def place_of(kind: str, folder: Path) -> Path | None:
    """Where a data set lies in ``folder``: its file in record form, or its repository as
    ``treeplay tasks fetch`` checks it out (both give the same tasks); None where neither is."""
    source = SOURCES[kind]
    places = (folder / FILES[kind], folder / source.folder / source.path)
    return next((place for place in places if place.exists()), None)


def missing_files(protocol: Protocol, folder: Path) -> str:
    """A sentence that names every data set that the protocol needs and that is not in ``folder``,
    and says where they are to be had; nothing where all are there."""
    missing = [kind for kind in protocol.kinds() if place_of(kind, folder) is None]
    if not missing:
        return ""
    return (
        f"{folder} lacks {', '.join(FILES[kind] for kind in missing)}, which experiment "
        f"{protocol.name} needs; run 'treeplay tasks fetch {folder} {' '.join(missing)}', or name "
        "another folder with --data"
    )


def prepare(protocol: Protocol, data: Path, out: Path, size: Size, say: Say) -> list[Prepared]:
    """Write the task files of every fold under ``out`` (once: what is there for the same data and
    protocol is used again). Raises :class:`TaskError` where a part has no tasks."""
    if missing := missing_files(protocol, data):
        raise TaskError(missing)
    found_at = {kind: place_of(kind, data) for kind in protocol.kinds()}
    digests = {FILES[kind]: _place_digest(place) for kind, place in found_at.items() if place}
    parts = [asdict(part) for part in (*protocol.train, *protocol.eval)]
    sources = _Sources(data, say)
    folds = _folds(protocol, sources) if protocol.folds > 1 else [None]
    dealt = protocol.folds if protocol.folds == 1 else [sorted(fold) for fold in folds if fold]
    asked = {"files": digests, "parts": parts, "folds": dealt, "size": size}
    asked = json.loads(json.dumps(asked))
    found = []
    for number, held in enumerate(folds):
        folder = out / "data" / (size if held is None else f"{size}-fold-{number + 1}")
        path = folder / "data.json"
        facts = read_json(path) if path.is_file() else None
        if facts is None or facts["asked"] != asked or _stale(folder, facts):
            facts = {"asked": asked, **_write(protocol, sources, folder, size, held, folds)}
            write_json(path, facts)
        for suite, shared in facts["contamination"].items():
            if shared:
                say(f"{suite}: {len(shared)} tasks share a tenth of their 13-grams with training")
        entries = tuple(_entry(folder, part) for part in protocol.eval)
        if held is not None:  # a fold may have no task of a suite
            entries = tuple(
                entry
                for entry, part in zip(entries, protocol.eval, strict=True)
                if facts["suites"][part.suite()]["tasks"]
            )
        found.append(Prepared(folder / "train.jsonl", entries, facts))
    return found


def _entry(folder: Path, part: Part) -> str:
    entry = f"{folder / _suite_file(part)}@{part.form}"
    entry += f",max_tokens={part.max_tokens}" if part.max_tokens else ""
    return entry + (f",samples={part.samples}" if part.samples else "")


def _suite_file(part: Part) -> Path:
    return Path(part.form) / f"{part.name or part.source}.jsonl"


def _stale(folder: Path, facts: dict[str, Any]) -> bool:
    return any(
        not (folder / name).is_file() or _file_digest(folder / name) != digest
        for name, digest in facts["digests"].items()
    )


class _Sources:
    """Imported data sets, each read once."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say = folder, say
        self.known: dict[str, list[Task]] = {}

    def tasks(self, source: str) -> list[Task]:
        if source not in self.known:
            if source == "starter":
                self.known[source] = load_pack()
            elif source not in KINDS:
                raise TaskError(f"no importer reads {FILES[source]} ({source})")
            else:
                place = place_of(source, self.folder)
                assert place is not None  # or prepare() had said so
                result = import_tasks(source, place)
                self.say(f"{place}: {len(result.tasks)} tasks")
                self.known[source] = result.tasks
        return self.known[source]


def _write(
    protocol: Protocol,
    sources: _Sources,
    folder: Path,
    size: Size,
    held: frozenset[str] | None,
    folds: Sequence[frozenset[str] | None],
) -> dict[str, Any]:
    """Write the files of one of the ``folds``; ``held`` are the CWEs held out, None without."""
    dealt = {cwe for fold in folds if fold for cwe in fold}
    train: dict[str, Task] = {}
    counts: dict[str, int] = {}
    for part in protocol.train:
        some = [t for t in _chosen(part, sources) if t.golden is not None]
        if held is not None:
            some = [t for t in some if set(t.cwe) <= dealt - held]
        some = limited(some, part.most(size))
        name = part.name or part.source
        counts[name] = counts.get(name, 0) + len(some)
        train |= {t.id: replace(t, split="train") for t in some}
        if not some and held is None:
            raise TaskError(f"experiment {protocol.name}: nothing of {name} is left to train on")
    suites: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    write_tasks(folder / "train.jsonl", list(train.values()))
    for part in protocol.eval:
        some = _chosen(part, sources)
        if held is not None:
            some = [t for t in some if held & set(t.cwe)]
        if part.rest:
            some = [t for t in some if t.id not in train]
        if part.form != "full":
            some = [t for t in some if decision_form(t, part.form) is not None]
        some = limited(some, part.most(size))
        if part.static:
            some = [replace(t, tests=None) for t in some]
        split = "eval-unseen" if held is not None else ""
        some = [replace(t, split=split or _held(t)) for t in some]
        if not some and held is None:
            raise TaskError(f"experiment {protocol.name}: no task is left of suite {part.suite()}")
        (folder / part.form).mkdir(parents=True, exist_ok=True)
        write_tasks(folder / _suite_file(part), some)
        both = sorted(t.id for t in some if t.id in train)
        if both:
            raise TaskError(f"{part.suite()}: {both[0]} is trained on and evaluated")
        suites[part.suite()] = {
            "tasks": len(some),
            "tested": sum(t.tests is not None for t in some),
            "languages": sorted({t.language for t in some}),
            "cwes": len({c for t in some for c in t.cwe}),
        }
        shared[part.suite()] = [
            {"task": s.task_id, "share": round(s.fraction, 3), "nearest": s.nearest_id}
            for s in shared_ngrams(list(train.values()), some)
            if s.fraction >= CONTAMINATED
        ]
    files = ["train.jsonl", *(str(_suite_file(part)) for part in protocol.eval)]
    # A fold that cannot be played must not end the others.
    fault = {} if train else {"fault": "no task is left to train on"}
    return {
        **fault,
        "train": counts,
        "train_cwes": sorted({c for t in train.values() for c in t.cwe}, key=_number),
        "held_out": sorted(held, key=_number) if held is not None else None,
        "suites": suites,
        "contamination": shared,
        "digests": {name: _file_digest(folder / name) for name in files},
    }


def _held(task: Task) -> str:
    return "eval" if task.split == "train" else task.split


def _chosen(part: Part, sources: _Sources) -> list[Task]:
    def wanted(task: Task) -> bool:
        return (
            (not part.splits or task.split in part.splits)
            and (not part.languages or task.language in part.languages)
            and (not part.cwes or bool(set(part.cwes) & set(task.cwe)))
            and (not part.tested or task.tests is not None)
            and (not part.max_chars or _length(task) <= part.max_chars)
        )

    return [task for task in sources.tasks(part.source) if wanted(task)]


def _length(task: Task) -> int:
    return len(task.prompt) + len(task.golden or "") + len(task.suffix)


def limited(tasks: Sequence[Task], limit: int) -> list[Task]:
    """At most ``limit`` of ``tasks`` (0: all), in their order: CWEs take turns, in each the order
    is that of a hash of the id, so smaller limits keep a part of what larger ones keep."""
    if not limit or len(tasks) <= limit:
        return list(tasks)
    by_cwe: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: hashlib.sha256(task.id.encode()).hexdigest()):
        by_cwe.setdefault(task.cwe[0] if task.cwe else "", []).append(task)
    turns = zip_longest(*(by_cwe[cwe] for cwe in sorted(by_cwe, key=_number)))
    order = [task.id for turn in turns for task in turn if task is not None]
    kept = set(order[:limit])
    return [task for task in tasks if task.id in kept]


def _folds(protocol: Protocol, sources: _Sources) -> list[frozenset[str] | None]:
    cwes: set[str] = set()
    for part in (*protocol.train, *protocol.eval):
        cwes |= {cwe for task in _chosen(part, sources) for cwe in task.cwe}
    return list(split_cwes(cwes, protocol.folds))


def split_cwes(cwes: Iterable[str], folds: int) -> list[frozenset[str]]:
    """``cwes`` in ``folds`` sets: sorted by number, kinds of one weakness together at the place of
    the lowest, dealt out in turn. No seed.

    A class of weaknesses of several families (CWE-74, injection, beside CWE-79 and CWE-89) is in
    no set, and its tasks are in no fold: held out it would ask about what is trained on, and
    trained on it would show what is held out.
    """
    names = set(cwes)
    families: list[set[str]] = []
    for cwe in sorted(names, key=_number):
        kin = [family for family in families if any(alike(cwe, other) for other in family)]
        families = [family for family in families if family not in kin]
        families.append({cwe}.union(*kin))
    families = [f - {cwe for cwe in f if _is_class(cwe, names - f)} for f in families]
    dealt: list[set[str]] = [set() for _ in range(folds)]
    kept = sorted((family for family in families if family), key=lambda f: min(map(_number, f)))
    for index, family in enumerate(kept):
        dealt[index % folds] |= family
    return [frozenset(some) for some in dealt]


def alike(one: str, other: str) -> bool:
    """Whether two CWEs are one weakness to a player: what it learns about one is about both."""
    return cwe_matches(one, other) or any({one, other} <= set(group) for group in ALIKE)


def _is_class(cwe: str, others: set[str]) -> bool:
    """Whether some of the ``others`` are kinds of ``cwe``, however far down."""
    number = cwe_number(cwe)
    return any(number in ancestors(cwe_number(o) or 0, steps=20) for o in others)


def _number(cwe: str) -> tuple[int, str]:
    digits = cwe.rpartition("-")[2]
    return (int(digits) if digits.isdigit() else -1, cwe)


def _place_digest(place: Path) -> str:
    """Of a file, or of all files in a folder."""
    if place.is_file():
        return _file_digest(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    told = [f"{path.relative_to(place)} {_file_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
